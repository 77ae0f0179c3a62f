"""Random draws that depend on nothing but their key: the same on every machine, host, worker and Python version."""

from __future__ import annotations

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
