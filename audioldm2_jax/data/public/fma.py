"""The Free Music Archive data set (mdeff/fma): tracks by number, with genres and tags.

fma_metadata/tracks.csv    three rows of headers: group, column, and the name of the index; then a row a track
fma_metadata/genres.csv    genre_id,#tracks,parent,title,top_level
fma_small/000/000002.mp3   and so fma_medium, fma_large, fma_full
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audioldm2_jax.data.captions import Texts, joined_labels
from audioldm2_jax.data.class_names import python_list
from audioldm2_jax.data.csv_rows import fields_of, rows_of
from audioldm2_jax.data.public.listed import Content, Item, Sounds, collect, merged
from audioldm2_jax.runtime.text_files import shown

_TOP, _GENRES, _TAGS = ("track", "genre_top"), ("track", "genres"), ("track", "tags")
_SPLIT, _SUBSET = ("set", "split"), ("set", "subset")
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
_SIZES = ("small", "medium", "large", "full")  # each one holds those before it


def fma(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """The genres by their names, the top one first, then the tags, are the caption. Validation and test tracks are held
    out. Of a smaller set, tracks that are only in a larger one are not missing.
    """
    sizes = {part.removeprefix("fma_") for paths in sounds.files.values() for path in paths for part in path.split("/")}
    largest = max((_SIZES.index(size) for size in sizes & {*_SIZES}), default=len(_SIZES) - 1)
    return merged(collect(sounds, _tracks(root / name, {*_SIZES[: largest + 1]})) for name in lists)


def _tracks(file: Path, subsets: set[str]) -> Iterator[tuple[str, list[str], Item]]:
    genres = _genres(file.with_name("genres.csv"))
    columns: dict[tuple[str, str], int] = {}
    headers: list[list[str]] = []
    for where, fields in fields_of(file):
        if len(headers) < 3:
            headers.append(fields)
            if len(headers) == 3:
                columns = _columns(file, headers)
            continue
        if len(fields) != len(headers[0]):
            raise ValueError(f"{where}: {len(fields)} fields, but the headers name {len(headers[0])} columns")
        values = {name: fields[place].strip() for name, place in columns.items()}
        if not fields[0].strip().isdecimal():
            raise ValueError(f"{where}: {fields[0]!r} is no number of a track")
        if values.get(_SUBSET, "") in subsets or not values.get(_SUBSET):
            labels = [values[_TOP], *_named(values[_GENRES], genres, where), *python_list(values.get(_TAGS, ""), where)]
            split = _SPLITS.get(values[_SPLIT], "train") if _SPLIT in values else None
            yield where, [f"{int(fields[0]):06d}"], Item("", Texts(joined_labels(labels)), split)


def _columns(file: Path, headers: list[list[str]]) -> dict[tuple[str, str], int]:
    names = list(zip(headers[0], headers[1]))
    for needed in (_TOP, _GENRES):
        if needed not in names:
            raise ValueError(f"{shown(file)} has no column {'/'.join(needed)} in its first two rows")
    return {name: names.index(name) for name in (_TOP, _GENRES, _TAGS, _SPLIT, _SUBSET) if name in names}


def _genres(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise ValueError(f"{shown(file)} is not there, which says what the genres are called: put it beside tracks.csv")
    return {row["genre_id"].strip(): row["title"] for _, row in rows_of(file, ("genre_id", "title"))}


def _named(value: str, genres: dict[str, str], where: str) -> list[str]:
    numbers = python_list(value, where)
    if unknown := [number for number in numbers if number not in genres]:
        raise ValueError(f"{where}: genre {unknown[0]} is not in genres.csv")
    return [genres[number] for number in numbers]
