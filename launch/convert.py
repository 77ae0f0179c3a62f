"""`audioldm2-jax convert`, from a checkout: see audioldm2_jax/commands/convert.py."""

from audioldm2_jax.commands.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
