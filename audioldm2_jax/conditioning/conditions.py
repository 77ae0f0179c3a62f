"""What conditions the UNet on a clip, and guidance dropout; shared by the training stages and generation."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Text = Mapping[str, jax.Array]
KINDS = {"t5": "t5", "vits": "phoneme"}
"""What a text encoder beside CLAP's reads, by its `model_type`: captions (T5) or transcriptions (VITS)."""
TEXT_ENCODERS = ("text_encoder_2", "text_encoder_3")
"""The components that may be such an encoder, in the order in which GPT-2 reads them."""
_WIDTHS = {"t5": "d_model", "phoneme": "hidden_size"}
_WORDS = {"t5": "captioned", "phoneme": "transcribed"}


def text_encoders(config: ConfigDict) -> dict[str, str]:
    """Returns the text encoders of a recipe beside CLAP's, component → what it reads (a value of `KINDS`).

    Music and effects have T5, speech has phonemes in its place, and a unified model has both, in this order. The fields
    of the batch begin with the kind.

    Raises:
      ValueError: a `model_type` is none of the keys of `KINDS`, or two encoders read the same.
    """
    found: dict[str, str] = {}
    for name in TEXT_ENCODERS:
        if name in config.models:
            model_type = config.models[name].model_type
            if model_type not in KINDS:
                raise ValueError(f"models.{name}.model_type={model_type!r}: choose from {', '.join(KINDS)}")
            if KINDS[model_type] in found.values():
                raise ValueError(f"models.{name}.model_type={model_type!r}: another text encoder is of that type, too")
            found[name] = KINDS[model_type]
    return found


def text_kinds(config: ConfigDict) -> tuple[str, ...]:
    """Returns what the text encoders of a recipe read, CLAP's first: its captions are of the kind "clap"."""
    return ("clap", *text_encoders(config).values())


def speaks(config: ConfigDict) -> bool:
    """Returns whether a recipe's model takes a transcription."""
    return "phoneme" in text_kinds(config)


def text_width(config: ConfigDict, name: str) -> int:
    """Returns the width of the states of the text encoder `name` of a recipe."""
    return config.models[name][_WIDTHS[text_encoders(config)[name]]]


def words_fields(config: ConfigDict) -> tuple[str, ...]:
    """Returns the fields of the batch that tell whether an example has what the language model learns from."""
    return tuple(_WORDS[kind] for kind in text_encoders(config).values())


def has_words(config: ConfigDict, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which examples the language model learns from, [b] bool: of several kinds of text one is enough."""
    return functools.reduce(jnp.logical_or, (batch[field] for field in words_fields(config)))


def text_fields(config: ConfigDict) -> tuple[str, ...]:
    """Returns the fields of the batch that hold what the text encoders of a recipe read."""
    return tuple(f"{kind}_{part}" for kind in text_kinds(config) for part in ("ids", "mask"))


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
    """Returns weights [batch] whose mean product with a loss is that loss's mean over the examples with words.

    Where none has any they are all 0.
    """
    return captioned * (captioned.shape[0] / jnp.maximum(captioned.sum(), 1))
