"""What every source of training data yields, and what a source is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """One recording, or a piece of it.

    Attributes:
        waveform: [samples] float32, mono, at the sampling rate the source was opened with; empty where the source has
            features alone.
        text: the caption; None where the recording has none.
        labels: what else is known about it. The embedded corpus documents its own; files carry their name.
        features: what frozen networks made of it, by field of the batch (data/cache.py).
        transcription: the words that are spoken in the whole of it; None where nobody speaks or nobody wrote it down.
    """

    waveform: np.ndarray
    text: str | None
    labels: dict = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    transcription: str | None = None


class UnreadableRecord(ValueError):
    """A record that exists and cannot be used: damaged, empty, not finite. The pipeline draws another one."""


class Source:
    """Random access to examples; picklable, so that worker processes can open it again.

    `len(source)` is the number of records, `source[i]` the whole of record i, or `UnreadableRecord`.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError

    def text(self, index: int) -> str | None:
        """The caption of a record alone; a source that has it at hand overrides this."""
        return self[index].text

    def transcription(self, index: int) -> str | None:
        """The transcription of a record alone; a source that has it at hand overrides this."""
        return self[index].transcription

    def listing(self) -> Any:
        """What was found by looking, and decides which record has which number, as JSON can hold it; None: nothing.

        A host may fail to read a file that another one can: all of a job take process 0's listing (`follow`).
        """
        return None

    def follow(self, listing: Any) -> str:
        """Takes another host's listing in the place of its own; returns how they differed, "" if they did not.

        A record that is listed and cannot be read here counts as unreadable when its turn comes.

        Raises:
            ValueError: the listing cannot be that of the same data.
        """
        return ""

    def digests(self, records: int) -> dict[str, str]:
        """What tells the recordings of the first `records` records from others that take their place: name → digest.

        Empty where the source's name and its listing say it already. A recording that cannot be read now has a digest
        of its own kind, and is no error.
        """
        return {}

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """At most `samples` samples of record `index`; `position` in [0, 1) says where between its ends.

        A source that need not read the whole record for that overrides this.
        """
        example = self[index]
        start = int(position * max(len(example.waveform) - samples + 1, 1))
        waveform = example.waveform[start : start + samples]
        return Example(waveform, example.text, example.labels, transcription=example.transcription)
