"""Voices of the embedded speech, and descriptions of who speaks and how: many wordings from a small vocabulary.

A description always says whether a man or a woman speaks. The rest (accent, rate, pitch) is said or left out at random,
unless the full description is asked for. Pitch is low or high for the voice: a low voice of a woman may be higher than
a high one of a man.
"""

from __future__ import annotations

from typing import NamedTuple

from audioldm2_jax.data.draw import Draw


class Voice(NamedTuple):
    """Whose voice it is."""

    gender: str
    accent: str


#: By their names in espeak-ng: the accent, and a variant of the vocal tract. The ones that sound unlike the others and
#: that a recogniser understands (benchmarks/speech.py).
VOICES = {
    "en-us+m3": Voice("man", "American"),
    "en-us+m4": Voice("man", "American"),
    "en-us+m7": Voice("man", "American"),
    "en-us+edward": Voice("man", "American"),
    "en-us+michel": Voice("man", "American"),
    "en-gb-x-rp+m4": Voice("man", "British"),
    "en-us+f1": Voice("woman", "American"),
    "en-us+f2": Voice("woman", "American"),
    "en-us+f5": Voice("woman", "American"),
    "en-us+linda": Voice("woman", "American"),
    "en-us+steph": Voice("woman", "American"),
    "en-gb-x-rp+f1": Voice("woman", "British"),
}
#: Words a minute of each rate; far enough apart to be heard in three words.
RATES = {"slow": (120, 140), "normal": (165, 185), "fast": (220, 250)}
#: espeak-ng's pitch of each class, where 50 is the voice's own.
PITCHES = {"low": (5, 20), "middle": (45, 60), "high": (85, 99)}

_PACES = {
    "slow": (("slowly", "slowly", "at a slow pace", "unhurriedly"), ("slow", "unhurried")),
    "normal": (("at a normal pace", "at a moderate pace"), ("steady", "moderately paced")),
    "fast": (("fast", "quickly", "quickly", "at a fast pace"), ("fast", "quick")),
}
_TONES = {
    "low": ("a low voice", "a low voice", "a deep voice", "a low-pitched voice"),
    "middle": ("a voice of medium pitch", "a medium-pitched voice"),
    "high": ("a high voice", "a high voice", "a high-pitched voice"),
}
_PLAIN = ("a voice", "the voice")


class Speaker(NamedTuple):
    """Who speaks and how: names in `VOICES`, `RATES` and `PITCHES`."""

    voice: str
    rate: str
    pitch: str


def describe(speaker: Speaker, draw: Draw, full: bool = False) -> str:
    """Writes a description of `speaker`; `full` names accent, rate and pitch as well as the gender."""
    keep = 1.0 if full else 0.8
    gender, accent = VOICES[speaker.voice]
    who = _article(f"{accent} {gender}" if draw.chance(1.0 if full else 0.5) else gender)
    adverbs, adjectives = _PACES[speaker.rate] if draw.chance(keep) else ((), ())
    pace = f" {draw.pick(adverbs)}" if adverbs else ""
    speech = f"{draw.pick(adjectives)} speech" if adjectives else "speech"
    tone = draw.pick(_TONES[speaker.pitch]) if draw.chance(keep) else ""
    owner = f"{who} with {tone}" if tone else who
    text = draw.pick(
        (
            f"{owner} speaks{pace}",
            f"{owner} speaks{pace}",
            f"{owner} is talking{pace}",
            f"{owner} says something{pace}",
            f"{who} speaks{pace}{f' in {tone}' if tone else ''}",
            f"{who} speaking{pace}{f' with {tone}' if tone else ''}",
            f"{tone or draw.pick(_PLAIN)} of {who} speaking{pace}",
            f"{speech} of {owner}",
            f"{speech}: {owner}",
        )
    )
    if draw.chance(0.25):
        text = text[0].upper() + text[1:]
    return text + "." if draw.chance(0.25) else text


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'AEIOUaeiou' else 'a'} {text}"
