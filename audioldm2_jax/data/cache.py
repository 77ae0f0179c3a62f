"""What frozen networks made of the data, kept in files, and the source that reads it instead of sound.

A cache has a folder for each feature:

    CACHE/FEATURE/cache.json                what the feature was made from and by, and its fields; written first
    CACHE/FEATURE/00002-of-00008.array_record
                                            a shard of its entries, whole or not there

A feature of sound has `crops` entries a record, one beside the other, of excerpts that are spread evenly over it; one
of text has one entry a record, which holds what was made of each of its captions. An entry begins with sixteen bytes:
1, or 0 where the record cannot be read; 1 where the excerpt has the record's transcription; the number of the entry,
six bytes, the lowest first; and eight of the digest of what cache.json says. By these a shard that does not belong
where it lies is told from one that does. Then come, for each caption, eight bytes of its digest (zeros where the
feature is not made from it) and the arrays of the fields one after the other; or why the record cannot be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  makes bfloat16 known to NumPy
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from audioldm2_jax.data.example import Derived, Example, Source, UnreadableRecord

FILE = "cache.json"
_SHARD, _SHARDS = 512, 256  # entries a shard at least, and shards at most: every one is an open file
_WRITER = "group_size:1,uncompressed"  # one entry is read at a time, and floats hardly shrink
_VERSION = 3
_HEAD, _DIGEST = 16, 8  # bytes; with them arrays begin where memory is read fast
_ADVICE = (
    "Make room, or choose another place with --config.data.cache=FOLDER; the same command goes on with what was made"
)
_LISTED = 5  # differences that an error spells out
_LEFT = 24 * 3600.0  # seconds after which nobody is at work on a temporary file


class CacheError(ValueError):
    """A cache that cannot be read, or is not that of this data; the message says what to do."""


class Field(NamedTuple):
    """An array of an entry: its name in the batch, NumPy's name of its type, and its shape without the batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape))


class Entry(NamedTuple):
    """What the cache holds of an excerpt, or of one caption of a record.

    Attributes:
        arrays: by field; views of what was read, which cannot be written to.
        transcribed: whether what is said in the record, where that is known, is said in the excerpt.
    """

    arrays: dict[str, np.ndarray]
    transcribed: bool


