"""The index of a source, kept beside the data: what opening it once has found, so that it need not be looked for again.

    FOLDER/.audioldm2_jax/KIND-VERSION-FINGERPRINT.arrow

It lies in the folder of the data, or where that cannot be written, in `~/.cache/audioldm2_jax/index/` (or below
`XDG_CACHE_HOME`), in a folder named by a hash of the data's path. The fingerprint is that of all files, by name, size
and time of modification; where one of them has changed, a new index takes over what was found of the others. An index
is never changed: it is written under a temporary name and renamed, so that any number of processes may make and read
it at once. What was not opened for a week goes when another is made. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from audioldm2_jax.data.table import Table
from audioldm2_jax.runtime.storage import OWN_FOLDER
from audioldm2_jax.runtime.text_files import shown

_VERSION = 1  # of the columns and of what they mean
_WEEK = 7 * 24 * 3600.0


class Fingerprint:
    """That of a set of files, which are added in any order: kept are 32 bytes, however many there are.

    The sum of the files' hashes modulo 2^256.
    """

    def __init__(self) -> None:
        self._sum = 0
        #: Whether no file was modified just now, so that the same fingerprint will mean the same files.
        self.settled = True

    def add(self, *facts: object) -> None:
        """Adds a file, by all that is known of it."""
        content = repr(facts).encode("utf-8", "surrogateescape")
        self._sum += int.from_bytes(hashlib.blake2b(content, digest_size=32).digest(), "little")

    def __str__(self) -> str:
        return f"{self._sum % 2**256:064x}"[:32]


Made = tuple[dict, Iterable[pa.RecordBatch]]


def open_table(root: Path, kind: str, fingerprint: Fingerprint, make: Callable[[Table | None], Made]) -> Table:
    """The table of a source, from its index where that is there and up to date; else made, and written.

    Args:
        root: the folder of the data.
        kind: of the source, with a hash of all settings that decide what is found; letters, digits and underscores.
        fingerprint: of the files.
        make: given the latest table of that kind, or None, returns what is `about` the new one, and its batches.
    """
    name = f"{kind}-{_VERSION}-"
    folders = root / OWN_FOLDER, _elsewhere(root)
    for folder in folders if fingerprint.settled else ():
        if table := _read(folder / f"{name}{fingerprint}.arrow"):
            return table
    before = _latest(folders, name)
    for folder in folders:
        try:
            return _written(folder, name, fingerprint, before, make)
        except OSError as error:
            reason = error.strerror or str(error)
    logging.warning(
        "%s: no index can be written, neither there nor in %s (%s): every file is looked at whenever it is opened",
        *(shown(root), shown(folders[-1]), reason),
    )
    about, batches = make(before)
    return Table(list(batches), about)


def _written(
    folder: Path, name: str, fingerprint: Fingerprint, before: Table | None, make: Callable[[Table | None], Made]
) -> Table:
    """Makes an index and maps it.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Files that were modified just now may change once more without a trace: that index is not to be found by its name.
    path = folder / f"{name}{fingerprint}{'' if fingerprint.settled else f'.{uuid.uuid4().hex}'}.arrow"
    temporary = folder / f".{name}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            about, batches = make(before)
            Table.write(file, batches, about)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for old in folder.iterdir():
        with contextlib.suppress(OSError):  # gone, or another user's
            if time.time() - old.stat().st_mtime > _WEEK:
                old.unlink()
    return Table.read(path)


def _read(path: Path) -> Table | None:
    """The table in a file; None where it is not there or damaged."""
    try:
        table = Table.read(path)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    with contextlib.suppress(OSError):  # another user's
        os.utime(path)
    return table


def _latest(folders: Iterable[Path], name: str) -> Table | None:
    """The index of that kind that was used last."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found += [(path.stat().st_mtime, path) for path in folder.glob(f"{name}*.arrow")]
    return next(filter(None, (_read(path) for _, path in sorted(found, reverse=True))), None)


def _elsewhere(root: Path) -> Path:
    """Where the index of a folder that cannot be written lies."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    named = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    return Path(base) / "audioldm2_jax" / "index" / named
