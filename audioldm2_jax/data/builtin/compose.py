"""Small scores: a first bar of rhythm and scale degrees, unrolled over a chord progression into notes.

Everything is drawn from a `Draw`, so a score is a pure function of its key. Time is in beats, four to a bar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from audioldm2_jax.data.builtin.instruments import DRUMS, INSTRUMENTS, Instrument
from audioldm2_jax.data.draw import Draw, digest

#: Beats a minute of each tempo word; far enough apart to be heard within two seconds.
TEMPOS = {"slow": (56.0, 76.0), "moderate": (98.0, 118.0), "fast": (150.0, 184.0)}
REGISTERS = ("low", "middle", "high")
#: Semitones above the tonic.
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "pentatonic": (0, 2, 4, 7, 9),
}
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
TEXTURES = ("melody", "arpeggios", "chords", "long notes", "scales")
BAR = 4.0

# Scale degrees (from 0) of the chord of each bar. A pentatonic scale stays on its tonic.
_PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4), (0, 1, 4, 0)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 0), (0, 5, 3, 4)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0)),
    "mixolydian": ((0, 6, 3, 0), (0, 6, 0, 6)),
    "pentatonic": ((0, 0, 0, 0),),
}
# Note lengths of a melody's bar, in beats.
_MELODY_RHYTHMS = {
    "slow": ((1, 1, 2), (1, 1, 1, 1), (1.5, 0.5, 2), (1, 0.5, 0.5, 2), (0.5, 0.5, 1, 2), (1.5, 0.5, 1, 1)),
    "moderate": (
        (1, 1, 1, 1),
        (0.5, 0.5, 1, 1, 1),
        (1, 0.5, 0.5, 1, 1),
        (1.5, 0.5, 1, 1),
        (1, 0.5, 0.5, 0.5, 0.5, 1),
        (0.75, 0.25, 1, 1, 1),
    ),
    "fast": (
        (0.5,) * 8,
        (0.5, 0.5, 0.5, 0.5, 1, 1),
        (1, 0.5, 0.5, 1, 0.5, 0.5),
        (0.5, 0.5, 1, 0.5, 0.5, 1),
        (0.75, 0.25, 0.5, 0.5, 1, 0.5, 0.5),
        (0.5, 1, 0.5, 0.5, 0.5, 0.5, 0.5),
    ),
}
_CHORD_RHYTHMS = ((1, 1, 1, 1), (2, 2), (1.5, 0.5, 2), (2, 1, 1), (1, 0.5, 0.5, 1, 1))
# Scale degrees over the root: close, inverted, open.
_CHORD_TONES = ((0, 2, 4), (-3, 0, 2), (0, 4, 9))
_BASS_RHYTHMS = ((1, 1, 1, 1), (2, 2), (1.5, 0.5, 1, 1), (1, 1, 2))
_STEPS = {1: 4.0, -1: 4.0, 2: 2.0, -2: 2.0, 0: 1.0, 3: 0.7, -3: 0.7, 4: 0.4, -4: 0.4}

# General-MIDI percussion keys, and the sixteenths of a bar on which each style plays them.
KICK, SNARE, CLOSED, OPEN, RIDE, LOW_TOM, HIGH_TOM, COWBELL, CONGA, CONGA_LOW = 36, 38, 42, 46, 51, 45, 50, 56, 63, 64
GROOVES: dict[str, dict[int, tuple[int, ...]]] = {
    "rock": {KICK: (0, 8), SNARE: (4, 12), CLOSED: tuple(range(0, 16, 2))},
    "disco": {KICK: (0, 4, 8, 12), SNARE: (4, 12), OPEN: (2, 6, 10, 14)},
    "funk": {KICK: (0, 3, 10), SNARE: (4, 12), CLOSED: tuple(range(16))},
    "latin": {KICK: (0, 6, 8, 14), COWBELL: (0, 4, 8, 12), CONGA: (2, 6, 10), CONGA_LOW: (12, 14)},
    "jazz": {KICK: (0,), RIDE: (0, 4, 7, 8, 12, 15), CLOSED: (4, 12), SNARE: (10,)},
    "tom": {KICK: (0, 8), LOW_TOM: (0, 2, 3, 6), HIGH_TOM: (8, 10, 11, 14)},
}


@dataclass(frozen=True)
class Part:
    """One instrument's share of a clip; `texture` is one of `TEXTURES`, "bass line", or a groove of the drums."""

    instrument: str
    program: int
    texture: str
    register: str


