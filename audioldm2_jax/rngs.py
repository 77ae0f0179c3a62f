"""The random streams of a training step, by name.

A stream of the examples is a function of (seed, stage, step, slot, name), one of the step of (seed, stage, step, name);
neither knows of hosts and devices. Accumulation leaves the examples' streams as they are and gives each microbatch a
stream of the step of its own.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rngs(NamedTuple):
    """The randomness of one step. A use of random numbers has a name of its own, which no other use of a stage has.

    Attributes:
        step_key: one key, of the step or of one of its microbatches; None in evaluation, without dropout in networks
            and without augmentation. Guidance dropout is an example's own, and stays.
        example_keys: [batch], one key for each slot.
    """

    step_key: jax.Array | None
    example_keys: jax.Array

    @property
    def training(self) -> bool:
        """Whether dropout and augmentation are on, and BatchNorm takes the batch's statistics."""
        return self.step_key is not None

    def step(self, name: str) -> jax.Array | None:
        """Returns the step's key for the dropout `name`, whose draws are not an example's own; None in evaluation."""
        return None if self.step_key is None else named(self.step_key, name)

    def examples(self, name: str) -> jax.Array:
        """Returns [batch] keys for the use `name`: the same for an example in whichever microbatch it is."""
        return jax.vmap(partial(named, name=name))(self.example_keys)

    def uniform(self, name: str) -> jax.Array:
        """Returns a number in [0, 1) for each example, [batch]."""
        return jax.vmap(jax.random.uniform)(self.examples(name))

    def normal(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """Returns standard normal numbers [batch, *shape]."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.examples(name))


def named(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of the stream `name` below `key`; depends on the whole name."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return jax.random.fold_in(key, np.uint32(int.from_bytes(digest, "little")))


def of_step(key: jax.Array, step: jax.Array, size: int) -> Rngs:
    """Returns the streams of step `step` for a batch of `size` examples; `key` is the stage's."""
    key = jax.random.fold_in(key, step)
    slots = partial(jax.random.fold_in, named(key, "examples"))
    return Rngs(named(key, "step"), jax.vmap(slots)(jnp.arange(size)))


def heldout_rngs(key: jax.Array, number: jax.Array, size: int) -> Rngs:
    """Returns the streams of the held-out batch `number`, the same at every evaluation; `key` is the stage's."""
    key = jax.random.fold_in(named(key, "heldout"), number)
    return Rngs(None, jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(size)))


def dropout_arguments(key: jax.Array | None) -> dict[str, Any]:
    """Returns the arguments with which a module is called with dropout, or without where there is no key."""
    return {"deterministic": True} if key is None else {"deterministic": False, "rngs": {"dropout": key}}
