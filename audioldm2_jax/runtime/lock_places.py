"""Where the lock of a run folder lies: as a file, or as an object in a store."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from audioldm2_jax.runtime import object_store


class LockPlace(Protocol):
    """What a lock needs of where it lies. Times are seconds by the clock of the place."""

    def create(self, content: bytes) -> bool:
        """Writes the lock unless there is one; returns whether it did. Of several that try, one does."""

    def read(self) -> bytes | None:
        """Returns the content, None without a lock."""

    def touch(self) -> None:
        """Has `touched` say now; does nothing where the lock is no longer the one that was created."""

    def touched(self) -> float:
        """Returns when the lock was last touched, 0 without one."""

    def now(self) -> float:
        """Returns the time."""

    def remove(self, condition: Callable[[], bool]) -> None:
        """Deletes the lock if `condition` holds; of several that try, none deletes what was created meanwhile."""


def place(folder: Path | str, name: str, token: str) -> LockPlace:
    """Returns the place of the lock `name` of a folder, or of an address in a store.

    Args:
      token: of whoever asks, for names that are its own.
    """
    return FilePlace(folder / name, token) if isinstance(folder, Path) else ObjectPlace(f"{folder}/{name}", token)


class FilePlace:
    """A file, of which a file system over a network knows when it was last touched."""

    def __init__(self, path: Path, token: str):
        self._path, self._token = path, token

    def __str__(self) -> str:
        return str(self._path)

    def create(self, content: bytes) -> bool:
        partial = self._path.with_name(f".{self._path.name}.{self._token}")
        try:
            partial.write_bytes(content)
        except OSError:  # a full disk
            partial.unlink(missing_ok=True)
            raise
        try:
            os.link(partial, self._path)  # whole or not at all, also over NFS
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return self._create_in_place(content)
        finally:
            partial.unlink(missing_ok=True)

    def _create_in_place(self, content: bytes) -> bool:
        try:
            file = open(self._path, "xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except OSError:  # half a lock would keep this run out, too
            self._path.unlink(missing_ok=True)
            raise
        return True

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def touch(self) -> None:
        os.utime(self._path)

    def touched(self) -> float:
        try:
            with open(self._path, "rb") as file:  # opened for that, since NFS asks its server only then
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return 0.0

    def now(self) -> float:
        probe = self._path.with_name(f".{self._path.name}.{self._token}.time")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def remove(self, condition: Callable[[], bool]) -> None:
        guard = self._path.with_name(f".{self._path.name}.guard")
        with contextlib.ExitStack() as stack:
            # A full disk, or a file system without such locks; the kernel frees those of the dead.
            with contextlib.suppress(OSError):
                fcntl.flock(stack.enter_context(guard.open("a")), fcntl.LOCK_EX)
            if condition():
                self._path.unlink(missing_ok=True)
            guard.unlink(missing_ok=True)


class ObjectPlace:
    """An object, whose generation says which write or content it is of: each write of ours depends on what we know."""

    def __init__(self, address: str, token: str):
        self._address, self._token = address, token
        self._content, self._generation = b"", ""

    def __str__(self) -> str:
        return self._address

    def create(self, content: bytes) -> bool:
        if not object_store.create(self._address, content):
            return False
        found = object_store.stat(self._address)
        self._content, self._generation = content, found.generation if found else ""
        return True

    def read(self) -> bytes | None:
        return object_store.read(self._address)

    def touch(self) -> None:
        written = object_store.replace(self._address, self._content, self._generation, patience=0)
        self._generation = written or self._generation

    def touched(self) -> float:
        found = object_store.stat(self._address)
        return found.modified / 1e9 if found else 0.0

    def now(self) -> float:
        probe = f"{self._address}.{self._token}.time"
        object_store.write(probe, b"")
        found = object_store.stat(probe)
        object_store.delete(probe, [""])
        return found.modified / 1e9 if found else 0.0

    def remove(self, condition: Callable[[], bool]) -> None:
        found = object_store.stat(self._address)
        if found and condition():
            object_store.remove(self._address, found.generation)
