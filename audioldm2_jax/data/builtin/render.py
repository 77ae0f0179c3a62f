"""Scores to sound: a clip is a sum of single tones of the sound font that pretty_midi ships.

A tone is rendered once and kept, so that a clip costs a few additions. Under the tones lies the hiss of a recording:
silence to the last bit is found in no other, and networks would spend themselves on making it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioldm2_jax.data.builtin.compose import Note, Part
from audioldm2_jax.data.builtin.instruments import DRUMS, INSTRUMENTS
from audioldm2_jax.data.builtin.soundfont import SoundFont
from audioldm2_jax.data.draw import Draw

PEAK = 0.5
_RELEASE = 0.08  # seconds in which a note ends
_LONGEST = 4.0 - _RELEASE  # seconds; longer notes end there
_FULL = 32000  # peak of a stored tone


class Hiss(NamedTuple):
    """The noise of a recording: root mean square up to 8 kHz in dB below the peak of the music, and its seed."""

    decibels: float
    seed: int


def draw_hiss(draw: Draw) -> Hiss:
    """Draws a hiss as of a modest recorder."""
    return Hiss(draw.uniform(49.0, 64.0), draw.below(2**32))


@functools.cache
def sound_font() -> SoundFont:
    """TimGM6mb.sf2 inside pretty_midi, found without importing it.

    Raises:
        FileNotFoundError: pretty_midi is missing or no longer carries the file.
    """
    spec = importlib.util.find_spec("pretty_midi")
    path = Path(spec.origin).parent / "TimGM6mb.sf2" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the sound font TimGM6mb.sf2 comes with pretty_midi: pip install 'pretty_midi>=0.2.10'")
    return SoundFont(path)


def render(
    parts: Sequence[Part],
    notes: Sequence[Sequence[Note]],
    bpm: float,
    samples: int,
    sampling_rate: int,
    hiss: Hiss,
) -> np.ndarray:
    """Plays `notes[i]` on `parts[i]` over `hiss`.

    Parts are brought to equal loudness before mixing (the font's instruments differ much), an accompaniment a
    little below the lead.

    Returns:
        [samples] float32 mono, without offset, peak 0.5.
    """
    mix = np.zeros(samples, np.float32)
    for number, (part, events) in enumerate(zip(parts, notes, strict=True)):
        sound = _play(part, events, 60.0 / bpm, samples, sampling_rate)
        if len(parts) > 1:
            sound *= (1.0 if number == 0 else 0.5) / max(float(np.sqrt(np.mean(np.square(sound)))), 1e-4)
        mix += sound
    return record(mix, hiss, sampling_rate)


def record(sound: np.ndarray, hiss: Hiss, sampling_rate: int) -> np.ndarray:
    """Puts `sound`, [samples] float32 mono, over `hiss`.

    Returns:
        [samples] float32 mono, without offset, peak 0.5.
    """
    sound = sound + _noise(hiss, len(sound), sampling_rate) * max(float(np.abs(sound).max()), 1e-8)
    sound -= sound.mean()
    return sound * np.float32(PEAK / max(float(np.abs(sound).max()), 1e-8))


def _noise(hiss: Hiss, samples: int, sampling_rate: int) -> np.ndarray:
    """White noise under a peak of 1, of the same density in Hz at any rate."""
    deviation = 10.0 ** (-hiss.decibels / 20.0) * (sampling_rate / 16000.0) ** 0.5
    uniform = np.random.RandomState(hiss.seed).random_sample(samples)  # the generator whose sequence never changes
    return ((uniform - 0.5) * (deviation * 12.0**0.5)).astype(np.float32)


def seconds(note: Note, part: Part, beat: float) -> tuple[float, float]:
    """Onset and duration of a note in seconds; struck and plucked notes ring on."""
    ring = 0.5 if part.instrument == DRUMS else INSTRUMENTS[part.instrument].ring
    return note.onset * beat, min(max(note.duration * beat, ring), _LONGEST)


def _play(part: Part, events: Sequence[Note], beat: float, samples: int, sampling_rate: int) -> np.ndarray:
    fade = _fade(round(_RELEASE * sampling_rate))
    sound = np.zeros(samples + len(fade), np.float32)
    for event in events:
        onset, duration = seconds(event, part, beat)
        start = round(onset * sampling_rate)
        if start >= samples:
            break
        end = start + min(round(duration * sampling_rate), samples - start)
        stored = next(length for length in (1.0, 2.0, 4.0) if duration + _RELEASE <= length)
        tone, scale = _tone(part.program, part.instrument == DRUMS, event.pitch, stored, sampling_rate)
        gain = np.float32(scale * (event.velocity / 100.0) ** 1.5)
        sound[start:end] += tone[: end - start] * gain
        sound[end : end + len(fade)] += tone[end - start : end - start + len(fade)] * (fade * gain)
    return sound[:samples]


@functools.cache
def _fade(samples: int) -> np.ndarray:
    return np.linspace(1.0, 0.0, samples, dtype=np.float32)


@functools.lru_cache(maxsize=4096)  # every tone there is; some 100 MB at 16 kHz
def _tone(program: int, drum: bool, key: int, length: float, sampling_rate: int) -> tuple[np.ndarray, float]:
    """One tone of `length` seconds at full velocity as [samples] int16, and what to multiply it with."""
    tone = sound_font().tone(128 if drum else 0, program, key, length, sampling_rate)
    scale = max(float(np.abs(tone).max()), 1e-6) / _FULL
    return np.round(tone / scale).astype(np.int16), scale
