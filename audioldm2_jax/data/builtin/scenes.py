"""What happens in a clip of sound effects and when: one event, one after the other, or some over a background.

Everything is drawn from a `Draw`, so a scene is a pure function of its key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from audioldm2_jax.data.builtin.sounds import SOUNDS, Sound
from audioldm2_jax.data.draw import Draw

#: Seconds that a clip has at least: room for two events.
SHORTEST = 2.5
#: Shares of the kinds of scene. The first event of an overlay is the background, which goes on under the others.
MIXTURE = {"single": 0.25, "sequence": 0.45, "overlay": 0.3}
_THREE = 3.75  # seconds from which there is room for three events
_LEAD = 0.3  # seconds of a background alone, at least
_GAP = 0.2  # seconds between events, on average at least

_FOREGROUND = tuple(sound.name for sound in SOUNDS.values() if not sound.background)
_OFTEN = tuple(sound.name for sound in SOUNDS.values() if sound.most(1.1) >= 3)
#: For each class those that training never has right after it, nor over it.
HELD_OUT: dict[str, tuple[str, ...]] = {
    name: tuple(other for other in (_FOREGROUND[(i + shift) % len(_FOREGROUND)] for shift in (2, 7)) if other != name)
    for i, name in enumerate(SOUNDS)
}
#: How many of a class training never has: of each that comes in threes and fours, two or three.
HELD_OUT_COUNTS: dict[str, int] = {name: 2 + i % 2 for i, name in enumerate(_OFTEN)}


@dataclass(frozen=True)
class Part:
    """One event of a plan: its class, how many, and the voice: which door, dog or bell it is."""

    sound: str
    count: int
    voice: int


@dataclass(frozen=True)
class Plan:
    """What a clip is to be, before it is known when; captions are written from it. Parts are in order of onset."""

    kind: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Event:
    """A part in time: seconds from the beginning of the clip; strokes from that of the event."""

    part: Part
    onset: float
    duration: float
    strokes: tuple[float, ...]


def heldout(plan: Plan) -> bool:
    """Whether training leaves this out: one of its pairs or counts is held out."""
    names = [part.sound for part in plan.parts]
    pairs = list(itertools.pairwise(names))
    if plan.kind == "overlay":
        pairs += [(names[0], name) for name in names[1:]]  # a background lies under all
    counts = any(HELD_OUT_COUNTS.get(part.sound) == part.count for part in plan.parts)
    return counts or any(second in HELD_OUT[first] for first, second in pairs)


def draw_plan(draw: Draw, split: str, seconds: float) -> Plan:
    """Draws what a clip of `seconds` is to be; in training, held-out combinations are drawn again."""
    while True:
        kind = draw.weighted(MIXTURE)
        number = 1 if kind == "single" else 2
        if seconds >= _THREE and kind != "single" and draw.chance(0.4):
            number = 3
        names = []
        while len(names) < number:
            name, below = draw.pick(tuple(SOUNDS)), kind == "overlay" and not names
            suits = kind != "overlay" or SOUNDS[name].background == below
            if suits and name not in names and SOUNDS[name].most(_room(kind, number, seconds)):
                names.append(name)
        plan = Plan(kind, tuple(_part(name, _room(kind, number, seconds), split, draw) for name in names))
        if split != "train" or not heldout(plan):
            return plan


def _room(kind: str, number: int, seconds: float) -> float:
    """Seconds that each event of a scene may take; those over a background, where there is one."""
    if kind == "overlay":
        seconds, number = seconds - _LEAD, number - 1
    return (seconds - 0.1 - _GAP * (number - 1)) / number


def _part(name: str, room: float, split: str, draw: Draw) -> Part:
    # Even voices are training's, odd ones held out: no seed brings one source of sound into both.
    voice = 2 * draw.below(2**31) + (split != "train")
    return Part(name, 1 + draw.below(SOUNDS[name].most(room)), voice)


def heldout_plan(first: str, second: str, draw: Draw) -> Plan:
    """A scene of two events in any clip, `second` over `first` where that is a background, else after it."""
    kind = "overlay" if SOUNDS[first].background and draw.chance(0.5) else "sequence"
    room = _room(kind, 2, SHORTEST)
    return Plan(kind, tuple(_part(name, room, "heldout", draw) for name in (first, second)))


def arrange(plan: Plan, seconds: float, draw: Draw) -> list[Event]:
    """The events of a plan in order of onset, within a clip of `seconds`; they do not overlap but for a background."""
    parts, start, events = plan.parts, 0.0, []
    if plan.kind == "overlay":
        events.append(Event(parts[0], 0.0, seconds, (0.0,)))
        parts, start = parts[1:], _LEAD * draw.uniform(0.6, 1.0)
    room = _room(plan.kind, len(plan.parts), seconds)
    shapes = [_shape(SOUNDS[part.sound], part.count, room, draw) for part in parts]
    spare = (seconds - start - sum(duration for duration, _ in shapes)) / len(parts)
    for number, (part, (duration, strokes)) in enumerate(zip(parts, shapes, strict=True)):
        start += spare * draw.uniform(0.5, 1.0) if number else min(spare, 0.25) * draw.random()
        events.append(Event(part, start, duration, strokes))
        start += duration
    return events


def _shape(sound: Sound, count: int, room: float, draw: Draw) -> tuple[float, Sequence[float]]:
    """Seconds that `count` of a sound take, at most `room`, and when each begins."""
    if sound.lasts is None:
        return room * draw.uniform(0.8, 1.0), (0.0,)
    if count == 1 or sound.every is None:
        return min(draw.uniform(*sound.lasts), room), (0.0,)
    shortest, longest = sound.every
    every = draw.uniform(shortest, min(longest, (room - sound.lasts[0]) / (count - 1)))
    last = min(draw.uniform(*sound.lasts), room - every * (count - 1))
    late = 0.06 * every  # nobody is a machine; the first and the last are where they are
    strokes = [number * every + late * draw.uniform(-1, 1) * (0 < number < count - 1) for number in range(count)]
    return every * (count - 1) + last, tuple(strokes)