@dataclass(frozen=True)
class Plan:
    """What a clip is to be, before any note is chosen; captions are written from it. The first part leads."""

    kind: str
    tempo: str
    bpm: float
    mode: str
    tonic: int
    parts: tuple[Part, ...]

    @property
    def lead(self) -> Part:
        return self.parts[0]


class Note(NamedTuple):
    """Onset and duration in beats, MIDI pitch (or percussion key), MIDI velocity."""

    onset: float
    duration: float
    pitch: int
    velocity: int


class FirstBar(NamedTuple):
    """The lead's first bar, free of key and instrument: note lengths in beats, and a figure that the texture reads."""

    rhythm: tuple[float, ...]
    figure: tuple[int, ...]


def heldout(texture: str, bar: FirstBar) -> bool:
    """Whether scores that open with `bar` belong to the held-out split: the score itself decides, half and half.

    So no seed, index, key or instrument can bring one score into both splits.
    """
    return bool(digest(texture, *bar.rhythm, "|", *bar.figure) & 1)


def first_bar(plan: Plan, draw: Draw) -> FirstBar:
    """Draws the lead's first bar."""
    texture = plan.lead.texture
    if plan.lead.instrument == DRUMS:
        return FirstBar((), _groove(texture, draw))
    if texture == "melody":
        rhythm = draw.pick(_MELODY_RHYTHMS[plan.tempo])
        return FirstBar(rhythm, _walk(len(rhythm), draw))
    if texture == "long notes":
        rhythm = draw.pick(((2, 2), (3, 1), (4,))) if plan.tempo == "slow" else (2, 2)
        return FirstBar(rhythm, _walk(len(rhythm), draw))
    if texture == "chords":
        rhythm = draw.pick(_CHORD_RHYTHMS)
        return FirstBar(rhythm, tuple(draw.below(3) for _ in rhythm))  # inversion of each chord
    if texture == "arpeggios":
        return FirstBar((0.5,) * 8, _arpeggio(draw))
    if texture == "bass line":
        rhythm = draw.pick(_BASS_RHYTHMS)
        return FirstBar(rhythm, (0, *(draw.pick((0, 0, 4, 2)) for _ in rhythm[1:])))
    direction, turn, start = draw.pick((1, -1)), 3 + draw.below(5), draw.pick((0, 2, 4))
    return FirstBar((0.5,) * 8, tuple(start + direction * (turn - abs(turn - i)) for i in range(8)))


def compose(plan: Plan, bar: FirstBar, beats: float, draw: Draw) -> list[list[Note]]:
    """The notes of each part, in order of onset, for at least `beats` beats."""
    progression = draw.pick(_PROGRESSIONS[plan.mode])
    parts = []
    for number, part in enumerate(plan.parts):
        opening = bar if number == 0 else first_bar(_alone(plan, part), draw)
        if part.instrument == DRUMS:
            parts.append(_drums(opening.figure, beats, draw))
        else:
            parts.append(_pitched(plan, part, opening, progression, beats, draw))
    return parts


def _alone(plan: Plan, part: Part) -> Plan:
    return Plan(plan.kind, plan.tempo, plan.bpm, plan.mode, plan.tonic, (part,))


def _walk(length: int, draw: Draw) -> tuple[int, ...]:
    """Scale degrees of a tune: mostly steps, starting on the tonic triad, with the third early so the mode is heard."""
    degrees = [draw.pick((0, 2, 4))]
    while len(degrees) < length:
        step = draw.weighted(_STEPS)
        degree = degrees[-1] + step
        degrees.append(degree if -3 <= degree <= 8 else degrees[-1] - step)
    if 2 not in degrees[:3] and length > 1:
        degrees[1 + draw.below(min(2, length - 1))] = 2
    return tuple(degrees)


