"""Every hyperparameter and every size, declared once: in `paper.base`, from which the others differ.

A recipe is a locked `ConfigDict`: reading or overriding a key that is not declared there fails with the nearest real
name. `configs/*.py` call `get(name)` and change what differs.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.recipes import paper, small, tiny, tiny_speech

_RECIPES = {
    "tiny": tiny.recipe,
    "small": small.recipe,
    "base": paper.base,
    "large": paper.large,
    "48k": paper.fullband,
    "speech-tiny": tiny_speech.recipe,
    "speech-base": lambda: paper.speech(paper.base()),
    "speech-large": lambda: paper.speech(paper.large()),
    "unified-tiny": tiny_speech.unified,
    "unified-base": lambda: paper.unified(paper.base()),
    "unified-large": lambda: paper.unified(paper.large()),
}
TINY, SMALL = "tiny", "small"
PAPER = ("base", "large", "48k", "speech-base", "speech-large", "unified-base", "unified-large")


def get(name: str) -> ConfigDict:
    """Returns the recipe `name`.

    Raises:
        ValueError: `name` is no recipe; the message lists those there are.
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown recipe {name!r}; the recipes are {', '.join(_RECIPES)}")
    config = _RECIPES[name]()
    config.recipe = name
    return config.lock()
