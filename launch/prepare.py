"""`audioldm2-jax prepare`, from a checkout: see audioldm2_jax/commands/prepare.py."""

from audioldm2_jax.commands.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
