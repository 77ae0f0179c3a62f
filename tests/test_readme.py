"""The README is true of the tree: its links, keys, code and the sizes it gives."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from audioldm2_jax import recipes
from audioldm2_jax.components import SPECS
from audioldm2_jax.recipe_components import build_from_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_figure_is_filled_in():
    assert re.findall(r"@@\w+@@", README) == []


def test_what_it_names_is_there():
    paths = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    paths += re.findall(r"\b(?:configs|launch|benchmarks|notebooks|docs)/[\w/]+\.\w+", README)
    assert [path for path in dict.fromkeys(paths) if not (ROOT / path).exists()] == []


def test_its_keys_are_the_recipes():
    config = recipes.get("tiny")
    for key in re.findall(r"--config\.([a-z_0-9.]+)", README):
        value = config
        for part in key.split("."):
            value = value[part]


def test_its_python_compiles():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize(
    ("row", "component"),
    [
        ("UNet", "unet"),
        ("VAE", "vae"),
        ("vocoder", "vocoder"),
        ("GPT-2, without its table of words", "language_model"),
        ("T5 encoder", "text_encoder_2"),
        ("CLAP", "text_encoder"),
        ("AudioMAE encoder", "audiomae"),
    ],
)
def test_sizes_of_the_small_recipe(row, component):
    """Exact to the two digits that the table gives; those of the paper's recipes are in test_recipes.py and models/."""
    module = build_from_recipe(recipes.get("tiny"), component)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *SPECS[component].dummy_inputs(module)))["params"]
    if component == "audiomae":
        made = {name: leaf for name, leaf in made.items() if not name.startswith(("decoder", "mask_token"))}
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(made))
    stated = re.search(rf"^\| {re.escape(row)} \| ([\d.]+)M \|", README, re.MULTILINE)
    assert stated and stated[1] == f"{count / 1e6:.2f}"
