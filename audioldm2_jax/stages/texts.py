"""The text encoders of a stage with a language model: which of them it trains, and what GPT-2 reads of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from audioldm2_jax.conditioning.conditions import Text, text_encoders
from audioldm2_jax.conditioning.loa import Prefix, encode_prompt
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Stage

Tree = Any


def trained(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """Returns the text encoders beside CLAP's that stage `stage` trains, as its `train_text_encoder_…` say."""
    return tuple(name for name in text_encoders(config) if config.train[stage][f"train_{name}"])


def frozen(config: ConfigDict, stage: str) -> tuple[str, ...]:
    """Returns the others."""
    return tuple(name for name in text_encoders(config) if name not in trained(config, stage))


def encode(
    stage: Stage, params: Tree, weights: Mapping[str, Tree], text: Text, rngs: Rngs | None = None
) -> tuple[Prefix, jax.Array, jax.Array]:
    """Returns what `encode_prompt` makes of token ids, with the encoders that the stage trains and those that it needs.

    Args:
        stage: it has a text encoder, and a projection model.
        params: its parameters.
        weights: those of the frozen networks.
        text: fields of the batch.
        rngs: for dropout in the encoders that are trained; None for none.
    """
    encoders = text_encoders(stage.config)
    keys = {kind: rngs and stage.dropout(name, params, rngs) for name, kind in encoders.items()}
    return encode_prompt(
        stage.network("text_encoder", weights),
        {kind: stage.network(name, weights, params) for name, kind in encoders.items()},
        stage.network("projection_model", weights, params),
        text,
        dropout_keys=keys,
    )
