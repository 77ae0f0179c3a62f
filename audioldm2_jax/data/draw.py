"""Random draws that depend on nothing but their key: the same on every machine, host, worker and Python version."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def digest(*key: int | str) -> int:
    """A 64-bit hash of `key`, the same in every process (unlike `hash`)."""
    data = "\x1f".join(map(str, key)).encode("utf-8", "surrogateescape")  # file names need not be UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Draw:
    """A stream of draws named by a key.

    Built on `random.Random.random` alone, the one method whose sequence Python promises to keep across versions.
    """

    def __init__(self, *key: int | str) -> None:
        self.random = random.Random(digest(*key)).random

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return int(self.random() * n)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, all equally likely."""
        return options[int(self.random() * len(options))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, in proportion to its weight."""
        rest = self.random() * sum(weights.values())
        for option, weight in weights.items():
            rest -= weight
            if rest < 0:
                return option
        return option


_FEW = 1024  # what is shuffled as a whole: index_shuffle takes the longer, up to milliseconds, the less there is


def permuted(position: int, size: int, *key: int | str) -> int:
    """Where `position` comes to lie in the permutation of 0..size-1 that `key` names; of many, computed, not stored."""
    if size <= _FEW:
        return _shuffled(size, *key)[position]
    from grain.experimental import index_shuffle  # not before: it imports JAX, which a process that reads does without

    return index_shuffle(position, max_index=size - 1, seed=digest(*key) % 2**32, rounds=4)


@functools.lru_cache(maxsize=64)
def _shuffled(size: int, *key: int | str) -> list[int]:
    """Returns 0..size-1 shuffled (Fisher and Yates)."""
    draw, order = Draw(*key), list(range(size))
    for last in range(size - 1, 0, -1):
        other = draw.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order
