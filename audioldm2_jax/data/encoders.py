"""What turns an example into fields of the batch; a stage asks for fields, and those encoders make them that can.

A batch holds this host's slots of one step, as NumPy arrays (b slots, n and m the lengths of the tokenizers):

    waveform              [b, samples] float32  −1..1: mean zero, peak 0.5, normalised after cropping, zeros at the end
    clap_ids, clap_mask   [b, n] int32          the caption for CLAP's text tower; 1 where there is a token
    t5_ids, t5_mask       [b, m] int32          the caption for T5
    phoneme_ids, …_mask   [b, m] int32          the transcription: of speech in T5's place, of unified models beside
    captioned             [b] bool              False: there is no caption, and the ids are those of ""
    transcribed           [b] bool              False: there is no transcription, and the phonemes are padding

Where features are cached (data/cache.py) their fields take the place of what they were made from.

Further encoders need no change elsewhere: what they read of an example is theirs, and so are their fields' names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audioldm2_jax.audio.files import normalise, segment
from audioldm2_jax.data.example import Example, UnreadableRecord
from audioldm2_jax.data.phonemes import PhonemeTokenizer
from audioldm2_jax.data.text import Tokenizer, Tokenizers

Fields = Mapping[str, np.ndarray]
_QUOTED = 5  # records whose transcription cannot be said, in each process


class Encoder:
    """Makes fields of the batch from an example; picklable, for worker processes."""

    fields: tuple[str, ...]
    """Names of the fields it makes."""

    def __call__(self, example: Example) -> Fields:
        """Returns the fields of one example, without the batch axis."""
        raise NotImplementedError


@dataclass(frozen=True)
class Waveform(Encoder):
    """The excerpt, normalised, then padded with zeros to `samples`."""

    samples: int
    fields = ("waveform",)

    def __call__(self, example: Example) -> Fields:
        return {"waveform": segment(normalise(example.waveform), self.samples)}


@dataclass(frozen=True)
class Caption(Encoder):
    """The caption as the token ids of one text encoder, that of "" where there is none.

    Attributes:
        name: of the text encoder, with which the fields begin.
        tokenizer: its tokenizer.
    """

    name: str
    tokenizer: Tokenizer | PhonemeTokenizer

    @property
    def fields(self) -> tuple[str, ...]:
        return (f"{self.name}_ids", f"{self.name}_mask")

    def __call__(self, example: Example) -> Fields:
        return self._encode(example.text or "")

    def empty(self) -> Fields:
        """Returns the fields of no caption."""
        return self._encode("")

    def _encode(self, text: str | None) -> Fields:
        return {field: rows[0] for field, rows in zip(self.fields, self.tokenizer([text]))}


class Transcription(Caption):
    """The transcription as phoneme ids, all padding where there is none.

    Raises:
        UnreadableRecord: it cannot be said, or is too long; the pipeline draws another record.
    """

    def __call__(self, example: Example) -> Fields:
        try:
            return self._encode(example.transcription)
        except ValueError as error:
            _warn_of_refusal(example, str(error))
            raise UnreadableRecord(str(error)) from error

    def empty(self) -> Fields:
        """Returns the fields of no transcription."""
        return self._encode(None)


def _warn_of_refusal(example: Example, reason: str) -> None:
    """Says, of the first few records in each process, that nothing is learnt of words from them; the metric
    `replaced_records` counts all."""
    name = str(example.labels.get("name", example.transcription))
    if name not in _refused and len(_refused) < _QUOTED:
        _refused.add(name)
        last = " (further ones are not listed)" if len(_refused) == _QUOTED else ""
        logging.warning("%s is left out of what teaches words: %s%s", name, reason, last)


_refused: set[str] = set()


@dataclass(frozen=True)
class Captioned(Encoder):
    """Whether there is a caption."""

    fields = ("captioned",)

    def __call__(self, example: Example) -> Fields:
        return {"captioned": np.bool_(bool(example.text))}


@dataclass(frozen=True)
class Transcribed(Encoder):
    """Whether there is a transcription."""

    fields = ("transcribed",)

    def __call__(self, example: Example) -> Fields:
        return {"transcribed": np.bool_(bool(example.transcription))}


@dataclass(frozen=True)
class Features(Encoder):
    """What the cache holds of the example, by field."""

    fields: tuple[str, ...]

    def __call__(self, example: Example) -> Fields:
        return {field: example.features[field] for field in self.fields}


def recipe_encoders(samples: int, tokenizers: Tokenizers | None) -> tuple[Encoder, ...]:
    """Returns all encoders of a recipe: clips of `samples` samples, and captions where there are tokenizers."""
    always = (Waveform(samples), Captioned(), Transcribed())
    if not tokenizers:
        return always
    texts = (
        (Transcription if kind == "phoneme" else Caption)(kind, tokenizer)
        for kind, tokenizer in tokenizers.by_kind.items()
    )
    return (*always, *texts)


def select(encoders: Iterable[Encoder], fields: Sequence[str]) -> tuple[Encoder, ...]:
    """Returns those of the encoders that make `fields`.

    Raises:
        ValueError: none makes one of the fields.
    """
    encoders = tuple(encoders)
    known = {field for encoder in encoders for field in encoder.fields}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"no encoder makes {', '.join(unknown)} of the batch; there are {', '.join(sorted(known))}")
    return tuple(encoder for encoder in encoders if set(encoder.fields) & set(fields))


def empty_text(encoders: Iterable[Encoder]) -> dict[str, np.ndarray]:
    """Returns the fields of no text, each [1, length]; {} where no encoder reads texts."""
    texts = (encoder for encoder in encoders if isinstance(encoder, Caption))
    return {field: row[None] for encoder in texts for field, row in encoder.empty().items()}
