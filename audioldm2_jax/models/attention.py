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
    weights = attention_weights(query, key, bias, scale=scale).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.swapaxes(jnp.einsum("...qk,...kd->...qd", weights, jnp.swapaxes(value, -3, -2)), -3, -2)


def attention_weights(query: Array, key: Array, bias: Array | None = None, *, scale: float) -> Array:
    """softmax(scale · query keyᵀ + bias), the weights of `attend` without dropout: [..., heads, n, m] float32."""
    # Heads first: XLA:CPU takes four times as long where they stand between the tokens and the dimensions.
    query, key = (jnp.swapaxes(x, -3, -2) for x in (query, key))
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32) * scale
    return softmax(scores if bias is None else scores + bias)


@jax.custom_vjp
def softmax(scores: Array) -> Array:
    """exp(scores) over its sum along the last axis: [..., n] float32 → the same.

    The gradient is that of `jax.nn.softmax`, written out: of that one XLA:CPU makes a way two to three times as long.
    """
    return jax.nn.softmax(scores)


def _softmax(scores: Array) -> tuple[Array, Array]:
    weights = jax.nn.softmax(scores)
    return weights, weights


def _softmax_gradient(weights: Array, grad: Array) -> tuple[Array]:
    weighted = weights * grad
    return (weighted - weights * weighted.sum(-1, keepdims=True),)


softmax.defvjp(_softmax, _softmax_gradient)


def mask_bias(mask: Array) -> Array:
    """0 where the mask is set and the least float32 elsewhere: a row that is masked whole stays finite."""
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
