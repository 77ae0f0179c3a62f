"""Notes to sound: the SoundFont synthesizer of symusic with the sound font that pretty_midi ships.

symusic plays the samples but neither their envelopes nor velocities, and it does not filter, so that at 16 kHz
everything above 8 kHz would fold back into the clip. Hence each tone is played once, alone and at 48 kHz, brought
down to the rate asked for, given the envelope of its instrument and kept; a clip is a sum of such tones.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import symusic

from audioldm2_jax.data.builtin.compose import Note, Part
from audioldm2_jax.data.builtin.instruments import DRUMS, INSTRUMENTS

PEAK = 0.5
_RATE = 48000
_QUALITY = 4  # the highest that sounds
_RELEASE = 0.04  # seconds in which a note ends
_BOOST = 16.0  # at most, where the sample dies away faster than the instrument
_LONGEST = 4.0  # seconds; longer notes end there

_thread = threading.local()  # a synthesizer holds voices, so every thread has its own


@functools.cache
def sound_font() -> Path:
    """TimGM6mb.sf2 inside pretty_midi, found without importing it.

    Raises:
        FileNotFoundError: pretty_midi is missing or no longer carries the file.
    """
    spec = importlib.util.find_spec("pretty_midi")
    path = Path(spec.origin).parent / "TimGM6mb.sf2" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the sound font TimGM6mb.sf2 comes with pretty_midi: pip install 'pretty_midi>=0.2.10'")
    return path


def render(
    parts: Sequence[Part], notes: Sequence[Sequence[Note]], bpm: float, samples: int, sampling_rate: int
) -> np.ndarray:
    """Plays `notes[i]` on `parts[i]`.

    Parts are brought to equal loudness before mixing (the font's instruments differ by 20 dB), an accompaniment a
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
    mix -= mix.mean()
    return mix * np.float32(PEAK / max(float(np.abs(mix).max()), 1e-8))


def seconds(note: Note, part: Part, beat: float) -> tuple[float, float]:
    """Onset and duration of a note in seconds; struck and plucked notes ring on."""
    decay = 0.0 if part.instrument == DRUMS else INSTRUMENTS[part.instrument].decay
    return note.onset * beat, min(max(note.duration * beat, min(2.5 * decay, 1.2)), _LONGEST)


def _play(part: Part, events: Sequence[Note], beat: float, samples: int, sampling_rate: int) -> np.ndarray:
    drum = part.instrument == DRUMS
    decay = 0.0 if drum else INSTRUMENTS[part.instrument].decay
    fade = _fade(round(_RELEASE * sampling_rate))
    sound = np.zeros(samples + len(fade), np.float32)
    for event in events:
        onset, duration = seconds(event, part, beat)
        start = round(onset * sampling_rate)
        if start >= samples:
            break
        length = min(round(duration * sampling_rate), samples - start)
        stored = 2.0 ** math.ceil(math.log2(duration + _RELEASE))  # few lengths, so that tones are met again
        tone = _tone(part.program, drum, event.pitch, decay, stored, sampling_rate)
        gain = np.float32((event.velocity / 100.0) ** 1.5)
        sound[start : start + length] += tone[:length] * gain
        sound[start + length : start + length + len(fade)] += tone[length : length + len(fade)] * fade * gain
    return sound[:samples]


@functools.cache
def _fade(samples: int) -> np.ndarray:
    return np.linspace(1.0, 0.0, samples, dtype=np.float32)


@functools.lru_cache(maxsize=1024)  # some 60 MB at 16 kHz
def _tone(program: int, drum: bool, pitch: int, decay: float, length: float, sampling_rate: int) -> np.ndarray:
    """One note of `length` seconds at full velocity, [samples] float32; read only."""
    if not hasattr(_thread, "synthesizer"):
        _thread.synthesizer = symusic.Synthesizer(str(sound_font()), _RATE, _QUALITY)
    score, track = symusic.Score(ttype="second"), symusic.Track(program=program, is_drum=drum, ttype="second")
    track.notes.append(symusic.Note(0.0, length + 0.1, pitch, 100, ttype="second"))
    score.tracks.append(track)
    tone = _thread.synthesizer.render(score, stereo=False)[0]
    if sampling_rate != _RATE:
        tone = soxr.resample(tone, _RATE, sampling_rate)
    tone = tone[: round(length * sampling_rate)]
    if decay:
        tone = tone * _decaying(tone, decay, sampling_rate)
    return tone.astype(np.float32, copy=False)


def _decaying(tone: np.ndarray, decay: float, sampling_rate: int) -> np.ndarray:
    """The gain that makes the tone's envelope fall as exp(−t / decay) from its loudest point."""
    window = round(0.02 * sampling_rate)
    power = np.convolve(np.square(tone, dtype=np.float64), np.full(window, 1.0 / window), mode="same")
    envelope = np.sqrt(np.maximum(power, 1e-12))
    loudest = int(np.argmax(envelope))
    time = np.maximum(np.arange(len(tone)) - loudest, 0) / sampling_rate
    return np.minimum(envelope[loudest] * np.exp(-time / decay) / envelope, _BOOST)
