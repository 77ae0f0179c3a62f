"""Prepared data: the format that data/prepare/ writes, and the source that reads it.

    OUT/recordings-train.array_record-00000-of-00004   records, in the order of the source
    OUT/features.json, dataset_info.json               what TFDS knows the set by; the latter is written last
    OUT/recordings.parquet                             a row a recording of the source: names, texts, measures

A record, as TFDS reads it: `audio`, a mono FLAC file of 16 bits at `sampling_rate` Hz, whose samples times `scale` are
the sound; `name`; `recording`, the name of the recording, of which it is the piece that begins `start` seconds in;
`captions`; `transcription`, "" where there is none. The scale is a power of two: 1, but for recordings that are louder
than full scale, or so soft that 16 bits would be heard.

Names, texts and splits are known from the table, so that nothing but sound is read from the shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.records import Records, file_digests
from audioldm2_jax.data.shards import PLACES
from audioldm2_jax.data.table import Row, Table, split_hash
from audioldm2_jax.runtime.text_files import TextFileError, read_json_object, shown

TABLE = "recordings.parquet"
INFO = "dataset_info.json"
STATE = "prepare.json"  # what is made of what; there from the beginning on
SET, SPLIT = "recordings", "train"
#: What tells, in dataset_info.json, that a set has this format.
MODULE = __name__
_TEXTS = ("name", "captions", "transcription", "pieces")
_ANEW = "copy it again, or prepare it again"


def shard_name(number: int, count: int) -> str:
    """The file of a shard, as TFDS calls it."""
    return f"{SET}-{SPLIT}.array_record-{number:05d}-of-{count:05d}"


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

    A name's split is that which it had in the source that was prepared, and all pieces of a recording are in one.

    Args:
        folder: of the set.
        the rest: as of `Records`.

    Raises:
        ValueError: a part of the set is missing or damaged.
    """

    expected = "prepared records"

    def __init__(self, folder: Path, split: str, sampling_rate: int, heldout_share: float) -> None:
        import tensorflow_datasets as tfds

        table = Table.of(_pieces(folder))
        try:
            self._records = tfds.builder_from_directory(folder).as_data_source(split=SPLIT)
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
        shards = sorted(path.name for path in self.root.glob(f"{SET}-{SPLIT}.array_record-*"))
        return file_digests({name: self.root / name for name in (TABLE, *shards)}, PLACES)

    def original(self, index: int) -> files.Original:
        """See `Source.original`: what was prepared."""
        scale, stored = np.float32(self._record(index)["scale"]), super().original(index)

        def blocks() -> Iterator[np.ndarray]:
            return (block * scale for block in stored.blocks())

        return stored._replace(blocks=blocks)

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


def _pieces(folder: Path) -> Iterator[Row]:
    """The records of a set, in their order: a recording, or its pieces. The recording decides the split."""
    number = 0
    for recording, texts, pieces in _rows(folder / TABLE):
        if pieces > 1:
            texts = Texts(texts.captions)
        for name in piece_names(recording, pieces):
            yield Row(name, number, texts, split=split_hash(recording))
            number += 1


def _rows(path: Path) -> Iterator[tuple[str, Texts, int]]:
    """(name, texts, pieces) of the recordings in the table that have any."""
    import pyarrow
    from pyarrow import parquet  # takes a third of a second that others need not wait

    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(columns=list(_TEXTS)):
                columns = (batch.column(name).to_pylist() for name in _TEXTS)
                for name, captions, said, pieces in zip(*columns):
                    if pieces:
                        yield _text(name), Texts(tuple(captions), said), len(pieces)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{shown(path)} cannot be read: {' '.join(str(error).split())}; {_ANEW}") from error


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
