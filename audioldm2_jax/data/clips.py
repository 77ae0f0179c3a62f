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

`data.silence`, around what is said, in recordings with a transcription:

    keep        as it is
    trim        from a tenth of a second before the first sound, to the last one (audio/silence.py). What is said then
                begins where a language model can know that it begins; of a silence of random length it can write the
                mean alone
"""

from __future__ import annotations

import dataclasses

import numpy as np

from audioldm2_jax.audio.silence import trim_silence
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Derived, Example, Source

SEGMENTS, SHORT, SILENCE = ("random", "sounding"), ("pad", "repeat"), ("keep", "trim")
_SILENT = 1e-4  # of full scale, the loudest sample [TF]
_PLACES = 10  # that are tried [TF]


class Clips(Derived):
    """A source whose excerpts are chosen and filled up as above; all else is the source's.

    An excerpt depends on record and position alone, as every source's does.
    """

    def __init__(self, source: Source, sampling_rate: int, segment: str, short: str, silence: str = "keep") -> None:
        """Args:
        source: the recordings.
        sampling_rate: of its waveforms, Hz.
        segment: one of `SEGMENTS`.
        short: one of `SHORT`.
        silence: one of `SILENCE`.

        Raises:
            ValueError: it is another one.
        """
        choices = (("segment", segment, SEGMENTS), ("short", short, SHORT), ("silence", silence, SILENCE))
        for key, value, known in choices:
            if value not in known:
                raise ValueError(f"data.{key}={value!r}: choose from {', '.join(known)}")
        super().__init__(source)
        self._choices = (sampling_rate, segment, short, silence)
        self.sampling_rate, self.segment, self.short, self.silence = self._choices

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`.

        Raises:
            UnreadableRecord: one of the places cannot be read.
        """
        example = self._chosen(index, samples, position)
        if self.silence == "trim" and example.transcription:
            trimmed = trim_silence(example.waveform, self.sampling_rate)
            example = dataclasses.replace(example, waveform=trimmed[-samples:])
        length = len(example.waveform)
        if self.short == "pad" or not 0 < length < samples or example.transcription:
            return example
        return dataclasses.replace(example, waveform=np.resize(example.waveform, samples))

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """See `Source.restricted`."""
        found = self.source.restricted(fields)
        if found is None or found is self.source:
            return found and self
        return Clips(found, *self._choices)

    def first(self, records: int) -> Source:
        """See `Source.first`."""
        return Clips(self.source.first(records), *self._choices)

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
