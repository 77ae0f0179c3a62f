"""A folder of one's own recordings, with captions as Hugging Face's AudioFolder has them, or side by side.

    recordings/
      metadata.jsonl      {"file_name": "a.wav", "text": "rain on a tin roof"}   (or .csv or .parquet: file_name, text)
      a.wav
      more/b.flac
      more/b.txt          wind in dry leaves            (or b.json: {"caption": "…"}, {"tags": ["wind", "leaves"]})

Metadata may lie in any subfolder; names are relative to it. What is said in a recording stands in it as
`transcription`. Recordings that nothing names have no caption, and a text or JSON file beside no recording is none of
ours.

Files and folders whose names begin with a dot are left out. Symbolic links are followed, to folders and to files. A
recording that can be reached in several ways counts once, under the name that goes through no link, or the first one in
alphabetical order; metadata may use any of its names.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from audioldm2_jax.data.captions import Texts, captions_of, texts_in
from audioldm2_jax.data.metadata import METADATA, read_metadata
from audioldm2_jax.data.records import OTHER_SOUND, SUFFIXES, Recordings, listing_of
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import read_json_object, read_text, shown

_BESIDE = (".txt", ".json")
# What people call a file of captions, and endings of tables: such files, where they are not read, are named.
_CAPTIONS = ("metadata", "caption", "captions", "annotation", "annotations", "labels", "transcript", "transcripts")
_TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".ods")
_told: set[tuple[str, ...]] = set()  # files that this process has said it does not read
_ABSENT = ("refuse", "skip")


class Folder(Recordings):
    """The recordings of one split of a folder, read from disk when asked for.

    What cannot be read is left out and kept in `skipped`, file → reason: damaged files, formats that are not read,
    links that lead nowhere, folders without permission.

    Args:
        absent: "refuse": metadata that names files which are not there is an error; "skip": these are left out, too.
        the rest: as of `Records`.

    Raises:
        ValueError: no such folder, no readable recording in it, captions that cannot be parsed or that contradict each
            other, metadata that names files which are not there.
    """

    def __init__(
        self, path: str | Path, split: str, sampling_rate: int, heldout_share: float, absent: str = "refuse"
    ) -> None:
        if absent not in _ABSENT:
            raise ValueError(f"--config.data.absent={absent}: it has to be one of {', '.join(_ABSENT)}")
        root = local_path(str(path), "--config.data.source")
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise ValueError(f"there is no folder {shown(root)}; data.source must name a folder of recordings ({what})")
        tree = _Tree(root)
        _warn_of_unread(root, tree.unread)
        super().__init__(
            root, tree.names, _texts(root, tree, absent), tree.skipped, split, sampling_rate, heldout_share
        )


class _Tree:
    """What lies below a folder.

    Attributes:
        names: recordings, sorted, relative to the folder.
        metadata: files of captions, sorted.
        skipped: what is left out, name → reason.
        by_file: where a recording really lies → its name, of those that are skipped, too.
        beside: the name of a recording → text and JSON files beside it.
        unread: files that may be meant to hold captions, and that are not read; sorted, relative to the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.metadata, self.skipped = root, [], {}
        self.by_file: dict[str, str] = {}
        self.unread: list[str] = []
        stems: list[tuple[str, str]] = []  # names without ending, and where the recordings really lie
        texts: dict[str, list[Path]] = defaultdict(list)  # name without ending → files that may have a caption
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
                    if target not in seen and not entry.name.startswith("."):
                        seen.add(target)
                        (links if entry.is_symlink() else waiting).append(Path(entry.path))
                elif entry.name.lower() in METADATA:
                    self.metadata.append(Path(entry.path))
                elif entry.name.lower().endswith(_BESIDE):
                    texts[os.path.splitext(name)[0]].append(Path(entry.path))
                elif entry.name.lower().endswith(_TABLES) and not entry.name.startswith("."):
                    self.unread.append(name)
                elif not entry.name.startswith(".") and self._is_recording(entry, name):
                    stems.append((os.path.splitext(name)[0], target))
                    direct = target == os.path.join(os.path.realpath(root), name)
                    known = self.by_file.get(target)
                    if known is None or (not real[known] and (direct or name < known)):
                        self.by_file[target], real[name] = name, direct
        self.metadata.sort()
        self.beside: dict[str, list[Path]] = defaultdict(list)
        for stem, target in stems:
            self.beside[self.by_file[target]] += texts.get(stem, [])
        recordings = {stem for stem, _ in stems}
        alone = (file for stem, files in texts.items() if stem not in recordings for file in files)
        called = [file for file in alone if file.stem.lower() in _CAPTIONS]
        self.unread = sorted([*self.unread, *(os.path.relpath(file, root) for file in called)])
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
        if suffix not in (*SUFFIXES, *OTHER_SOUND):
            if suffix or not entry.is_symlink() or os.path.exists(entry.path):
                return False
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.skipped.setdefault(
                name, f"{entry.path} is a broken link: {os.readlink(entry.path)} does not exist; mend or remove it"
            )
        elif suffix in OTHER_SOUND:
            self.skipped[name] = (
                f"{entry.path}: {suffix} is not read; convert it (ffmpeg -i {entry.name} {Path(entry.name).stem}.flac)"
            )
        elif not entry.is_file():
            self.skipped[name] = f"{entry.path} is no file but a pipe or device: remove it"
        return True


