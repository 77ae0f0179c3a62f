"""Every hyperparameter and every size, declared once: in `paper.base`, from which the others differ.

A recipe is a locked `ConfigDict`: reading or overriding a key that is not declared there fails with the nearest real
name. `configs/*.py` call `get(name)` and change what differs.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.recipes import paper, small, tiny

TINY, SMALL, PAPER = "tiny", "small", ("base", "large", "48k")


def get(name: str) -> ConfigDict:
    """Returns the recipe `name`: tiny, small, base, large or 48k.

    Raises:
        ValueError: `name` is no recipe; the message lists those there are.
    """
    recipes = {
        TINY: tiny.recipe,
        SMALL: small.recipe,
        "base": paper.base,
        "large": paper.large,
        "48k": paper.fullband,
    }
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}; the recipes are {', '.join(recipes)}")
    config = recipes[name]()
    config.recipe = name
    return config.lock()
