"""`audioldm2-jax generate`, from a checkout: see audioldm2_jax/commands/generate.py."""

from audioldm2_jax.commands.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
