"""Voices of the embedded speech, and descriptions of who speaks and how: many wordings from a small vocabulary.

A description always says whether a man or a woman speaks, and how fast. The rest (name, accent, pitch) is said or left
out at random, unless the full description is asked for. A name stands for one voice, as in Parler-TTS: without it five
voices may be meant, and what a language model writes by a squared error is their mean. Pitch is low or high for the
voice: a low voice of a woman may be higher than a high one of a man.
"""

from __future__ import annotations

from typing import NamedTuple

from audioldm2_jax.data.draw import Draw


class Voice(NamedTuple):
    """Whose voice it is."""

    name: str
    gender: str
    accent: str


#: By their names in espeak-ng: the accent, and a variant of the vocal tract. The ones that sound unlike the others and
#: that a recogniser understands (benchmarks/speech.py).
VOICES = {
    "en-us+m3": Voice("Adam", "man", "American"),
    "en-us+m4": Voice("Brian", "man", "American"),
    "en-us+m7": Voice("Carl", "man", "American"),
    "en-us+edward": Voice("Edward", "man", "American"),
    "en-us+michel": Voice("Michael", "man", "American"),
    "en-gb-x-rp+m4": Voice("Oliver", "man", "British"),
    "en-us+f1": Voice("Alice", "woman", "American"),
    "en-us+f2": Voice("Betty", "woman", "American"),
    "en-us+f5": Voice("Grace", "woman", "American"),
    "en-us+linda": Voice("Linda", "woman", "American"),
    "en-us+steph": Voice("Stephanie", "woman", "American"),
    "en-gb-x-rp+f1": Voice("Victoria", "woman", "British"),
}
#: Words a minute of each rate; far enough apart to be heard in three words. One pace each: who is to write the sound of
#: a description cannot know what it does not say.
RATES = {"slow": 130, "normal": 175, "fast": 235}
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
    """Writes a description of `speaker`; `full` names speaker, accent and pitch as well as gender and rate."""
    name, gender, accent = VOICES[speaker.voice]
    who = _article(f"{accent} {gender}" if full or draw.chance(0.5) else gender)
    tone = draw.pick(_TONES[speaker.pitch]) if full or draw.chance(0.8) else ""
    named = full or draw.chance(0.8)
    adverbs, adjectives = _PACES[speaker.rate]
    pace = draw.pick(adverbs)

    def subject(owner: str) -> str:
        return f"{name}, {owner}," if named else owner

    owner = f"{who} with {tone}" if tone else who
    text = draw.pick(
        (
            f"{subject(owner)} speaks {pace}",
            f"{subject(owner)} speaks {pace}",
            f"{subject(owner)} is talking {pace}",
            f"{subject(owner)} says something {pace}",
            f"{subject(who)} speaks {pace}{f' in {tone}' if tone else ''}",
            f"{subject(who)} speaking {pace}{f' with {tone}' if tone else ''}",
            f"{tone or draw.pick(_PLAIN)} of {subject(who)} speaking {pace}",
            f"{draw.pick(adjectives)} speech of {subject(owner)}",
            f"{draw.pick(adjectives)} speech: {subject(owner)}",
        )
    ).rstrip(",")
    if draw.chance(0.25):
        text = text[0].upper() + text[1:]
    return text + "." if draw.chance(0.25) else text


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'AEIOUaeiou' else 'a'} {text}"
