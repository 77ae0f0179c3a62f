"""What conditions the UNet on a clip, and guidance dropout; shared by the training stages and generation."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Text = Mapping[str, jax.Array]
SECOND_KINDS = {"t5": "t5", "vits": "phoneme"}
"""What the second text encoder reads, by its `model_type`: captions (T5) or transcriptions (speech)."""


def second_kind(config: ConfigDict) -> str:
    """Returns what a recipe's second text encoder reads, a value of `SECOND_KINDS`: its fields begin with that.

    Raises:
      ValueError: `models.text_encoder_2.model_type` is none of its keys.
    """
    found = config.models.text_encoder_2.model_type
    if found not in SECOND_KINDS:
        raise ValueError(f"models.text_encoder_2.model_type={found!r}: choose from {', '.join(SECOND_KINDS)}")
    return SECOND_KINDS[found]


def second_width(config: ConfigDict) -> int:
    """Returns the width of the states of a recipe's second text encoder."""
    section = config.models.text_encoder_2
    return section.d_model if second_kind(config) == "t5" else section.hidden_size


def words_field(config: ConfigDict) -> str:
    """Returns the field of the batch that tells whether an example has what the language model learns from."""
    return "captioned" if second_kind(config) == "t5" else "transcribed"


def text_fields(config: ConfigDict) -> tuple[str, ...]:
    """Returns the fields of the batch that hold what the text encoders of a recipe read."""
    return tuple(f"{kind}_{part}" for kind in ("clap", second_kind(config)) for part in ("ids", "mask"))


class Conditions(NamedTuple):
    """What conditions the UNet; None for what it has no use for.

    Attributes:
      loa: [b, n, d_loa]; in a model without one, the states that take its place.
      loa_mask: [b, n], 1 where there is something to attend to; None for everywhere.
      text_states: T5's, [b, m, d_t5].
      text_mask: [b, m], 1 where there is text.
      clap_embedding: [b, d_clap], for a UNet with a class embedding.
    """

    loa: jax.Array | None = None
    text_states: jax.Array | None = None
    text_mask: jax.Array | None = None
    clap_embedding: jax.Array | None = None
    loa_mask: jax.Array | None = None


def repeat(conditions: Conditions, times: int) -> Conditions:
    """Each example `times` in a row: [b, ...] to [b * times, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), conditions)


def drop_captions(text: Text, uniforms: jax.Array, rate: float, empty: Text) -> tuple[Text, jax.Array]:
    """Guidance dropout: replaces captions by the empty caption, each example for itself.

    A dropped caption keeps the places of the one it replaces (`*_slots`), since that is how the
    unconditional prompt is laid out when generating.

    Args:
      text: the batch, or any mapping with its fields of text, token ids or what was made of them; [b, ...].
      uniforms: [b], uniform in [0, 1), a draw of each example's own.
      rate: the share of captions to drop.
      empty: of each field of text its value for the empty caption, [1, ...] and of the same lengths.

    Returns:
      the fields that `text` and `empty` share and for each mask the slots, and which examples were dropped, [b] bool.
    """
    dropped = uniforms < rate
    replaced = {
        field: jnp.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), value, text[field])
        for field, value in empty.items()
        if field in text
    }
    for mask in [field for field in replaced if field.endswith("_mask")]:
        slots = mask.removesuffix("_mask") + "_slots"
        replaced[slots] = jnp.maximum(text.get(slots, text[mask]), replaced[mask])
    return replaced, dropped


def caption_weight(captioned: jax.Array) -> jax.Array:
    """Returns weights [batch] whose mean product with a loss is that loss's mean over the captioned examples.

    Where none has a caption they are all 0.
    """
    return captioned * (captioned.shape[0] / jnp.maximum(captioned.sum(), 1))
