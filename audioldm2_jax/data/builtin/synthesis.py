"""What the synthesised sounds of the embedded corpora are made of: shaped noise, tones, resonances, grains.

Spectra are given in Hz and times in seconds, so that a sound is the same at any sampling rate, up to the noise in it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

from audioldm2_jax.data.draw import Draw

_TABLE = 2048  # samples of one period of a tone, a power of two


@dataclass(frozen=True)
class Take:
    """What a synthesiser makes a sound of.

    Attributes:
        draw: the source's parameters are drawn from it.
        sampling_rate: Hz.
        seconds: length of the sound.
        onsets: when the source is struck, rings, barks ..., in seconds from its beginning; one or more.
    """

    draw: Draw
    sampling_rate: int
    seconds: float
    onsets: tuple[float, ...]

    @functools.cached_property
    def _generator(self) -> np.random.RandomState:
        return np.random.RandomState(0)  # making one takes longer than seeding it

    @property
    def samples(self) -> int:
        return self.count(self.seconds)

    @property
    def period(self) -> float:
        """The shortest time in seconds from one onset to the next, or from the last to the end."""
        times = (*self.onsets, self.seconds)
        return min(later - earlier for earlier, later in itertools.pairwise(times))

    def count(self, seconds: float) -> int:
        """Samples in `seconds`, at least 1."""
        return max(round(seconds * self.sampling_rate), 1)

    def time(self, seconds: float | None = None) -> np.ndarray:
        """[samples] float32: seconds from the beginning."""
        samples = self.samples if seconds is None else self.count(seconds)
        return np.arange(samples, dtype=np.float32) / np.float32(self.sampling_rate)

    def random(self) -> np.random.RandomState:
        """The generator whose sequence never changes, seeded anew: how much noise takes is the rate's.

        It is the same object each time, so one use must end before the next begins.
        """
        self._generator.seed(self.draw.below(2**32))
        return self._generator

    def noise(self, spectrum: Sequence[tuple[float, float]], seconds: float | None = None) -> np.ndarray:
        """[samples] float32: noise of root mean square near 1 below 8 kHz where the spectrum is flat at 0 dB.

        Args:
            spectrum: (Hz, dB) in order of Hz; between them, straight over the logarithm of Hz; flat beyond the ends.
        """
        samples = self.samples if seconds is None else self.count(seconds)
        padded = scipy.fft.next_fast_len(samples + 64, real=True)  # and so its end does not join its beginning
        bins = padded // 2 + 1
        white = self.random().random_sample(2 * bins).astype(np.float32) - np.float32(0.5)
        gain = _gains(spectrum, padded, self.sampling_rate)
        gain *= np.float32((6.0 * padded * self.sampling_rate / 16000) ** 0.5)  # a uniform number's variance is 1 / 12
        return scipy.fft.irfft(white.view(np.complex64) * gain, padded)[:samples]

    def bend(self, points: Sequence[tuple[float, float]], seconds: float | None = None) -> np.ndarray:
        """[samples] float32: straight lines through (seconds, value), constant beyond the ends."""
        times, values = zip(*points)
        return np.interp(self.time(seconds), times, values).astype(np.float32)

    def wander(self, each: float, seconds: float | None = None) -> np.ndarray:
        """[samples] float32: a curve in −1..1 that goes through a new random value every `each` seconds."""
        time = self.time(seconds)
        knots = self.random().random_sample(int(time[-1] / each) + 3) * 2 - 1
        place = time / np.float32(each)
        index = place.astype(int)
        share = place - index
        share *= share * (3 - 2 * share)  # no corners
        return (knots[index] * (1 - share) + knots[index + 1] * share).astype(np.float32)

    def tone(self, frequency: np.ndarray, partials: Sequence[float]) -> np.ndarray:
        """[samples] float32: a periodic sound whose n-th partial has the n-th amplitude, without aliasing.

        Args:
            frequency: [samples] Hz.
        """
        kept = min(len(partials), int(0.5 * self.sampling_rate / float(frequency.max())))
        spectrum = np.zeros(_TABLE // 2 + 1, np.complex64)
        # Schroeder's phases keep the peak low; real sources are no pulses either.
        phases = np.pi * np.arange(kept) * np.arange(1, kept + 1) / max(kept, 1)
        spectrum[1 : kept + 1] = np.asarray(partials[:kept]) * np.exp(1j * phases)
        table = scipy.fft.irfft(spectrum, _TABLE) * (_TABLE / 2)
        table = np.append(table, table[0]).astype(np.float32)
        place = np.cumsum(frequency, dtype=np.float64)
        place *= _TABLE / self.sampling_rate
        index = place.astype(np.int64)
        share = (place - index).astype(np.float32)
        index &= _TABLE - 1
        return table[index] * (1 - share) + table[index + 1] * share

    def sine(self, frequency: np.ndarray) -> np.ndarray:
        """[samples] float32: a sine of frequency [samples] Hz, silent where that is beyond the rate's reach."""
        turns = np.cumsum(frequency, dtype=np.float64) / self.sampling_rate
        turns -= np.floor(turns)  # float32 has no digits for more
        return np.sin(turns.astype(np.float32) * np.float32(2 * np.pi)) * (frequency < 0.49 * self.sampling_rate)

    def strokes(self, width: float, spread: float = 0.25, levels: Sequence[float] | None = None) -> np.ndarray:
        """[samples] float32: a force at each onset, half a period of a sine `width` seconds long, of area near 1.

        Args:
            spread: by how much the strokes differ in strength and width.
        """
        force = np.zeros(self.samples, np.float32)
        for number, onset in enumerate(self.onsets):
            wide = width * (1 + spread * self.draw.uniform(-0.5, 0.5))
            strength = 1 + spread * self.draw.uniform(-1, 1)
            self.add(force, self.pulse(wide) * strength * (1 if levels is None else levels[number]), onset)
        return force

    def pulse(self, width: float) -> np.ndarray:
        """[samples] float32: half a period of a sine, of area 1."""
        samples = self.count(width)
        pulse = np.sin(np.pi * (np.arange(samples, dtype=np.float32) + 0.5) / samples)
        return pulse / pulse.sum()

    def add(self, sound: np.ndarray, other: np.ndarray, onset: float) -> None:
        """Adds `other` to `sound` from `onset` seconds on, as far as that reaches."""
        start = round(onset * self.sampling_rate)
        other = other[: max(len(sound) - start, 0)]
        sound[start : start + len(other)] += other

    def grains(self, density: float, heavy: float = 1.0) -> np.ndarray:
        """[samples] float32: impulses at random times, `density` a second, of random sign.

        Args:
            heavy: of the logarithm of their size, the standard deviation; root mean square size is 1.
        """
        random = self.random()
        number = max(int(density * self.seconds), 1)
        times, first, second = random.random_sample((3, number))
        size = np.exp(heavy * np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second) - heavy**2)  # Box and Muller
        sound = np.zeros(self.samples, np.float32)
        sign = np.where(second < 0.5, 1, -1)  # the cosine does not tell the halves apart
        np.add.at(sound, (times * self.samples).astype(int), sign * size)
        return sound

    def scatter(self, force: np.ndarray, decay: float, spectrum: Sequence[tuple[float, float]]) -> np.ndarray:
        """[samples] float32: each impulse of `force` as a burst of noise that decays by 60 dB in `decay` seconds.

        A burst has the energy of 5 ms of the noise, whatever the rate.
        """
        keep = 10 ** (-3 / (decay * self.sampling_rate))
        envelope = scipy.signal.lfilter(np.ones(1, np.float32), np.array([1, -keep], np.float32), force)
        return envelope * self.noise(spectrum) * np.float32((0.01 * 6.9 / decay) ** 0.5)

    def modes(self, force: np.ndarray, modes: Sequence[tuple[float, float, float]]) -> np.ndarray:
        """[samples] float32: what a body sounds like under `force`: the sum of its modes.

        Args:
            modes: (Hz, seconds until it has decayed by 60 dB, amplitude after a stroke of area 1). Those beyond the
                rate's reach are left out.
        """
        sound = np.zeros(len(force), np.float32)
        for frequency, decay, amplitude in modes:
            if frequency < 0.47 * self.sampling_rate:
                angle = 2 * np.pi * frequency / self.sampling_rate
                radius = 10 ** (-3 / (decay * self.sampling_rate))
                zeros = np.array([0, amplitude * radius * np.sin(angle)], np.float32)
                poles = np.array([1, -2 * radius * np.cos(angle), radius * radius], np.float32)
                sound += scipy.signal.lfilter(zeros, poles, force)
        return sound

    def resonances(self, sound: np.ndarray, peaks: Sequence[tuple[float, float, float]]) -> np.ndarray:
        """[samples] float32: `sound` through band passes side by side, as formants are: (Hz, bandwidth in Hz, gain)."""
        out = np.zeros(len(sound), np.float32)
        for frequency, bandwidth, gain in peaks:
            if frequency < 0.47 * self.sampling_rate:
                b, a = scipy.signal.iirpeak(frequency, frequency / bandwidth, fs=self.sampling_rate)
                out += scipy.signal.lfilter((gain * b).astype(np.float32), a.astype(np.float32), sound)
        return out

    def shape(self, sound: np.ndarray, spectrum: Sequence[tuple[float, float]]) -> np.ndarray:
        """[samples] float32: `sound` with its spectrum changed by (Hz, dB) as `noise` takes them, without delay."""
        padded = scipy.fft.next_fast_len(len(sound) + self.count(0.02), real=True)
        return scipy.fft.irfft(scipy.fft.rfft(sound, padded) * _gains(spectrum, padded, self.sampling_rate), padded)[
            : len(sound)
        ]


