"""A folder of one's own recordings, with captions as Hugging Face's AudioFolder has them, or side by side.

    recordings/
      metadata.jsonl      {"file_name": "a.wav", "text": "rain on a tin roof"}   (or .csv or .parquet: file_name, text)
      a.wav
      more/b.flac
      more/b.txt          wind in dry leaves            (or b.json: {"caption": "…"}, {"tags": ["wind", "leaves"]})

Metadata may lie in any subfolder; names are relative to it, and any of those that lead to a recording will do. What is
said in a recording stands in it as `transcription`. Recordings that nothing names have no caption, and a text or JSON
file beside no recording is none of ours. What else may lie there: data/tree.py.

What was found is kept in an index (data/index.py). A later opening looks at the names, sizes and times of the files
alone; of those that have changed it looks at the recordings and at the texts beside them, and at all metadata.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from audioldm2_jax.data import index
from audioldm2_jax.data.captions import Texts, captions_of, texts_in
from audioldm2_jax.data.metadata import METADATA, read_metadata
from audioldm2_jax.data.records import Recordings, listing_of
from audioldm2_jax.data.table import Finder, Table
from audioldm2_jax.data.tree import Recorded, Tree
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import read_json_object, read_text, shown

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
        self.root, tree = root, Tree(root)
        kind = "folder" if absent == "refuse" else f"folder_{absent}"
        table = index.open_table(root, kind, tree.fingerprint(), lambda before: self._made(tree, before, absent))
        _warn_of_unread(root, table.about["unread"])
        self._open(root, table, split, sampling_rate, heldout_share)

    def _made(self, tree: Tree, before: Table | None, absent: str) -> index.Made:
        recorded, finder = Recorded(tree), Finder(before) if before else None
        texts = _texts(recorded, finder, absent)
        batches = self._batches(recorded.stamps, texts, recorded.beside_stamp, recorded.skipped, finder)
        return {"metadata": recorded.metadata_stamp, "unread": recorded.unread}, batches


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


def _texts(recorded: Recorded, finder: Finder | None, policy: str) -> dict[str, Texts]:
    """What is written about recordings, by their names.

    Raises:
        ValueError: two files say different things of a recording, or metadata names what is not there.
    """
    root = recorded.tree.root
    found: dict[str, Texts] = {}
    first: dict[str, Path] = {}
    absent: dict[str, Texts] = {}
    for file, name, texts in _in_metadata(recorded, absent):
        _add(found, first, file, name, texts)
    if absent and policy == "refuse":
        raise ValueError(
            f"{shown(root)}: metadata names {len(absent)} files that are not recordings there; "
            f"--config.data.absent=skip leaves them out{listing_of([*absent])}"
        )
    recorded.skipped |= dict(zip(absent, absent))
    found |= absent
    same_metadata = finder is not None and finder.table.about.get("metadata") == recorded.metadata_stamp != 0
    for name in recorded.stamps:
        beside = [root / text for text, _ in recorded.beside(name)]
        if not beside:
            continue
        row = finder.row(name) if same_metadata else None
        if row is not None and finder.stamps(row)[1] == recorded.beside_stamp(name) != 0:
            found[name] = finder.table.texts(row)
            continue
        for file in (file for file in beside if file.suffix.lower() == ".txt"):  # the whole file is the caption
            _add(found, first, file, name, Texts(captions_of(read_text(file), shown(file))))
        for file in (file for file in beside if file.suffix.lower() == ".json"):
            known = found.get(name, Texts())
            texts = texts_in(read_json_object(file), shown(file), known.captions, shown(first.get(name)))
            found[name] = Texts(texts.captions, known.transcription or texts.transcription)
            first.setdefault(name, file)
    return found


def _add(found: dict[str, Texts], first: dict[str, Path], file: Path, name: str, texts: Texts) -> None:
    """Adds what `file` says of a recording; `first` has the files that had something to say of it."""
    known = found.setdefault(name, texts)
    if texts.captions and known.captions and texts.captions != known.captions:
        several = "" if first[name] == file else f" and {shown(first[name])}"
        raise ValueError(f"{shown(file)}{several}: different captions of {shown(name)}; keep one")
    if texts.transcription and known.transcription and texts.transcription != known.transcription:
        raise ValueError(f"{shown(file)} and {shown(first[name])}: different transcriptions of {shown(name)}; keep one")
    if known is not texts:
        found[name] = Texts(known.captions or texts.captions, known.transcription or texts.transcription)
    if any(texts):
        first.setdefault(name, file)


def _in_metadata(recorded: Recorded, absent: dict[str, Texts]) -> Iterator[tuple[Path, str, Texts]]:
    """(file, recording, texts) of all metadata; what it names and is not there goes to `absent`."""
    for file in recorded.metadata:
        folder = os.path.relpath(file.parent, recorded.tree.root).replace(os.sep, "/")
        prefix = "" if folder == "." else f"{folder}/"
        for written, texts in read_metadata(file).items():
            name = recorded.called(prefix + written) or recorded.at(os.path.realpath(_meant(file.parent, written)))
            if name is None:
                absent[f"{shown(file)} names {shown(written)}"] = texts
            else:
                yield file, name, texts


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
