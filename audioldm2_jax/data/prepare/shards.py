"""How a range of records of a source becomes a shard of a prepared set, and its rows of the table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import soxr
from pyarrow import parquet

from audioldm2_jax.audio import files, pieces
from audioldm2_jax.audio.measures import Meter
from audioldm2_jax.data import prepared
from audioldm2_jax.data.cache import ShardWriter
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.example import GIVEN_SPLITS, Source, UnreadableRecord
from audioldm2_jax.data.prepare import records
from audioldm2_jax.runtime.text_files import shown

PARTS = "parts"
_ADVICE = "Make room; the same command then goes on with what was made"
_RATES = range(1000, 1_000_000)  # Hz that a file's header may claim: below, a second would become hours
#: What a decoder or resampler raises where a file is not what it says.
_FAULTS = (ValueError, RuntimeError, ArithmeticError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is made of a source, and where.

    Attributes:
        out: the folder of the set.
        splits: as TFDS has them, with the records of the source that each has.
        size: records of the source that become a shard.
        sampling_rate: Hz.
        max_samples: of a piece.
    """

    out: Path
    splits: tuple[tuple[str, int], ...]
    size: int
    sampling_rate: int
    max_samples: int

    @property
    def records(self) -> int:
        """The number of records of the source."""
        return sum(length for _, length in self.splits)

    @property
    def count(self) -> int:
        """The number of shards."""
        return sum(-(-length // self.size) for _, length in self.splits)

    def _place(self, number: int) -> tuple[str, int, int, range]:
        """The split of a shard, which one it is of how many there, and `range_of` it."""
        first = 0
        for split, length in self.splits:
            if number < (shards := -(-length // self.size)):
                begin = first + number * self.size
                return split, number, shards, range(begin, min(begin + self.size, first + length))
            number, first = number - shards, first + length
        raise IndexError(f"there are {self.count} shards")

    def split_of(self, number: int) -> str:
        """The split that a shard is of."""
        return self._place(number)[0]

    def range_of(self, number: int) -> range:
        """The records of the source that become a shard."""
        return self._place(number)[3]

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.out / prepared.shard_name(*self._place(number)[:3])

    def part(self, number: int) -> Path:
        """The file of its rows."""
        return self.out / PARTS / f"{number:05d}-of-{self.count:05d}.parquet"

    def rows_of(self, shard: str) -> str:
        """The name, below the folder of the set, of the rows of the shard of this name."""
        return f"{PARTS}/{self.part(self._numbers[shard]).name}"

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {self.shard(number).name: number for number in range(self.count)}

    def missing(self, there: Collection[str]) -> list[int]:
        """The shards that are not made, in order, where the set has what is `there`, by its names."""
        return [
            number
            for number in range(self.count)
            if self.shard(number).name not in there or f"{PARTS}/{self.part(number).name}" not in there
        ]

    def is_made(self, number: int) -> bool:
        """Whether a shard is there, and with it its rows; both are whole then."""
        return self.shard(number).exists() and self.part(number).exists()


def names_in(folder: Path) -> set[str]:
    """The names of what lies in the folder of a set; two folders are read for that, however many shards there are."""
    rows = {f"{PARTS}/{name}" for name in os.listdir(folder / PARTS)} if (folder / PARTS).is_dir() else {*()}
    return rows | {name for name in os.listdir(folder) if name != PARTS and not name.startswith(".")}


def splits_of(source: Source) -> tuple[tuple[str, int], ...]:
    """The splits of a prepared set as of `Plan`: those that the source is given, else "train" alone."""
    given = source.given_splits()
    if given is None:
        return ((GIVEN_SPLITS[0], len(source)),)
    counts = np.bincount(given, minlength=len(GIVEN_SPLITS))
    return tuple((split, int(count)) for split, count in zip(GIVEN_SPLITS, counts) if count)


def digest_of(source: Source) -> str:
    """What tells what was found in a source from what another process has found: records, texts and given splits."""
    given = source.given_splits()
    return f"{source.listing_digest()} {'' if given is None else hashlib.sha256(given.tobytes()).hexdigest()}"


class ShardMaker:
    """Makes shards; which process does it makes no difference to them."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self.source, self.plan = source, plan
        self._given = source.given_splits()
        self._encoder = records.RecordEncoder(plan.sampling_rate)

    def make(self, number: int, begins: Callable[[int], None], done: Callable[[], None]) -> list[str]:
        """Makes a shard and its rows.

        Args:
            number: of the shard.
            begins: told the number of each record before it is read.
            done: called after each.

        Returns:
            why records cannot be read, a line each.

        Raises:
            CacheError, OSError: it cannot be written; nothing of it stays.
        """
        rows, problems = [], []
        with ShardWriter(self.plan.shard(number), None, _ADVICE) as writer:
            for index in self.plan.range_of(number):
                begins(index)
                row, made = self._record(index)
                for record in made:
                    writer.write(record)
                rows.append(row)
                problems += [row["unreadable"]] if row["unreadable"] else []
                done()
            # The rows are there before the shard has its name.
            _write_rows(self.plan.part(number), rows)
        return problems

    def _record(self, index: int) -> tuple[dict, Iterable[bytes]]:
        """The row of a record of the source, and the records that it becomes."""
        name, texts = self.source.name_of(index), Texts()
        part_of = name, 0.0
        split = None if self._given is None else GIVEN_SPLITS[self._given[index]]
        try:
            texts = Texts(self.source.captions(index), self.source.transcription(index))
            part_of = self.source.part_of(index)
            measures, sounds, lengths = self._sounds(index, name)
        except (UnreadableRecord, files.UnreadableAudio) as error:
            reason = str(error)
        except _FAULTS as error:
            reason = f"{shown(name)} cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        else:
            row = records.row(name, part_of[0], split, texts) | measures | {"pieces": lengths}
            return row, self._encoder.records(name, part_of, texts, sounds, lengths)
        return records.row(name, part_of[0], split, texts) | {"unreadable": reason}, ()

    def _sounds(self, index: int, name: str) -> tuple[dict, list[tuple[bytes, float]], list[int]]:
        """The measures of a record of the source, and the sound and the length of each piece of it."""
        original, rate = self.source.original(index), self.plan.sampling_rate
        if original.rate not in _RATES:
            raise files.UnreadableAudio(f"{shown(name)} says that it has {original.rate} Hz: correct its header")
        meter = Meter(original.rate, original.channels, original.encoding)
        mono = (meter.update(block) for block in original.blocks())
        if original.whole:
            heard: Iterable[np.ndarray] = resampled(mono, original.rate, rate)
        else:
            deque(mono, maxlen=0)  # for its measures
            heard = [self.source[index].waveform]  # seconds, where authors cut their recordings
        sounds, lengths = [], []
        for piece in pieces.cut(heard, self.plan.max_samples, rate):
            sounds.append(records.encode_sound(piece, rate))
            lengths.append(len(piece))
        return meter.result()._asdict(), sounds, lengths


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """A sound in blocks [samples] at another rate, as `files.read` has it: soxr at high quality.

    Args:
        rate: Hz, of the blocks.
        wanted: Hz, of what is yielded: ceil(samples × wanted / rate) in all.
    """
    if rate == wanted:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        taken += len(block)
        made = stream.resample_chunk(block)
        given += len(made)
        yield made
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield files.segment(rest, max(-(-taken * wanted // rate) - given, 0))


def _write_rows(path: Path, rows: list[dict]) -> None:
    encoded = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, records.SCHEMA), encoded)
    write_file(path, encoded.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: with the file's name.
    """
    with renamed(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary file that gets the name `path` at the end of the block, and goes where that raises.

    Raises:
        OSError: with `path` in the place of the temporary name.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
