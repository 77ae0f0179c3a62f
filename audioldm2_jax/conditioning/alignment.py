"""Where GPT-2 looks while it writes what is said: the guided attention of text to speech.

A sentence is said from its beginning to its end, so a token of the LOA that stands for a share of the time of speaking
should attend to the phonemes at about that share of the transcription [Tachibana et al. 2018, arXiv 1710.08969,
section 4]. As in ESPnet's Transformer-TTS some heads of some layers are guided, the others look where they like.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_WIDTH = 0.15  # of what is said
_HEADS, _LAYERS = 2, 2  # the first ones of the layers in the middle


def phonemes_away(
    weights: list[jax.Array], phoneme_mask: jax.Array, span: jax.Array, loa_grid: tuple[int, int]
) -> jax.Array:
    """Returns how much of GPT-2's attention goes elsewhere than to the phonemes of the time, 0 to 1.

    Attention of a token at the share t of the time of speaking to the phoneme at the share n of the transcription costs
    1 − exp(−(t − n)² / 2 · 0.15²), attention to anything else 1. Tokens before and after what is said are left out, and
    so are clips in which nothing is said.

    Args:
        weights: of each layer [batch, heads, tokens, phonemes] float32 (`attended_loa`).
        phoneme_mask: [batch, phonemes], 1 where there is one.
        span: from when to when something is heard, [batch, 2] shares of the clip (`FrontEnds.sounding_span`).
        loa_grid: the tokens in time and in frequency.

    Returns:
        [batch].
    """
    first = (len(weights) - _LAYERS + 1) // 2
    guided = jnp.stack([layer[:, :_HEADS] for layer in weights[max(first, 0) : first + _LAYERS]], 1)
    time, frequency = loa_grid
    moments = jnp.repeat((jnp.arange(time) + 0.5) / time, frequency)
    begin, end = span[:, :1], span[:, 1:]
    share = (moments - begin) / jnp.maximum(end - begin, 1e-6)
    count = phoneme_mask.sum(1)
    inside = (share > 0) & (share < 1) & (count > 0)[:, None]
    places = (jnp.arange(phoneme_mask.shape[1]) + 0.5) / jnp.maximum(count, 1)[:, None]
    near = jnp.exp(-jnp.square(share[:, :, None] - places[:, None]) / (2 * _WIDTH**2)) * phoneme_mask[:, None]
    away = 1 - (guided * near[:, None, None]).sum(-1).mean((1, 2))
    return (away * inside).sum(1) / jnp.maximum(inside.sum(1), 1)
