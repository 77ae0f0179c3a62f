"""Random numbers for new parameters, cheap to compile.

A network has hundreds of parameters, and XLA compiles the loop of the default generator (threefry) anew for each: 24 s
of CPU time for the tiny recipe's UNet, four times what the hash below takes. It is for initial weights alone:
everything random
in a step uses JAX's default. Like threefry's, its numbers do not depend on how an array is sharded.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend


def key(seed: int) -> jax.Array:
    """Returns a key of the hash generator."""
    return jax.random.key(seed, impl=_HASH)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit numbers whose every output bit depends on all input bits [hash-prospector, lowbias32]."""
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    if width > 32:
        raise ValueError(f"{width} random bits a number; the generator of initial weights has 32")
    count = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(_mix(count + key[0]) ^ key[1]).astype(f"uint{width}")


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    first = _mix(_mix(key[0] ^ jnp.asarray(data, jnp.uint32)) + key[1])
    return jnp.stack([first, _mix(first ^ (key[1] + np.uint32(0x9E3779B9)))])


def _seed(seed: jax.Array) -> jax.Array:
    seed = jnp.asarray(seed).astype(jnp.uint32)
    return jnp.stack([_mix(seed), _mix(seed + np.uint32(1))])


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    counts = jax.lax.iota(jnp.uint32, math.prod(shape))
    return jax.vmap(lambda count: _fold_in(key, count))(counts).reshape(*shape, 2)


_HASH = extend.define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="init_hash", tag="ini"
)