def _warn_of_unread(root: Path, unread: list[str]) -> None:
    """Says once a process which files hold captions, maybe, and are not read, and what is read in their place."""
    if unread and (key := (str(root), *unread)) not in _told:
        _told.add(key)
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        logging.warning(
            "%s: nothing is read from %s%s; captions are read from %s (file_name, text), or from a file beside each "
            "recording (a.wav, a.txt)",
            *(shown(root), ", ".join(map(shown, unread[:5])), more, ", ".join(METADATA)),
        )


def _texts(root: Path, tree: _Tree, policy: str) -> dict[str, Texts]:
    """What is written about the recordings below `root`, by their names.

    Raises:
        ValueError: two files say different things of a recording, or metadata names what is not there.
    """
    found: dict[str, Texts] = {}
    first: dict[str, Path] = {}
    absent: dict[str, Texts] = {}
    for file, name, texts in (*_in_metadata(tree, absent), *_in_texts(tree)):
        known = found.setdefault(name, texts)
        if texts.captions and known.captions and texts.captions != known.captions:
            several = "" if first[name] == file else f" and {shown(first[name])}"
            raise ValueError(f"{shown(file)}{several}: different captions of {shown(name)}; keep one")
        if texts.transcription and known.transcription and texts.transcription != known.transcription:
            raise ValueError(
                f"{shown(file)} and {shown(first[name])}: different transcriptions of {shown(name)}; keep one"
            )
        found[name] = Texts(known.captions or texts.captions, known.transcription or texts.transcription)
        if any(texts):
            first.setdefault(name, file)
    if absent and policy == "refuse":
        raise ValueError(
            f"{shown(root)}: metadata names {len(absent)} files that are not recordings there; "
            f"--config.data.absent=skip leaves them out{listing_of([*absent])}"
        )
    tree.skipped |= dict(zip(absent, absent))
    found |= absent
    for name, beside in tree.beside.items():
        for file in (file for file in beside if file.suffix.lower() == ".json"):
            known = found.get(name, Texts())
            texts = texts_in(read_json_object(file), shown(file), known.captions, shown(first.get(name)))
            found[name] = Texts(texts.captions, known.transcription or texts.transcription)
            first.setdefault(name, file)
    return found


def _in_metadata(tree: _Tree, absent: dict[str, Texts]) -> Iterator[tuple[Path, str, Texts]]:
    """(file, recording, texts) of all metadata; what it names and is not there goes to `absent`."""
    for file in tree.metadata:
        for written, texts in read_metadata(file).items():
            name = tree.by_file.get(os.path.realpath(_meant(file.parent, written)))
            if name is None:
                absent[f"{shown(file)} names {shown(written)}"] = texts
            else:
                yield file, name, texts


def _in_texts(tree: _Tree) -> Iterator[tuple[Path, str, Texts]]:
    """(file, recording, texts) of all text files beside recordings: the whole file is the caption."""
    for name, beside in tree.beside.items():
        for file in (file for file in beside if file.suffix.lower() == ".txt"):
            yield file, name, Texts(captions_of(read_text(file), shown(file)))


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
