"""Captions of planned clips: many ways to say the same in plain English, from a small vocabulary.

A caption says only what the plan holds, and always names the instruments. The rest (tempo, mode or mood, register) is
said or left out at random, unless the full caption is asked for.
"""

from __future__ import annotations

from audioldm2_jax.data.builtin.compose import Part, Plan
from audioldm2_jax.data.builtin.instruments import DRUMS, INSTRUMENTS
from audioldm2_jax.data.draw import Draw

_TEMPO_WORDS = {
    "slow": ("slow", "slow", "unhurried"),
    "moderate": ("moderate", "mid-tempo"),
    "fast": ("fast", "fast", "quick"),
}
_MOODS = {"major": ("happy", "bright", "cheerful"), "minor": ("sad", "dark", "gloomy")}
_MODES = {
    "major": ("in a major key", "in major"),
    "minor": ("in a minor key", "in minor"),
    "dorian": ("in the dorian mode",),
    "mixolydian": ("in the mixolydian mode",),
    "pentatonic": ("in a pentatonic scale",),
}
_REGISTERS = {
    "low": ("in the low register", "played low"),
    "middle": ("in the middle register",),
    "high": ("in the high register", "played high"),
}
# Noun, and whether it is one thing and takes an article.
_NOUNS = {
    "melody": (("melody", True), ("melody", True), ("tune", True)),
    "arpeggios": (("arpeggios", False), ("broken chords", False)),
    "chords": (("chords", False),),
    "long notes": (("long notes", False), ("sustained notes", False)),
    "scales": (("scales", False), ("runs", False)),
    "bass line": (("bass line", True),),
}


def caption(plan: Plan, draw: Draw, full: bool = False) -> str:
    """Writes a caption of `plan`; `full` names tempo, mode and register as well as the instruments."""
    lead = plan.lead
    adjectives, clauses = _attributes(plan, draw, full)
    if lead.instrument == DRUMS:
        text = _drums(plan, draw, adjectives, clauses)
    elif len(plan.parts) == 1:
        text = _solo(lead, draw, adjectives, clauses)
    else:
        text = _duo(lead, plan.parts[1], draw, adjectives, clauses)
    if draw.chance(0.25):
        text = text[0].upper() + text[1:]
    return text + "." if draw.chance(0.25) else text


def _attributes(plan: Plan, draw: Draw, full: bool) -> tuple[list[str], list[str]]:
    """Adjectives for the lead's noun, and clauses for the end of the sentence."""
    adjectives, clauses = [], []
    keep = 1.0 if full else 0.8
    if draw.chance(keep):
        word = draw.pick(_TEMPO_WORDS[plan.tempo])
        if draw.chance(0.75):
            adjectives.append(word)
        else:
            clauses.append(f"at {_article(word)} {'pace' if word == 'mid-tempo' else 'tempo'}")
    if plan.lead.instrument == DRUMS:
        return adjectives, clauses
    if draw.chance(keep):
        if plan.mode in _MOODS and not full and draw.chance(0.4):
            adjectives.append(draw.pick(_MOODS[plan.mode]))
        else:
            clauses.append(draw.pick(_MODES[plan.mode]))
    if len(plan.parts) == 1 and draw.chance(1.0 if full else 0.5):
        if draw.chance(0.3):
            adjectives.append({"low": "low", "middle": "mid-range", "high": "high"}[plan.lead.register])
        else:
            clauses.append(draw.pick(_REGISTERS[plan.lead.register]))
    if draw.chance(0.5):
        clauses.reverse()
    return adjectives, clauses


def _solo(lead: Part, draw: Draw, adjectives: list[str], clauses: list[str]) -> str:
    phrase, name, player = _phrase(lead, adjectives, draw), lead.instrument, INSTRUMENTS[lead.instrument]
    verb = draw.pick(("play", "playing")) if player.plural else draw.pick(("plays", "playing"))
    sentence = draw.pick(
        (
            f"{phrase} on {player.indefinite}",
            f"{phrase} on {player.indefinite}",
            f"{phrase} on the {name}",
            f"{player.indefinite} {verb} {phrase}",
            f"{phrase} played by {player.indefinite}",
            f"{phrase} for solo {name}",
            f"solo {name}: {phrase}",
        )
    )
    return _join(sentence, clauses)


def _duo(lead: Part, second: Part, draw: Draw, adjectives: list[str], clauses: list[str]) -> str:
    phrase, player = _phrase(lead, adjectives, draw), INSTRUMENTS[lead.instrument]
    under = _beat(second, draw) if second.instrument == DRUMS else _phrase(second, [], draw)
    other = DRUMS if second.instrument == DRUMS else INSTRUMENTS[second.instrument].indefinite
    verb = "play" if player.plural else "plays"
    sentence = draw.pick(
        (
            f"{phrase} on {player.indefinite} with {under} on {other}",
            f"{player.indefinite} {verb} {phrase} over {under} on {other}",
            f"{phrase} on {player.indefinite}, accompanied by {other}",
            f"{player.indefinite} and {other}: {phrase} and {under}",
            f"{phrase} for {lead.instrument} and {second.instrument}",
        )
    )
    return _join(sentence, clauses)


def _drums(plan: Plan, draw: Draw, adjectives: list[str], clauses: list[str]) -> str:
    beat = _beat(plan.lead, draw, adjectives)
    return _join(draw.pick((f"{beat} on drums", f"drums playing {beat}", f"solo drums: {beat}")), clauses)


def _beat(part: Part, draw: Draw, adjectives: list[str] | None = None) -> str:
    return _article(" ".join([*(adjectives or []), part.texture, draw.pick(("beat", "groove"))]))


def _phrase(part: Part, adjectives: list[str], draw: Draw) -> str:
    noun, single = draw.pick(_NOUNS[part.texture])
    text = " ".join([*adjectives, noun])
    return _article(text) if single else text


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _join(sentence: str, clauses: list[str]) -> str:
    return " ".join([sentence, *clauses])
