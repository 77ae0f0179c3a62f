"""Attention on TPUs that keeps the scores on the chip (Dao et al. 2022), as kernels in Pallas.

Written out, the scores of 1024 tokens in 8 heads are 32 times what goes in and comes out of a layer. Here they never
leave the chip: a program has the tokens of some heads, computes their scores tile by tile, and again in the backward
pass. Other than in the kernels of jax.experimental.pallas.ops.tpu, heads narrower than the 128 lanes of a register
share them, so that nothing is padded or transposed in memory: a head is told from its neighbours by a mask on its
queries, since a product over 128 lanes takes no longer than one over 32. Scores lie keys first, [keys, queries], so
that maxima and sums go down the columns, and all that is summed over keys or queries is made as [dim, tokens], of which
a product takes as many turns as a head has channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from audioldm2_jax.runtime import sharding

LANES = 128
_ROWS = 16  # of bfloat16 in a register
_QUERIES, _KEYS = 512, 512  # at most, of a tile of scores
_MEMORY = {2048: 16 * 2**20, 4096: 32 * 2**20}  # bytes there, by tokens; the more, the fewer activations stay
_NEVER = -1e30  # the bias of keys that fill up a register


def takes(query: Array, key: Array) -> bool:
    """Whether the kernels attend from query [batch, n, heads, dim] to key [batch, m, heads, dim], and well."""
    n, heads, dim = query.shape[1:]
    return (
        query.dtype == jnp.bfloat16
        and LANES % dim == 0
        and dim % _ROWS == 0
        and heads * dim % LANES == 0
        and -n % LANES <= n // 2  # of queries that fill up the lanes
        and max(n, key.shape[1]) <= max(_MEMORY)
        and sharding.knows_devices()
    )


@jax.custom_vjp
def attend(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """softmax(query keyᵀ / √dim + bias) value (Vaswani et al. 2017, equation 1), the softmax in float32, for `takes`.

    query [batch, n, heads, dim]; key, value [batch, m, heads, dim], in bfloat16; bias [batch, m], which is taken for a
    constant → [batch, n, heads, dim].
    """
    return _attend(query, key, value, bias)[0]


def _attend(query: Array, key: Array, value: Array, bias: Array | None) -> tuple[Array, tuple]:
    given = *map(_flat, (query, key, value)), _bias(key, bias)
    mixed, totals = sharding.on_each_device(partial(tpu_attention_forward, dim=query.shape[-1]), *given)
    return mixed.reshape(query.shape), (query, key, value, bias, mixed, totals)


def _gradient(saved: tuple, grad: Array) -> tuple[Array, Array, Array, Array | None]:
    query, key, value, bias, mixed, totals = saved
    given = *map(_flat, (query, key, value)), _bias(key, bias), mixed, totals, _flat(grad)
    grads = sharding.on_each_device(partial(tpu_attention_backward, dim=query.shape[-1]), *given)
    grads = (one.reshape(x.shape) for one, x in zip(grads, (query, key, value)))
    return *grads, None if bias is None else jnp.zeros_like(bias)


attend.defvjp(_attend, _gradient)


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _bias(key: Array, bias: Array | None) -> Array:
    """A bias for each key: [batch, m, 1]."""
    return (jnp.zeros(key.shape[:2], jnp.float32) if bias is None else bias.astype(jnp.float32))[..., None]


@partial(jax.jit, static_argnames="dim")
def tpu_attention_forward(query: Array, key: Array, value: Array, bias: Array, *, dim: int) -> tuple[Array, Array]:
    """The result of `attend` on one device, by which name training/flops.py knows it.

    query [batch, n, channels]; key, value [batch, m, channels]; bias [batch, m, 1]; dim: channels of a head → the
    result [batch, n, channels], and the logarithm of the sum of each query's exponentials, [batch, channels / 128,
    128 / dim, n with those that fill up the lanes].
    """
    n = query.shape[1]
    query, *keys = _filled([query], LANES) + _filled([key, value], _ROWS) + _filled([bias], _ROWS, _NEVER)
    batch, wide, channels = query.shape
    totals = jax.ShapeDtypeStruct((batch, channels // LANES, LANES // dim, wide), jnp.float32)
    mixed, totals = _call(_forward, [query, *keys], [query, totals], [], dim, scores=1, sums=1)
    return mixed[:, :n], totals


@partial(jax.jit, static_argnames="dim")
def tpu_attention_backward(
    query: Array, key: Array, value: Array, bias: Array, mixed: Array, totals: Array, grad: Array, *, dim: int
) -> tuple[Array, Array, Array]:
    """The gradients of query, key and value; `mixed` and `totals` came of the forward pass, `grad` is mixed's."""
    n, m = query.shape[1], key.shape[1]
    query, mixed, grad = _filled([query, mixed, grad], LANES)
    key, value, bias = _filled([key, value], _ROWS) + _filled([bias], _ROWS, _NEVER)
    scratch = [pltpu.VMEM((LANES, key.shape[1]), jnp.float32)] * 2
    given = [query, key, value, bias, mixed, totals, grad]
    of_query, of_key, of_value = _call(_backward, given, [query, key, value], scratch, dim, scores=2, sums=3)
    return of_query[:, :n], of_key[:, :m], of_value[:, :m]


def _filled(arrays: list[Array], unit: int, value: float = 0.0) -> list[Array]:
    """Arrays [batch, tokens, ...] with so many more tokens that `unit` divides their number."""
    return [jnp.pad(x, ((0, 0), (0, -x.shape[1] % unit), (0, 0)), constant_values=value) for x in arrays]


