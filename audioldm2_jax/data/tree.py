"""What lies below a folder of recordings.

Files and folders whose names begin with a dot are left out. Symbolic links are followed, to folders and to files. A
recording that can be reached in several ways counts once, under the name that goes through no link, or the first one in
alphabetical order.
"""

from __future__ import annotations

import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from audioldm2_jax.data.draw import digest
from audioldm2_jax.data.index import Fingerprint
from audioldm2_jax.data.metadata import METADATA
from audioldm2_jax.data.records import OTHER_SOUND, SUFFIXES
from audioldm2_jax.data.table import is_recent, stamp

_BESIDE = (".txt", ".json")
_SOUND = frozenset((*SUFFIXES, *OTHER_SOUND))
# What people call a file of captions, and endings of tables: such files, where they are not read, are named.
_CAPTIONS = ("metadata", "caption", "captions", "annotation", "annotations", "labels", "transcript", "transcripts")
_TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".ods")
_METADATA, _TEXT, _RECORDING, _TABLE = range(4)
_KINDS = dict.fromkeys(_SOUND, _RECORDING) | dict.fromkeys(_BESIDE, _TEXT) | dict.fromkeys(_TABLES, _TABLE)


class Found(NamedTuple):
    """A file below the root.

    Attributes:
        kind: metadata, a text file that may be of a recording, another table, or what seems to be a recording.
        name: relative to the root, with "/".
        target: where it really lies.
        entry: as the folder has it.
    """

    kind: int
    name: str
    target: str
    entry: os.DirEntry