def _arpeggio(draw: Draw) -> tuple[int, ...]:
    """Eight chord tones, counted upwards from the root: two related groups of four."""
    group = [0, 1, 2, draw.pick((1, 3, 4))]
    if draw.chance(0.4):
        group[1:] = group[:0:-1]
    if draw.chance(0.3):
        group[1], group[2] = group[2], group[1]
    second = draw.pick((group, group[::-1], [tone + 1 for tone in group], [2, 3, 2, 1]))
    return (*group, *second)


def _groove(style: str, draw: Draw) -> tuple[int, ...]:
    """A bar of drums as key · 16 + sixteenth: the style's pattern with a few hits added and left out."""
    hits = {
        key * 16 + step for key, steps in GROOVES[style].items() for step in steps if step == 0 or draw.chance(0.93)
    }
    keys = tuple(GROOVES[style])
    for _ in range(1 + draw.below(3)):
        hits.add(draw.pick(keys) * 16 + draw.below(16))
    return tuple(sorted(hits))


def _drums(figure: tuple[int, ...], beats: float, draw: Draw) -> list[Note]:
    notes = []
    for bar in range(math.ceil(beats / BAR)):
        for hit in figure:
            key, step = divmod(hit, 16)
            accent = 14 if step % 4 == 0 else 0
            notes.append(Note(bar * BAR + step / 4, 0.5, key, 78 + accent + draw.below(12)))
    return sorted(notes)


def _pitched(
    plan: Plan, part: Part, bar: FirstBar, progression: tuple[int, ...], beats: float, draw: Draw
) -> list[Note]:
    instrument, scale = INSTRUMENTS[part.instrument], SCALES[plan.mode]
    low, high = window(instrument, part.register)
    middle = (low + high) / 2 - 4  # tunes reach further above the tonic than below
    root = round((middle - plan.tonic) / 12) * 12 + plan.tonic
    loudness = 72 + draw.below(20)
    notes = []
    for number in range(math.ceil(beats / BAR)):
        chord = progression[number % len(progression)]
        onset = number * BAR
        for duration, degrees in _bar_events(part.texture, bar, chord, number, draw):
            velocity = loudness + (10 if onset % 2 == 0 else 0) + draw.below(8)
            pitches = {_fold(root + _semitones(scale, degree), low, high) for degree in degrees}
            notes.extend(Note(onset, duration, pitch, velocity) for pitch in sorted(pitches))
            onset += duration
    return notes


def _bar_events(
    texture: str, bar: FirstBar, chord: int, number: int, draw: Draw
) -> list[tuple[float, tuple[int, ...]]]:
    """(duration, scale degrees) of one bar. Bar 0 is `bar` itself; later ones repeat and vary it."""
    if texture == "bass line":
        return [(length, (chord + degree,)) for length, degree in zip(bar.rhythm, bar.figure, strict=True)]
    if texture == "chords":
        inversions = [_CHORD_TONES[i] for i in bar.figure]
        return [(length, tuple(chord + d for d in tones)) for length, tones in zip(bar.rhythm, inversions, strict=True)]
    if texture == "arpeggios":
        return [(length, (chord + 2 * tone,)) for length, tone in zip(bar.rhythm, bar.figure, strict=True)]
    shift = chord if chord <= 3 else chord - 7
    figure = [degree + shift for degree in bar.figure]
    if number % 4 == 3:
        figure[-1] = 0  # the phrase comes home
    elif number and len(figure) > 2:
        figure[-1] += draw.pick((-1, 0, 1))
    return [(length, (degree,)) for length, degree in zip(bar.rhythm, figure, strict=True)]


def window(instrument: Instrument, register: str) -> tuple[float, float]:
    """The MIDI pitches of a register: that third of the instrument's range, but always more than an octave."""
    third = (instrument.high - instrument.low) / 3
    centre = instrument.low + third * (0.5 + REGISTERS.index(register))
    half = max(6.5, third / 2)
    centre = min(max(centre, instrument.low + half), instrument.high - half)
    return centre - half, centre + half


def _semitones(scale: tuple[int, ...], degree: int) -> int:
    octave, step = divmod(degree, len(scale))
    return 12 * octave + scale[step]


def _fold(pitch: int, low: float, high: float) -> int:
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return pitch
