"""WavCaps and Clotho: sounds with captions that people or a language model wrote.

WavCaps    json_files/SoundBible/sb_final.json       {"data": [{"id": "2219", "caption": "…", …}]},
           AudioSet_SL/as_final.json, FreeSound/…    or the list alone
           …/SoundBible_flac/2219.flac               an id may end with .wav, as AudioSet's do
Clotho     clotho_captions_development.csv           file_name,caption_1,…,caption_5
           development/*.wav                         or clotho_audio_development/*.wav; so validation and evaluation
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audioldm2_jax.data.captions import Texts, captions_of
from audioldm2_jax.data.csv_rows import rows_of
from audioldm2_jax.data.public.json_objects import objects_of
from audioldm2_jax.data.public.listed import Content, FolderTest, Item, Sounds, collect, merged
from audioldm2_jax.data.public.youtube import split_named
from audioldm2_jax.data.records import SUFFIXES

#: How the names of WavCaps' lists begin → the folder of their recordings, whose name may go on.
_PARTS = {"as_": "AudioSet_SL", "bbc_": "BBC_Sound_Effects", "fsd_": "FreeSound", "sb_": "SoundBible"}
_SPLITS = "development", "validation", "evaluation"
_CLOTHO = re.compile(r"clotho_captions_(\w+)\.csv$", re.IGNORECASE)


def wavcaps(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """Captions as they are. The lists know of no test set, and their lists of what others test with
    (json_files/blacklist) are not read."""

    parts = [part.lower() for part in _PARTS.values()]  # their numbers are not each other's

    return merged(collect(sounds, _of_wavcaps(root / name), _among(parts, _part(name).lower())) for name in lists)


def clotho(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """Five captions each; what is not development is held out."""

    def entries(file: Path, split: str) -> Iterator[tuple[str, list[str], Item]]:
        for where, row in rows_of(file, ("file_name", "caption_1")):
            captions = captions_of([text for key, text in row.items() if key.startswith("caption_")], where)
            yield where, [os.path.splitext(row["file_name"].strip())[0]], Item("", Texts(captions), split)

    parts = {name: match[1].lower() for name in lists if (match := _CLOTHO.search(name))}
    near = {name: _among(_SPLITS, part) for name, part in parts.items()}
    return merged(collect(sounds, entries(root / name, split_named(name)), near.get(name)) for name in lists)


def _among(parts: Sequence[str], own: str) -> FolderTest:
    """The folders of one part of a data set: its name, or what of a longer name begins or ends with it."""

    def test(folder: str) -> bool | None:
        words = [word for word in folder.lower().split("/") if word]
        named = {part for part in (*parts, own) for word in words if word.startswith(part) or word.endswith(part)}
        return None if named - {own} else own in named

    return test


def _of_wavcaps(file: Path) -> Iterator[tuple[str, list[str], Item]]:
    for where, record in objects_of(file, "data"):
        yield where, [_stem(record.get("id"), where)], Item("", Texts(captions_of(record.get("caption"), where)))


def _stem(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{where}: no id; each record needs {{"id": "2219", "caption": "…"}}')
    stem, suffix = os.path.splitext(value.strip())
    return stem if suffix.lower() in SUFFIXES else value.strip()


def _part(name: str) -> str:
    """Which part of WavCaps a list is of."""
    folder, file = os.path.split(name)
    known = next((part for prefix, part in _PARTS.items() if file.startswith(prefix)), "")
    return known or os.path.basename(folder)
