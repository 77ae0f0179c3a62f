"""GPT-2 over continuous vectors: projected text embeddings in, the language of audio out.

Radford et al. 2019, names and initial values as in transformers' `GPT2Model`. AudioLDM 2 feeds embeddings and
reads the hidden states after `ln_f` (paper section 3.3), so there is no word table here: `wte` in a file is
an unused tensor (`checkpoints/parameter_names.py`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.attention import attend, attention_weights, mask_bias
from audioldm2_jax.models.layers import Dense, LayerNorm

normal = nn.initializers.normal
INITIAL_STDDEV = 0.02  # transformers' initializer_range

#: The collection of what tokens attend to, where it is asked for (`mutable`): of each layer [batch, heads, n, m].
ATTENTION = "attention"


class Cache(NamedTuple):
    """Keys and values of the tokens so far, [batch, slots, heads, dim] a layer, and how many slots are filled."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    length: Array


class _Part(nn.Module):
    """Every part of the network knows the whole configuration: the keys of the component's config.json."""

    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int
    layer_norm_epsilon: float
    resid_pdrop: float
    attn_pdrop: float
    embd_pdrop: float
    dtype: jnp.dtype = jnp.float32

    def part(self, kind: type["_Part"], name: str) -> "_Part":
        sizes = {key: getattr(self, key) for key in _Part.__annotations__ if key not in ("parent", "name")}
        return kind(**sizes, name=name)

    def dense(self, features: int, name: str) -> Dense:
        """The scale of the layers that end a residual branch falls with their number, 2 · n_layer."""
        stddev = INITIAL_STDDEV * ((2 * self.n_layer) ** -0.5 if name == "c_proj" else 1.0)
        return Dense(features, self.dtype, kernel_init=normal(stddev), name=name)

    def norm(self, x: Array, name: str) -> Array:
        """The last one is what a loss compares and what is read again as the next token: float32."""
        dtype = jnp.float32 if name == "ln_f" else self.dtype
        return LayerNorm(self.layer_norm_epsilon, dtype, name=name)(x)


class GPT2(_Part):
    """The decoder. Raises ValueError where n_head does not divide n_embd."""

    @nn.compact
    def __call__(
        self,
        inputs_embeds: Array,
        attention_mask: Array,
        position_ids: Array,
        *,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> Array | tuple[Array, Cache]:
        """inputs_embeds [batch, n, n_embd], position_ids [batch, n] int32 in 0..n_positions − 1.

        attention_mask [batch, m], 1: may be attended to; m = n, or all slots of the cache, filled or not.
        A token sees the unmasked ones among itself and the tokens before it. Returns the states after ln_f,
        [batch, n, n_embd] float32; with a cache (states, cache), the n tokens written behind those that it held: it
        must have slots for them. With deterministic=False the rng "dropout" is needed, unless all rates are 0.
        """
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head={self.n_head} does not divide n_embd={self.n_embd}; choose a divisor")
        slots, filled = (inputs_embeds.shape[1], 0) if cache is None else (cache.keys[0].shape[1], cache.length)
        if attention_mask.shape[1] != slots:
            raise ValueError(f"attention_mask covers {attention_mask.shape[1]} tokens and should cover {slots}")
        positions = nn.Embed(self.n_positions, self.n_embd, embedding_init=normal(INITIAL_STDDEV), name="wpe")
        x = (inputs_embeds + positions(position_ids)).astype(self.dtype)
        x = nn.Dropout(self.embd_pdrop)(x, deterministic=deterministic)
        queries = filled + jnp.arange(x.shape[1])
        causal = jnp.arange(slots)[None, :] <= queries[:, None]
        bias = mask_bias(causal & (attention_mask[:, None, None, :] > 0))
        keys, values = [], []
        for index in range(self.n_layer):
            held = None if cache is None else (cache.keys[index], cache.values[index], filled)
            x, key, value = self.part(_Block, f"h_{index}")(x, bias, held, deterministic)
            keys.append(key)
            values.append(value)
        x = self.norm(x, "ln_f")
        if cache is None:
            return x
        return x, Cache(tuple(keys), tuple(values), filled + x.shape[1])

    def init_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for max_len tokens, prompt included."""
        empty = jnp.zeros((batch, max_len, self.n_head, self.n_embd // self.n_head), self.dtype)
        return Cache((empty,) * self.n_layer, (empty,) * self.n_layer, jnp.zeros((), jnp.int32))


Held = tuple[Array, Array, Array] | None


class _Block(_Part):
    @nn.compact
    def __call__(self, x: Array, bias: Array, held: Held, deterministic: bool) -> tuple[Array, Array, Array]:
        mixed, key, value = self.part(_Attention, "attn")(self.norm(x, "ln_1"), bias, held, deterministic)
        x = x + mixed
        return x + self.part(_MLP, "mlp")(self.norm(x, "ln_2"), deterministic), key, value


class _Attention(_Part):
    @nn.compact
    def __call__(self, x: Array, bias: Array, held: Held, deterministic: bool) -> tuple[Array, Array, Array]:
        b, n, d = x.shape
        query, key, value = jnp.split(self.dense(3 * d, "c_attn")(x).reshape(b, n, 3 * self.n_head, -1), 3, axis=2)
        if held is not None:
            keys, values, filled = held
            key = jax.lax.dynamic_update_slice_in_dim(keys, key.astype(keys.dtype), filled, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(values, value.astype(values.dtype), filled, axis=1)
        dropout = partial(nn.Dropout(self.attn_pdrop), deterministic=deterministic)
        scale = query.shape[-1] ** -0.5
        if self.is_mutable_collection(ATTENTION) and not self.is_initializing():
            self.sow(ATTENTION, "weights", attention_weights(query, key, bias, scale=scale))
        mixed = attend(query, key, value, bias, scale=scale, dropout=dropout)
        mixed = self.dense(d, "c_proj")(mixed.reshape(b, n, d))
        return nn.Dropout(self.resid_pdrop)(mixed, deterministic=deterministic), key, value


class _MLP(_Part):
    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        widened = nn.gelu(self.dense(4 * self.n_embd, "c_fc")(x), approximate=True)
        return nn.Dropout(self.resid_pdrop)(self.dense(self.n_embd, "c_proj")(widened), deterministic=deterministic)
