"""Where a prepared set is written: a folder, or an address in an object store.

In a store the shards are made here, in a working folder below ~/.cache, and go there one by one; what has arrived goes
from here. Rows stay, since they become the table. An object appears whole or not at all, and what decides that a set is
finished arrives last, as in a folder. Several machines that prepare the same set do no harm: they write the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from audioldm2_jax.data import prepared
from audioldm2_jax.data.prepare import report
from audioldm2_jax.data.prepare.shards import PARTS, Plan, names_in
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.lock import FILE as LOCK
from audioldm2_jax.runtime.text_files import shown

_AT_ONCE, _WAITING = 4, 8  # uploads; shards that wait for one here, before no more are made


class OutputPlace(Protocol):
    """What preparing needs of where a set is written. Names are those below the set.

    Attributes:
        folder: where its files are made; it exists.
        locked: the folder whose lock keeps out other processes of this machine.
    """

    folder: Path
    locked: Path

    def take_up(self) -> None:
        """Has the folder hold what goes on needs of what was made before. Called once the lock is held."""

    def there(self) -> set[str]:
        """Returns the names of what is in the set."""

    def keep(self, names: Iterable[str]) -> None:
        """Brings files of the folder into the set, in this order."""

    def keep_shards(self, plan: Plan) -> None:
        """Brings the shards that were made since, each after its rows, into the set; returns before they are there."""

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of all shards, which are there then."""

    def forget(self) -> None:
        """Deletes what only went on needed, of a finished set."""

    def close(self) -> None:
        """Ends what is under way."""


class Folder:
    """See `OutputPlace`: what is made in the folder is in the set."""

    def __init__(self, path: Path):
        self.folder = self.locked = path

    def __str__(self) -> str:
        return shown(self.folder)

    def take_up(self) -> None:
        pass

    def there(self) -> set[str]:
        return names_in(self.folder) - {LOCK}

    def keep(self, names: Iterable[str]) -> None:
        pass

    def keep_shards(self, plan: Plan) -> None:
        pass

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if _is_shard(path.name)}

    def forget(self) -> None:
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def close(self) -> None:
        pass


class Address:
    """See `OutputPlace`.

    Args:
        address: normalized.
    """

    def __init__(self, address: str):
        self._address = address
        self.locked = object_folders.copy_of(address, "prepare")
        self.folder = self.locked / "set"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
        self._under_way: deque[Future] = deque()
        self._sent: set[str] = set()

    def __str__(self) -> str:
        return self._address

    def take_up(self) -> None:
        wanted = {prepared.STATE, prepared.INFO, report.FILE}
        object_folders.fetch(self._address, self.folder, lambda name: name in wanted or name.startswith(f"{PARTS}/"))

    def there(self) -> set[str]:
        return {*object_store.listing(self._address)}

    def keep(self, names: Iterable[str]) -> None:
        object_store.upload(self._address, {name: self.folder / name for name in names})

    def keep_shards(self, plan: Plan) -> None:
        made = {name for name in os.listdir(self.folder) if _is_shard(name)} - self._sent
        for name in sorted(made):
            while len(self._under_way) >= _WAITING:
                self._under_way.popleft().result()
            self._under_way.append(self._pool.submit(self._send, name, plan.rows_of(name)))
        self._sent |= made

    def _send(self, shard: str, rows: str) -> None:
        self.keep([rows, shard])
        (self.folder / shard).unlink()

    def sizes(self) -> dict[str, int]:
        while self._under_way:
            self._under_way.popleft().result()
        return {name: entry.size for name, entry in object_store.listing(self._address).items() if _is_shard(name)}

    def forget(self) -> None:
        object_store.delete(self._address, [name for name in self.there() if name.startswith(f"{PARTS}/")])
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _is_shard(name: str) -> bool:
    return name.startswith(f"{prepared.SET}-")
