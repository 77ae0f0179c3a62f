"""The embedded corpus of sound effects: captioned scenes of synthesised events, made from nothing but an index.

An index is drawn into a plan (which events, how many, in which order, and their voices), the plan into a caption and
an arrangement in time, and each event is synthesised by a model of what makes the sound. Nothing is stored.

What the splits keep apart: a voice (this door, that dog) belongs to one of them, and training never has the pairs of
`HELD_OUT` and the counts of `HELD_OUT_COUNTS`, though it knows their parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.signal

from audioldm2_jax.data.builtin.corpus import Corpus
from audioldm2_jax.data.builtin.render import draw_hiss, record
from audioldm2_jax.data.builtin.scene_captions import caption
from audioldm2_jax.data.builtin.scenes import HELD_OUT, SHORTEST, Event, Plan, arrange, draw_plan, heldout_plan
from audioldm2_jax.data.builtin.sounds import SOUNDS
from audioldm2_jax.data.builtin.synthesis import Take
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Example

_FADE = 0.03  # seconds in which an event ends
_LOUDNESS_FRAME = 0.1  # seconds; the loudest of them says how loud an event is


@dataclass(frozen=True)
class EffectsCorpus(Corpus):
    """The clips of one split; see `Corpus`.

    `corpus[index]` is a pure function of (seed, split, index) and the length; the rate only decides how it is heard.
    Its labels: `kind` (single, sequence, overlay), `events`, a tuple of (class, onset in seconds, duration in seconds,
    count) in order of onset, and `order`, their classes. The background of an overlay is its first event and as long
    as the clip; others do not overlap. The echo of a room, of half a second at most, may go on after an event.
    """

    NAME = "audio"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.seconds)

    def __getitem__(self, index: int) -> Example:
        plan, text = self._plan(index)
        return perform(plan, text, self._draw("performance", index), self.sampling_rate, self.seconds)

    def text(self, index: int) -> str:
        """The caption of a clip, without making its sound."""
        return self._plan(index)[1]

    def _plan(self, index: int) -> tuple[Plan, str]:
        draw = self._draw("plan", index)
        plan = draw_plan(draw, self.split, self.seconds)
        return plan, caption(plan, draw)


def perform(plan: Plan, text: str, draw: Draw, sampling_rate: int, seconds: float) -> Example:
    """Arranges the events of `plan` in a clip of `seconds` and makes its sound."""
    hiss, events = draw_hiss(draw), arrange(plan, seconds, draw)
    mix = np.zeros(round(seconds * sampling_rate), np.float32)
    for event in events:
        under = plan.kind == "overlay" and event is events[0]
        level = draw.uniform(-14, -7) if under else draw.uniform(-3, 3)  # dB
        start = round(event.onset * sampling_rate)
        sound = _sound(event, sampling_rate)[: len(mix) - start]
        mix[start : start + len(sound)] += sound * np.float32(10 ** (level / 20))
    if draw.chance(0.6):
        mix = _room(mix, draw, sampling_rate)
    events = tuple((e.part.sound, e.onset, e.duration, e.part.count) for e in events)
    labels = {"kind": plan.kind, "events": events, "order": tuple(event[0] for event in events)}
    return Example(record(mix, hiss, sampling_rate), text, labels)


def heldout_captions(n: int) -> list[tuple[str, tuple[str, ...]]]:
    """`n` different (caption, classes in order) pairs, evenly over the classes, of pairs that training never had.

    Of a background the other event may be over it, not after it. Any clip of `SHORTEST` seconds or more has room for
    them. The list for a smaller `n` is the beginning of the list for a larger one.
    """
    return [(text, tuple(part.sound for part in plan.parts)) for plan, text in _heldout_plans(n)]


def heldout_examples(n: int, sampling_rate: int, seconds: float) -> list[Example]:
    """Real clips of the captions of `heldout_captions(n)`, in the same order."""
    _check(seconds)
    return [
        perform(plan, text, Draw("audio", "heldout performance", i), sampling_rate, seconds)
        for i, (plan, text) in enumerate(_heldout_plans(n))
    ]


def _heldout_plans(n: int) -> list[tuple[Plan, str]]:
    plans, seen = [], set()
    names = tuple(SOUNDS)
    for i in range(n):
        first = names[i % len(names)]
        second = HELD_OUT[first][i // len(names) % len(HELD_OUT[first])]
        for attempt in range(1000):
            draw = Draw("audio", "heldout plan", i, attempt)
            plan = heldout_plan(first, second, draw)
            text = caption(plan, draw)
            if text not in seen:
                break
        else:
            raise ValueError(f"n is {n}: there are not that many different held-out captions")
        seen.add(text)
        plans.append((plan, text))
    return plans


def _check(seconds: float) -> None:
    if seconds < SHORTEST:
        raise ValueError(f"clips of sound effects take {SHORTEST} seconds or more, room for two events; got {seconds}")


def _sound(event: Event, sampling_rate: int) -> np.ndarray:
    """[samples] float32: the event, of root mean square 1 over its loudest tenth of a second."""
    draw = Draw("audio", "voice", event.part.sound, event.part.voice)
    sound = SOUNDS[event.part.sound].make(Take(draw, sampling_rate, event.duration, event.strokes))
    fade = min(round(_FADE * sampling_rate), len(sound))
    sound[len(sound) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    frame = min(round(_LOUDNESS_FRAME * sampling_rate), len(sound))
    frames = sound[: len(sound) // frame * frame].reshape(-1, frame)
    return sound / max(float(np.sqrt(np.einsum("ij,ij->i", frames, frames).max() / frame)), 1e-8)


def _room(sound: np.ndarray, draw: Draw, sampling_rate: int) -> np.ndarray:
    """[samples] float32: `sound` and its diffuse echo, noise that decays by 60 dB in a tenth to half a second."""
    samples = round(draw.uniform(0.1, 0.5) * sampling_rate)
    noise = np.random.RandomState(draw.below(2**32)).random_sample(samples) - 0.5
    echo = noise * np.exp(np.arange(samples) * (-6.9 / samples))
    echo *= draw.uniform(0.15, 0.6) / np.sqrt(np.square(echo).sum())
    echo[0] = 1.0
    return scipy.signal.fftconvolve(sound, echo.astype(np.float32))[: len(sound)]
