"""Captions of planned scenes: many ways to say the same in plain English.

A caption names every event, how many, and in which order.
"""

from __future__ import annotations

from audioldm2_jax.data.builtin.scenes import Part, Plan
from audioldm2_jax.data.builtin.sounds import SOUNDS
from audioldm2_jax.data.draw import Draw

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_TIMES = {2: " twice", 3: " three times", 4: " four times"}

# {a}, {b}, {c}: events in order, as things or doings ("two knocks", "a dog barking"); {A}, {B}, {C}: the same as
# sentences ("a dog barks"); of an overlay, {a} is the background.
_TEMPLATES = {
    ("single", 1): ("{a}", "{a}", "{A}"),
    ("sequence", 2): (
        "{a}, then {b}",
        "{a} and then {b}",
        "{a} followed by {b}",
        "{a}, followed by {b}",
        "first {a}, then {b}",
        "{b} after {a}",
        "{A}, then {B}",
        "{A} and then {B}",
        "{A} before {B}",
        "after {a}, {B}",
    ),
    ("sequence", 3): (
        "{a}, then {b}, then {c}",
        "{a}, {b} and then {c}",
        "{a} followed by {b} and then {c}",
        "first {a}, then {b}, and finally {c}",
        "{A}, then {B}, then {C}",
        "{A}, then {B}, and finally {C}",
    ),
    ("overlay", 2): (
        "{a} while {B}",
        "{A} while {B}",
        "{B} while {A}",
        "{a} with {b}",
        "{b} over {a}",
        "{b} with {a} in the background",
    ),
    ("overlay", 3): (
        "{a} while {B} and then {C}",
        "{A} while {B}, then {C}",
        "{a} with {b}, then {c}",
        "{b}, then {c}, with {a} in the background",
        "{b} and then {c} over {a}",
    ),
}


def caption(plan: Plan, draw: Draw) -> str:
    """Writes a caption of `plan`."""
    template = draw.pick(_TEMPLATES[plan.kind, len(plan.parts)])
    words = {}
    for letter, part in zip("abc", plan.parts):
        words[letter], words[letter.upper()] = _thing(part, draw), _sentence(part, draw)
    text = template.format(**words)
    if draw.chance(0.25):
        text = text[0].upper() + text[1:]
    return text + "." if draw.chance(0.25) else text


def _thing(part: Part, draw: Draw) -> str:
    """ "three knocks", "a dog barking twice", "rain"."""
    sound = SOUNDS[part.sound]
    if draw.chance(0.35):
        who, _, doing = draw.pick(sound.doings)
        return f"{who} {doing}{_times(part, draw)}"
    thing = draw.pick(sound.things)
    if isinstance(thing, str):
        return thing
    one, several = thing
    return one if part.count == 1 else f"{_NUMBERS[part.count]} {several}"


def _sentence(part: Part, draw: Draw) -> str:
    """ "a dog barks twice"."""
    who, does, _ = draw.pick(SOUNDS[part.sound].doings)
    return f"{who} {does}{_times(part, draw)}"


def _times(part: Part, draw: Draw) -> str:
    once = " once" if SOUNDS[part.sound].every and draw.chance(0.5) else ""
    return _TIMES.get(part.count, once)
