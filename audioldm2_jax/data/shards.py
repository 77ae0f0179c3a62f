"""Sources whose files, the shards, hold many records each."""

from __future__ import annotations

import logging
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.draw import digest
from audioldm2_jax.data.index import Fingerprint, Made, open_table
from audioldm2_jax.data.records import THREADS, Records, file_digests
from audioldm2_jax.data.table import Row, Table, batch_of, is_recent, stamp
from audioldm2_jax.runtime.text_files import shown

_TRAIN = re.compile(r"(^|[/_.-])train([/_.-]|$)", re.IGNORECASE)
PLACES = 65  # at which a shard is read for its digest: 2 MiB of it


class Index(NamedTuple):
    """What a shard holds.

    Attributes:
        records: name within the shard → (where the record lies in it, as JSON can hold it; what is written about it).
        problems: name within the shard, "" for the shard itself → why something of it is not used.
    """

    records: dict[str, tuple[Any, Texts]]
    problems: dict[str, str]


class Shards(Records):
    """The records of one split in shards; a record is called SHARD/NAME. Opening reads no sound, and of shards that are
    in the index (data/index.py) nothing.

    Where the names of some shards say "train", those of other splits are left out, and the records of these are split
    as those of other sources are.

    Args:
        root: the folder of the shards.
        shards: their names below it.
        the rest: as of `Records`.

    Raises:
        ValueError: no record can be read.
    """

    def __init__(self, root: Path, shards: Sequence[str], split: str, sampling_rate: int, heldout_share: float) -> None:
        self.root, self._shards = root, _of_train(root, shards)
        self._stamps, fingerprint = self._looked_at()
        kind = type(self).__name__.lower()
        if settings := self._settings():
            kind += f"_{digest(*settings):016x}"
        self._open(root, open_table(root, kind, fingerprint, self._made), split, sampling_rate, heldout_share)

    def _settings(self) -> tuple[str, ...]:
        """What decides what is found in a shard, beside the shard; a subclass that has such settings overrides this."""
        return ()

    @abstractmethod
    def _index(self, shard: str) -> Index:
        """Looks through a shard.

        Raises:
            OSError, ValueError: nothing of it can be read.
        """

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of a shard's size and 2 MiB of it, evenly from beginning to end; "unreadable".

        A change that spares these and the size is not seen.
        """
        shards = dict.fromkeys(shard for shard, _ in self._places[:records])
        return file_digests({shard: self.root / shard for shard in shards}, PLACES)

    def _looked_at(self) -> tuple[list[int], Fingerprint]:
        """The stamps of all shards, and their fingerprint."""
        now, found, stamps = time.time(), Fingerprint(), []
        for shard in self._shards:
            try:
                status = (self.root / shard).stat()
            except OSError as error:
                stamps.append(0)
                found.add(shard, error.errno)
                continue
            stamps.append(stamp(status, now))
            found.add(shard, status.st_size, status.st_mtime_ns)
            found.settled &= not is_recent(status, now)
        return stamps, found

    def _made(self, before: Table | None) -> Made:
        """The table, a batch a shard; shards that have the same stamp in an earlier one are not opened."""
        shards = [[shard, stamp] for shard, stamp in zip(self._shards, self._stamps)]
        earlier = before.about["shards"] if before else []
        known = {shard: (stamp, batch) for (shard, stamp), batch in zip(earlier, before.batches if before else [])}

        def look(shard: list) -> pa.RecordBatch:
            name, stamp = shard
            found, batch = known.get(name, (0, None))
            return batch if found == stamp != 0 else batch_of(self._shard_rows(name))

        def batches() -> Iterator[pa.RecordBatch]:
            with ThreadPool(THREADS) as pool:
                yield from pool.imap(look, shards)

        return {"shards": shards}, batches()

    def _shard_rows(self, shard: str) -> list[Row]:
        index = self._index_or_reason(shard)
        rows = [Row(f"{shard}/{name}", [shard, place], texts) for name, (place, texts) in index.records.items()]
        for name, reason in index.problems.items():
            where = f"{shard}/{name}" if name else shard
            rows.append(Row(where, reason=f"{self.root / where}: {reason}"))
        return rows

    def _index_or_reason(self, shard: str) -> Index:
        try:
            return self._index(shard)
        except OSError as error:
            return Index({}, {"": error.strerror or " ".join(str(error).split())})
        except (ValueError, RecursionError) as error:
            return Index({}, {"": " ".join(str(error).split())})


def _of_train(root: Path, shards: Sequence[str]) -> list[str]:
    """The shards of the split "train" where names say so, else all."""
    train = [shard for shard in shards if _TRAIN.search(shard)]
    others = [shard for shard in shards if not _TRAIN.search(shard)]
    if train and others:
        logging.warning(
            "%s: %d files are of other splits than train and left out, such as %s",
            shown(root),
            len(others),
            shown(others[0]),
        )
    return train or others
