"""Folders in object stores: copied here and there, and never taken for whole while only a part of one has arrived.

A store has no folders and no rename. So a folder is half written as long as it has an object `.uploading`, which is
written first and deleted last: readers leave such a folder out, and the next upload replaces what there is of it. A
folder that another program has brought there has none, and is read as it is.

A file here is the same as an object if it has its size and its time, which a copied file is given (as `gsutil rsync`
and `aws s3 sync` do): what is the same is not copied again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath

from audioldm2_jax.runtime import object_store
from audioldm2_jax.runtime.object_store import Entry, StoreError
from audioldm2_jax.runtime.storage import OWN_FOLDER, local_path, scheme_of

UPLOADING = ".uploading"
_PARTIAL = ".partial"  # behind the name of a file that is being fetched
_AT_ONCE = 16  # files that are fetched
_SAID_EVERY = 30.0  # seconds


def whole(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Returns the objects of a listing that do not lie in a half written folder."""
    half = [str(PurePosixPath(name).parent) for name in entries if PurePosixPath(name).name == UPLOADING]
    if "." in half:
        return {}
    return {
        name: entry
        for name, entry in entries.items()
        if not any(str(parent) in half for parent in PurePosixPath(name).parents)
    }


def fetch(address: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Entry]:
    """Makes `folder` what is below `address`, as far as `wanted` says of an object's name; returns what that is.

    Files that are no objects, or not wanted ones, are deleted.

    Raises:
      StoreError: as of `object_store.listing` and `download`.
      OSError: a file cannot be written.
    """
    entries = {name: entry for name, entry in whole(object_store.listing(address)).items() if name and wanted(name)}
    for path in [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]:
        if path.relative_to(folder).as_posix() not in entries:
            path.unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # it has files
            path.rmdir()
    add(address, folder, entries)
    return entries


def upload(source: Path, address: str) -> None:
    """Makes what is below `address` the folder, or the object there the file, `source`. Does nothing where it is that.

    Of a folder, everything counts as absent until all has arrived.

    Raises:
      StoreError: as of `object_store.upload`.
      OSError: a file cannot be read.
    """
    there = object_store.listing(address)
    if source.is_file():
        if not is_same(source, there.get("")):
            upload_files(address, {"": source})
        return
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    changed = {name: path for name, path in files.items() if not is_same(path, there.get(name))}
    gone = there.keys() - files.keys() - {"", UPLOADING}
    if not changed and not gone and UPLOADING not in there:
        return
    object_store.write(f"{address}/{UPLOADING}", b"")
    object_store.upload(address, changed)
    object_store.delete(address, gone)
    object_store.delete(address, [UPLOADING])
    _take_times(changed, address)


def remove(address: str) -> None:
    """Deletes the folder at an address, which counts as absent from the first moment on.

    Raises:
      StoreError: as of `object_store.write` and `delete`.
    """
    object_store.write(f"{address}/{UPLOADING}", b"")
    object_store.delete(address, object_store.listing(address).keys() - {UPLOADING})
    object_store.delete(address, [UPLOADING])


@functools.cache
def cached(address: str, part: str = "") -> Path:
    """Returns the copy of what is at an address, a folder or an object, below ~/.cache; made, or brought up to date.

    It stays as it is as long as this process lives, so that all that is read of it is of one state. `~/.cache` is
    `XDG_CACHE_HOME` where that is set.

    Args:
      address: normalized.
      part: of a folder, the subfolder that is wanted, with every config.json beside it; by default all of it.

    Raises:
      StoreError: there is nothing, a folder is half written, and as of `object_store.listing`.
      OSError: the copy cannot be written.
    """
    there = object_store.listing(address)
    entries = whole(there)
    if part:
        entries = {
            name: entry
            for name, entry in entries.items()
            if name.startswith(f"{part}/") or name.endswith("config.json")
        }
    if not entries:
        raise StoreError(
            f"{address} is being written, or was not written to its end: write it again"
            if UPLOADING in there
            else f"there is nothing at {address}"
        )
    target = copy_of(address)
    with alone(target):
        if entries.keys() == {""}:
            if target.is_dir():
                shutil.rmtree(target)
            add(address, target.parent, entries, target.name)
            return target
        for path in [path for path in target.rglob("*") if path.is_file()]:
            name = path.relative_to(target)
            if name.as_posix() not in there and OWN_FOLDER not in name.parts:
                path.unlink()
        add(address, target, {name: entry for name, entry in entries.items() if name})
    return target


