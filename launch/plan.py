"""`audioldm2-jax plan`, from a checkout: see audioldm2_jax/commands/plan.py."""

from audioldm2_jax.commands.plan import main

if __name__ == "__main__":
    raise SystemExit(main())
