"""Data as the authors' training code has it (haoheliu/AudioLDM-training-finetuning, audioldm_train/utilities/data).

    data/dataset/metadata/dataset_root.json
      {"audiocaps": "./data/dataset/audioset",
       "metadata": {"path": {"audiocaps": {"train": "./data/dataset/metadata/audiocaps/datafiles/train.json",
                                           "class_label_indices": "./…/class_labels_indices.csv"}}}}
    …/train.json
      {"data": [{"wav": "part36/Yr1nicOVtvkQ.wav", "caption": "A woman talks", "labels": "/m/02jz0l,/m/09x0r"}]}

All data sets that have a file "train" are read, as one. A file of records alone is taken, too; its recordings lie
beside it. Relative paths are sought in the folder of the file that has them and in those above it, as theirs start
where training does. Everything called caption… is a caption, and a recording that several records name has the
captions of all; without any, its labels are the caption by their names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audioldm2_jax.data.captions import Texts, captions_of
from audioldm2_jax.data.class_names import ClassNames
from audioldm2_jax.data.records import Recordings, listing_of
from audioldm2_jax.runtime.text_files import TextFileError, read_json_object, shown

ROOT_FILE = "dataset_root.json"
_LABELS = "class_label_indices"


class AuthorsData(Recordings):
    """The recordings of one split of the data sets in a dataset_root.json, or of one file of records.

    Args:
        file: the one or the other.
        the rest: as of `Recordings`. Records are called DATASET/WAV.

    Raises:
        ValueError: a file is not as described above, or no recording can be read.
    """

    def __init__(self, file: Path, split: str, sampling_rate: int, heldout_share: float) -> None:
        content, skipped = read_json_object(file), {}
        if isinstance(content.get("data"), list):
            sets = {file.stem: (file.parent, file)}
            classes = ClassNames({})
        else:
            sets, classes = _sets(file, content, skipped)
        self._folders = {_key(name): folder for name, (folder, _) in sets.items()}
        captions: dict[str, tuple[str, ...]] = {}
        for name, (_, records) in sets.items():
            for wav, texts, labels in _records(records):
                texts = texts or classes.captions(_labels(labels))
                key = f"{_key(name)}/{wav}"
                captions[key] = tuple(dict.fromkeys((*captions.get(key, ()), *texts)))
        classes.warn(file)
        texts = {name: Texts(found) for name, found in captions.items()}
        super().__init__(file.parent, list(texts), texts, skipped, split, sampling_rate, heldout_share)

    def path(self, name: str) -> Path:
        """Where the recording of that name lies."""
        dataset, _, wav = name.partition("/")
        return self._folders.get(dataset, self.root) / wav  # another host may have data sets that this one has not


def _key(dataset: str) -> str:
    """A data set's part of the names of its records."""
    return dataset.replace("/", "_")


def _sets(
    file: Path, content: Mapping[str, Any], skipped: dict[str, str]
) -> tuple[dict[str, tuple[Path, Path]], ClassNames]:
    """What a dataset_root.json names: data set → (folder of recordings, file of records), and the names of classes.

    Data sets that are not here go to `skipped`: the file lists what its authors have.
    """
    listed = content.get("metadata")
    listed = listed.get("path") if isinstance(listed, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(parts, dict) for parts in listed.values()):
        raise ValueError(
            f'{shown(file)} has no data sets: it needs {{"NAME": "folder", "metadata": {{"path": {{"NAME": '
            '{"train": "file"}}}}'
        )
    found, tables = {}, []
    for name, parts in listed.items():
        if table := parts.get(_LABELS):
            tables.append(_place(file, table, f"{_LABELS} of {name}"))
        if "train" not in parts:
            continue
        try:
            found[name] = _place(file, content.get(name), name), _place(file, parts["train"], f"train of {name}")
        except ValueError as error:
            skipped[name] = str(error)
    if not found:
        raise ValueError(
            f"{shown(file)}: none of its data sets ({', '.join(map(shown, listed)) or 'none'}) has a file train and a "
            f"folder of recordings that are here{listing_of([*skipped.values()])}"
        )
    return found, ClassNames.read(*tables)


def _place(file: Path, written: object, what: str) -> Path:
    """The path that `file` names, relative to its folder or to one above."""
    if not isinstance(written, str) or not written.strip() or "\0" in written:
        raise ValueError(f"{shown(file)}: {what} is {written!r}, not a path")
    for folder in file.absolute().parents:
        if (folder / written.strip()).exists():
            return folder / written.strip()
    raise ValueError(f"{shown(file)}: {what} is {shown(written)}, which is not here: correct it")


def _records(file: Path) -> list[tuple[str, tuple[str, ...], object]]:
    """(wav, captions, labels) of each record in a file."""
    data = read_json_object(file).get("data")
    if not isinstance(data, list):
        raise TextFileError(f'{shown(file)} has no list of records: it needs {{"data": [{{"wav": "a.wav", …}}]}}')
    found = []
    for number, record in enumerate(data, 1):
        where = f"{shown(file)}, record {number}"
        wav = record.get("wav") if isinstance(record, dict) else None
        if not isinstance(wav, str) or not wav.strip() or "\0" in wav:
            raise ValueError(f'{where}: no wav; each record needs {{"wav": "a.wav", "caption": "…"}}')
        texts = [captions_of(value, f"{where}: {key}") for key, value in record.items() if "caption" in key]
        found.append((os.path.normpath(wav.strip()), sum(texts, ()), record.get("labels")))
    return found


def _labels(value: object) -> list[str]:
    """The labels of a record: a list, ids with commas between them, or the one that stands there; else none."""
    if isinstance(value, str):
        return value.split(",") if value.lstrip().startswith("/") else [value]
    return value if isinstance(value, list) and all(isinstance(label, str) for label in value) else []
