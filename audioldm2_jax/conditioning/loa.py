"""From captions and clips to what the UNet attends to; shared by the training stages and the pipeline.

    captions ─► CLAP, T5 ─► projection ─► prefix ─► GPT-2 ─► LOA         (encode_prompt, generate_loa)
    clip     ─► fbank ─► AudioMAE ─► pooled ─► the true LOA              (audiomae_loa)

Captions come as token ids with the fields of the batch (data/encoders.py): `clap_ids`, `clap_mask` [b, n] and
`t5_ids`, `t5_mask` [b, m] int32, padded to any length. Speech has `phoneme_ids` and `phoneme_mask` in T5's place, and a
unified model reads them behind T5's: what an example does not have is empty there, the caption "" or a transcription of
no phonemes, of which GPT-2 sees SOS and EOS alone.

A prompt sounds the same whatever batch it sits in. So padding is neither attended to nor counted in GPT-2's
positions: a token has the position that it would have if its prompt were alone. The one exception is what
diffusers does on purpose, padding the negative prompt to the length of the positive one: the places of an optional
field `t5_slots` or `phoneme_slots` [b, m] count; without it, those of the mask. diffusers also pads the phonemes of
speech to the most that there can be, so there all places count; it has no unified model, whose phonemes are counted
like T5's tokens.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from audioldm2_jax.conditioning.conditions import Text
from audioldm2_jax.models.gpt2 import ATTENTION
from audioldm2_jax.models.network import Network
from audioldm2_jax.rngs import Rngs, dropout_arguments


class Prefix(NamedTuple):
    """What GPT-2 reads before it writes.

    Attributes:
      embeddings: [b, p, d].
      mask: [b, p], 1 where there is something to attend to; the last place always is (the closing EOS).
      positions: [b, p] int32, rows of GPT-2's position table.
    """

    embeddings: jax.Array
    mask: jax.Array
    positions: jax.Array


def pool_loa(features: jax.Array, pooling: int) -> jax.Array:
    """The language of audio: AudioMAE's features, average- and max-pooled (arXiv 2308.05734, section 3.1).

    The kernel is `pooling` × min(`pooling`, frequencies), the result (average + maximum) / 2, time-major.

    Args:
      features: [b, time, frequency, d].
      pooling: λ of the paper; with AudioMAE's 64 × 8 grid, 8 gives 8 tokens and 1 gives 512.

    Returns:
      [b, (time // λ) * (frequency // min(λ, frequency)), d]; what does not fill a kernel is left out.

    Raises:
      ValueError: for a pooling below 1 or above the number of time steps.
    """
    b, t, f, d = features.shape
    if not 1 <= pooling <= t:
        raise ValueError(f"The LOA pooling is {pooling}; it has to be between 1 and the {t} time steps there are.")
    kernel_t, kernel_f = pooling, min(pooling, f)
    tokens_t, tokens_f = t // kernel_t, f // kernel_f
    features = features[:, : tokens_t * kernel_t, : tokens_f * kernel_f]
    windows = features.reshape(b, tokens_t, kernel_t, tokens_f, kernel_f, d)
    pooled = (windows.mean((2, 4)) + windows.max((2, 4))) / 2
    return pooled.reshape(b, tokens_t * tokens_f, d)


def pooling_of(tokens: int, time: int, frequency: int) -> int:
    """The pooling λ with which a grid of time × frequency tokens gives a LOA of `tokens` (`pool_loa`).

    Raises:
      ValueError: where none does.
    """
    for pooling in range(1, time + 1):
        if loa_tokens(pooling, time, frequency) == tokens:
            return pooling
    raise ValueError(f"No pooling of AudioMAE's {time} × {frequency} tokens gives the {tokens} of this model's LOA.")


def loa_tokens(pooling: int, time: int, frequency: int) -> int:
    """The tokens of the LOA that a grid of time × frequency tokens gives with a pooling (`pool_loa`)."""
    return math.prod(loa_grid(pooling, time, frequency))


def loa_grid(pooling: int, time: int, frequency: int) -> tuple[int, int]:
    """The same along time and along frequency."""
    return time // pooling, frequency // min(pooling, frequency)


def audiomae_loa(audiomae: Network, fbank: jax.Array, pooling: int) -> jax.Array:
    """The true LOA [b, tokens, d] of clips, from their normalised fbank [b, frames, 128]."""
    return pool_loa(audiomae(fbank, method="encode_features"), pooling)


def encode_prompt(
    clap: Network,
    encoders: Mapping[str, Network],
    projection: Network,
    text: Text,
    *,
    dropout_keys: Mapping[str, jax.Array | None] | None = None,
) -> tuple[Prefix, jax.Array, jax.Array]:
    """Captions to GPT-2's prefix and to T5's states, as diffusers' AudioLDM2Pipeline.encode_prompt.

    Args:
      clap: CLAP, always deterministic.
      encoders: the other text encoders in the order in which the projection takes them, by what they read, "t5" or
        "phoneme": one of these, or, of a unified model, both.
      projection: the projection model.
      text: token ids and masks, see the head of this file. What is there in their place, `clap_embedding` [b, d_clap]
        or `t5_states` [b, m, d_t5] with `t5_mask`, is not computed again.
      dropout_keys: turn dropout on in the encoders that have one, for training.

    Returns:
      the prefix [b, 3 + (m + 2 of each encoder), d], the states of the first encoder [b, m, d_encoder] and their mask
      [b, m] (T5's are the UNet's `text_states` and `text_mask`).
    """
    if "clap_embedding" in text:
        clap_embedding = text["clap_embedding"]
    else:
        clap_embedding = clap(text["clap_ids"], text["clap_mask"], method="text_features")
    states, masks, slots = [clap_embedding[:, None]], [], []
    for kind, encoder in encoders.items():
        mask = text[f"{kind}_mask"]
        if f"{kind}_states" in text:
            states.append(text[f"{kind}_states"])
        else:
            key = (dropout_keys or {}).get(kind)
            states.append(encoder(text[f"{kind}_ids"], mask, **dropout_arguments(key)))
        masks.append(mask)
        every_place = kind == "phoneme" and len(encoders) == 1
        slots.append(jnp.ones_like(mask) if every_place else text.get(f"{kind}_slots", mask))
    ones = jnp.ones((states[0].shape[0], 1), masks[0].dtype)
    further = [part for pair in zip(states[2:], masks[1:]) for part in pair]
    embeddings, mask = projection(*states[:2], ones, masks[0], *further)
    return Prefix(embeddings, mask, _positions(_with_ends([ones, *slots]))), states[1], masks[0]


def generate_loa(
    gpt2: Network,
    prefix: Prefix,
    num_tokens: int,
    *,
    given: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """GPT-2 writes the LOA: each new token is its last hidden state, appended to what it has read.

    As diffusers' AudioLDM2Pipeline.generate_language_model, with a cache of fixed size inside one `lax.scan`;
    differentiable.

    Args:
      gpt2: the language model.
      prefix: from `encode_prompt`.
      num_tokens: length of the LOA, that of `given` included.
      given: the first tokens of the LOA [b, k, d], to be continued.
      dropout_key: turns dropout on, for training.

    Returns:
      [b, num_tokens, d].

    Raises:
      ValueError: where the sequence does not fit in GPT-2's position table, or `given` leaves nothing to
        write.
    """
    if given is not None:
        if given.shape[1] >= num_tokens:
            raise ValueError(f"{given.shape[1]} LOA tokens are given, but only {num_tokens} are asked for.")
        prefix = _append(prefix, given)
        written = num_tokens - given.shape[1]
    else:
        written = num_tokens
    _check_length(gpt2, prefix.mask.shape[1] + written - 1)
    b, p = prefix.mask.shape
    cache = gpt2.module.init_cache(b, p + written - 1)
    # Attention is causal over the cache's slots, so those not yet written may be marked as present already.
    mask = jnp.concatenate([prefix.mask, jnp.ones((b, written - 1), prefix.mask.dtype)], 1)
    keys = [None] * written if dropout_key is None else jax.random.split(dropout_key, written)
    hidden, cache = gpt2(prefix.embeddings, mask, prefix.positions, cache=cache, **dropout_arguments(keys[0]))
    first = hidden[:, -1:]

    def write(carry, key):
        token, position, cache = carry
        hidden, cache = gpt2(token, mask, position, cache=cache, **dropout_arguments(key))
        return (hidden, position + 1, cache), hidden[:, 0]

    start = (first, prefix.positions[:, -1:] + 1, cache)
    _, rest = jax.lax.scan(write, start, None if dropout_key is None else keys[1:], length=written - 1)
    tokens = jnp.concatenate([first, jnp.swapaxes(rest, 0, 1)], 1)
    return tokens if given is None else jnp.concatenate([given.astype(tokens.dtype), tokens], 1)


def hide_tokens(loa: jax.Array, rngs: Rngs, most: float) -> jax.Array:
    """Returns the LOA [b, n, d] with zeros in the place of random tokens; in evaluation as it is.

    Args:
      most: the largest share that is hidden; that of a clip is uniform from 0 to this.
    """
    if not most or not rngs.training:
        return loa
    share = most * rngs.uniform("share of hidden tokens")[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, loa.shape[1:2]))(rngs.examples("hidden tokens"))
    return jnp.where((draws < share)[..., None], 0.0, loa)


def teacher_forced_loa(
    gpt2: Network, prefix: Prefix, loa: jax.Array, *, dropout_key: jax.Array | None = None
) -> jax.Array:
    """What GPT-2 predicts for each token of a LOA from the prefix and the tokens of it that come before.

    Args:
      gpt2: the language model.
      prefix: from `encode_prompt`.
      loa: [b, n, d]; the true one in teacher forcing, one that GPT-2 wrote in scheduled sampling.
      dropout_key: turns dropout on.

    Returns:
      predictions [b, n, d], to be compared with the true LOA (arXiv 2308.05734, section 3.2).

    Raises:
      ValueError: where the sequence does not fit in GPT-2's position table.
    """
    return _read(gpt2, prefix, loa, dropout_key)[:, prefix.mask.shape[1] - 1 :]


def attended_loa(
    gpt2: Network, prefix: Prefix, loa: jax.Array, phonemes: int, *, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, list[jax.Array]]:
    """What `teacher_forced_loa` returns, and what each token attends to of the phonemes that end the prefix.

    Args:
      phonemes: their places, without SOS and EOS.

    Returns:
      the predictions, and of each layer [b, heads, n, phonemes] float32.

    Raises:
      ValueError: see `teacher_forced_loa`.
    """
    p = prefix.mask.shape[1]
    hidden, kept = _read(gpt2, prefix, loa, dropout_key, mutable=[ATTENTION])
    layers = (kept[ATTENTION][f"h_{index}"]["attn"]["weights"][0] for index in range(gpt2.module.n_layer))
    return hidden[:, p - 1 :], [weights[:, :, p - 1 :, p - 1 - phonemes : p - 1] for weights in layers]


def _read(gpt2: Network, prefix: Prefix, loa: jax.Array, dropout_key: jax.Array | None, **arguments: Any) -> Any:
    """GPT-2 reads the prefix and all tokens of a LOA but the last."""
    inputs = _append(prefix, loa[:, :-1])
    _check_length(gpt2, inputs.mask.shape[1])
    return gpt2(inputs.embeddings, inputs.mask, inputs.positions, **dropout_arguments(dropout_key), **arguments)


def loa_distance(made: jax.Array, loa: jax.Array, kind: str, weight: jax.Array) -> jax.Array:
    """Returns the distance of LOAs [batch, tokens, dim], a mean over elements and over examples by their weights.

    mse is the mean squared error [arXiv 2308.05734, eq. 5]. l1 is the mean absolute error, once: TF's training_step
    (modules/audiomae/sequence_gen/sequence_input.py) adds to it the error of a few generated tokens with
    `use_ar_gen_loss`, and without it, as in its configs, the same error again. In the joint stage
    `language_weight=2.0` is that sum; alone, AdamW makes nothing of the factor.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in ("mse", "l1"):
        raise ValueError(f"loss={kind!r} of the language model: choose mse or l1")
    difference = made.astype(jnp.float32) - loa
    distance = (jnp.square(difference) if kind == "mse" else jnp.abs(difference)).mean((1, 2))
    return (distance * weight).mean()


def _with_ends(slots: list[jax.Array]) -> jax.Array:
    """The places of several texts, [b, m] each, one after the other, with those of SOS and EOS around each."""
    return jnp.concatenate([jnp.pad(part, ((0, 0), (1, 1)), constant_values=1) for part in slots], 1)


def _positions(slots: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.cumsum(slots, 1) - 1, 0).astype(jnp.int32)


def _append(prefix: Prefix, tokens: jax.Array) -> Prefix:
    """The prefix followed by LOA tokens [b, k, d]."""
    b, k, _ = tokens.shape
    return Prefix(
        jnp.concatenate([prefix.embeddings, tokens], 1),
        jnp.concatenate([prefix.mask, jnp.ones((b, k), prefix.mask.dtype)], 1),
        jnp.concatenate([prefix.positions, prefix.positions[:, -1:] + 1 + jnp.arange(k)], 1),
    )


def _check_length(gpt2: Network, length: int) -> None:
    if length > gpt2.module.n_positions:
        raise ValueError(
            f"The language model reads {length} places, more than its {gpt2.module.n_positions} positions; "
            "shorten the texts (text.t5_length, text.phoneme_length) or use fewer LOA tokens (a larger pooling)."
        )