class _Whole(NamedTuple):
    """A whole file, as ArrayRecordDataSource wants to be told (its FileInstruction), so that it need not look."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ShardWriter:
    """Writes a shard, entry by entry, through a temporary name: a context manager.

    At the end of the block the shard gets its own name where all of its entries are there; else nothing of it stays.

    Raises:
        CacheError: it cannot be written, for want of space, say.
    """

    def __init__(self, path: Path, entries: int | None, advice: str):
        """Args:
        path: the shard.
        entries: how many make it whole; None: those that are written.
        advice: what the message says to do where it cannot be written.
        """
        self._path, self._entries, self._written, self._advice = path, entries, 0, advice
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")

    def __enter__(self) -> ShardWriter:
        self._file = array_record_module.ArrayRecordWriter(str(self._temporary), _WRITER)
        return self

    def write(self, entry: bytes) -> None:
        """Appends an entry; of what was appended, ArrayRecord holds some 16 MiB back."""
        with self._told():
            self._file.write(entry)
        self._written += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind or self._entries not in (None, self._written):
                with contextlib.suppress(RuntimeError):  # what cannot be written is not wanted
                    self._file.close()
                return
            with self._told():
                self._file.close()
                if not self._path.exists():  # a stage beside may have made it, and others read it
                    os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # the latter of ArrayRecord, a full disk too
            raise CacheError(f"cannot write {self._path} ({_first_line(error)}). {self._advice}") from error


class Feature:
    """The files of one feature."""

    def __init__(self, folder: Path, fields: Sequence[Field], entries: int, of_text: bool, made_from: Mapping):
        """Args:
        folder: where they are.
        fields: the arrays of an entry.
        entries: how many there are once all shards are written.
        of_text: whether it is made from captions, an entry a record.
        made_from: see `open_feature`.
        """
        self.folder, self.fields, self.entries, self.of_text = folder, tuple(fields), entries, of_text
        described = {"version": _VERSION, "fields": fields, "entries": entries, "made_from": made_from}
        self.description: dict[str, Any] = json.loads(json.dumps(described))  # as it is read from the file
        canonical = json.dumps(self.description, sort_keys=True)
        self._identity = hashlib.sha256(canonical.encode()).digest()[:_DIGEST]
        self._files: array_record_data_source.ArrayRecordDataSource | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": None}

    @property
    def shards(self) -> list[Path]:
        """The files of the shards, whether they are written or not."""
        count = -(-self.entries // self._size)
        return [self.folder / f"{number:05d}-of-{count:05d}.array_record" for number in range(count)]

    def _written(self) -> Iterator[tuple[Path, range]]:
        return zip(self.shards, map(self.entries_of, itertools.count()))

    @property
    def _size(self) -> int:
        """Entries a shard."""
        return max(_SHARD, -(-self.entries // _SHARDS))

    def entries_of(self, shard: int) -> range:
        """The numbers of a shard's entries."""
        return range(shard * self._size, min((shard + 1) * self._size, self.entries))

    def writer(self, shard: int) -> ShardWriter:
        """What writes a shard."""
        return ShardWriter(self.shards[shard], len(self.entries_of(shard)), _ADVICE)

    def pack(
        self, entry: int, rows: Sequence[Sequence[np.ndarray]], texts: Sequence[str | None], transcribed: bool = False
    ) -> bytes:
        """Returns an entry.

        Args:
            entry: its number.
            rows: for each caption, or once for an excerpt, the arrays in the order of the fields.
            texts: these captions; of an excerpt what it has.
            transcribed: see `Entry`.
        """
        packed = [bytes((1, transcribed)), self._place(entry)]
        for arrays, text in zip(rows, texts, strict=True):
            packed.append(self._digest(text))
            for field, array in zip(self.fields, arrays, strict=True):
                if array.shape != field.shape or array.dtype != np.dtype(field.dtype):
                    raise ValueError(f"{field.name} is {array.dtype} {array.shape}, not {field.dtype} {field.shape}")
                packed.append(np.ascontiguousarray(array).tobytes())
        return b"".join(packed)

    def unreadable(self, entry: int, reason: str) -> bytes:
        """Returns the entry of a record that cannot be read."""
        return b"\0\0" + self._place(entry) + reason.encode()

    def _place(self, entry: int) -> bytes:
        """Returns what an entry says of where it belongs."""
        return entry.to_bytes(_HEAD - 2 - _DIGEST, "little") + self._identity

    def read(self, entry: int, text: str | None) -> Entry:
        """Returns what an entry holds, of its captions that of `text`.

        Raises:
            UnreadableRecord: the record could not be read when the cache was made.
            CacheError: the entry is damaged, another one, or made from another caption than `text`.
        """
        try:
            if self._files is None:
                self._files = array_record_data_source.ArrayRecordDataSource(
                    [_Whole(str(path), 0, len(entries), len(entries)) for path, entries in self._written()]
                )
            packed = self._files[entry]
        except Exception as error:  # whatever the reader makes of damaged or missing files
            raise CacheError(
                f"{self.folder} is damaged: its entry {entry} cannot be read ({_first_line(error)}). {self.anew}"
            ) from error
        if packed[2:_HEAD] != self._place(entry):
            whose = "another one" if packed[2:_HEAD].endswith(self._identity) else "one of another cache"
            raise CacheError(f"{self.folder} is mixed up: in the place of its entry {entry} is {whose}. {self.anew}")
        if packed[:1] == b"\0":
            raise UnreadableRecord(packed[_HEAD:].decode("utf-8", "replace"))
        stride, digest = _DIGEST + sum(field.size for field in self.fields), self._digest(text)
        if len(packed) <= _HEAD or (len(packed) - _HEAD) % stride:
            raise CacheError(f"{self.folder} is damaged: its entry {entry} has {len(packed)} bytes. {self.anew}")
        rows = range(_HEAD, len(packed), stride)
        position = next((row + _DIGEST for row in rows if packed.startswith(digest, row)), None)
        if position is None:
            raise CacheError(f"{self.folder} was made from other captions: {text!r} is new. {self.anew}")
        found = {}
        for field in self.fields:
            found[field.name] = np.ndarray(field.shape, field.dtype, packed, position)
            position += field.size
        return Entry(found, bool(packed[1]))

    @property
    def anew(self) -> str:
        """What to do about files that do not fit."""
        return (
            f"To have it made again, delete {self.folder} (if no other run reads it) and run the same command; or "
            "choose another folder with --config.data.cache=FOLDER"
        )

    def _digest(self, text: str | None) -> bytes:
        return hashlib.sha256((text or "").encode()).digest()[:_DIGEST] if self.of_text else bytes(_DIGEST)


