"""The random numbers of a training step."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Rngs(NamedTuple):
    """The randomness of one step: `step`, one key for all of it, and `examples` [batch], one for each slot.

    Both are functions of (seed, step, slot) and not of the number of hosts or devices.
    """

    step: jax.Array
    examples: jax.Array


def fold(keys: jax.Array, number: int) -> jax.Array:
    """Returns [batch] keys of a use of their own."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
