"""The encoder of FLAN-T5, which turns a caption into the states that the UNet and GPT-2 attend to.

Raffel et al. 2020 (arXiv 1910.10683), with the gated GELU of T5 1.1 (Shazeer 2020, arXiv 2002.05202). Names,
initial values and the absence of a 1 / √d_kv in the attention are those of transformers' `T5EncoderModel`.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.attention import attend, mask_bias
from audioldm2_jax.models.layers import Dense

normal = nn.initializers.normal


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every query-key pair: [length, length] int32 in 0..num_buckets − 1.

    Half of the buckets are for keys after the query. In each half, the first half holds one distance each,
    and the rest widen logarithmically up to max_distance (transformers modeling_t5.py,
    `_relative_position_bucket`).
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    # float32 throughout, as in PyTorch: a distance on the edge of two buckets falls to the same side.
    octaves = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    wide = exact + (octaves / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(wide, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)


class _Part(nn.Module):
    """Every part of the encoder knows the whole configuration: the keys of the component's config.json."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    dropout_rate: float
    layer_norm_epsilon: float
    dtype: jnp.dtype = jnp.float32

    def part(self, kind: type["_Part"], name: str) -> "_Part":
        sizes = {key: getattr(self, key) for key in _Part.__annotations__ if key not in ("parent", "name")}
        return kind(**sizes, name=name)

    def dense(self, features: int, stddev: float, name: str) -> Dense:
        return Dense(features, self.dtype, use_bias=False, kernel_init=normal(stddev), name=name)

    def norm(self, x: Array, name: str = "layer_norm") -> Array:
        return nn.RMSNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)(x)

    def dropout(self, x: Array, deterministic: bool) -> Array:
        return nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)


class T5Encoder(_Part):
    """Token ids to states. Position is relative only, so padding that the mask covers changes nothing."""

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array, *, deterministic: bool = True) -> Array:
        """input_ids and attention_mask [batch, tokens] int32 (1: a real token) → [batch, tokens, d_model].

        With deterministic=False the rng "dropout" is needed, unless dropout_rate is 0.
        """
        embed = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, embedding_init=normal(1.0), name="shared")
        masked = mask_bias(attention_mask[:, None, None, :] > 0)
        return self.part(_Stack, "encoder")(embed(input_ids), masked, deterministic)


class _Stack(_Part):
    @nn.compact
    def __call__(self, x: Array, masked: Array, deterministic: bool) -> Array:
        x, bias = self.dropout(x, deterministic), None
        for index in range(self.num_layers):
            x, bias = self.part(_Block, f"block_{index}")(x, masked, bias, deterministic)
        return self.dropout(self.norm(x, "final_layer_norm"), deterministic)


class _Block(_Part):
    @nn.compact
    def __call__(self, x: Array, masked: Array, bias: Array | None, deterministic: bool) -> tuple[Array, Array]:
        x, bias = self.part(_AttentionLayer, "layer_0")(x, masked, bias, deterministic)
        return self.part(_FeedForwardLayer, "layer_1")(x, deterministic), bias


class _AttentionLayer(_Part):
    @nn.compact
    def __call__(self, x: Array, masked: Array, bias: Array | None, deterministic: bool) -> tuple[Array, Array]:
        mixed, bias = self.part(_Attention, "SelfAttention")(self.norm(x), masked, bias, deterministic)
        return x + self.dropout(mixed, deterministic), bias


class _FeedForwardLayer(_Part):
    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        widened = self.part(_FeedForward, "DenseReluDense")(self.norm(x), deterministic)
        return x + self.dropout(widened, deterministic)


class _Attention(_Part):
    """Self-attention. The first owns the relative bias and hands it on, so it is computed once a forward."""

    @nn.compact
    def __call__(self, x: Array, masked: Array, bias: Array | None, deterministic: bool) -> tuple[Array, Array]:
        b, n, _ = x.shape
        inner = self.num_heads * self.d_kv
        if bias is None:
            buckets = relative_buckets(n, self.relative_attention_num_buckets, self.relative_attention_max_distance)
            table = nn.Embed(
                self.relative_attention_num_buckets,
                self.num_heads,
                embedding_init=normal(self.d_model**-0.5),
                name="relative_attention_bias",
            )
            bias = table(buckets).transpose(2, 0, 1) + masked
        query = self.dense(inner, (self.d_model * self.d_kv) ** -0.5, "q")(x)
        key = self.dense(inner, self.d_model**-0.5, "k")(x)
        value = self.dense(inner, self.d_model**-0.5, "v")(x)
        query, key, value = (part.reshape(b, n, self.num_heads, self.d_kv) for part in (query, key, value))
        dropout = partial(self.dropout, deterministic=deterministic)
        mixed = attend(query, key, value, bias, scale=1.0, dropout=dropout)
        return self.dense(self.d_model, inner**-0.5, "o")(mixed.reshape(b, n, inner)), bias


class _FeedForward(_Part):
    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        gate = nn.gelu(self.dense(self.d_ff, self.d_model**-0.5, "wi_0")(x), approximate=True)
        x = self.dropout(gate * self.dense(self.d_ff, self.d_model**-0.5, "wi_1")(x), deterministic)
        return self.dense(self.d_model, self.d_ff**-0.5, "wo")(x)
