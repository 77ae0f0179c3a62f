"""Which part of a longer recording is a clip, and what a shorter one is filled up with.

`data.segment`, of recordings that are longer than a clip:

    random      anywhere
    sounding    anywhere; where nothing but silence is there, another place is drawn, ten places at most, of which the
                loudest counts [TF dataset.py, random_segment_wav, which has the last one]

`data.short`, of recordings that are shorter:

    pad         silence after it, as in the paper: padded time counts as silence in every loss and in the LOA, and the
                model learns that short sounds end
    repeat      the recording over and over again to the end of the clip. One with a transcription is padded all the
                same, as it is said once
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Example, Source

SEGMENTS, SHORT = ("random", "sounding"), ("pad", "repeat")
_SILENT = 1e-4  # of full scale, the loudest sample [TF]
_PLACES = 10  # that are tried [TF]


class Clips(Source):
    """A source whose excerpts are chosen and filled up as above; all else is the source's.

    An excerpt depends on record and position alone, as every source's does.
    """

    def __init__(self, source: Source, segment: str, short: str) -> None:
        """Args:
        source: the recordings.
        segment: one of `SEGMENTS`.
        short: one of `SHORT`.

        Raises:
            ValueError: it is another one.
        """
        for key, value, known in (("segment", segment, SEGMENTS), ("short", short, SHORT)):
            if value not in known:
                raise ValueError(f"data.{key}={value!r}: choose from {', '.join(known)}")
        self.source, self.segment, self.short = source, segment, short

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`.

        Raises:
            UnreadableRecord: one of the places cannot be read.
        """
        example = self._chosen(index, samples, position)
        length = len(example.waveform)
        if self.short == "pad" or not 0 < length < samples or example.transcription:
            return example
        return dataclasses.replace(example, waveform=np.resize(example.waveform, samples))

    def text(self, index: int) -> str | None:
        return self.source.text(index)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(index)

    def transcription(self, index: int) -> str | None:
        return self.source.transcription(index)

    def draw(self, number: int, seed: int) -> int:
        return self.source.draw(number, seed)

    def another(self, index: int, draw: Draw) -> int:
        return self.source.another(index, draw)

    def first(self, records: int) -> Source:
        """See `Source.first`."""
        return Clips(self.source.first(records), self.segment, self.short)

    def listing(self) -> Any:
        return self.source.listing()

    def listing_digest(self) -> str:
        return self.source.listing_digest()

    def follow(self, listing: Any) -> str:
        return self.source.follow(listing)

    def digests(self, records: int) -> dict[str, str]:
        return self.source.digests(records)

    def _chosen(self, index: int, samples: int, position: float) -> Example:
        """The excerpt at `position`, or where that is silent and to be avoided, at another place."""
        best = self.source.excerpt(index, samples, position)
        if self.segment == "random" or len(best.waveform) < samples:
            return best
        draw = Draw("sounding", index, position.hex())
        for _ in range(_PLACES - 1):
            if _peak(best) > _SILENT:
                break
            other = self.source.excerpt(index, samples, draw.random())
            best = max(best, other, key=_peak)
        return best


def _peak(example: Example) -> float:
    return float(np.abs(example.waveform).max(initial=0.0))
