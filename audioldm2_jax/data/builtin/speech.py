"""The embedded speech corpus: sentences of everyday words in many voices, made from nothing but an index.

An index is drawn into a speaker, a description of it and sentences; espeak-ng (data/espeak.py) speaks them. Nothing is
stored, a clip takes about ten milliseconds, and the same index is the same clip in every process.

What the splits keep apart: a sentence belongs to one of them by itself (`sentences.heldout`), though training has all
words, and training never has the combinations of voice, rate and pitch in `HELD_OUT`, though it knows each pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from audioldm2_jax.data import espeak
from audioldm2_jax.data.builtin.corpus import Corpus
from audioldm2_jax.data.builtin.render import draw_hiss, record
from audioldm2_jax.data.builtin.sentences import heldout, sentence, words
from audioldm2_jax.data.builtin.speakers import PITCHES, RATES, VOICES, Speaker, describe
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import Example, UnreadableRecord

_BEFORE, _AFTER = (0.05, 0.3), 0.05  # seconds of silence
_LEAST = 2.0  # seconds of the shortest clip
_PAUSE, _SENTENCE, _LETTER = 0.2, 70.0, 8.4  # see most_seconds

#: For each voice the (rate, pitch) that training leaves out: every rate and every pitch once.
HELD_OUT: dict[str, tuple[tuple[str, str], ...]] = {
    voice: tuple((rate, tuple(PITCHES)[(i + j) % 3]) for j, rate in enumerate(RATES)) for i, voice in enumerate(VOICES)
}


@dataclass(frozen=True)
class SpeechCorpus(Corpus):
    """The clips of one split; see `Corpus`.

    `corpus[index]` is a pure function of (seed, split, index, seconds): the longer the clip, the more is said in it,
    always to the end. The text is a description of the speaker, the transcription what is said. Labels: `voice`
    (`VOICES`), `name`, `gender`, `accent`, `rate` and `pitch` (classes), `words`, `sentence` (all that is said), and
    `onset` and `end` of the speech in seconds.
    """

    NAME = "speech"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_length(self.seconds)

    def __getitem__(self, index: int) -> Example:
        speaker, text = self._speaker(index)
        return perform(
            speaker, text, self.transcription(index), self._draw("sound", index), self.sampling_rate, self.seconds
        )

    def text(self, index: int) -> str:
        """The description of the speaker, without speaking."""
        return self._speaker(index)[1]

    def transcription(self, index: int) -> str:
        """What is said, without speaking."""
        return draw_text(self._draw("words", index), self._speaker(index)[0].rate, self.split, self.seconds)

    def _speaker(self, index: int) -> tuple[Speaker, str]:
        draw = self._draw("speaker", index)
        speaker = draw_speaker(draw, self.split)
        return speaker, describe(speaker, draw)


def _check_length(seconds: float) -> None:
    if seconds < _LEAST:
        raise ValueError(f"seconds is {seconds}; the sentences of builtin:speech need {_LEAST} or more")


def draw_speaker(draw: Draw, split: str) -> Speaker:
    """Draws who speaks and how; in training, held-out combinations are drawn again."""
    voice = draw.pick(tuple(VOICES))
    while True:
        rate, pitch = draw.pick(tuple(RATES)), draw.pick(tuple(PITCHES))
        if split != "train" or (rate, pitch) not in HELD_OUT[voice]:
            return Speaker(voice, rate, pitch)


def draw_text(draw: Draw, rate: str, split: str, seconds: float) -> str:
    """Draws sentences of `split` that end within a clip of `seconds`: one, or as many as there is time for."""
    time, said = seconds - _BEFORE[1] - _AFTER, []
    while True:
        text = sentence(draw)
        if heldout(text) != (split == "heldout"):
            continue
        if most_seconds(text, rate) <= time:
            time -= most_seconds(text, rate)
            said.append(text)
        elif said:
            return " ".join(said)


def most_seconds(text: str, rate: str) -> float:
    """The most that a sentence takes in any voice at `rate`, with the pause after it.

    So the words are chosen without speaking them. The bound was found by measuring: of 288 sentences, eight in every
    voice at every rate, each ends at least 0.1 s before it.
    """
    return _PAUSE + (_SENTENCE + _LETTER * len(text)) / RATES[rate]


def perform(speaker: Speaker, text: str, said: str, draw: Draw, sampling_rate: int, seconds: float) -> Example:
    """Speaks `said` in a clip of `seconds`, after a short silence, at the speaker's rate and a pitch of its class.

    Raises:
        UnreadableRecord: the library speaks so slowly that the sentence would be cut.
    """
    pitch = round(draw.uniform(*PITCHES[speaker.pitch]))
    silence, hiss = draw.uniform(*_BEFORE), draw_hiss(draw)
    spoken = espeak.speak(said, speaker.voice, RATES[speaker.rate], pitch)
    time = seconds - silence - _AFTER
    if len(spoken) > time * espeak.SAMPLING_RATE:
        raise UnreadableRecord(f"{said!r} takes longer than {time:.2f} seconds in the voice {speaker.voice}")
    spoken = soxr.resample(spoken, espeak.SAMPLING_RATE, sampling_rate)
    start = round(silence * sampling_rate)
    sound = np.zeros(round(seconds * sampling_rate), np.float32)
    sound[start : start + len(spoken)] = spoken
    labels = {
        **speaker._asdict(),
        **VOICES[speaker.voice]._asdict(),
        "words": tuple(words(said)),
        "sentence": said,
        "onset": silence,
        "end": silence + len(spoken) / sampling_rate,
    }
    return Example(record(sound, hiss, sampling_rate), text, labels, transcription=said)


def heldout_sentences(n: int, seconds: float = 2.56) -> list[tuple[str, str, str]]:
    """`n` different (transcription, description, voice), evenly over the voices, none of which training ever had.

    Sentences and combinations of voice, rate and pitch are held out; each description names the speaker, gender,
    accent, rate and pitch. The list for a smaller `n` is the beginning of the list for a larger one.

    Args:
        n: how many, up to some thousands.
        seconds: of the clips that they are to fit in.
    """
    return [(said, text, speaker.voice) for speaker, text, said in _heldout_plans(n, seconds)]


def heldout_examples(n: int, sampling_rate: int, seconds: float) -> list[Example]:
    """Real clips of `heldout_sentences(n, seconds)`, in the same order."""
    return [
        perform(speaker, text, said, Draw("speech", "heldout sound", i), sampling_rate, seconds)
        for i, (speaker, text, said) in enumerate(_heldout_plans(n, seconds))
    ]


def _heldout_plans(n: int, seconds: float) -> list[tuple[Speaker, str, str]]:
    _check_length(seconds)
    plans, seen = [], set()
    for i in range(n):
        voice = tuple(VOICES)[i % len(VOICES)]
        speaker = Speaker(voice, *HELD_OUT[voice][i // len(VOICES) % len(RATES)])
        draw = Draw("speech", "heldout plan", i)
        text = describe(speaker, draw, full=True)
        for _ in range(100):
            said = draw_text(draw, speaker.rate, "heldout", seconds)
            if said not in seen:
                break
        else:
            raise ValueError(f"n is {n}: there are not that many different held-out sentences of {seconds} seconds")
        seen.add(said)
        plans.append((speaker, text, said))
    return plans
