"""Data of one's own in usual layouts, told by what lies at a path."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path

from ml_collections import ConfigDict

from audioldm2_jax.data.authors import ROOT_FILE, AuthorsData
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.metadata import METADATA
from audioldm2_jax.data.public.table import LAYOUTS, layout_of, open_public
from audioldm2_jax.data.records import SUFFIXES
from audioldm2_jax.data.webdataset import WebDataset
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import read_json_object, shown

_RECORDINGS, _TABLES, _TARS = "recordings", "Parquet or Arrow files", "tar files"
_OWN = "captions of one's own"
_KINDS = dict.fromkeys(SUFFIXES, _RECORDINGS) | {".parquet": _TABLES, ".arrow": _TABLES, ".tar": _TARS}


def open_path(data: ConfigDict, source: str, split: str, rate: int) -> Source:
    """Opens the data at the path `source`.

    Args:
        data: that section of the recipe.
        source: a folder or a file, as a person typed it.
        split: "train" or "heldout".
        rate: Hz, of the waveforms.

    Raises:
        ValueError: there is nothing, or several kinds of data; the message says what to do.
    """
    path = local_path(source, "--config.data.source")
    root = path if path.is_dir() else path.parent
    found = _found(path)
    if roots := found.pop(ROOT_FILE, []):
        if len(roots) > 1:
            raise ValueError(f"{shown(path)} holds several {ROOT_FILE} ({', '.join(map(shown, roots))}): name one")
        return AuthorsData(root / roots[0], split, rate, data.heldout_share)
    if LAYOUTS.keys() & found.keys():
        found.pop(_RECORDINGS, None)  # which the lists name
    else:
        found.pop(_OWN, None)
    if len(found) > 1:
        examples = ", ".join(f"{kind} ({shown(names[0])})" for kind, names in found.items())
        raise ValueError(
            f"{shown(path)} holds {examples}, and which of them are the data cannot be told: name one file or a folder "
            "of one kind with --config.data.source, or move the others elsewhere"
        )
    for layout, lists in found.items():
        if layout in LAYOUTS:
            return open_public(layout, root, lists, split, rate, data.heldout_share)
    if _TABLES in found:
        from audioldm2_jax.data.hugging_face import HuggingFace  # pyarrow takes a third of a second, too

        features = data.audio_feature, data.text_feature
        return HuggingFace(root, found[_TABLES], split, rate, data.heldout_share, *features)
    if _TARS in found:
        return WebDataset(root, found[_TARS], split, rate, data.heldout_share)
    return Folder(source, split, rate, data.heldout_share, data.absent)


def _found(path: Path) -> dict[str, list[str]]:
    """Kind of data → sorted names of the files of that kind, at a path or below it; of recordings there is one.

    Hidden files do not count.
    """
    if not path.is_dir():
        kind = _kind(path, path.name)
        if kind is None and path.suffix.lower() == ".json" and path.is_file():
            kind = ROOT_FILE
        return {kind: [path.name]} if kind not in (None, _RECORDINGS, _OWN) and path.is_file() else {}
    found: dict[str, list[str]] = defaultdict(list)
    seen = set()
    for folder, folders, names in os.walk(path, onerror=_warn, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, path).replace(os.sep, "/")
        kinds = {name: _kind(Path(folder, name), f"{below}/{name}") for name in sorted(names)}
        written = _written(Path(folder)) if _TABLES in kinds.values() and "state.json" in names else None
        for name, kind in kinds.items():
            if kind == _RECORDINGS and found[kind]:  # there may be millions, and one tells
                continue
            if kind and (written is None or kind != _TABLES or name in written):
                found[kind].append(name if below == "." else f"{below}/{name}")
    return dict(found)


def _warn(error: OSError) -> None:
    logging.warning("%s cannot be opened (%s): what it holds is not read", shown(error.filename), error.strerror)


def _kind(file: Path, name: str) -> str | None:
    """What a file is, by its name below the folder and, of CSV files, by how it begins."""
    base = file.name
    suffix = os.path.splitext(base.rstrip())[1].lower()
    if base.startswith("."):
        return None
    if base == ROOT_FILE:
        return ROOT_FILE
    if layout := layout_of(file, name):
        return layout.name
    if base.lower() in METADATA:
        return _OWN
    return _KINDS.get(suffix)


def _written(folder: Path) -> set[str] | None:
    """The files that `datasets.save_to_disk` wrote in a folder; None where it did not. Others are its caches."""
    files = read_json_object(folder / "state.json").get("_data_files")
    if not isinstance(files, list):
        return None
    return {file["filename"] for file in files if isinstance(file, dict) and isinstance(file.get("filename"), str)}
