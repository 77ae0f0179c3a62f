"""Sources whose files, the shards, hold many records each."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.records import THREADS, Records, file_digests
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
    """The records of one split in shards; a record is called SHARD/NAME. Opening reads no sound.

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
        self.root = root
        found: dict[str, tuple[Any, Texts]] = {}
        skipped: dict[str, str] = {}
        chosen = _of_train(root, shards)
        with ThreadPool(THREADS) as pool:
            for shard, index in zip(chosen, pool.imap(self._index_or_reason, chosen)):
                found |= {f"{shard}/{name}": ([shard, place], texts) for name, (place, texts) in index.records.items()}
                for name, reason in index.problems.items():
                    where = f"{shard}/{name}" if name else shard
                    skipped[where] = f"{root / where}: {reason}"
        super().__init__(root, found, skipped, split, sampling_rate, heldout_share)

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
