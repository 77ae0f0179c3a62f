"""Where the checkpoints of a stage lie: in a folder, or in a store; how they are signed, checked and deleted there.

A checkpoint has a manifest of digests. In a folder it is written before Orbax renames the checkpoint to its final
name, so that one of that name is whole and signed, whenever the process dies. Every host digests the files that it
wrote, in parallel, and on reading its share of them.

On gs:// there is no rename: Orbax writes an object `COMMITTED` last, and a checkpoint without it counts for nothing.
The digests are those that the store has computed of what arrived. To s3:// Orbax does not write: there, checkpoints
are copies of those in a folder of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from etils import epath

from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.storage import scheme_of

MANIFEST = "digests.json"
UNSIGNED = f"{MANIFEST} is missing"
#: On gs://, Orbax's name for the object that it writes last.
COMMITTED = "commit_success.txt"
#: Orbax's name for the only thing that a checkpoint of ours holds.
ITEM = "default"
_HOST = "ocdbt.process_"  # Orbax's name for the folder of what one host wrote, its index behind it
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or none could be read; the message says what to do."""


class CheckpointPlace(Protocol):
    """What is done with checkpoints beside Orbax. `item` is the folder of a checkpoint that Orbax is writing."""

    root: epath.Path
    """The folder or address, as Orbax takes it."""

    orbax_deletes: bool
    """Whether Orbax can delete old checkpoints there itself."""

    def free(self) -> int:
        """Returns how many bytes can still be written."""

    def sign_share(self, item: epath.Path, host: int) -> None:
        """Signs what one host wrote; called on each host once its part is written."""

    def sign(self, item: epath.Path) -> None:
        """Signs the whole checkpoint; called on process 0 once all hosts have signed their shares."""

    def deliver(self) -> None:
        """Brings a checkpoint that Orbax has written to where it counts; called before it gets its final name."""

    def find_damage(self, step: int, host: int = 0, count: int = 1) -> str:
        """Returns what is wrong with the share of a checkpoint that host `host` of `count` checks; "" if nothing is."""

    def remove(self, step: int) -> None:
        """Deletes a checkpoint. Half of one never counts."""

    def remove_unfinished(self) -> None:
        """Deletes what a process left that was killed while it saved.

        Raises:
            CheckpointError: it may be of another kind; the message says what to do.
        """


def place(folder: Path | str) -> CheckpointPlace:
    """Returns the place of the checkpoints below `folder`, a path or an address; makes it.

    Raises:
        StoreError: the store does not answer, or there is no permission.
    """
    kinds = {"": Folder, "gs": Store, "s3": CopiedFolder}
    return kinds[scheme_of(str(folder))](folder)


class Folder:
    """On a file system."""

    orbax_deletes = True

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.root = epath.Path(folder.resolve())

    def free(self) -> int:
        return shutil.disk_usage(self.root).free

    def sign_share(self, item: epath.Path, host: int) -> None:
        folder = Path(item)
        _write_digests(folder, f"{MANIFEST}.{host}", _files(folder / f"{_HOST}{host}"), {})

    def sign(self, item: epath.Path) -> None:
        folder, known = Path(item), {}
        for part in folder.glob(f"{MANIFEST}.*"):
            known |= json.loads(part.read_text())
            part.unlink()
        _write_digests(folder, MANIFEST, _files(folder), known)

    def deliver(self) -> None:
        """Does nothing: it is there."""

    def find_damage(self, step: int, host: int = 0, count: int = 1) -> str:
        """A host's share is what the host of the same index wrote; what more hosts than there are now wrote goes round,
        and what describes the whole is the first one's.
        """
        folder = Path(self.root) / str(step)
        root = folder / ITEM if (folder / ITEM / MANIFEST).exists() else folder  # earlier versions: beside the item
        try:
            wanted = json.loads((root / MANIFEST).read_text())
        except FileNotFoundError:
            return UNSIGNED
        except (OSError, ValueError):
            return f"{MANIFEST} is unreadable"
        for name, value in wanted.items():
            writer = next((part[len(_HOST) :] for part in Path(name).parts if part.startswith(_HOST)), "0")
            if int(writer) % count != host:
                continue
            path = root / name
            if not path.is_file():
                return f"{name} is missing"
            if digest(path) != value:
                return f"{name} has changed since it was written"
        return ""

    def remove(self, step: int) -> None:
        shutil.rmtree(self.root / str(step))

    def remove_unfinished(self) -> None:
        for temporary in self.root.glob(_TEMPORARY):
            shutil.rmtree(temporary, ignore_errors=True)