def copy_of(address: str, kind: str = "objects") -> Path:
    """Returns where the copy of what is at a normalized address lies, made or not; copies of another kind lie apart.

    No copy lies within another, as one address may within another: what is copied of the outer one would be deleted
    as nothing of the inner one's.
    """
    scheme, _, rest = address.partition("://")
    digest = hashlib.sha256(rest.encode()).hexdigest()[:16]
    return cache_folder() / kind / scheme / digest / PurePosixPath(rest).name


def local_copy(text: str, what: str) -> Path:
    """Returns the path that a person means by `text` (`storage.local_path`), of an address that of its copy.

    Raises:
      StorageError: as `local_path`, and `cached`.
      OSError: as `cached`.
    """
    if scheme_of(text):
        return cached(object_store.normalized(text, what))
    return local_path(text, what)


def cache_folder() -> Path:
    """Returns the folder for copies of what lies elsewhere, which may be deleted while nothing runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audioldm2_jax"


def add(address: str, folder: Path, entries: Mapping[str, Entry], own_name: str = "") -> None:
    """Fetches those of the objects that are not here yet, several at once, each through a temporary name.

    Args:
      address: of the folder in the store.
      folder: here.
      entries: the objects below the address that are wanted.
      own_name: the name here of the object that has the address itself.

    Raises:
      StoreError: as of `object_store.download`.
      OSError: a file cannot be written.
    """
    missing = {name: path for name in entries if not is_same(path := folder / (name or own_name), entries[name])}

    def fetch_one(name: str) -> int:
        """Fetches one; returns its bytes."""
        path, entry = missing[name], entries[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{_PARTIAL}")
        object_store.download(address, {name: partial})
        if partial.stat().st_size != entry.size:
            partial.unlink()
            raise StoreError(f"{address}/{name} changed while it was read: run the same command again")
        os.utime(partial, ns=(entry.modified,) * 2)
        os.replace(partial, path)
        return entry.size

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(fetch_one, name) for name in missing]
        try:
            _follow(address, asked, sum(entries[name].size for name in missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow(address: str, asked: Sequence[Future[int]], total: int) -> None:
    """Waits for what is fetched, and says how far it is where that takes long.

    Raises:
      StoreError, OSError: one was not fetched.
    """
    fetched, said = 0, time.monotonic()
    for count, one in enumerate(as_completed(asked), 1):
        fetched += one.result()
        if time.monotonic() - said > _SAID_EVERY:
            said = time.monotonic()
            line = (
                f"{address}: {count} of {len(asked)} objects are here, {fetched / 2**30:.2f} of {total / 2**30:.2f} GiB"
            )
            print(line, file=sys.stderr, flush=True)


def is_same(path: Path, entry: Entry | None) -> bool:
    """Returns whether a file here is the object, as far as size and time tell; None: there is no object."""
    if entry is None or not path.is_file():
        return False
    status = path.stat()
    return status.st_size == entry.size and status.st_mtime_ns == entry.modified


def upload_files(address: str, files: Mapping[str, Path]) -> None:
    """Copies files to objects below an address, by their names; each then has the time of its object.

    Raises:
      StoreError: as of `object_store.upload`.
      OSError: a file cannot be read.
    """
    if files:
        object_store.upload(address, files)
        _take_times(files, address)


def _take_times(files: Mapping[str, Path], address: str) -> None:
    """Gives files that were uploaded the times of their objects."""
    there = object_store.listing(address)
    for name, path in files.items():
        if name in there and path.exists() and path.stat().st_size == there[name].size:
            os.utime(path, ns=(there[name].modified,) * 2)


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Waits until no other process of this machine works on the copy `target`."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / hashlib.sha256(str(target).encode()).hexdigest()[:16]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
