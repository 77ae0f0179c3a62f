"""A folder of one's own recordings, with captions as Hugging Face's AudioFolder has them.

    recordings/
      metadata.jsonl      {"file_name": "a.wav", "text": "rain on a tin roof"}   (or metadata.csv: file_name,text)
      a.wav
      more/b.flac

Metadata may lie in any subfolder; names are relative to it. Recordings that it does not name have no caption.

Symbolic links are followed, to folders and to files. A recording that can be reached in several ways counts once, under
the name that goes through no link, or the first one in alphabetical order; metadata may use any of its names.
"""

from __future__ import annotations

import hashlib
import logging
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from audioldm2_jax.audio import files
from audioldm2_jax.data.draw import digest
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.metadata import METADATA, parse_metadata
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import read_text, shown

SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".snd", ".w64"),
)
#: Sound that libsndfile does not read.
_OTHER_SOUND = (
    *(".3gp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".avi", ".dsf", ".dts", ".flv", ".m4a", ".m4b", ".mid", ".mka"),
    *(
        ".midi",
        ".mkv",
        ".mov",
        ".mp2",
        ".mp4",
        ".mpc",
        ".mpeg",
        ".mpg",
        ".ra",
        ".spx",
        ".tta",
        ".weba",
        ".webm",
        ".wma",
    ),
    *(".wmv", ".wv"),
)
_LISTED = 5  # names that an error or a warning spells out
_PIECE, _THREADS = 2**15, 32  # bytes of a digest at a place of a file; files at a time, as a network makes each wait


class Folder(Source):
    """The recordings of one split of a folder, read from disk when asked for.

    What cannot be read is left out and kept in `skipped`, file → reason: damaged files, formats that are not read,
    links that lead nowhere, folders without permission.

    Raises:
        ValueError: no such folder, no readable recording in it, metadata that cannot be parsed or that names files
            which are not there.
    """

    def __init__(self, path: str | Path, split: str, sampling_rate: int, heldout_share: float) -> None:
        self.root, self.sampling_rate = local_path(str(path), "--config.data.source"), sampling_rate
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise ValueError(
                f"there is no folder {shown(self.root)}; data.source must name a folder of recordings ({what})"
            )
        tree = _Tree(self.root)
        captions = _captions(self.root, tree)
        lengths, self.skipped = {}, tree.skipped
        for name in tree.names:
            try:
                lengths[name] = files.length(self.root / name, sampling_rate)
            except files.UnreadableAudio as error:
                self.skipped[name] = str(error)
        found, reasons = len(lengths) + len(self.skipped), [shown(reason) for reason in self.skipped.values()]
        if not lengths:
            raise ValueError(
                f"{shown(self.root)} holds no recording that can be read ({found} files or links seem to be some; read "
                f"are {', '.join(SUFFIXES)}){_listing(reasons)}"
            )
        if self.skipped:
            logging.warning(
                "%s: %d of %d files cannot be read and are skipped%s",
                shown(self.root),
                len(self.skipped),
                found,
                _listing(reasons),
            )
        self.names = split_names(list(lengths), split, heldout_share)
        self._lengths = [lengths[name] for name in self.names]
        self._captions = [captions.get(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self._read(index, 0, None)

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`; decodes no more than the excerpt."""
        return self._read(index, int(position * max(self._lengths[index] - samples + 1, 1)), samples)

    def listing(self) -> Any:
        """See `Source.listing`: the readable files with their lengths and captions."""
        return [list(record) for record in zip(self.names, self._lengths, self._captions)]

    def follow(self, listing: Any) -> str:
        """See `Source.follow`."""
        own, other = {name: rest for name, *rest in self.listing()}, {name: rest for name, *rest in listing}
        different = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        self.names, self._lengths, self._captions = ([record[i] for record in listing] for i in range(3))
        reasons = [self.skipped.get(name, f"{self.root / name} is not the same file there") for name in different]
        return f"{self.root}: {len(different)} files differ{_listing(reasons)}" if different else ""

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of a file's size and 32 KiB at its beginning, middle and end; "unreadable".

        Of 100,000 files 10 GB are read at most, in 32 threads, whenever a cache is opened: half a minute from a disk of
        300 MB/s, two minutes over a network that takes 10 ms to answer; opening the folder takes no less, as it looks
        for the end of every file. Times of modification would cost less, and a copy of the data has others. A change
        that spares the three places and the size is not seen.
        """
        names = self.names[:records]
        with ThreadPool(_THREADS) as pool:
            found = pool.map(_digest, [self.root / name for name in names])
        return dict(zip(map(shown, names), found))

    def text(self, index: int) -> str | None:
        """The caption of a recording, without reading it."""
        return self._captions[index]

    def transcription(self, index: int) -> None:
        """None: metadata has captions alone."""

    def _read(self, index: int, start: int, samples: int | None) -> Example:
        name = self.names[index]
        try:
            waveform = files.read(self.root / name, self.sampling_rate, start, samples)
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        return Example(waveform, self._captions[index], {"name": name})


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.sha256(str(size).encode())
            for start in (0, (size - _PIECE) // 2, size - _PIECE):
                file.seek(max(start, 0))
                found.update(file.read(_PIECE))
    except OSError:
        return "unreadable"
    return found.hexdigest()[:16]


class _Tree:
    """What lies below a folder.

    Attributes:
        names: recordings, sorted, relative to the folder.
        metadata: files of captions, sorted.
        skipped: what is left out, name → reason.
        by_file: where a recording really lies → its name, of those that are skipped, too.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.metadata, self.skipped = root, [], {}
        self.by_file: dict[str, str] = {}
        real: dict[str, bool] = {}  # name → whether no link leads to it
        seen = {os.path.realpath(root)}
        # Folders behind links come last, so that what they hold has its own name where it has one.
        waiting, links = [root], []
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop(0)
            for entry in self._entries(folder):
                name = os.path.relpath(entry.path, root).replace(os.sep, "/")
                target = os.path.realpath(entry.path)
                if self._is_folder(entry, name):
                    if target not in seen:
                        seen.add(target)
                        (links if entry.is_symlink() else waiting).append(Path(entry.path))
                elif entry.name.lower() in METADATA:
                    self.metadata.append(Path(entry.path))
                elif not entry.name.startswith(".") and self._is_recording(entry, name):
                    direct = target == os.path.join(os.path.realpath(root), name)
                    known = self.by_file.get(target)
                    if known is None or (not real[known] and (direct or name < known)):
                        self.by_file[target], real[name] = name, direct
        self.metadata.sort()
        self.names = sorted(name for name in self.by_file.values() if name not in self.skipped)

    def _entries(self, folder: Path) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            name = os.path.relpath(folder, self.root)
            self.skipped[name] = f"{folder} cannot be opened ({error.strerror}): what it holds is not read"
            return []

    def _is_folder(self, entry: os.DirEntry, name: str) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:  # a link to itself
            self.skipped[name] = f"{entry.path} cannot be followed ({error.strerror}): remove the link"
            return False

    def _is_recording(self, entry: os.DirEntry, name: str) -> bool:
        """Whether a file is to be read; where it is sound and is not, says why in `skipped`."""
        suffix = os.path.splitext(entry.name.rstrip())[1].lower()
        if suffix not in (*SUFFIXES, *_OTHER_SOUND):
            if suffix or not entry.is_symlink() or os.path.exists(entry.path):
                return False
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.skipped.setdefault(
                name, f"{entry.path} is a broken link: {os.readlink(entry.path)} does not exist; mend or remove it"
            )
        elif suffix in _OTHER_SOUND:
            self.skipped[name] = (
                f"{entry.path}: {suffix} is not read; convert it (ffmpeg -i {entry.name} {Path(entry.name).stem}.flac)"
            )
        elif not entry.is_file():
            self.skipped[name] = f"{entry.path} is no file but a pipe or device: remove it"
        return True


def split_names(names: list[str], split: str, heldout_share: float) -> list[str]:
    """The names of one split: a name's own hash decides, so that adding records moves none from split to split.

    The held-out split is never empty: where chance leaves it so, it takes the name with the lowest hash (a single
    record is in both splits).
    """
    heldout = {name for name in names if digest("split", name) < heldout_share * 2**64}
    heldout = heldout or {min(names, key=lambda name: digest("split", name))}
    if split == "heldout" or len(names) == 1:
        return [name for name in names if name in heldout]
    return [name for name in names if name not in heldout]


def _captions(root: Path, tree: _Tree) -> dict[str, str | None]:
    """The captions of all metadata below `root`, by the recordings' names."""
    captions: dict[str, str | None] = {}
    first, absent = {}, []
    for file in tree.metadata:
        for name, text in parse_metadata(read_text(file), shown(file)).items():
            path = tree.by_file.get(os.path.realpath(_meant(file.parent, name)))
            if path is None:
                absent.append(f"{shown(file)} names {shown(name)}")
            elif captions.setdefault(path, text) != text:
                several = "" if first[path] == file else f" and {shown(first[path])}"
                raise ValueError(f"{shown(file)}{several}: different captions of {shown(path)}; keep one")
            else:
                first.setdefault(path, file)
    if absent:
        raise ValueError(
            f"{shown(root)}: metadata names {len(absent)} files that are not recordings there{_listing(absent)}"
        )
    return captions


def _meant(folder: Path, name: str) -> Path:
    """The file that metadata in `folder` calls `name`: as it is, else as Windows or another file system writes it."""
    for written in (name, name.strip(), name.strip().replace("\\", "/")):
        try:
            path = local_path(written if os.path.isabs(written) else str(folder / written), "file_name")
        except ValueError:
            continue
        if path.exists() or path.is_symlink():
            return path
    return folder / name


def _listing(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_LISTED], *more])
