"""What conditions the UNet on a clip, and guidance dropout; shared by the training stages and generation."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Text = Mapping[str, jax.Array]
TEXT_FIELDS = ("clap_ids", "clap_mask", "t5_ids", "t5_mask")
"""The fields of the batch that hold captions."""


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
