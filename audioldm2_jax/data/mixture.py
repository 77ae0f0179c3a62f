"""Several sources as one, each with its share of the examples.

The share is exact: of every block of examples each source has the same number, in an order of the block's own, and goes
through its records by itself, epoch after epoch. Which record an example is can be computed for any of them, so that a
mixture starts anywhere at once, as every source does.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from audioldm2_jax.data.draw import Draw, digest, permuted
from audioldm2_jax.data.example import Example, Source

_BLOCK = 10_000  # examples of a block at most; shares that no such block has are rounded


class Mixture(Source):
    """Records of several sources, those of the first one first; `draw` mixes them."""

    def __init__(self, parts: Sequence[Source], weights: Sequence[Fraction]) -> None:
        """Args:
        parts: the sources.
        weights: of each, not negative, and one of them positive; only their ratios matter. Of a source with the
            weight 0 nothing is drawn.
        """
        self.parts, self.weights = tuple(parts), tuple(weights)
        self._begins = [0, *itertools.accumulate(map(len, self.parts))]
        self._places = [0, *itertools.accumulate(_shares(self.weights))]

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, index: int) -> Example:
        part, own = self._find(index)
        return part[own]

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`."""
        part, own = self._find(index)
        return part.excerpt(own, samples, position)

    def text(self, index: int) -> str | None:
        """See `Source.text`."""
        part, own = self._find(index)
        return part.text(own)

    def captions(self, index: int) -> tuple[str, ...]:
        """See `Source.captions`."""
        part, own = self._find(index)
        return part.captions(own)

    def transcription(self, index: int) -> str | None:
        """See `Source.transcription`."""
        part, own = self._find(index)
        return part.transcription(own)

    def with_caption(self, example: Example, index: int, position: float) -> Example:
        """See `Source.with_caption`."""
        part, own = self._find(index)
        return part.with_caption(example, own, position)

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """See `Source.restricted`; a source of which nothing is left has no share, the others keep their ratios."""
        parts = [part.restricted(fields) for part in self.parts]
        if all(one is other for one, other in zip(parts, self.parts)):
            return self
        weights = [Fraction(0) if part is None else weight for part, weight in zip(parts, self.weights)]
        drawn = [other if one is None else one for one, other in zip(parts, self.parts)]
        return Mixture(drawn, weights) if any(weights) else None

    def count_drawn(self) -> int:
        """See `Source.count_drawn`."""
        return sum(part.count_drawn() for part, weight in zip(self.parts, self.weights) if weight)

    def draw(self, number: int, seed: int) -> int:
        """See `Source.draw`."""
        block, position = divmod(number, self._places[-1])
        place = permuted(position, self._places[-1], seed, "mixture", block)
        part = bisect.bisect(self._places, place) - 1
        share = self._places[part + 1] - self._places[part]
        own = self.parts[part].draw(block * share + place - self._places[part], digest(seed, "part", part))
        return self._begins[part] + own

    def another(self, index: int, draw: Draw) -> int:
        """See `Source.another`; of the same source, so that the shares stay."""
        part = self._part(index)
        begin = self._begins[part]
        return begin + self.parts[part].another(index - begin, draw)

    def first(self, records: int) -> Mixture:
        """See `Source.first`; of each source its share, or all that it has."""
        counts = [round(records * weight / sum(self.weights)) for weight in self.weights]
        kept = [part.first(min(max(count, 1), len(part))) for part, count in zip(self.parts, counts)]
        return Mixture(kept, self.weights)

    def listing(self) -> Any:
        """See `Source.listing`."""
        listings = [part.listing() for part in self.parts]
        return listings if any(listing is not None for listing in listings) else None

    def listing_digest(self) -> str:
        """See `Source.listing_digest`."""
        return hashlib.sha256(" ".join(part.listing_digest() for part in self.parts).encode()).hexdigest()

    def follow(self, listing: Any) -> str:
        """See `Source.follow`."""
        followed = [part.follow(own) for part, own in zip(self.parts, listing or [], strict=False) if own is not None]
        self.__init__(self.parts, self.weights)  # as many records as are listed
        return "\n".join(filter(None, followed))

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`."""
        found = {}
        for number, part in enumerate(self.parts):
            left = min(max(records - self._begins[number], 0), len(part))
            found |= {f"{number}/{name}": value for name, value in part.digests(left).items()}
        return found

    def _part(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return bisect.bisect(self._begins, index) - 1

    def _find(self, index: int) -> tuple[Source, int]:
        part = self._part(index)
        return self.parts[part], index - self._begins[part]


def _shares(weights: Sequence[Fraction]) -> list[int]:
    """Returns how many examples of a block each source has: exactly by the weights, or where that block were too large,
    the nearest whole numbers."""
    total = sum(weights)
    exact = [weight / total for weight in weights]
    block = math.lcm(*(share.denominator for share in exact))
    if block <= _BLOCK:
        return [int(share * block) for share in exact]
    return [max(round(share * _BLOCK), 1) if share else 0 for share in exact]


def parse(named: str) -> list[tuple[str, Fraction]]:
    """Splits `SOURCE,WEIGHT;SOURCE,WEIGHT;…`; a source without a weight has 1.

    Raises:
        ValueError: a part is empty, or its weight is not positive.
    """
    found = []
    for part in named.split(";"):
        source, comma, last = part.rpartition(",")
        try:
            weight = Fraction(last.strip()) if comma else None
        except (ValueError, ZeroDivisionError):
            weight = None
        if weight is None:
            source, weight = part, Fraction(1)
        if not source.strip():
            raise ValueError(
                f"data.source={named!r}: nothing stands before a semicolon or a weight; name a source there"
            )
        if weight <= 0:
            raise ValueError(
                f"data.source={named!r}: the weight of {source.strip()} is {last.strip()}; it has to be positive"
            )
        found.append((source.strip(), weight))
    return found
