"""What every source of training data yields."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Example:
    """One recording.

    Attributes:
        waveform: [samples] float32, mono, at the sampling rate the source was opened with.
        text: the caption; None where the recording has none.
        labels: what else is known about it. The embedded corpus documents its own; files carry their name.
    """

    waveform: np.ndarray
    text: str | None
    labels: dict = field(default_factory=dict)


class UnreadableRecord(ValueError):
    """A record that exists and cannot be used: damaged, empty, not finite. The pipeline draws another one."""