def _gains(spectrum: Sequence[tuple[float, float]], samples: int, sampling_rate: int) -> np.ndarray:
    """[samples // 2 + 1] float32 amplitudes at the frequencies of a real Fourier transform; 0 for the offset."""
    hertz, decibels = (np.array(values, np.float64) for values in zip(*spectrum))
    step = sampling_rate / samples
    octaves = np.linspace(np.log(step), np.log(sampling_rate / 2), 256)  # dense enough for straight lines between them
    gains = 10.0 ** (np.interp(octaves, np.log(hertz), decibels) / 20)
    gain = np.interp(np.arange(samples // 2 + 1) * step, np.exp(octaves), gains).astype(np.float32)
    gain[0] = 0
    return gain


def decaying(time: np.ndarray, attack: float, decay: float) -> np.ndarray:
    """[samples] float32: up within `attack` seconds, then down by 60 dB in `decay` seconds."""
    return np.minimum(time / attack, 1) * np.exp(np.minimum((attack - time) * (6.9 / decay), 0))


def arch(seconds: float, attack: float, release: float, time: np.ndarray) -> np.ndarray:
    """[samples] float32: 1 over `seconds`, but for a smooth beginning and end; 0 after that."""
    line = np.minimum(time / attack, (seconds - time) / release)
    return np.square(np.sin(np.clip(line, 0, 1) * np.float32(np.pi / 2)))
