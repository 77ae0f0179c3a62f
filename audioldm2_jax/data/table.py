"""What is known of very many records, in Arrow's columns: about as many bytes a record as its name and texts have.

    name            binary        as the file system has it, UTF-8 or not
    place           binary        where the record lies, as JSON
    captions        list<string>
    transcription   string        null: nobody wrote it down
    reason          string        why the record is left out; null: it is not
    split           uint64        decides the split: a hash of the name (`split_hash`), or where splits are given, the
                                  number of the record's
    digest          uint64        a hash of name, place and texts
    stamp           uint64        of the file it was read from, when it was looked at (`stamp`)
    beside          uint64        of the text files beside that one

A table that lies in a file (data/index.py) is mapped into memory: of it, as much is in memory as is read, and a process
that is sent the table opens the file itself.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.draw import digest
from audioldm2_jax.runtime.text_files import shown

ROWS = 2**16  # of a batch at most
SCHEMA = pa.schema(
    [
        *(("name", pa.binary()), ("place", pa.binary()), ("captions", pa.list_(pa.string()))),
        *(("transcription", pa.string()), ("reason", pa.string())),
        *((column, pa.uint64()) for column in ("split", "digest", "stamp", "beside")),
    ]
)
_RECENT = 2.0, 3600.0  # seconds before and after now: a file of that time may change again and look the same
_ABOUT = b"audioldm2_jax"


class Row(NamedTuple):
    """A record, or something that is left out.

    Attributes:
        name: as of `Records`.
        place: where it lies, as JSON can hold it.
        texts: what is written about it.
        reason: why it is left out; None: it is not.
        stamp, beside: of the file, and of the text files beside it; 0 has it looked at again.
        split: the column `split`; None: the hash of the name.
    """

    name: str
    place: Any = None
    texts: Texts = Texts()
    reason: str | None = None
    stamp: int = 0
    beside: int = 0
    split: int | None = None


class Table:
    """Rows in batches, with what is `about` them all."""

    def __init__(self, batches: Sequence[pa.RecordBatch], about: dict | None = None, path: Path | None = None) -> None:
        """Args:
        batches: of `SCHEMA`.
        about: as JSON can hold it.
        path: the file that they are mapped from; None: they are in memory.
        """
        self.batches, self.about, self.path = list(batches), about or {}, path
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """A table in memory."""
        return cls(list(batches_of(rows)))

    @classmethod
    def read(cls, path: Path) -> Table:
        """Maps what `write` wrote.

        Raises:
            ValueError, OSError: it is something else, or damaged.
        """
        with path.open("rb") as file:
            # Mapped by NumPy, as Arrow takes no path that is not UTF-8.
            reader = pa.ipc.open_file(pa.py_buffer(np.memmap(file, np.uint8, "r")))
            if not reader.schema.equals(SCHEMA):
                raise ValueError(f"{path} has other columns")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            about = json.loads(reader.schema.metadata[_ABOUT])
        return cls(batches, about, path)

    @staticmethod
    def write(file: BinaryIO, batches: Iterable[pa.RecordBatch], about: dict) -> None:
        """Writes a table, a batch at a time.

        Raises:
            OSError: it cannot be written.
        """
        schema = SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
        with pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)

    def __reduce__(self) -> tuple:
        if self.path is not None:
            return Table.read, (self.path,)
        return Table, (self.batches, self.about)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, [rows] uint64."""
        parts = [batch.column(column).to_numpy() for batch in self.batches]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def kept(self) -> np.ndarray:
        """The numbers of the rows that are not left out, [records] int64."""
        parts = [batch.column("reason").is_null().to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.flatnonzero(np.concatenate([np.zeros(0, bool), *parts]))

    def reasons(self) -> dict[str, str]:
        """Name → reason of what is left out."""
        found = {}
        for batch in self.batches:
            if batch.column("reason").null_count < batch.num_rows:
                for row in np.flatnonzero(batch.column("reason").is_valid().to_numpy(zero_copy_only=False)):
                    found[os.fsdecode(batch.column("name")[row].as_py())] = batch.column("reason")[row].as_py()
        return found

    def left_out_with_captions(self) -> int:
        """How many rows have captions and are left out."""
        captioned = (compute.greater(compute.list_value_length(batch.column("captions")), 0) for batch in self.batches)
        left_out = (batch.column("reason").is_valid() for batch in self.batches)
        return sum(compute.sum(compute.and_(*both)).as_py() or 0 for both in zip(captioned, left_out))

    def has_texts(self) -> bool:
        """Whether something is written about any record."""
        columns = ((batch.column("captions").flatten(), batch.column("transcription")) for batch in self.batches)
        return any(len(captions) or said.null_count < len(said) for captions, said in columns)

    def name(self, row: int) -> str:
        """The name of a row."""
        return os.fsdecode(self._value("name", row))

    def place(self, row: int) -> Any:
        """Where the record lies."""
        return json.loads(self._value("place", row))

    def reason(self, row: int) -> str | None:
        """Why the record is left out."""
        return self._value("reason", row)

    def texts(self, row: int) -> Texts:
        """What is written about the record."""
        return Texts(tuple(self._value("captions", row)), self._value("transcription", row))

    def _value(self, column: str, row: int) -> Any:
        number = bisect_right(self.starts, row) - 1
        return self.batches[number].column(column)[row - int(self.starts[number])].as_py()


class View(Sequence):
    """Some rows of a table, each as `get` has it."""

    def __init__(self, rows: np.ndarray, get: Callable[[int], Any]) -> None:
        self._rows, self._get = rows, get

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._get(int(row)) for row in self._rows[index]]
        return self._get(int(self._rows[index]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(own == theirs for own, theirs in zip(self, other))

    __hash__ = None


class Finder:
    """Finds rows of a table by name, without an object a row."""

    def __init__(self, table: Table) -> None:
        self.table = table
        hashes = table.numbers("split")
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._stamps, self._beside = table.numbers("stamp"), table.numbers("beside")

    def row(self, name: str) -> int | None:
        """The row of that name."""
        wanted = np.uint64(split_hash(name))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if self.table.name(row := int(self._order[at])) == name:
                return row
            at += 1
        return None

    def stamps(self, row: int) -> tuple[int, int]:
        """The stamps of a row: of its file, and of what lies beside it."""
        return int(self._stamps[row]), int(self._beside[row])


def batches_of(rows: Iterable[Row], size: int = ROWS) -> Iterator[pa.RecordBatch]:
    """Rows as batches of at most `size`, one batch at a time in memory."""
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield batch_of(some)
            some = []
    if some:
        yield batch_of(some)


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as one batch."""
    places = [json.dumps(row.place, separators=(",", ":")) for row in rows]
    columns = (
        [os.fsencode(row.name) for row in rows],
        [place.encode() for place in places],
        [row.texts.captions for row in rows],
        [row.texts.transcription for row in rows],
        [None if row.reason is None else shown(row.reason) for row in rows],
        [split_hash(row.name) if row.split is None else row.split for row in rows],
        [
            digest(row.name, place, *row.texts.captions, "", row.texts.transcription or "")
            for row, place in zip(rows, places)
        ],
        [row.stamp for row in rows],
        [row.beside for row in rows],
    )
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA)


def split_hash(name: str) -> int:
    """The hash of a record's name that decides its split."""
    return digest("split", name)


def stamp(found: os.stat_result, now: float) -> int:
    """What tells a file that was changed from one that was not: a hash of its size and time of modification, above 0.

    0 where it was modified just now: it may be again, within what the file system's clock can tell.
    """
    if is_recent(found, now):
        return 0
    return digest(found.st_size, found.st_mtime_ns) | 1


def is_recent(found: os.stat_result, now: float) -> bool:
    """Whether a file was modified about `now`, in seconds since 1970."""
    before, after = _RECENT
    return now - before < found.st_mtime < now + after
