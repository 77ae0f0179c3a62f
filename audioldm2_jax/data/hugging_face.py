"""Audio data sets of Hugging Face on disk, read without their library.

That is Parquet files, as the hub has them, and the Arrow streams that `datasets.save_to_disk` writes. A column of sound
holds, in each row, the bytes of a sound file or the path of one. What the columns mean stands in the schema, where
`datasets` wrote the file; without it they are told by type and name.

Streams are mapped into memory, and a row is read where it lies. A row of a Parquet file is reached by reading through
its row group, a few rows at a time, on average half of it: of 100 clips of 320 kB that takes 27 ms of a slow core, of a
stream 1 ms with the decoding. Where that is too long, `datasets.load_dataset(…).save_to_disk` makes a stream.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import (
    LABEL_FEATURES,
    TEXT_FEATURES,
    TRANSCRIPTION_FEATURES,
    Texts,
    captions_of,
    joined_labels,
    transcription_of,
)
from audioldm2_jax.data.shards import Index, Shards
from audioldm2_jax.runtime.text_files import shown

PARQUET, ARROW = ".parquet", ".arrow"
_AUDIO_FEATURES = ("audio", "waveform", "speech")
_ROWS = 8  # of sound that are read of a Parquet file at a time
_BUFFER = 2**18  # bytes of it
_ERRORS = (pa.ArrowException, OSError, ValueError, IndexError, OverflowError, MemoryError)


class HuggingFace(Shards):
    """The records of one split in Parquet or Arrow files.

    Args:
        audio_feature, text_feature: names of the columns, of one inside another as outer/inner; empty finds the one
            column of sound, and the captions by their usual names (data/captions.py). A caption is a text, one of
            several, or a label or several by name.
        the rest: as of `Shards`.
    """

    expected = "columns of sound in Parquet files and Arrow streams"

    def __init__(
        self,
        root: Path,
        shards: list[str],
        split: str,
        sampling_rate: int,
        heldout_share: float,
        audio_feature: str = "",
        text_feature: str = "",
    ) -> None:
        self.audio_feature, self.text_feature = audio_feature, text_feature
        self._opened: dict[str, _Parquet | _Stream] = {}
        super().__init__(root, shards, split, sampling_rate, heldout_share)
        if not self._table.has_texts():
            columns = _open(root / self._places[0][0]).schema.names
            message = "%s: no captions; --config.data.text_feature names the column that has them, one of %s"
            logging.warning(message, shown(root), ", ".join(columns))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_opened": {}}  # files are opened anew in each process

    def _settings(self) -> tuple[str, ...]:
        return self.audio_feature, self.text_feature

    def _index(self, shard: str) -> Index:
        try:
            return self._rows(_open(self.root / shard))
        except pa.ArrowException as error:  # not all of them are ValueErrors
            raise ValueError(str(error)) from error

    def _rows(self, table: _Parquet | _Stream) -> Index:
        text, spoken = self._text(table.schema), self._spoken(table.schema)
        _Feature.of_audio(table.schema, self.audio_feature)  # or a reason not to use the file
        captions: dict[int, tuple[str, ...]] = {}
        said: dict[int, str | None] = {}
        problems = {"": table.problem} if table.problem else {}
        for first, column in table.column(text) if text else ():
            for row, value in enumerate(column.to_pylist(), first):
                captions[row] = text.captions(value, f"row {row}")
        for first, column in table.column(spoken) if spoken else ():
            for row, value in enumerate(column.to_pylist(), first):
                said[row] = transcription_of(value, f"row {row}")
        records = {str(row): (row, Texts(captions.get(row, ()), said.get(row))) for row in range(table.rows)}
        if not table.rows and not problems:
            problems[""] = "has no rows"
        return Index(records, problems)

    def _text(self, schema: pa.Schema) -> _Feature | None:
        if self.text_feature:
            return _Feature.of_text(schema, self.text_feature)
        for name in (*TEXT_FEATURES, *LABEL_FEATURES):
            try:
                return _Feature.of_text(schema, name)
            except ValueError:  # no such column, or numbers
                continue
        return None

    def _spoken(self, schema: pa.Schema) -> _Feature | None:
        names = [name for name in TRANSCRIPTION_FEATURES if name in schema.names]
        return _Feature.of_text(schema, names[0]) if names else None

    def _sound(self, index: int) -> Path | bytes:
        shard, row = self._places[index]
        path, where = self.root / shard, shown(self.root / self.names[index])
        try:
            if shard not in self._opened:
                self._opened[shard] = _open(path)
            table = self._opened[shard]
            value = table.value(_Feature.of_audio(table.schema, self.audio_feature), row)
        except _ERRORS as error:
            raise files.UnreadableAudio(f"{where} cannot be read: {' '.join(str(error).split())}") from error
        content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if isinstance(content, bytes) and content:
            return content
        if not isinstance(name, str) or not name.strip():
            raise files.UnreadableAudio(f"{where} has no sound")
        return path.parent / name


class _Feature(NamedTuple):
    """A column, or a part of one.

    Attributes:
        parts: its name, from the outside in.
        labels: names of its numbers; None where it holds none.
        joined: whether its texts are labels, which make one caption together.
    """

    parts: tuple[str, ...]
    labels: list[str] | None = None
    joined: bool = False

    @classmethod
    def of_audio(cls, schema: pa.Schema, name: str) -> _Feature:
        """The column of sound.

        Raises:
            ValueError: there is none, there are several, or it holds something else.
        """
        declared = _declared(schema)
        found = [n for n in schema.names if isinstance(declared.get(n), dict) and declared[n].get("_type") == "Audio"]
        found = found or [field.name for field in schema if _holds_files(field.type)]
        found = found or [n for n in _AUDIO_FEATURES if n in schema.names and _is_sound(schema.field(n).type)]
        if not name and len(found) != 1:
            raise ValueError(
                f"has {'several' if found else 'no'} columns of sound files ({', '.join(found or schema.names)}); "
                "name one with --config.data.audio_feature"
            )
        parts, kind, _ = _find(schema, name or found[0])
        if not _is_sound(kind):
            raise ValueError(
                f"column {name or found[0]} holds {kind} and no sound files; name another with "
                "--config.data.audio_feature"
            )
        return cls(parts)

    @classmethod
    def of_text(cls, schema: pa.Schema, name: str) -> _Feature:
        """A column of captions or labels.

        Raises:
            ValueError: there is none of that name, or it holds something else.
        """
        parts, kind, declared = _find(schema, name)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
            declared = declared[0] if isinstance(declared, list) and declared else declared
            declared = declared.get("feature", declared) if isinstance(declared, dict) else declared
        labels = declared.get("names") if isinstance(declared, dict) else None
        if pa.types.is_integer(kind) and isinstance(labels, list) and labels:
            return cls(parts, [str(label) for label in labels], joined=True)
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ValueError(f"column {name} holds {kind} and no text; name another with --config.data.text_feature")
        return cls(parts, joined=name in LABEL_FEATURES)

    def captions(self, value: Any, where: str) -> tuple[str, ...]:
        """The captions in a value of it."""
        if self.labels is not None:
            numbers = value if isinstance(value, list) else [value]
            value = [self.labels[n] for n in numbers if n is not None and 0 <= n < len(self.labels)]
        return joined_labels(value) if self.joined else captions_of(value, where)

    def within(self, batch: pa.RecordBatch) -> pa.Array:
        """Its values in some rows."""
        column = batch.column(self.parts[0])
        for part in self.parts[1:]:
            column = compute.struct_field(column, part)
        return column


def _declared(schema: pa.Schema) -> Mapping[str, Any]:
    """The features as `datasets` declares them in a schema; {} where it did not write it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _find(schema: pa.Schema, wanted: str) -> tuple[tuple[str, ...], pa.DataType, Any]:
    """The parts of a name, the type, and what `datasets` declares of it; outer/inner is one column inside another."""
    fields, declared, parts = schema, _declared(schema), tuple(wanted.split("/"))
    if wanted in schema.names:
        parts = (wanted,)
    for depth, part in enumerate(parts):
        names = [field.name for field in fields]
        if names.count(part) != 1:
            before = "".join(f"{outer}/" for outer in parts[:depth])
            raise ValueError(f"has no column {wanted!r}; it has {', '.join(before + name for name in names) or 'none'}")
        kind = fields.field(part).type
        declared = declared.get(part) if isinstance(declared, dict) else None
        fields = kind if pa.types.is_struct(kind) else []
    return parts, kind, declared


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_files(kind: pa.DataType) -> bool:
    """Whether a type is that of `datasets.Audio`: a struct of bytes and path."""
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _is_sound(kind: pa.DataType) -> bool:
    return _holds_files(kind) or _is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


