"""What every source of training data yields, and what a source is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from audioldm2_jax.audio.files import Original
from audioldm2_jax.data.draw import Draw, permuted

#: The splits that authors of data sets give; all but the first are held out.
GIVEN_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One recording, or a piece of it.

    Attributes:
        waveform: [samples] float32, mono, at the sampling rate the source was opened with; empty where the source has
            features alone.
        text: the caption; None where the recording has none. Of several the pipeline draws one for each example.
        labels: what else is known about it. The embedded corpus documents its own; files carry their name.
        features: what frozen networks made of it, by field of the batch (data/cache.py).
        transcription: the words that are spoken in the whole of it; None where nobody speaks or nobody wrote it down.
        captions: all captions, where there are several.
    """

    waveform: np.ndarray
    text: str | None
    labels: dict = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    transcription: str | None = None
    captions: tuple[str, ...] = ()


class UnreadableRecord(ValueError):
    """A record that exists and cannot be used: damaged, empty, not finite. The pipeline draws another one."""


class Source:
    """Random access to examples; picklable, so that worker processes can open it again.

    `len(source)` is the number of records, `source[i]` the whole of record i, or `UnreadableRecord`.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError

    def name_of(self, index: int) -> str:
        """What a record is called; no other one of the source has that name."""
        return str(index)

    def original(self, index: int) -> Original:
        """The sound of a record as it is stored, to be read from front to back; files and their like have it.

        Raises:
            UnreadableRecord: it cannot be opened.
        """
        raise NotImplementedError(f"{type(self).__name__} has no stored sound")

    def part_of(self, index: int) -> tuple[str, float]:
        """The recording of which a record is a part, or all, and the seconds at which it begins there.

        Where nobody gives splits, all parts of a recording are in one, which its name decides.
        """
        return self.name_of(index), 0.0

    def given_splits(self) -> np.ndarray | None:
        """Which split whoever made the data says that each record is of: numbers of `GIVEN_SPLITS`, [records] uint8.

        They ascend: records are in the order of their splits. None: nobody says, or what is held out is not here, or
        nothing else.
        """
        return None

    def text(self, index: int) -> str | None:
        """The caption of a record alone; a source that has it at hand overrides this."""
        return self[index].text

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a record; a source that may have several overrides this."""
        text = self.text(index)
        return (text,) if text else ()

    def transcription(self, index: int) -> str | None:
        """What is said in a record; a source whose examples have a transcription overrides this."""
        return None

    def with_caption(self, example: Example, index: int, position: float) -> Example:
        """An excerpt of record `index` with one of its captions; `position` in [0, 1) says which."""
        if len(example.captions) < 2:
            return example
        return dataclasses.replace(example, text=example.captions[int(position * len(example.captions))])

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """The same records under the same numbers, of which only those are drawn that have something to learn from.

        A stage that learns nothing from the others wants them in no slot of its batches. It looks through all records;
        a source that knows the answer otherwise overrides this.

        Args:
            fields: "captioned", "transcribed" or both, as in the batch (data/encoders.py): what a record has to have,
                of several at least one.

        Returns:
            the source itself where all records have it; None where none has.
        """
        found = _having(self, fields)
        if len(found) == len(self):
            return self
        return Restricted(self, fields) if len(found) else None

    def count_drawn(self) -> int:
        """How many of the records are drawn."""
        return len(self)

    def draw(self, number: int, seed: int) -> int:
        """Which record is the `number`th of a run: every epoch is a permutation of its own."""
        epoch, position = divmod(number, len(self))
        return permuted(position, len(self), seed, "epoch", epoch)

    def another(self, index: int, draw: Draw) -> int:
        """Which record takes the place of one that cannot be read."""
        return draw.below(len(self))

    def first(self, records: int) -> Source:
        """The first records alone."""
        return self if records >= len(self) else First(self, records)

    def listing(self) -> Any:
        """What was found by looking, and decides which record has which number, as JSON can hold it; None: nothing.

        A host may fail to read a file that another one can: all of a job take process 0's listing (`follow`).
        """
        return None

    def listing_digest(self) -> str:
        """What tells the listing from another one, short however many records there are."""
        listing = json.dumps(self.listing(), ensure_ascii=False)
        return hashlib.sha256(listing.encode("utf-8", "backslashreplace")).hexdigest()  # a name may not be UTF-8

    def follow(self, listing: Any) -> str:
        """Takes another host's listing in the place of its own; returns how they differed, "" if they did not.

        A record that is listed and cannot be read here counts as unreadable when its turn comes.

        Raises:
            ValueError: the listing cannot be that of the same data.
        """
        return ""

    def digests(self, records: int) -> dict[str, str]:
        """What tells the recordings of the first `records` records from others that take their place: name → digest.

        Empty where the source's name and its listing say it already. A recording that cannot be read now has a digest
        of its own kind, and is no error.
        """
        return {}

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """At most `samples` samples of record `index`; `position` in [0, 1) says where between its ends.

        A part of a record has no transcription: what is said in it is not known.

        A source that need not read the whole record for that overrides this.
        """
        example = self[index]
        start = int(position * max(len(example.waveform) - samples + 1, 1))
        whole = len(example.waveform) <= samples
        return dataclasses.replace(
            example,
            waveform=example.waveform[start : start + samples],
            transcription=example.transcription if whole else None,
        )


