"""What CLAP's two towers share: attention with its output layer, and the settings of a tower's layers."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from audioldm2_jax.models import layers
from audioldm2_jax.models.attention import attend

normal = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """What all layers of a tower have in common."""

    stddev: float
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    def dense(self, features: int, name: str, **options: Any) -> layers.Dense:
        return layers.Dense(features, self.dtype, kernel_init=normal(self.stddev), name=name, **options)

    def norm(self, name: str) -> layers.LayerNorm:
        return layers.LayerNorm(self.layer_norm_eps, self.dtype, name=name)

    def in_float32(self) -> "LayerConfig":
        """For the layers that end a tower: what is compared is not rounded."""
        return dataclasses.replace(self, dtype=jnp.float32)

    def dropout(self, x: Array, deterministic: bool) -> Array:
        return nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)


class Attention(nn.Module):
    """Self-attention of [..., n, channels] and its output layer; with post_norm, their norm and sum with the input."""

    style: LayerConfig
    num_heads: int
    post_norm: bool = False
    window: int | None = None
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, bias: Array | None, deterministic: bool) -> Array:
        heads = SelfAttention(self.style, self.num_heads, self.window, self.qkv_bias, name="self")
        return Output(self.style, self.post_norm, name="output")(heads(x, bias, deterministic), x, deterministic)


class SelfAttention(nn.Module):
    """With a window, its n = window² tokens have a learned bias for each relative position (Swin, equation 4)."""

    style: LayerConfig
    num_heads: int
    window: int | None
    qkv_bias: bool

    @nn.compact
    def __call__(self, x: Array, bias: Array | None, deterministic: bool) -> Array:
        *_, c = x.shape
        query, key, value = (
            self.style.dense(c, name, use_bias=self.qkv_bias)(x).reshape(*x.shape[:-1], self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        if self.window is not None:
            shape = ((2 * self.window - 1) ** 2, self.num_heads)
            table = self.param("relative_position_bias_table", nn.initializers.zeros, shape)
            relative = table[relative_position_index(self.window)].transpose(2, 0, 1)
            bias = relative if bias is None else relative + bias
        dropout = partial(nn.Dropout(self.style.attention_dropout_rate), deterministic=deterministic)
        mixed = attend(query, key, value, bias, scale=query.shape[-1] ** -0.5, dropout=dropout)
        return mixed.reshape(x.shape)


class Output(nn.Module):
    style: LayerConfig
    post_norm: bool

    @nn.compact
    def __call__(self, x: Array, residual: Array, deterministic: bool) -> Array:
        x = self.style.dropout(self.style.dense(residual.shape[-1], "dense")(x), deterministic)
        return self.style.norm("LayerNorm")(x + residual) if self.post_norm else x


class Dense(nn.Module):
    """A linear layer that PyTorch's names put one level down, in `dense`."""

    style: LayerConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.style.dense(self.features, "dense")(x)


def relative_position_index(window: int) -> np.ndarray:
    """The row of the bias table for each pair of a window's tokens: [window², window²] (Swin, section 3.2)."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down, right = (axis[:, None] - axis[None, :] + window - 1 for axis in (rows, columns))
    return down * (2 * window - 1) + right


def check_gelu(hidden_act: str) -> None:
    if hidden_act != "gelu":
        raise ValueError(f"hidden_act is {hidden_act!r}; only 'gelu' is supported")