class _Parquet:
    """A Parquet file; a row is found by reading through its row group."""

    problem = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        with parquet.ParquetFile(path) as file:
            self.metadata, self.schema = file.metadata, file.schema_arrow
        groups = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        self.starts = np.cumsum([0, *groups])
        self.rows = int(self.starts[-1])

    def column(self, feature: _Feature) -> Iterator[tuple[int, pa.Array]]:
        """A column in pieces, each with the number of its first row."""
        first = 0
        for piece in self._pieces(feature, 2**14, list(range(len(self.starts) - 1))):
            yield first, piece
            first += len(piece)

    def value(self, feature: _Feature, row: int) -> Any:
        """The value of a row."""
        group = bisect_right(self.starts, row) - 1
        row -= int(self.starts[group])
        for piece in self._pieces(feature, _ROWS, [group]):
            if row < len(piece):
                return piece[row].as_py()
            row -= len(piece)
        raise IndexError("the file has fewer rows than it says")

    def _pieces(self, feature: _Feature, rows: int, groups: list[int]) -> Iterator[pa.Array]:
        # Opened anew each time, as threads must not share it; the footer is not read again.
        with parquet.ParquetFile(self.path, metadata=self.metadata, pre_buffer=False, buffer_size=_BUFFER) as file:
            column = ".".join(feature.parts)
            for batch in file.iter_batches(rows, row_groups=groups, columns=[column], use_threads=False):
                yield feature.within(batch)


