"""The components of a recipe's model: what each one is by the recipe, and its module."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.checkpoints.buffers import Config
from audioldm2_jax.components import SPECS, UNIFIED_PROJECTION, ComponentSpec, spec_of
from audioldm2_jax.conditioning.conditions import speaks, text_encoders, text_width
from audioldm2_jax.conditioning.loa import loa_tokens
from audioldm2_jax.recipe_resolve import RecipeError

_NAMING = ("model_type", "_class_name")  # keys of a config that tell which network it is, and no fields of it


def recipe_parts(config: ConfigDict) -> tuple[str, ...]:
    """The components of a recipe's model, those that `init_from` knows: not every model has a third text encoder."""
    return tuple(name for name in SPECS if name in config.init_from)


def recipe_spec(config: ConfigDict, name: str) -> ComponentSpec:
    """The spec of component `name` as a recipe has it.

    Raises:
      FolderError: where its `model_type` is of none of our networks.
    """
    return spec_of(name, recipe_fields(config, name))


def recipe_fields(config: ConfigDict, name: str) -> dict[str, Any]:
    """The config of component `name` as a recipe has it: its section of `models`, and what follows from others."""
    models, audio = config.models, config.audio
    if name == "projection_model":
        phonemes, encoders = speaks(config), text_encoders(config)
        third = {}
        if "text_encoder_3" in encoders:
            third = {"_class_name": UNIFIED_PROJECTION, "text_encoder_2_dim": text_width(config, "text_encoder_3")}
        return {
            "text_encoder_dim": models.text_encoder.projection_dim,
            "text_encoder_1_dim": text_width(config, "text_encoder_2"),
            "langauge_model_dim": models.language_model.n_embd,
            "use_learned_position_embedding": phonemes or None,
            "max_seq_length": config.text.phoneme_length if phonemes else None,
        } | third
    mel = {"model_in_dim": audio.mel.n_mels, "sampling_rate": audio.sampling_rate} if name == "vocoder" else {}
    return models[name].to_dict() | mel


def recipe_config(config: ConfigDict, name: str) -> dict[str, Any]:
    """`recipe_fields`, and what else of the recipe config.json has to say: how long a LOA the language model writes."""
    further = {}
    if name == "language_model":
        audiomae = config.models.audiomae
        grid = (extent // audiomae.patch_size for extent in audiomae.img_size)
        further["max_new_tokens"] = loa_tokens(config.loa.pooling, *grid)
    return recipe_fields(config, name) | further


def latent_frames(config: ConfigDict, vae: Config) -> int:
    """Latent frames of a clip of the recipe, the UNet's `sample_size`, by which diffusers finds the clip's length."""
    frames = round(config.audio.seconds * config.audio.sampling_rate) // config.audio.mel.hop_length
    return frames // 2 ** (len(vae["block_out_channels"]) - 1)


def build_from_recipe(config: ConfigDict, name: str) -> nn.Module:
    """The Linen module of component `name` as a recipe describes it, in the recipe's precision."""
    network = recipe_spec(config, name).network
    settings = {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
    known = {field.name for field in dataclasses.fields(network)}
    fields = {key: value for key, value in recipe_fields(config, name).items() if key not in _NAMING}
    return network(**fields, **{key: settings[key] for key in settings if key in known})


def check_networks(config: ConfigDict, names: Iterable[str]) -> None:
    """Looks whether the sizes inside those of the networks fit that are not as the recipe has them; computes nothing.

    Raises:
      RecipeError: they do not, by what the network says of it.
    """
    usual = recipes.get(config.recipe)
    for name in names:
        fields, former = (dict(_flat(recipe_fields(each, name))) for each in (config, usual))
        if fields == former:
            continue
        try:
            jax.eval_shape(functools.partial(_parameters, config, name))
        except (ValueError, TypeError, ArithmeticError, IndexError, flax.errors.FlaxError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            set_here = ", ".join(f"{key}={fields[key]}" for key in fields if fields[key] != former.get(key))
            raise RecipeError(f"models.{name} with {set_here}: its sizes do not fit: {reason}") from error


def _flat(fields: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parameters(config: ConfigDict, name: str) -> Any:
    module = build_from_recipe(config, name)
    return module.init(jax.random.key(0), *recipe_spec(config, name).dummy_inputs(module))