class Tree:
    """What lies below a folder, as it is now."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = root, os.path.realpath(root)
        self.problems: dict[str, str] = {}
        """Folders and links that could not be followed the last time that somebody walked, name → why."""

    def walk(self) -> Iterator[Found]:
        """Everything of interest. Folders behind links come last, so that what they hold has its own name where it has
        one."""
        self.problems = {}
        seen = {self.real}
        waiting, links = [(os.fspath(self.root), self.real, "")], []
        while waiting or links:
            folder, real, prefix = waiting.pop() if waiting else links.pop(0)
            folders = []
            for entry in self._entries(folder, prefix):
                name = prefix + entry.name
                if self._is_folder(entry, name):
                    folders.append(entry)
                elif (kind := _kind(entry)) is not None:
                    link = entry.is_symlink()
                    yield Found(kind, name, os.path.realpath(entry.path) if link else f"{real}/{entry.name}", entry)
            for entry in sorted(folders, key=lambda entry: entry.name):
                link = entry.is_symlink()
                target = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                if target not in seen and not entry.name.startswith("."):
                    seen.add(target)
                    (links if link else waiting).append((entry.path, target, f"{prefix}{entry.name}/"))

    def fingerprint(self) -> Fingerprint:
        """That of all files."""
        found, now = Fingerprint(), time.time()
        for file in self.walk():
            link = os.path.relpath(file.target, self.real) if file.entry.is_symlink() else ""
            try:
                status = file.entry.stat()
            except OSError as error:
                found.add(file.name, link, error.errno)
                continue
            found.add(file.name, link, stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)
            if is_recent(status, now):
                found.settled = False
        for name, reason in self.problems.items():
            found.add(name, reason)
        return found

    def _entries(self, folder: str, prefix: str) -> Iterator[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                yield from entries
        except OSError as error:
            name = prefix.rstrip("/") or "."
            self.problems[name] = f"{folder} cannot be opened ({error.strerror}): what it holds is not read"

    def _is_folder(self, entry: os.DirEntry, name: str) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:  # a link to itself
            self.problems[name] = f"{entry.path} cannot be followed ({error.strerror}): remove the link"
            return False


class Recorded:
    """The recordings of a tree and what lies beside them.

    Attributes:
        stamps: recording → stamp of its file, in alphabetical order of names.
        metadata: files of captions, sorted.
        metadata_stamp: of all of them; 0 where one was modified just now.
        skipped: what is left out, name → reason.
        unread: files that may be meant to hold captions, and that are not read; sorted.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree, self.now = tree, time.time()
        self.skipped: dict[str, str] = {}
        direct: dict[str, int] = {}
        linked: list[tuple[str, str, int]] = []
        metadata: list[tuple[str, int]] = []
        self.unread: list[str] = []
        self._texts: dict[str, list[tuple[str, int]]] = defaultdict(list)  # by the name of a recording without ending
        for file in tree.walk():
            if file.kind == _METADATA:
                metadata.append((file.name, self._stamp(file.entry)))
            elif file.kind == _TEXT:
                self._texts[os.path.splitext(file.name)[0]].append((file.name, self._stamp(file.entry)))
            elif file.kind == _TABLE:
                self.unread.append(file.name)
            else:
                stamp = 0 if self._refused(file) else self._stamp(file.entry)
                if file.target == f"{tree.real}/{file.name}":
                    direct[file.name] = stamp
                else:
                    linked.append((file.name, file.target, stamp))
        self._direct = direct.keys()
        self._aliases: dict[str, list[str]] = defaultdict(list)  # recording → other names of it
        self._linked: dict[str, str] = {}  # where recordings that only links lead to really lie → their names
        names = dict(direct)
        for name, target, stamp in sorted(linked):
            if known := self.at(target):
                self._aliases[known].append(name)
            else:
                self._linked[target], names[name] = name, stamp
        self.skipped |= tree.problems
        self.stamps = {name: names[name] for name in sorted(names) if name not in self.skipped}
        recordings = {os.path.splitext(name)[0] for name in (*names, *(name for name, *_ in linked))}
        alone = (file for stem, files in self._texts.items() if stem not in recordings for file, _ in files)
        self.unread += [file for file in alone if Path(file).stem.lower() in _CAPTIONS]
        self.unread.sort()
        self.metadata = [tree.root / name for name, _ in sorted(metadata)]
        self.metadata_stamp = digest(*sorted(metadata)) if all(stamp for _, stamp in metadata) else 0

    def at(self, target: str) -> str | None:
        """The name of the recording that really lies there, whether it is skipped or not."""
        inside = target.removeprefix(f"{self.tree.real}/")
        return inside if inside != target and inside in self._direct else self._linked.get(target)

    def called(self, name: str) -> str | None:
        """The recording of that name, if no link leads to it."""
        return name if name in self._direct else None

    def beside(self, name: str) -> list[tuple[str, int]]:
        """The text and JSON files beside a recording, with their stamps."""
        if not self._texts:
            return []
        names = (name, *self._aliases.get(name, ()))
        return [text for each in names for text in sorted(self._texts.get(os.path.splitext(each)[0], ()))]

    def beside_stamp(self, name: str) -> int:
        """Of all text files beside a recording; 0 where one was modified just now."""
        texts = self.beside(name)
        return digest("beside", *texts) if all(stamp for _, stamp in texts) else 0

    def _stamp(self, entry: os.DirEntry) -> int:
        try:
            return stamp(entry.stat(), self.now)
        except OSError:  # gone by now, or a broken link
            return 0

    def _refused(self, file: Found) -> bool:
        """Whether what seems to be a recording is none that can be read; then says why in `skipped`."""
        entry, suffix = file.entry, _suffix(file.entry.name)
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.skipped.setdefault(
                file.name, f"{entry.path} is a broken link: {os.readlink(entry.path)} does not exist; mend or remove it"
            )
        elif suffix in OTHER_SOUND:
            self.skipped[file.name] = (
                f"{entry.path}: {suffix} is not read; convert it (ffmpeg -i {entry.name} {Path(entry.name).stem}.flac)"
            )
        elif not entry.is_file():
            self.skipped[file.name] = f"{entry.path} is no file but a pipe or device: remove it"
        return file.name in self.skipped


def _suffix(name: str) -> str:
    return os.path.splitext(name.rstrip())[1].lower()


def _kind(entry: os.DirEntry) -> int | None:
    """What a file may be to us, by its name."""
    name = entry.name.lower()
    kind = _KINDS.get(name[name.rfind(".") :])  # of nearly all: of a million files every microsecond counts
    if kind in (None, _TABLE) and name in METADATA:
        return _METADATA
    if kind == _TABLE:
        return None if name.startswith(".") else kind
    if kind == _TEXT or name.startswith("."):
        return kind if kind == _TEXT else None
    if kind is None and (suffix := _suffix(name)):
        return _RECORDING if suffix in _SOUND else None
    if kind is None and entry.is_symlink() and not os.path.exists(entry.path):
        return _RECORDING
    return kind
