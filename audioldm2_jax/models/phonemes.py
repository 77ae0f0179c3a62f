"""The text encoder of VITS, which turns phonemes into what the language model of the speech variant reads.

Kim et al. 2021 (arXiv 2106.06103), with the relative positions of Shaw et al. 2018 (arXiv 1803.02155). Names are those
of `text_encoder` in transformers' `VitsModel`, fields the keys of its config.json; initial values are the authors' (A2:
latent_diffusion/modules/phoneme_encoder). What follows the encoder in VITS, the projection to means and variances
first, is not used here.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.attention import mask_bias, softmax
from audioldm2_jax.models.layers import Dense, LayerNorm, torch_uniform

normal, xavier = nn.initializers.normal, nn.initializers.xavier_uniform()


class _Part(nn.Module):
    """Every part of the encoder knows the whole configuration."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    window_size: int
    use_bias: bool
    ffn_dim: int
    ffn_kernel_size: int
    hidden_dropout: float
    attention_dropout: float
    activation_dropout: float
    layer_norm_eps: float
    dtype: jnp.dtype = jnp.float32

    def part(self, kind: type["_Part"], name: str) -> "_Part":
        sizes = {key: getattr(self, key) for key in _Part.__annotations__ if key not in ("parent", "name")}
        return kind(**sizes, name=name)


class VitsTextEncoder(_Part):
    """Phoneme ids to states. Positions are relative only, so padding that the mask covers changes nothing."""

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array, *, deterministic: bool = True) -> Array:
        """input_ids and attention_mask [batch, tokens] int32 (1: a phoneme) → [batch, tokens, hidden_size].

        States of padding are zero. With deterministic=False the rng "dropout" is needed, unless all rates are 0.
        Raises ValueError where the heads do not divide hidden_size.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size={self.hidden_size}")
        scale = self.hidden_size**0.5
        embed = nn.Embed(
            self.vocab_size,
            self.hidden_size,
            dtype=self.dtype,
            embedding_init=normal(1 / scale),
            name="embed_tokens",
        )
        return self.part(_Encoder, "encoder")(embed(input_ids) * scale, attention_mask, deterministic)


class _Encoder(_Part):
    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        real = mask[:, :, None].astype(x.dtype)
        x = x * real
        for index in range(self.num_hidden_layers):
            x = self.part(_Layer, f"layers_{index}")(x, mask, deterministic)
        return x * real


class _Layer(_Part):
    """Attention and feed-forward, each followed by the sum with its input and a norm."""

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        dropout = nn.Dropout(self.hidden_dropout, deterministic=deterministic)
        mixed = self.part(_Attention, "attention")(x, mask, deterministic)
        x = LayerNorm(self.layer_norm_eps, self.dtype, name="layer_norm")(x + dropout(mixed))
        widened = self.part(_FeedForward, "feed_forward")(x, mask, deterministic)
        return LayerNorm(self.layer_norm_eps, self.dtype, name="final_layer_norm")(x + dropout(widened))


class _Attention(_Part):
    """Self-attention that knows how far a key is from its query, up to window_size tokens."""

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        batch, n, channels = x.shape
        dim = channels // self.num_attention_heads
        query, key, value = (
            self._dense(xavier, name)(x).reshape(batch, n, -1, dim) for name in ("q_proj", "k_proj", "v_proj")
        )
        query = query * dim**-0.5
        offsets = range(-self.window_size, self.window_size + 1)
        rel_k, rel_v = (
            self.param(name, normal(dim**-0.5), (1, len(offsets), dim))[0].astype(self.dtype)
            for name in ("emb_rel_k", "emb_rel_v")
        )
        # 1 where key m stands at the r-th of the offsets from query n: [n, m, r].
        distance = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]
        near = (distance[:, :, None] == jnp.array(offsets)).astype(self.dtype)
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
        scores = scores + jnp.einsum("bnhd,rd,nmr->bhnm", query, rel_k, near, preferred_element_type=jnp.float32)
        weights = softmax(scores + mask_bias(mask[:, None, None, :] > 0)).astype(self.dtype)
        weights = nn.Dropout(self.attention_dropout)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, value) + jnp.einsum("bhnm,nmr,rd->bnhd", weights, near, rel_v)
        return self._dense(torch_uniform, "out_proj")(mixed.reshape(x.shape))

    def _dense(self, init: Any, name: str) -> Dense:
        return Dense(self.hidden_size, self.dtype, use_bias=self.use_bias, kernel_init=init, name=name)


class _FeedForward(_Part):
    """Two convolutions over tokens, which see no padding."""

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Array:
        real = mask[:, :, None].astype(x.dtype)
        x = nn.relu(self._conv(self.ffn_dim, "conv_1")(x * real))
        x = nn.Dropout(self.activation_dropout)(x, deterministic=deterministic)
        return self._conv(self.hidden_size, "conv_2")(x * real) * real

    def _conv(self, features: int, name: str) -> nn.Conv:
        before = (self.ffn_kernel_size - 1) // 2
        padding = ((before, self.ffn_kernel_size - 1 - before),)
        size = (self.ffn_kernel_size,)
        return nn.Conv(features, size, padding=padding, dtype=self.dtype, kernel_init=torch_uniform, name=name)