def open_feature(folder: Path, fields: Sequence[Field], entries: int, of_text: bool, made_from: Mapping) -> Feature:
    """Opens a feature's folder, or begins a new one.

    Args:
        made_from: the network, settings and data, as JSON holds them: what has to be alike for a cache to be used.

    Raises:
        CacheError: the folder holds what was made from something else, or is damaged.
        OSError: it cannot be written.
    """
    feature = Feature(folder, fields, entries, of_text, made_from)
    path = folder / FILE
    for left in folder.glob(".*.partial"):  # by a run that was killed: a shard's may have gigabytes
        with contextlib.suppress(OSError):  # another host is faster
            if time.time() - left.stat().st_mtime > _LEFT:
                left.unlink()
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(_different(there, feature.description))
        except (ValueError, AttributeError) as error:
            raise CacheError(f"{path} is damaged ({_first_line(error)}). {feature.anew}") from error
        if len(different) > _LISTED:
            different[_LISTED:] = [f"… and {len(different) - _LISTED} more"]
        if different:
            raise CacheError(f"{folder} is of something else: {'; '.join(different)}. {feature.anew}")
        return feature
    if any(folder.glob("*.array_record")):
        raise CacheError(f"{folder} has lost its {FILE}, so that nobody knows what it was made from. {feature.anew}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE}.{uuid.uuid4().hex}.partial")
    temporary.write_text(json.dumps(feature.description, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)
    return feature


def _different(there: Mapping, wanted: Mapping, prefix: str = "") -> Iterator[str]:
    """Yields what differs between two JSON objects, a line a key."""
    for key in there.keys() | wanted.keys():
        old, new = there.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _different(old, new, f"{prefix}{key}.".removeprefix("made_from."))
        elif old != new:
            yield f"{prefix}{key}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Excerpts:
    """The excerpts of a source that features are made from: element k is crop k mod `crops` of record k div `crops`.

    Random access, and picklable for worker processes. An element is an excerpt, or the reason why it cannot be read.
    """

    def __init__(self, source: Source, crops: int, samples: int, numbers: Sequence[int], of_text: bool):
        """Args:
        source: the data.
        crops: excerpts a record, at the middles of as many equal parts.
        samples: the length of an excerpt.
        numbers: the elements that are wanted, in order.
        of_text: captions alone are read.
        """
        self.source, self.crops, self.samples, self.numbers = source, crops, samples, numbers
        self.of_text = of_text

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Example | str:
        record, crop = divmod(int(self.numbers[place]), self.crops)
        try:
            if self.of_text:
                captions = self.source.captions(record)
                return Example(np.zeros(0, np.float32), next(iter(captions), None), captions=captions)
            return self.source.excerpt(record, self.samples, (crop + 0.5) / self.crops)
        except UnreadableRecord as error:
            return str(error)


class Cached(Derived):
    """The records of a source as what the cache holds of them: captions and features, no sound.

    Of a record with several crops, an excerpt is the one that its position falls on; the features of text come with
    the caption (`with_caption`).
    """

    def __init__(self, source: Source, features: Sequence[Feature], crops: int):
        """Args:
        source: that the cache was made of; its captions and transcriptions are read, and how it draws is kept.
        features: complete ones.
        crops: entries a record, of features of sound.
        """
        super().__init__(source)
        self.features, self.crops = tuple(features), crops

    def __getitem__(self, index: int) -> Example:
        return self.with_caption(self.excerpt(index, 0, 0.0), index, 0.0)

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """See `Source.restricted`; the features stay."""
        found = self.source.restricted(fields)
        return None if found is None else Cached(found, self.features, self.crops)

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`; `samples` was settled when the cache was made."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in the cache")
        number = index * self.crops + int(position * self.crops)
        entries = [feature.read(number, None) for feature in self.features if not feature.of_text]
        captions = self.source.captions(index)
        return Example(
            np.zeros(0, np.float32),
            next(iter(captions), None),
            features=_merged(entries),
            transcription=self.source.transcription(index) if all(entry.transcribed for entry in entries) else None,
            captions=captions,
        )

    def with_caption(self, example: Example, index: int, position: float) -> Example:
        """See `Source.with_caption`; with the features of that caption.

        Raises:
            UnreadableRecord: the captions could not be read when the cache was made.
        """
        chosen = super().with_caption(example, index, position)
        entries = [feature.read(index, chosen.text) for feature in self.features if feature.of_text]
        return dataclasses.replace(chosen, features={**example.features, **_merged(entries)})


def _merged(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    return {field: array for entry in entries for field, array in entry.arrays.items()}
