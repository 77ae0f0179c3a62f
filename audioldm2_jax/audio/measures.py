"""What can be said of a recording by its samples: level, faults, bandwidth, and whether it is the same as another.

The spectra are librosa's. A recording is read once from front to back, in blocks, and never held as a whole.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

from audioldm2_jax.audio import decoding, files

#: Samples of a spectrum, and what a shorter recording has no bandwidth for.
WINDOW = 2048
#: A sound ends, towards high frequencies, where its mean spectrum stays below both: dB below its loudest band, and dB
#: below a sine of full scale. The noise of 16 bits is at -126 dB in each band.
_BELOW, _FLOOR = 80.0, -115.0
#: Samples in a row at full scale that count as clipped.
_RUN = 3
_FULL_SCALE = 1 - 2.0**-12
_FULL_SCALE_8 = 1 - 2.0**-7  # of eight bits the largest number is 127 of 128
_SPECTRA = 512  # at a time


class Measures(NamedTuple):
    """Of a recording as it is stored, over all channels.

    Attributes:
        seconds: its length.
        rate: Hz.
        channels: how many.
        encoding: format and sample format.
        peak: the largest absolute sample, 1 at full scale.
        rms: root mean square of the samples, in dB relative to full scale (a full-scale sine has -3.01); None where all
            are zero.
        dc: the mean of the samples, of the channel where it is farthest from zero; 1 at full scale.
        clipped: the share of the samples that lie in runs of at least three at full scale.
        silent: whether the mean of the channels is silence (`files.is_silent`).
        bandwidth: Hz, up to which there is sound: the highest frequency at which the mean power spectrum is less than
            80 dB below its maximum, and above -115 dB relative to a full-scale sine. None below 2048 samples, and of
            silence.
        digest: the same for the same sound: 128 bits of SHA-256, of its rate and the mean of its channels in 16 bits.
    """

    seconds: float
    rate: int
    channels: int
    encoding: str
    peak: float
    rms: float | None
    dc: float
    clipped: float
    silent: bool
    bandwidth: float | None
    digest: str


class Meter:
    """Measures a recording whose blocks are handed over one after the other."""

    def __init__(self, rate: int, channels: int, encoding: str) -> None:
        """Arguments as the attributes of `Measures`."""
        self.rate, self.channels, self.encoding = rate, channels, encoding
        self._frames = self._clipped = self._spectra = 0
        self._squares, self._peak = 0.0, 0.0
        self._sums = np.zeros(channels)
        self._low, self._high = math.inf, -math.inf
        self._runs = np.zeros(channels, np.int64)  # samples at full scale at the end of what was seen
        self._power = np.zeros(WINDOW // 2 + 1)
        self._rest = np.zeros(0, np.float32)  # what makes no whole spectrum yet
        self._content = hashlib.sha256(f"{rate}\n".encode())
        self._full = _FULL_SCALE_8 if encoding.endswith(("PCM_U8", "PCM_S8")) else _FULL_SCALE

    def update(self, block: np.ndarray) -> np.ndarray:
        """Takes the next block [frames, channels]; returns the mean of its channels [frames]."""
        mono = decoding.to_mono(block)
        self._frames += len(block)
        self._sums += block.sum(axis=0, dtype=np.float64)
        self._squares += float(np.square(block, dtype=np.float64).sum())
        magnitude = np.abs(block)
        self._peak = max(self._peak, float(magnitude.max()))
        self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
        if self._peak >= self._full:
            for channel in range(self.channels):
                self._count_runs(channel, magnitude[:, channel] >= self._full)
        self._content.update(np.round(mono.clip(-1, 1) * 32767).astype("<i2").tobytes())
        self._add_spectra(mono)
        return mono

    def result(self) -> Measures:
        """Of all blocks, of which there has to be one."""
        clipped = self._clipped + int(self._runs[self._runs >= _RUN].sum())
        samples = self._frames * self.channels
        silent = files.is_silent(np.array([self._low, self._high]))
        return Measures(
            seconds=self._frames / self.rate,
            rate=self.rate,
            channels=self.channels,
            encoding=self.encoding,
            peak=self._peak,
            rms=10 * math.log10(self._squares / samples) if self._squares else None,
            dc=float(max(self._sums / self._frames, key=abs)),
            clipped=clipped / samples,
            silent=silent,
            bandwidth=None if silent else self._bandwidth(),
            digest=self._content.hexdigest()[:32],
        )

    def _count_runs(self, channel: int, full: np.ndarray) -> None:
        """Adds the runs that end in a block; one that lies at its end may go on in the next."""
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        lengths = ends - starts
        before, self._runs[channel] = self._runs[channel], 0
        if len(lengths) and starts[0] == 0:
            lengths[0] += before
        elif before >= _RUN:
            self._clipped += int(before)
        if len(lengths) and ends[-1] == len(full):
            self._runs[channel] = lengths[-1]
            lengths = lengths[:-1]
        self._clipped += int(lengths[lengths >= _RUN].sum())

    def _add_spectra(self, mono: np.ndarray) -> None:
        import librosa

        pending = np.concatenate([self._rest, mono])
        whole = len(pending) // WINDOW * WINDOW
        self._rest = pending[whole:]
        for first in range(0, whole, _SPECTRA * WINDOW):
            piece = pending[first : min(first + _SPECTRA * WINDOW, whole)]
            spectra = librosa.stft(piece, n_fft=WINDOW, hop_length=WINDOW, center=False)
            self._power += np.square(np.abs(spectra), dtype=np.float64).sum(axis=1)
            self._spectra += spectra.shape[1]

    def _bandwidth(self) -> float | None:
        import librosa

        if not self._spectra:
            return None
        # A full-scale sine in the middle of a band has a quarter of the window's length in it (Hann).
        levels = librosa.power_to_db(self._power / self._spectra, ref=(WINDOW / 4) ** 2, amin=1e-30, top_db=None)
        levels[:2] = -math.inf  # a constant, which the window spreads over two bands, is no sound
        there = np.flatnonzero(levels > max(float(levels.max()) - _BELOW, _FLOOR))
        return float(librosa.fft_frequencies(sr=self.rate, n_fft=WINDOW)[there[-1]]) if len(there) else None
