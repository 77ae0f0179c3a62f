"""Prepared data: the format that data/prepare/ writes, and the source that reads it.

    OUT/recordings-train.array_record-00000-of-00004   records, in the order of the source
    OUT/recordings-test.array_record-00000-of-00001    those of other splits, where the source is given some
    OUT/features.json, dataset_info.json               what TFDS knows the set by; the latter is written last
    OUT/recordings.parquet                             a row a record of the source: names, texts, measures

A record, as TFDS reads it: `audio`, a mono FLAC file of 16 bits at `sampling_rate` Hz, whose samples times `scale` are
the sound; `name`; `recording`, the name of the recording, of which it is the piece that begins `start` seconds in;
`captions`; `transcription`, "" where there is none. The scale is a power of two: 1, but for recordings that are louder
than full scale, or so soft that 16 bits would be heard.

Names, texts and splits are known from the table, so that nothing but sound is read from the shards. All records of a
recording are in one split, which its name decides, unless the source is given its splits (of a public data set, by its
authors): those are TFDS's splits, and what is not "train" is held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import compute

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.example import GIVEN_SPLITS, UnreadableRecord
from audioldm2_jax.data.records import Records, are_given, file_digests
from audioldm2_jax.data.shards import PLACES
from audioldm2_jax.data.table import Row, Table, split_hash
from audioldm2_jax.runtime.text_files import TextFileError, read_json_object, shown

TABLE = "recordings.parquet"
INFO = "dataset_info.json"
STATE = "prepare.json"  # what is made of what; there from the beginning on
SET = "recordings"
#: What tells, in dataset_info.json, that a set has this format.
MODULE = __name__
_COLUMNS = ("name", "captions", "transcription", "pieces", "recording", "split")
_ANEW = "copy it again, or prepare it again"


def shard_name(split: str, number: int, count: int) -> str:
    """The file of a shard of a split, as TFDS calls it."""
    return f"{SET}-{split}.array_record-{number:05d}-of-{count:05d}"


def piece_names(recording: str, pieces: int) -> list[str]:
    """The names of a recording's records: its own, or of several NAME#0, NAME#1, …"""
    return [recording] if pieces == 1 else [f"{recording}#{number}" for number in range(pieces)]


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a set of this format.

    Raises:
        ValueError: it holds one that is not finished.
    """
    if (folder / STATE).is_file() and not (folder / INFO).is_file():
        raise ValueError(f"{shown(folder)} is not finished: the same command that began to prepare it goes on with it")
    try:
        return read_json_object(folder / INFO).get("moduleName") == MODULE
    except TextFileError:
        return False


class Prepared(Records):
    """The records of one split of a prepared set; a record is called as its recording was, a piece NAME#0, NAME#1, …

    A record's split is that which it had in the source that was prepared, and all pieces of a recording are in one.

    Args:
        folder: of the set.
        the rest: as of `Records`.

    Raises:
        ValueError: a part of the set is missing or damaged.
    """

    expected = "prepared records"

    def __init__(self, folder: Path, split: str, sampling_rate: int, heldout_share: float) -> None:
        import tensorflow_datasets as tfds

        self._given = are_given(_splits(folder / TABLE))
        table = Table.of(_pieces(folder / TABLE, self._given))
        try:
            builder = tfds.builder_from_directory(folder)
            splits = [split for split in GIVEN_SPLITS if split in builder.info.splits]  # in the order of the table
            self._records = builder.as_data_source(split="+".join(splits))
        except Exception as error:
            raise ValueError(f"{shown(folder)} is damaged: {' '.join(str(error).split())}; {_ANEW}") from error
        if len(self._records) != len(table):
            raise ValueError(
                f"{shown(folder)} is damaged: its shards have {len(self._records)} records and {TABLE} {len(table)}; "
                f"{_ANEW}"
            )
        super().__init__(folder, table, split, sampling_rate, heldout_share)

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of the table and the shards."""
        shards = sorted(path.name for path in self.root.glob(f"{SET}-*.array_record-*"))
        return file_digests({name: self.root / name for name in (TABLE, *shards)}, PLACES)

    def original(self, index: int) -> files.Original:
        """See `Source.original`: what was prepared."""
        scale, stored = np.float32(self._record(index)["scale"]), super().original(index)

        def blocks() -> Iterator[np.ndarray]:
            return (block * scale for block in stored.blocks())

        return stored._replace(blocks=blocks)

    def part_of(self, index: int) -> tuple[str, float]:
        """See `Source.part_of`: the recording of the source that was prepared.

        Raises:
            UnreadableRecord: the record cannot be read.
        """
        try:
            record = self._record(index)
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        return _text(record["recording"]), float(record["start"])

    def _record(self, index: int) -> dict:
        try:
            return self._records[self._places[index]]
        except Exception as error:  # whatever the reader makes of damaged bytes
            where = shown(self.root / self.names[index])
            raise files.UnreadableAudio(f"{where} cannot be read: {' '.join(str(error).split())}; {_ANEW}") from error

    def _sound(self, index: int) -> bytes:
        return self._record(index)["audio"]

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        record, where = self._record(index), shown(self.root / self.names[index])
        waveform = files.read_encoded(record["audio"], where, self.sampling_rate, samples, position)
        return waveform * np.float32(record["scale"])


def _splits(path: Path) -> Iterator[str | None]:
    """The splits that are given to the records in the table, each once a batch."""
    for batch in _batches(path, ("pieces", "split")):
        read = batch.filter(compute.greater(compute.list_value_length(batch["pieces"]), 0))
        yield from compute.unique(read["split"]).to_pylist()


def _pieces(path: Path, given: bool) -> Iterator[Row]:
    """The records of a set, in their order: those of the source, or pieces of them."""
    number = 0
    for batch in _batches(path, _COLUMNS):
        for row in batch.to_pylist():
            texts = Texts(tuple(row["captions"]), row["transcription"] if len(row["pieces"]) == 1 else None)
            split = GIVEN_SPLITS.index(row["split"]) if given else split_hash(_text(row["recording"]))
            for name in piece_names(_text(row["name"]), len(row["pieces"])):
                yield Row(name, number, texts, split=split)
                number += 1


def _batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Columns of the table.

    Raises:
        ValueError: it cannot be read.
    """
    from pyarrow import parquet  # takes a third of a second that others need not wait

    try:
        with parquet.ParquetFile(path) as table:
            if absent := {*columns} - {*table.schema_arrow.names}:
                raise ValueError(f"it has no column {min(absent)}, as those that an earlier version made")
            yield from table.iter_batches(columns=[*columns])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{shown(path)} cannot be read: {' '.join(str(error).split())}; {_ANEW}") from error


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
