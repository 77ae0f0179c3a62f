"""The generator of initial weights: numbers as they should be distributed, and as many different ones.

Bounds on moments are five standard errors of 100,000 draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audioldm2_jax.training import init_random

COUNT = 100_000


def test_uniform_and_normal():
    key = init_random.key(3)
    uniform = np.asarray(jax.random.uniform(key, (COUNT,)))
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / COUNT) ** 0.5
    histogram, _ = np.histogram(uniform, 50, (0, 1))
    assert ((histogram - COUNT / 50) ** 2 / (COUNT / 50)).sum() < 49 + 5 * 98**0.5  # chi squared of 49 degrees
    normal = np.asarray(jax.random.normal(key, (COUNT,)))
    assert abs(normal.mean()) < 5 / COUNT**0.5
    assert abs(normal.var() - 1) < 5 * (2 / COUNT) ** 0.5
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 5 / COUNT**0.5


def test_keys_differ():
    key = init_random.key(0)
    keys = [key, init_random.key(1), *jax.random.split(key, 20), *(jax.random.fold_in(key, i) for i in range(20, 40))]
    draws = np.stack([jax.random.normal(one, (2000,)) for one in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 6 / 2000**0.5
    assert (draws[0] == np.asarray(jax.random.normal(init_random.key(0), (2000,)))).all()


def test_shape_does_not_change_the_numbers_under_jit():
    draw = lambda: jax.random.normal(init_random.key(5), (6, 7))  # noqa: E731
    np.testing.assert_array_equal(draw(), jax.jit(draw)())


def test_more_bits_than_there_are():
    with pytest.raises(ValueError, match="64 random bits"), jax.enable_x64(True):
        jax.random.uniform(init_random.key(0), (3,), jnp.float64)
