"""Where examples come from: the embedded corpus, a TensorFlow Datasets set, or data of one's own in usual layouts."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path

from ml_collections import ConfigDict

from audioldm2_jax.data.authors import ROOT_FILE, AuthorsData
from audioldm2_jax.data.builtin.music import SPLITS, MusicCorpus
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.metadata import METADATA
from audioldm2_jax.data.records import SUFFIXES
from audioldm2_jax.data.webdataset import WebDataset
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import read_json_object, shown

BUILTIN = ("music",)
_KINDS = """data.source is one of
  builtin:music        the embedded music corpus
  tfds:NAME            a TensorFlow Datasets set by name, e.g. tfds:nsynth
  tfds:/FOLDER         one prepared in ArrayRecord, by its folder (…/name/1.0.0)
  /FOLDER              data of your own, told by what lies there:
                         recordings, captions in metadata.jsonl, .csv or .parquet, or beside them (a.wav, a.txt)
                         *.parquet or *.arrow, audio data sets of Hugging Face
                         *.tar, WebDataset
                         dataset_root.json, as AudioLDM's authors have their data
  /FILE                one such file"""
_RECORDINGS, _TABLES, _TARS = "recordings", "Parquet or Arrow files", "tar files"


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens `config.data.source` at the recipe's sampling rate.

    Args:
        config: a recipe; read are `data`, `audio` and `seed`.
        split: "train" or "heldout". The corpus holds out scores, the others a share of the records.

    Raises:
        ValueError: the source is unknown, missing or empty; the message says what to do.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    data, rate = config.data, config.audio.sampling_rate
    named = data.source.strip()
    scheme, _, name = named.partition(":")
    if not named:
        raise ValueError(f"no data: set --config.data.source; {_KINDS}")
    if scheme == "builtin":
        if name not in BUILTIN:
            raise ValueError(f"no embedded corpus {name!r}; there is builtin:{', builtin:'.join(BUILTIN)}")
        return MusicCorpus(rate, config.audio.seconds, config.seed, split, examples=data.examples)
    if scheme == "tfds":
        from audioldm2_jax.data.datasets import Dataset  # its import takes a second that others need not wait

        return Dataset(name, split, rate, data.heldout_share, data.audio_feature, data.text_feature)
    if "://" in named and scheme.lower() != "file":
        raise ValueError(f"data.source is {named!r}: nothing is read from {scheme} addresses; {_KINDS}")
    return _open_path(config, split, rate)


def _open_path(config: ConfigDict, split: str, rate: int) -> Source:
    """Opens data of one's own, by what lies at the path."""
    data = config.data
    path = local_path(data.source, "--config.data.source")
    root = path if path.is_dir() else path.parent
    found = _found(path)
    if roots := found.pop(ROOT_FILE, []):
        if len(roots) > 1:
            raise ValueError(f"{shown(path)} holds several {ROOT_FILE} ({', '.join(map(shown, roots))}): name one")
        return AuthorsData(root / roots[0], split, rate, data.heldout_share)
    if len(found) > 1:
        examples = ", ".join(f"{kind} ({shown(names[0])})" for kind, names in found.items())
        raise ValueError(
            f"{shown(path)} holds {examples}, and which of them are the data cannot be told: name one file or a folder "
            "of one kind with --config.data.source, or move the others elsewhere"
        )
    if _TABLES in found:
        from audioldm2_jax.data.hugging_face import HuggingFace  # pyarrow takes a third of a second, too

        features = data.audio_feature, data.text_feature
        return HuggingFace(root, found[_TABLES], split, rate, data.heldout_share, *features)
    if _TARS in found:
        return WebDataset(root, found[_TARS], split, rate, data.heldout_share)
    return Folder(data.source, split, rate, data.heldout_share)


def _found(path: Path) -> dict[str, list[str]]:
    """Kind of data → sorted names of the files of that kind, at a path or below it; hidden ones do not count."""
    if not path.is_dir():
        kind = _kind(path.name)
        if path.suffix.lower() == ".json" and path.is_file():
            kind = ROOT_FILE
        return {kind: [path.name]} if kind not in (None, _RECORDINGS) and path.is_file() else {}
    found: dict[str, list[str]] = defaultdict(list)
    seen = set()
    for folder, folders, names in os.walk(path, onerror=_warn, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kinds = {name: _kind(name) for name in sorted(names)}
        written = _written(Path(folder)) if _TABLES in kinds.values() and "state.json" in names else None
        for name, kind in kinds.items():
            if kind and (written is None or kind != _TABLES or name in written):
                found[kind].append(os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/"))
    return dict(found)


def _warn(error: OSError) -> None:
    logging.warning("%s cannot be opened (%s): what it holds is not read", shown(error.filename), error.strerror)


def _kind(name: str) -> str | None:
    suffix = os.path.splitext(name.rstrip())[1].lower()
    if name.startswith(".") or name.lower() in METADATA:
        return None
    if name == ROOT_FILE:
        return ROOT_FILE
    return {".parquet": _TABLES, ".arrow": _TABLES, ".tar": _TARS}.get(
        suffix, _RECORDINGS if suffix in SUFFIXES else None
    )


def _written(folder: Path) -> set[str] | None:
    """The files that `datasets.save_to_disk` wrote in a folder; None where it did not. Others are its caches."""
    files = read_json_object(folder / "state.json").get("_data_files")
    if not isinstance(files, list):
        return None
    return {file["filename"] for file in files if isinstance(file, dict) and isinstance(file.get("filename"), str)}