class Derived(Source):
    """A source that is another one but for what a subclass changes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        return self.source.excerpt(index, samples, position)

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def original(self, index: int) -> Original:
        return self.source.original(index)

    def part_of(self, index: int) -> tuple[str, float]:
        return self.source.part_of(index)

    def given_splits(self) -> np.ndarray | None:
        given = self.source.given_splits()
        return None if given is None else given[: len(self)]

    def text(self, index: int) -> str | None:
        return self.source.text(index)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(index)

    def transcription(self, index: int) -> str | None:
        return self.source.transcription(index)

    def with_caption(self, example: Example, index: int, position: float) -> Example:
        return self.source.with_caption(example, index, position)

    def draw(self, number: int, seed: int) -> int:
        return self.source.draw(number, seed)

    def another(self, index: int, draw: Draw) -> int:
        return self.source.another(index, draw)

    def listing(self) -> Any:
        return self.source.listing()

    def listing_digest(self) -> str:
        return self.source.listing_digest()

    def follow(self, listing: Any) -> str:
        return self.source.follow(listing)

    def digests(self, records: int) -> dict[str, str]:
        return self.source.digests(records)


class First(Derived):
    """The first records of a source."""

    def __init__(self, source: Source, records: int) -> None:
        super().__init__(source)
        self.records = records

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> Example:
        return self.source[self._checked(index)]

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        return self.source.excerpt(self._checked(index), samples, position)

    def text(self, index: int) -> str | None:
        return self.source.text(self._checked(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(self._checked(index))

    def transcription(self, index: int) -> str | None:
        return self.source.transcription(self._checked(index))

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        found = self.source.restricted(fields)  # which may know without looking
        return found and (self if found is self.source else super().restricted(fields))

    def draw(self, number: int, seed: int) -> int:
        return Source.draw(self, number, seed)

    def another(self, index: int, draw: Draw) -> int:
        return Source.another(self, index, draw)

    def digests(self, records: int) -> dict[str, str]:
        return self.source.digests(min(records, self.records))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.records:
            raise IndexError(f"record {index} of {self.records}")
        return index


class Restricted(Derived):
    """A source of which only those records are drawn that have something; see `Source.restricted`.

    Raises:
        ValueError: none has it.
    """

    def __init__(self, source: Source, fields: tuple[str, ...]) -> None:
        super().__init__(source)
        self.fields, self.drawn = fields, _having(source, fields)
        if not len(self.drawn):
            raise ValueError(f"none of the {len(source)} records is {' or '.join(fields)}")

    def count_drawn(self) -> int:
        """See `Source.count_drawn`."""
        return len(self.drawn)

    def draw(self, number: int, seed: int) -> int:
        """See `Source.draw`: every epoch is a permutation of those that are drawn."""
        epoch, position = divmod(number, len(self.drawn))
        return int(self.drawn[permuted(position, len(self.drawn), seed, "epoch", epoch)])

    def another(self, index: int, draw: Draw) -> int:
        """See `Source.another`; one that is drawn."""
        return int(self.drawn[draw.below(len(self.drawn))])

    def first(self, records: int) -> Source:
        """See `Source.first`."""
        return self if records >= len(self) else Restricted(self.source.first(records), self.fields)

    def follow(self, listing: Any) -> str:
        """See `Source.follow`."""
        difference = self.source.follow(listing)
        self.drawn = _having(self.source, self.fields)
        return difference


def has(source: Source, fields: tuple[str, ...], index: int) -> bool:
    """Whether a record has one of `fields`; see `Source.restricted`."""
    read = {"captioned": source.captions, "transcribed": source.transcription}
    return any(read[field](index) for field in fields)


def _having(source: Source, fields: tuple[str, ...]) -> np.ndarray:
    """The numbers of the records that have one of `fields`; one whose texts cannot be read counts: it is told when
    drawn."""

    def one(index: int) -> bool:
        try:
            return has(source, fields, index)
        except UnreadableRecord:
            return True

    return np.flatnonzero(np.fromiter(map(one, range(len(source))), np.bool_, len(source)))
