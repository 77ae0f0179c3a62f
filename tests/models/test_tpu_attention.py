"""The kernels of attention on TPUs, run by JAX's interpreter of such kernels, against the plain formula.

That the TPUs' compiler takes them is tested in tests/planning/test_libtpu.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from audioldm2_jax.models import tpu_attention
from audioldm2_jax.models.layers import _attend


def draw(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape)


def with_gradients(attend, query, key, value, grad):
    result, pull = jax.vjp(attend, query, key, value)
    return result, *pull(grad)


def interpreted(*given: jax.Array, bias: jax.Array | None = None) -> tuple[jax.Array, ...]:
    with pltpu.force_tpu_interpret_mode():
        return jax.jit(partial(with_gradients, lambda *three: tpu_attention.attend(*three, bias)))(*given)


@pytest.mark.parametrize(
    ("n", "m", "heads", "dim", "masked"),
    [
        (256, 384, 8, 32, False),  # several heads in the lanes of a register
        (128, 640, 2, 64, True),  # keys in several tiles
        (1024, 128, 4, 32, False),  # queries in several blocks
        (384, 21, 1, 128, True),  # keys that do not fill registers
        (200, 8, 4, 32, True),  # and queries that do not fill its lanes
        (513, 513, 2, 64, False),
    ],
)
def test_values_and_gradients_are_those_of_the_formula(n: int, m: int, heads: int, dim: int, masked: bool) -> None:
    query, grad = draw(0, 2, n, heads, dim), draw(3, 2, n, heads, dim)
    key, value = draw(1, 2, m, heads, dim), draw(2, 2, m, heads, dim)
    bias = jnp.where(draw(4, 2, m) < -0.5, -1e4, 0.0) if masked else None
    got = interpreted(query, key, value, grad, bias=bias)
    wanted = with_gradients(lambda *three: _attend(*three, bias), query, key, value, grad)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_large_scores_stay_finite() -> None:
    query, key, value, grad = (draw(number, 1, 128, 1, 128) for number in range(4))
    got = interpreted(query * 30, key * 30, value, grad)
    wanted = with_gradients(lambda *three: _attend(*three, None), query * 30, key * 30, value, grad)
    for ours, theirs in zip(got, wanted, strict=True):
        assert jnp.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))


def test_in_half_precision_it_is_as_near_as_the_formula() -> None:
    """Each against float32: bfloat16 of what goes in and of the weights is all that is lost."""
    whole = [draw(number, 2, 256, 4, 32) for number in range(4)]
    half = [x.astype(jnp.bfloat16) for x in whole]
    exact = with_gradients(lambda *three: _attend(*three, None), *(x.astype(jnp.float32) for x in half))
    got = interpreted(*half)
    plain = with_gradients(lambda *three: _attend(*three, None), *half)

    def distance(x: jax.Array, y: jax.Array) -> float:
        return float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())

    for ours, theirs, wanted in zip(got, plain, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert distance(ours, wanted) < max(2 * distance(theirs, wanted), 0.01)


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "wanted"),
    [
        ((2, 1024, 8, 32), 1024, jnp.bfloat16, True),
        ((2, 256, 12, 32), 8, jnp.bfloat16, True),
        ((2, 1024, 8, 32), 1024, jnp.float32, False),
        ((2, 513, 12, 64), 513, jnp.bfloat16, True),
        ((2, 64, 20, 32), 64, jnp.bfloat16, False),  # half of a register's lanes would be empty
        ((2, 129, 12, 64), 129, jnp.bfloat16, False),
        ((2, 1024, 9, 32), 1024, jnp.bfloat16, False),
        ((2, 1024, 8, 48), 1024, jnp.bfloat16, False),
        ((2, 8192, 8, 32), 8192, jnp.bfloat16, False),
    ],
)
def test_what_it_takes(shape: tuple[int, ...], keys: int, dtype: jnp.dtype, wanted: bool) -> None:
    key = jax.ShapeDtypeStruct((shape[0], keys, *shape[2:]), dtype)
    assert tpu_attention.takes(jax.ShapeDtypeStruct(shape, dtype), key) is wanted
