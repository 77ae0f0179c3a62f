"""Sources that know their records by name: which of them a split has, their captions, what hosts agree on."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.example import GIVEN_SPLITS, Example, Source, UnreadableRecord
from audioldm2_jax.data.index import Fingerprint, Made, open_table
from audioldm2_jax.data.table import Finder, Row, Table, View, batches_of, is_recent, split_hash, stamp
from audioldm2_jax.runtime import warnings_once
from audioldm2_jax.runtime.text_files import shown

SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".snd", ".w64"),
)
#: Sound that libsndfile does not read.
OTHER_SOUND = (
    *(".3gp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".avi", ".dsf", ".dts", ".flv", ".m4a", ".m4b", ".mid", ".mka"),
    *(".midi", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg", ".ra", ".spx", ".tta", ".weba", ".webm"),
    *(".wma", ".wmv", ".wv"),
)
THREADS = 32  # files at a time, as a network makes each wait
_LISTED = 5  # names that an error or a warning spells out
_PART = 2**13  # names that are looked at in one go
_PIECE = 2**15  # bytes of a digest at a place of a file

T = TypeVar("T")


class Records(Source):
    """The records of one split, known by name; a subclass finds them, and reads them when asked for.

    What cannot be read is left out and kept in `skipped`, name → reason. What is known of the records lies in a table
    of which little is in memory, and of which a worker process is told no more than where it lies.

    Args:
        root: where they were found, for messages; names are relative to it.
        table: of the records. The name decides the split; where splits are given, the column `split` has the number of
            each in `GIVEN_SPLITS`.
        split: "train" or "heldout".
        sampling_rate: Hz, of the waveforms returned.
        heldout_share: of the records, by hash of their names. Where splits are given it counts for nothing, but that 1
            holds out all.

    Raises:
        ValueError: no record can be read, or all are held out.
    """

    unit = "records and files"
    """What is counted in messages."""
    expected = ""
    """What would be read, for the message that there is none."""
    _given = False
    """Whether splits are given."""

    def __init__(self, root: Path, table: Table, split: str, sampling_rate: int, heldout_share: float) -> None:
        self._open(root, table, split, sampling_rate, heldout_share)

    def _open(self, root: Path, table: Table, split: str, sampling_rate: int, heldout_share: float) -> None:
        """As `__init__`, for subclasses that make the table."""
        self.root, self.sampling_rate, self._warned = root, sampling_rate, False
        self._table, self._split = table, (split, heldout_share)
        reasons = [shown(reason) for reason in self.skipped.values()]
        if len(self.skipped) == len(table):
            raise ValueError(
                f"{shown(root)} holds no recording that can be read ({len(table)} files or links seem to be some; read "
                f"are {self.expected}){listing_of(reasons)}"
            )
        if self.skipped:
            message = "%s: %d of %d %s cannot be read and are skipped%s"
            warnings_once.warn(message, shown(root), len(self.skipped), len(table), self.unit, listing_of(reasons))
        self._choose()

    @functools.cached_property
    def skipped(self) -> dict[str, str]:
        """What is left out, name → reason."""
        return self._table.reasons()

    @property
    def without_sound(self) -> int:
        """How many recordings have captions and cannot be read, or are not there."""
        return self._table.left_out_with_captions()

    def _choose(self) -> None:
        """Finds the rows of the split."""
        self._rows = self._table.kept()
        if self._split:
            chosen = self._positions(self._table.numbers("split")[self._rows])
            if not len(chosen):
                raise ValueError(
                    f"{shown(self.root)}: all {len(self._rows)} records are held out, and none is left to learn from: "
                    f"lower --config.data.heldout_share={self._split[1]:g}, or add records"
                )
            self._rows = self._rows[chosen]
        self.names = View(self._rows, self._table.name)
        self._places = View(self._rows, self._table.place)
        self._texts = View(self._rows, self._table.texts)

    def _positions(self, splits: np.ndarray) -> np.ndarray:
        """The positions of the split, [records], by the column `split`."""
        split, heldout_share = self._split
        if self._given and heldout_share < 1:
            return np.flatnonzero((splits > 0) == (split == "heldout"))
        return split_positions(splits, split, heldout_share)

    def given_splits(self) -> np.ndarray | None:
        """See `Source.given_splits`."""
        return self._table.numbers("split")[self._rows].astype(np.uint8) if self._given else None

    def __getstate__(self) -> dict[str, Any]:
        rebuilt = ("_rows", "names", "_places", "_texts", "skipped")
        return {name: value for name, value in self.__dict__.items() if name not in rebuilt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._choose()

    def _sound(self, index: int) -> Path | bytes:
        """The sound file of a record: where it lies, or its content.

        Raises:
            UnreadableAudio: it cannot be read.
        """
        raise NotImplementedError

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        """An excerpt of a record as of `excerpt`; None: the whole.

        Raises:
            UnreadableAudio: it cannot be read.
        """
        sound = self._sound(index)
        if isinstance(sound, bytes):
            where = shown(self.root / self.names[index])
            return files.read_encoded(sound, where, self.sampling_rate, samples, position)
        start = 0
        if samples is not None and position:
            start = int(position * max(files.length(sound, self.sampling_rate) - samples + 1, 1))
        return files.read(sound, self.sampling_rate, start, samples)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self._example(index, None, 0.0)

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`; decodes no more than the excerpt."""
        return self._example(index, samples, position)

    def name_of(self, index: int) -> str:
        """See `Source.name_of`."""
        return self.names[index]

    def original(self, index: int) -> files.Original:
        """See `Source.original`."""
        try:
            return files.original(self._sound(index), shown(self.root / self.names[index]))
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error

    def text(self, index: int) -> str | None:
        """The first caption of a record, without reading it."""
        return next(iter(self._texts[index].captions), None)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a record, without reading it."""
        return self._texts[index].captions

    def transcription(self, index: int) -> str | None:
        """What is said in a record, without reading it."""
        return self._texts[index].transcription

    def listing(self) -> Any:
        """See `Source.listing`: the readable records, where they lie, and what is written about them."""
        return [
            [name, place, list(texts.captions), texts.transcription]
            for name, place, texts in zip(self.names, self._places, self._texts)
        ]

    def listing_digest(self) -> str:
        """See `Source.listing_digest`; of what the table has of the records."""
        return hashlib.sha256(self._table.numbers("digest")[self._rows].tobytes()).hexdigest()

    def follow(self, listing: Any) -> str:
        """See `Source.follow`."""
        skipped = self.skipped
        own, other = {name: rest for name, *rest in self.listing()}, {name: rest for name, *rest in listing}
        different = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        self._split, self._given = None, False  # all that is listed
        self._table = Table.of(Row(name, place, Texts(tuple(texts), said)) for name, place, texts, said in listing)
        self._choose()
        self.skipped = skipped  # on this host
        reasons = [skipped.get(name, f"{self.root / name} is not the same file there") for name in different]
        return f"{self.root}: {len(different)} {self.unit} differ{listing_of(reasons)}" if different else ""

    def _example(self, index: int, samples: int | None, position: float) -> Example:
        said = self.transcription(index)
        # One sample more tells whether there is more: what is said in a part of a record is not known.
        more = samples is not None and said is not None
        try:
            waveform = self._waveform(index, samples + more if more else samples, position)
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        if more and len(waveform) > samples:
            waveform, said = waveform[:samples], None
            self._warn_of_parts(index)
        captions = self.captions(index)
        labels = {"name": self.names[index]}
        return Example(waveform, self.text(index), labels, transcription=said, captions=captions)

    def _warn_of_parts(self, index: int) -> None:
        """Says once a process that transcriptions of longer recordings are of no use."""
        if not self._warned:
            self._warned = True
            logging.warning(
                "%s is longer than a clip, so that its transcription says more than is heard: such recordings teach "
                "nothing about words. Cut them at pauses, or make clips longer (--config.audio.seconds)",
                shown(self.root / self.names[index]),
            )


class Recordings(Records):
    """Records that are sound files. How long each is, is kept in an index (data/index.py) and looked for once.

    Args:
        texts: name → what is written about it, of those of which something is.
        skipped: name → reason.
        the rest: as of `Records`.
    """

    unit, expected = "files", ", ".join(SUFFIXES)

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        texts: Mapping[str, Texts],
        skipped: dict[str, str],
        split: str,
        sampling_rate: int,
        heldout_share: float,
    ) -> None:
        self.root, fingerprint, now = root, Fingerprint(), time.time()
        stamps: dict[str, int] = {}
        with ThreadPool(THREADS) as pool:
            for name, found in _in_parts(pool, self._status, names):
                stamps[name] = stamp(found, now) if found else 0
                facts = (found.st_size, found.st_mtime_ns) if found else ()
                fingerprint.add(name, *facts, *texts.get(name, ()))
                fingerprint.settled &= not found or not is_recent(found, now)
        for name, reason in skipped.items():
            fingerprint.add(name, reason)

        def made(before: Table | None) -> Made:
            finder = Finder(before) if before else None
            return {}, self._batches(stamps, texts, lambda name: 0, skipped, finder)

        table = open_table(root, type(self).__name__.lower(), fingerprint, made)
        self._open(root, table, split, sampling_rate, heldout_share)

    def _batches(
        self,
        stamps: Mapping[str, int],
        texts: Mapping[str, Texts],
        beside: Callable[[str], int],
        skipped: Mapping[str, str],
        finder: Finder | None,
    ) -> Iterator[pa.RecordBatch]:
        """The table of the recordings in `stamps`; those with the same stamp in an earlier one are not opened."""

        def look(name: str) -> Row:
            row = finder.row(name) if finder else None
            if row is not None and finder.stamps(row)[0] == stamps[name] != 0:
                place, reason = finder.table.place(row), finder.table.reason(row)
            else:
                place, reason = self._length(name)
            return Row(name, place, texts.get(name, Texts()), reason, stamps[name], beside(name))

        with ThreadPool(THREADS) as pool:
            yield from batches_of(row for _, row in _in_parts(pool, look, stamps))
        left_out = (name for name in skipped if name not in stamps)
        yield from batches_of(Row(name, None, texts.get(name, Texts()), skipped[name]) for name in left_out)

    def _length(self, name: str) -> tuple[list[int] | None, str | None]:
        """Frames and sampling rate of a recording, or why it cannot be read."""
        try:
            return [*files.frames(self.path(name))], None
        except files.UnreadableAudio as error:
            return None, str(error)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return self.path(name).stat()
        except (OSError, ValueError):  # what is wrong with it is told when it is opened
            return None

    def path(self, name: str) -> Path:
        """Where the recording of that name lies."""
        return self.root / name

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of a file's size and 32 KiB at its beginning, middle and end; "unreadable".

        Of 100,000 files 10 GB are read at most, in 32 threads, whenever a cache is opened: half a minute from a disk of
        300 MB/s, two minutes over a network that takes 10 ms to answer; opening the folder takes no less, as it looks
        for the end of every file. Times of modification would cost less, and a copy of the data has others. A change
        that spares the three places and the size is not seen.
        """
        return file_digests({name: self.path(name) for name in self.names[:records]}, places=3)

    def _sound(self, index: int) -> Path:
        return self.path(self.names[index])

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        start = 0
        if samples is not None:
            length = files.samples_at(self.sampling_rate, *self._places[index])
            start = int(position * max(length - samples + 1, 1))
        return files.read(self.path(self.names[index]), self.sampling_rate, start, samples)


