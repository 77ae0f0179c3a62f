"""Where a cache of features lies: a folder, or an address in an object store, of which each host has a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from audioldm2_jax.data import cache
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.storage import local_path, scheme_of


class CachePlace(NamedTuple):
    """A folder of this machine and, where it is the copy of one in an object store, the address of that; else "".

    Shards are whole or not there, in both, and come one by one: so several hosts, and stages side by side, fill one
    cache. Nothing is deleted in the store.
    """

    folder: Path
    address: str = ""

    def __str__(self) -> str:
        return self.address or str(self.folder)

    def __truediv__(self, name: str) -> CachePlace:
        return CachePlace(self.folder / name, self.address and f"{self.address}/{name}")

    def open(self, begin: Callable[[Path], cache.Feature]) -> cache.Feature:
        """Returns the feature of this place.

        Args:
            begin: opens or begins it in the folder, which by then holds what the store has.

        Raises:
            CacheError, OSError: as `begin`; an address in the messages stands for the copy of it.
            StoreError: the store does not answer.
        """
        if not self.address:
            return begin(self.folder)
        with object_folders.alone(self.folder):
            there = object_store.listing(self.address)
            if not object_folders.is_same(self.folder / cache.FILE, there.get(cache.FILE)):
                shutil.rmtree(self.folder, ignore_errors=True)  # of one that was deleted in the store
            object_folders.add(self.address, self.folder, there)
            try:
                feature = begin(self.folder)
            except cache.CacheError as error:
                raise cache.CacheError(str(error).replace(str(self.folder), self.address)) from error
            if cache.FILE not in there:
                object_store.create(f"{self.address}/{cache.FILE}", (self.folder / cache.FILE).read_bytes())
                object_folders.add(self.address, self.folder, object_store.listing(self.address))
            return feature

    def keep(self, shards: Iterable[Path]) -> None:
        """Brings those shards into the store that are here and not there.

        Raises:
            StoreError: the store does not answer.
        """
        if self.address and (here := {path.name: path for path in shards if path.exists()}):
            there = object_store.listing(self.address)
            object_folders.upload_files(self.address, {name: path for name, path in here.items() if name not in there})

    def catch_up(self) -> None:
        """Fetches what others have brought into the store.

        Raises:
            StoreError: the store does not answer.
        """
        if self.address:
            with object_folders.alone(self.folder):
                object_folders.add(self.address, self.folder, object_store.listing(self.address))


def place(text: str, what: str) -> CachePlace:
    """Returns the place that a person means by `text`, a path or an address.

    Args:
        what: what names it in a message.

    Raises:
        StorageError: it names none.
    """
    if not scheme_of(text):
        return CachePlace(local_path(text, what))
    address = object_store.normalized(text, what)
    return CachePlace(object_folders.copy_of(address, "caches"), address)