def _call(
    kernel: Callable, given: Sequence, made: Sequence, scratch: Sequence, dim: int, *, scores: int, sums: int
) -> tuple[Array, ...]:
    """Runs a kernel for each example and each 128 lanes of its channels.

    Args:
        kernel: takes `dim`, and references to what a program has of each array, then to scratch memory.
        given: queries first, then keys.
        made: what is shaped like the results.
        scores, sums: how many products of matrices make scores, and how many sum over keys or queries.
    """
    (batch, n, channels), m = given[0].shape, given[1].shape[1]
    memory = next(size for tokens, size in sorted(_MEMORY.items()) if max(n, m) <= tokens)
    return tuple(
        pl.pallas_call(
            partial(kernel, dim=dim),
            grid=(batch, channels // LANES),
            in_specs=[*map(_part, given)],
            out_specs=[*map(_part, made)],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in made],
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=memory),
            # What the chip's units do: a product that makes scores goes over all lanes, idle or not.
            cost_estimate=pl.CostEstimate(
                flops=2 * batch * n * m * channels * (scores * LANES // dim + sums),
                transcendentals=batch * n * m * (channels // dim),
                bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*given, *made)),
            ),
        )(*given)
    )


def _part(x: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """What a program has of an array: its example, and its lanes of the channels if there are any."""
    if x.ndim == 4:
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda example, lanes: (example, lanes, 0, 0))
    if x.shape[2] == 1:
        return pl.BlockSpec((None, *x.shape[1:]), lambda example, lanes: (example, 0, 0))
    return pl.BlockSpec((None, x.shape[1], LANES), lambda example, lanes: (example, 0, lanes))


def _forward(query, key, value, bias, mixed, totals, *, dim: int) -> None:
    values, (size, number) = value[...].T, _blocks(key.shape[0], _KEYS)

    def block(rows: pl.Slice) -> None:
        results = []
        for head in range(LANES // dim):
            queries, own = _scaled(query[rows], head, dim), slice(head * dim, (head + 1) * dim)
            most, total, result = jnp.full((1, rows.size), -jnp.inf), 0.0, 0.0
            for tile in (slice(start, start + size) for start in range(0, number * size, size)):
                scores = _product_across(key[tile], queries) + bias[tile]
                before, most = most, jnp.maximum(most, scores.max(0, keepdims=True))
                weights, rescaled = jnp.exp(scores - most), jnp.exp(before - most)
                total = total * rescaled + weights.sum(0, keepdims=True)
                result = result * rescaled + _product(values[own, tile], weights.astype(values.dtype))
            results.append(result / total)
            totals[pl.ds(head, 1), rows] = most + jnp.log(total)
        mixed[rows] = jnp.concatenate(results).T.astype(mixed.dtype)

    _for_queries(query.shape[0], block)


def _backward(
    query, key, value, bias, mixed, totals, grad, query_grad, key_grad, value_grad, key_sum, value_sum, *, dim: int
) -> None:
    keys, (size, number) = key[...].T, _blocks(key.shape[0], _KEYS)
    key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

    def block(rows: pl.Slice) -> None:
        grads, results = grad[rows].astype(jnp.float32), []
        products = grads * mixed[rows].astype(jnp.float32)
        queries_across, grads_across = (_scaled(query[rows], None, dim).T, grad[rows].T)
        for head in range(LANES // dim):
            own = slice(head * dim, (head + 1) * dim)
            queries, of_head = _scaled(query[rows], head, dim), _of_head(grads.shape, head, dim)
            own_grads = jnp.where(of_head, grads, 0).astype(keys.dtype)
            # The sum of gradient · result over a query's channels, as a row.
            along = _product_across(jnp.ones((8, LANES), jnp.float32), jnp.where(of_head, products, 0))[:1]
            total, result = totals[pl.ds(head, 1), rows], 0.0
            for tile in (slice(start, start + size) for start in range(0, number * size, size)):
                weights = jnp.exp(_product_across(key[tile], queries) + bias[tile] - total)
                scores_grad = (weights * (_product_across(value[tile], own_grads) - along)).astype(keys.dtype)
                value_sum[own, tile] += _product_across(grads_across[own], weights.astype(keys.dtype))
                key_sum[own, tile] += _product_across(queries_across[own], scores_grad)
                result = result + _product(keys[own, tile], scores_grad)
            results.append(result)
        query_grad[rows] = (jnp.concatenate(results).T * dim**-0.5).astype(query_grad.dtype)

    _for_queries(query.shape[0], block)
    key_grad[...], value_grad[...] = (x[...].T.astype(key_grad.dtype) for x in (key_sum, value_sum))


def _blocks(tokens: int, most: int) -> tuple[int, int]:
    """The size of equal blocks of tokens, at most so large if that divides them, and their number."""
    size = next((size for size in range(most, 0, -LANES) if tokens % size == 0), tokens)
    return size, tokens // size


def _for_queries(tokens: int, block: Callable[[pl.Slice], None]) -> None:
    size, number = _blocks(tokens, _QUERIES)

    @pl.loop(0, number)
    def _(index):
        block(pl.ds(pl.multiple_of(index * size, size), size))


def _scaled(queries: Array, head: int | None, dim: int) -> Array:
    """Queries divided by √dim, and zero in the lanes of other heads than the given one."""
    scaled = queries.astype(jnp.float32) * dim**-0.5
    return (scaled if head is None else jnp.where(_of_head(queries.shape, head, dim), scaled, 0)).astype(queries.dtype)


def _of_head(shape: tuple[int, int], head: int, dim: int) -> Array:
    """Whether lanes, the second axis, are those of a head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= head * dim) & (lane < (head + 1) * dim)


def _product(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _product_across(a: Array, b: Array) -> Array:
    """a bᵀ."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
