"""The attention of the networks over tokens: T5, GPT-2 and CLAP's two towers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    *,
    scale: float,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """softmax(scale · query keyᵀ + bias) value (Vaswani et al. 2017, equation 1), the softmax in float32.

    query [..., n, heads, dim]; key, value [..., m, heads, dim]; bias broadcastable to [..., heads, n, m];
    dropout is applied to the weights. Returns [..., n, heads, dim].
    """
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def mask_bias(mask: Array) -> Array:
    """0 where the mask is set and the least float32 elsewhere: a row that is masked whole stays finite."""
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