class _Stream:
    """An Arrow stream, mapped into memory. `problem` says why its end is not used, "" where it is."""

    def __init__(self, path: Path) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.problem = ""
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        self.schema = reader.schema
        try:
            while True:
                batch = reader.read_next_batch()
                batch.validate(full=True)  # reading does not look whether places in the file lie within it
                self.batches.append(batch)
        except StopIteration:
            pass
        except (pa.ArrowException, OSError) as error:
            self.problem = f"is damaged or incomplete ({' '.join(str(error).split())}): the rows before that are used"
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self.rows = int(self.starts[-1])

    def column(self, feature: _Feature) -> Iterator[tuple[int, pa.Array]]:
        """A column in pieces, each with the number of its first row."""
        for first, batch in zip(self.starts, self.batches):
            yield int(first), feature.within(batch)

    def value(self, feature: _Feature, row: int) -> Any:
        """The value of a row."""
        number = bisect_right(self.starts, row) - 1
        return feature.within(self.batches[number])[row - int(self.starts[number])].as_py()


def _open(path: Path) -> _Parquet | _Stream:
    """Opens a file by its ending.

    Raises:
        ValueError, OSError: it is not what its ending says.
    """
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    if path.suffix.lower() == PARQUET:
        return _Parquet(path)
    try:
        return _Stream(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"is no Arrow stream as datasets.save_to_disk writes it ({error})") from error