class CopiedFolder(Folder):
    """In a folder of this machine, whose checkpoints are copied to a bucket that Orbax does not write to.

    What is in the bucket counts: a checkpoint gets its final name here once it has arrived there as a whole, and in the
    beginning the folder is made what the bucket has.
    """

    orbax_deletes = False  # it would delete here alone

    def __init__(self, address: str):
        object_store.prepare(address)
        self._address = address
        super().__init__(object_folders.copy_of(address, "checkpoints"))
        names = object_store.listing(address)
        for name in names:  # of a process that was killed while it uploaded
            step, _, rest = name.partition("/")
            if rest == object_folders.UPLOADING:
                object_folders.remove(f"{address}/{step}")
        object_folders.fetch(address, Path(self.root))

    def deliver(self) -> None:
        """Uploads it, and has the save fail where it does not arrive."""
        for written in map(Path, self.root.glob(_TEMPORARY)):
            object_folders.upload(written, f"{self._address}/{written.name.partition('.')[0]}")

    def remove(self, step: int) -> None:
        object_folders.remove(f"{self._address}/{step}")
        super().remove(step)


class Store:
    """In a bucket."""

    #: It would ask for the kind of the bucket first, which takes more than the right to write there.
    orbax_deletes = False

    def __init__(self, address: str):
        object_store.prepare(address)
        self.root = epath.Path(address)
        self._address = str(self.root)

    def free(self) -> int:
        return sys.maxsize

    def sign_share(self, item: epath.Path, host: int) -> None:
        """Does nothing: the store has the digests of everything at once."""

    def sign(self, item: epath.Path) -> None:
        digests = {name: entry.digest for name, entry in object_store.listing(str(item)).items()}
        object_store.write(f"{item}/{MANIFEST}", json.dumps(digests, indent=1).encode())

    def deliver(self) -> None:
        """Does nothing: Orbax writes it there."""

    def find_damage(self, step: int, host: int = 0, count: int = 1) -> str:
        """Nothing has to be read for it, so that the first host checks everything."""
        if host:
            return ""
        item = f"{self._address}/{step}/{ITEM}"
        content = object_store.read(f"{item}/{MANIFEST}")
        if content is None:
            return UNSIGNED
        try:
            wanted = json.loads(content)
        except ValueError:
            return f"{MANIFEST} is unreadable"
        there = object_store.listing(item)
        for name, value in wanted.items():
            if name not in there:
                return f"{name} is missing"
            if _of_a_folder(value):  # copied into the store
                now = hashlib.sha256(object_store.read(f"{item}/{name}") or b"").hexdigest()
            else:
                now = there[name].digest
            if now != value:
                return f"{name} has changed since it was written"
        return ""

    def remove(self, step: int) -> None:
        address = f"{self._address}/{step}"
        object_store.delete(address, [COMMITTED])  # first, as it says that the rest is whole
        object_store.delete(address, object_store.listing(address))

    def remove_unfinished(self) -> None:
        names = object_store.listing(self._address)
        for step in sorted({name.partition("/")[0] for name in names}):
            if not step.isdecimal() or f"{step}/{COMMITTED}" in names:
                continue
            manifest = object_store.read(f"{self._address}/{step}/{ITEM}/{MANIFEST}") or b"{}"
            with contextlib.suppress(ValueError):
                if any(map(_of_a_folder, json.loads(manifest).values())):
                    raise CheckpointError(
                        f"{self._address}/{step} was copied from a disk without its {COMMITTED}, and may be a part of "
                        "a checkpoint: copy it again, go on in the folder from which it comes, or delete it here"
                    )
            object_store.delete(self._address, [name for name in names if name.startswith(f"{step}/")])


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_a_folder(value: str) -> bool:
    """Whether a digest of a manifest is a SHA-256 and not a store's own."""
    return ":" not in value


def _write_digests(folder: Path, manifest: str, files: Iterable[Path], known: dict[str, str]) -> None:
    """Writes the digests of `files` as `folder/manifest`; those `known` by the files' names are not computed."""
    names = {path: path.relative_to(folder).as_posix() for path in files}
    digests = {name: known.get(name) or digest(path) for path, name in names.items()}
    temporary = folder / f".{manifest}.tmp"
    temporary.write_text(json.dumps(digests, indent=1))
    os.replace(temporary, folder / manifest)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
