"""The embedded music corpus: captioned clips of sampled instruments, made from nothing but an index.

An index is drawn into a plan (instruments, tempo, mode, register, texture), the plan into a score and a caption, the
score into sound. Nothing is stored, any clip can be made at any time in about a millisecond, and the same index is the
same clip everywhere.

What the splits keep apart: a score belongs to one of them by its own first bar (`compose.heldout`), and training never
has the combinations of instrument, tempo, mode and register in `HELD_OUT`, though it knows each pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from audioldm2_jax.data.builtin.captions import caption
from audioldm2_jax.data.builtin.compose import (
    GROOVES,
    KEYS,
    REGISTERS,
    TEMPOS,
    Note,
    Part,
    Plan,
    compose,
    first_bar,
    heldout,
)
from audioldm2_jax.data.builtin.corpus import Corpus
from audioldm2_jax.data.builtin.instruments import DRUMS, EVALUATED, FAMILIES, INSTRUMENTS, Instrument
from audioldm2_jax.data.builtin.render import draw_hiss, render, seconds
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Example

#: Shares of the kinds of clip; the evaluated instruments alone make up most, so that a small model can learn them.
MIXTURE = {"evaluated": 0.8, "solo": 0.08, "duo": 0.07, "drums": 0.05}
_MODES = {"major": 0.42, "minor": 0.42, "pentatonic": 0.08, "dorian": 0.04, "mixolydian": 0.04}

#: For each evaluated instrument the (tempo, mode, register) that training leaves out: every tempo and every register
#: once, both modes.
HELD_OUT: dict[str, tuple[tuple[str, str, str], ...]] = {
    name: tuple((tempo, ("major", "minor")[(i + j) % 2], REGISTERS[(i // 2 + j) % 3]) for j, tempo in enumerate(TEMPOS))
    for i, name in enumerate(EVALUATED)
}


@dataclass(frozen=True)
class MusicCorpus(Corpus):
    """The clips of one split; see `Corpus`.

    `corpus[index]` is a pure function of (seed, split, index), whatever the rest; rate and length only decide how much
    of the score is heard and how. Its labels: `kind` (evaluated, solo, duo, drums), `instruments` (lead first),
    `programs`, `textures`, `registers` (one each), `tempo`, `bpm`, `mode`, `key`, and `notes`, [n, 4] float32 of onset
    and duration in seconds, MIDI pitch, and part.

    Attributes:
        families: keeps instruments of these families only (`FAMILIES`); None: all.
        mixture: weights of the kinds; kinds that `families` leaves without instruments are never drawn.
    """

    NAME = "music"

    families: tuple[str, ...] | None = None
    mixture: Mapping[str, float] = field(default_factory=lambda: dict(MIXTURE))

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.families or ()) - set(FAMILIES)
        if unknown:
            raise ValueError(f"no instrument family {sorted(unknown)}; there are {', '.join(FAMILIES)}")
        if set(self.mixture) - set(MIXTURE):
            raise ValueError(f"mixture has {sorted(self.mixture)}; the kinds are {', '.join(MIXTURE)}")
        if not sum(_kinds(self.families, self.mixture).values()):
            raise ValueError(f"families {self.families} and mixture {dict(self.mixture)} leave nothing to play")

    def __getitem__(self, index: int) -> Example:
        plan, text = self._plan(index)
        return self._perform(plan, text, self._draw("score", index))

    def text(self, index: int) -> str:
        """The caption of a clip, without rendering it."""
        return self._plan(index)[1]

    def _plan(self, index: int) -> tuple[Plan, str]:
        draw = self._draw("plan", index)
        plan = draw_plan(draw, self.split, self.families, self.mixture)
        return plan, caption(plan, draw)

    def _perform(self, plan: Plan, text: str, draw: Draw) -> Example:
        return perform(plan, text, draw, self.split, self.sampling_rate, self.seconds)


def perform(plan: Plan, text: str, draw: Draw, split: str, sampling_rate: int, length: float) -> Example:
    """Composes a score of `split` for `plan` and renders `length` seconds of it."""
    bar = first_bar(plan, draw)
    while heldout(plan.lead.texture, bar) != (split == "heldout"):
        bar = first_bar(plan, draw)
    hiss = draw_hiss(draw)  # before the notes, whose number depends on the length
    notes = compose(plan, bar, length * plan.bpm / 60.0, draw)
    waveform = render(plan.parts, notes, plan.bpm, round(length * sampling_rate), sampling_rate, hiss)
    return Example(waveform, text, _labels(plan, notes, length))


def heldout_captions(n: int, instruments: Iterable[str] = EVALUATED) -> list[tuple[str, str]]:
    """`n` different (caption, instrument) pairs, evenly over `instruments`, of combinations that training never had.

    Each caption names instrument, tempo, mode and register. The list for a smaller `n` is the beginning of the list
    for a larger one.
    """
    return [(text, plan.lead.instrument) for plan, text in _heldout_plans(n, instruments)]


def heldout_examples(
    n: int, sampling_rate: int, seconds: float, instruments: Iterable[str] = EVALUATED
) -> list[Example]:
    """Real clips of the captions of `heldout_captions(n, instruments)`, in the same order."""
    return [
        perform(plan, text, Draw("music", "heldout score", i), "heldout", sampling_rate, seconds)
        for i, (plan, text) in enumerate(_heldout_plans(n, instruments))
    ]


def _heldout_plans(n: int, instruments: Iterable[str]) -> list[tuple[Plan, str]]:
    names = tuple(instruments)
    unknown = [name for name in names if name not in HELD_OUT]
    if unknown or not names:
        raise ValueError(f"no combinations are held out for {unknown}; choose among {', '.join(EVALUATED)}")
    plans, seen = [], set()
    for i in range(n):
        name = names[i % len(names)]
        tempo, mode, register = HELD_OUT[name][i // len(names) % len(HELD_OUT[name])]
        for attempt in range(1000):
            draw = Draw("music", "heldout plan", i, attempt)
            part = _part(INSTRUMENTS[name], _lead_texture(INSTRUMENTS[name], tempo, draw), register, draw)
            plan = Plan("evaluated", tempo, draw.uniform(*TEMPOS[tempo]), mode, draw.below(12), (part,))
            text = caption(plan, draw, full=True)
            if text not in seen:
                break
        else:
            raise ValueError(f"n is {n}: there are not that many different held-out captions of {', '.join(names)}")
        seen.add(text)
        plans.append((plan, text))
    return plans


def draw_plan(draw: Draw, split: str, families: tuple[str, ...] | None, mixture: Mapping[str, float]) -> Plan:
    """Draws what a clip is to be; in training, held-out combinations are drawn again."""
    kind = draw.weighted(_kinds(families, mixture))
    tempo, mode = draw.pick(tuple(TEMPOS)), draw.weighted(_MODES)
    if kind == "drums":
        parts = (_drums(draw),)
    else:
        choice = [i for i in _pitched(families) if not i.bass]
        evaluated = [i for i in choice if i.name in EVALUATED]
        first = draw.pick(
            evaluated if kind == "evaluated" or (kind == "duo" and evaluated and draw.chance(0.5)) else choice
        )
        parts = (_part(first, _lead_texture(first, tempo, draw), _register(first, tempo, mode, split, draw), draw),)
        if kind == "duo":
            parts += (_second(first, families, tempo, mode, split, draw),)
    return Plan(kind, tempo, draw.uniform(*TEMPOS[tempo]), mode, draw.below(12), parts)


def _pitched(families: tuple[str, ...] | None) -> list[Instrument]:
    return [i for i in INSTRUMENTS.values() if families is None or i.family in families]


def _kinds(families: tuple[str, ...] | None, mixture: Mapping[str, float]) -> dict[str, float]:
    """The mixture without the kinds that the families cannot play."""
    pitched = [i for i in _pitched(families) if not i.bass]
    possible = {
        "evaluated": any(i.name in EVALUATED for i in pitched),
        "solo": bool(pitched),
        "duo": bool(pitched) and (families is None or len(_pitched(families)) > 1),
        "drums": families is None or DRUMS in families,
    }
    return {kind: weight for kind, weight in mixture.items() if possible[kind]}


def _lead_texture(instrument: Instrument, tempo: str, draw: Draw) -> str:
    weights = {"melody": 5.0, "arpeggios": 2.0, "scales": 1.0}
    if instrument.chords:
        weights["chords"] = 2.0
    if not instrument.ring and tempo != "fast":
        weights["long notes"] = 1.0
    return draw.weighted(weights)


def _register(instrument: Instrument, tempo: str, mode: str, split: str, draw: Draw) -> str:
    register = draw.pick(REGISTERS)
    while split == "train" and (tempo, mode, register) in HELD_OUT.get(instrument.name, ()):
        register = draw.pick(REGISTERS)
    return register


def _part(instrument: Instrument, texture: str, register: str, draw: Draw) -> Part:
    return Part(instrument.name, draw.pick(instrument.programs), texture, register)


def _drums(draw: Draw) -> Part:
    return Part(DRUMS, 0, draw.pick(tuple(GROOVES)), "middle")


def _second(lead: Instrument, families: tuple[str, ...] | None, tempo: str, mode: str, split: str, draw: Draw) -> Part:
    """The accompaniment of a duo: a chordal instrument, a bass or the drums."""
    others = [i for i in _pitched(families) if i.name != lead.name]
    chordal, basses = [i for i in others if i.chords], [i for i in others if i.bass]
    roles = {
        "chords": 4.0 * bool(chordal),
        "bass": 2.0 * bool(basses),
        "drums": 2.0 * (not families or DRUMS in families),
    }
    role = draw.weighted(roles) if sum(roles.values()) else "any"
    if role == "drums":
        return _drums(draw)
    if role == "bass":
        return _part(draw.pick(basses), "bass line", "low", draw)
    instrument = draw.pick(chordal or others)
    texture = draw.pick(("chords", "arpeggios")) if instrument.chords else "arpeggios"
    return _part(instrument, texture, _register(instrument, tempo, mode, split, draw), draw)


def _labels(plan: Plan, notes: list[list[Note]], length: float) -> dict:
    beat = 60.0 / plan.bpm
    rows = [
        (*seconds(note, part, beat), note.pitch, number)
        for number, (part, events) in enumerate(zip(plan.parts, notes, strict=True))
        for note in events
        if note.onset * beat < length
    ]
    return {
        "kind": plan.kind,
        "instruments": tuple(part.instrument for part in plan.parts),
        "programs": tuple(part.program for part in plan.parts),
        "textures": tuple(part.texture for part in plan.parts),
        "registers": tuple(part.register for part in plan.parts),
        "tempo": plan.tempo,
        "bpm": plan.bpm,
        "mode": plan.mode,
        "key": KEYS[plan.tonic],
        "notes": np.asarray(rows, np.float32).reshape(-1, 4),
    }
