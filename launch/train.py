"""`audioldm2-jax train`, from a checkout: see audioldm2_jax/commands/train.py."""

from audioldm2_jax.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