def split_names(names: list[str], split: str, heldout_share: float) -> list[str]:
    """The names of one split: a name's own hash decides, so that adding records moves none from split to split.

    The held-out split is never empty: where chance leaves it so, it takes the name with the lowest hash (a single
    record is in both splits).
    """
    hashes = np.fromiter(map(split_hash, names), np.uint64, len(names))
    return [names[position] for position in split_positions(hashes, split, heldout_share)]


def split_positions(hashes: np.ndarray, split: str, heldout_share: float) -> np.ndarray:
    """The positions of one split among names with these hashes, [records] uint64; see `split_names`.

    Pieces of one recording have its hash, and are in one split.
    """
    heldout = hashes < np.uint64(min(math.ceil(heldout_share * 2**64), 2**64 - 1))
    if not heldout.any():
        heldout = hashes == hashes.min()
    alone = hashes.min() == hashes.max()
    return np.flatnonzero(heldout if split == "heldout" or alone else ~heldout)


def are_given(splits: Iterable[str | None]) -> bool:
    """Whether what is said of records, each of `GIVEN_SPLITS` or None, holds out some of them and not all."""
    return len({split in GIVEN_SPLITS[1:] for split in splits}) > 1


def _in_parts(pool: ThreadPool, look: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """(name, what `look` returns), in order, some thousands at a time."""
    names = iter(names)
    while part := list(itertools.islice(names, _PART)):
        yield from zip(part, pool.map(look, part, chunksize=32))


def file_digests(paths: Mapping[str, Path], places: int) -> dict[str, str]:
    """Name → digest of a file's size and of 32 KiB at so many places, evenly from beginning to end."""

    def one(path: Path) -> str:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found = hashlib.sha256(str(size).encode())
                for place in range(places):
                    file.seek(max((size - _PIECE) * place // (places - 1), 0))
                    found.update(file.read(_PIECE))
        except OSError:
            return "unreadable"
        return found.hexdigest()[:16]

    with ThreadPool(THREADS) as pool:
        return dict(zip(map(shown, paths), pool.map(one, paths.values())))


def listing_of(lines: list[str]) -> str:
    """The first few lines, for the end of a message."""
    more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_LISTED], *more])
