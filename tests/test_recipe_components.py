"""Sizes inside the networks of a recipe: those that do not fit are refused before the first stage begins."""

import jax
import pytest

from audioldm2_jax import recipes
from audioldm2_jax.recipe_components import check_networks, recipe_parts
from audioldm2_jax.recipe_resolve import RecipeError
from audioldm2_jax.training import run


def changed(**values):
    config = recipes.get("tiny")
    with config.ignore_type():
        config.update_from_flattened_dict({f"models.{key.replace('__', '.')}": value for key, value in values.items()})
    return config


@pytest.mark.parametrize(
    ("name", "key", "value", "fault"),
    [
        ("vae", "norm_num_groups", 5, "norm_num_groups=5 does not divide"),
        ("vae", "norm_num_groups", 0, "modulo by zero"),
        ("unet", "norm_num_groups", 7, "norm_num_groups=7 does not divide"),
        ("unet", "attention_head_dim", 5, "5 heads do not divide"),
        ("unet", "block_out_channels", (32, 64), "one for each of the 2 levels"),
        ("text_encoder", "text_config__num_attention_heads", 7, ""),
        ("text_encoder", "audio_config__num_attention_heads", (3, 6), ""),
        ("text_encoder", "audio_config__window_size", 0, ""),
        ("text_encoder_2", "num_heads", 0, ""),
        ("language_model", "n_head", 7, "n_head=7 does not divide"),
        ("vocoder", "upsample_kernel_sizes", (16,), "upsample"),
        ("vocoder", "resblock_dilation_sizes", ((1, 3),) * 7, "resblock"),
    ],
)
def test_sizes_that_do_not_fit(name, key, value, fault):
    config = changed(**{f"{name}__{key}": value})
    with pytest.raises(RecipeError, match=f"do not fit: .*{fault}") as caught:
        check_networks(config, recipe_parts(config))
    message = str(caught.value)
    assert message.startswith(f"models.{name} with {key.replace('__', '.')}={value}: ") and "\n" not in message


def test_sizes_that_fit():
    config = changed(vae__norm_num_groups=2, language_model__n_layer=1)
    check_networks(config, recipe_parts(config))


def test_networks_as_the_recipe_has_them_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("traced"))
    for name in ("tiny", "small", "speech-tiny", "unified-tiny", *recipes.PAPER):
        config = recipes.get(name)
        check_networks(config, recipe_parts(config))


def test_a_run_is_refused_before_it_begins(tmp_path):
    config = changed(vae__norm_num_groups=5)
    config.run_dir, config.data.source = str(tmp_path), "builtin:music"
    with pytest.raises(RecipeError, match="norm_num_groups=5"):
        run.prepare(config)
    assert not (tmp_path / "stages").exists()

    config.init_from.vae = str(tmp_path)  # whose sizes are its own
    assert "vae" not in run._new_networks(config, ["vae", "joint"])
