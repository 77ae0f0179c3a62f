"""Public data sets: lists that their authors publish, and the recordings that people have of them.

A layout (public/table.py) reads the lists into items. Here these become a source: which recordings are here, where in
them an item lies, and in which split it is.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.example import GIVEN_SPLITS, UnreadableRecord
from audioldm2_jax.data.records import (
    OTHER_SOUND,
    SUFFIXES,
    THREADS,
    Records,
    are_given,
    file_digests,
    listing_of,
)
from audioldm2_jax.data.table import Row, Table, split_hash
from audioldm2_jax.runtime.text_files import shown

_SPARE = 1.0  # seconds by which a file that holds a clip alone may be longer than the clip


class Item(NamedTuple):
    """What a list says of one recording, or of a piece of one.

    Attributes:
        file: the sound file, relative to the folder of the data set.
        texts: what is written about it.
        split: of `GIVEN_SPLITS`, the one that the authors have it in; None where they do not say.
        span: where it begins and ends in the file, in seconds; None: it is the whole.
        cut: whether the file may hold the span alone, as people cut clips out of videos.
    """

    file: str
    texts: Texts
    split: str | None = None
    span: tuple[float, float] | None = None
    cut: bool = False


class Content(NamedTuple):
    """What the lists of a data set hold.

    Attributes:
        items: by the names of the records.
        missing: what of the lists is not used → why: mostly that its recording is not here.
    """

    items: dict[str, Item]
    missing: dict[str, str]

    def add(self, name: str, item: Item) -> None:
        """Adds an item; what several lines say of one recording belongs together."""
        known = self.items.get(name, item)
        captions = tuple(dict.fromkeys((*known.texts.captions, *item.texts.captions)))
        said = known.texts.transcription or item.texts.transcription
        # What a list holds out is not trained on for another one's sake.
        split = max(known.split, item.split, key=lambda one: GIVEN_SPLITS.index(one) if one else -1)
        self.items[name] = item._replace(texts=Texts(captions, said), split=split)


FolderTest = Callable[[str], bool | None]
"""Whether a folder, by its path, is where the recordings of a list should be. Elsewhere they count where there is none;
None: never, as what is there is of another list."""


class Sounds:
    """The sound files below a folder, by their names without folder and ending."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, list[str]] = defaultdict(list)
        self._unread: dict[str, str] = {}
        seen = set()
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                path = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
                if name.startswith("."):
                    continue
                if suffix.lower() in SUFFIXES:
                    self.files[stem].append(path)
                elif suffix.lower() in OTHER_SOUND:
                    self._unread[stem] = path

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    def find(self, stems: Sequence[str], folder: FolderTest | None = None) -> str | None:
        """The file that has the first of the names that any has.

        Args:
            stems: names without ending.
            folder: see `FolderTest`.
        """
        for stem in stems:
            ranked = [(folder(os.path.dirname(path)) if folder else False, path) for path in self.files.get(stem, ())]
            if found := [path for rank in (True, False) for other, path in ranked if other is rank]:
                return found[0]
        return None

    def why_not(self, stems: Sequence[str]) -> str:
        """Why there is none."""
        for stem in stems:
            if path := self._unread.get(stem):
                return f"{shown(path)} is in a format that is not read; convert it (ffmpeg -i … {shown(stem)}.flac)"
        return f"no recording {shown(stems[0])}.wav, .flac, …"


class Listed(Records):
    """The records of one split of a public data set.

    Where the lists hold out some of their recordings (a test set), these are the held-out split; else a recording's
    hash decides, all pieces of it alike. What the lists name and is not here is kept in `skipped`, as is what cannot be
    read.

    Args:
        name: what the data set is called in messages.
        root: its folder.
        content: what its lists hold.
        sounds: the sound files there are.
        the rest: as of `Records`.

    Raises:
        ValueError: none of the recordings is here.
    """

    unit = "recordings"
    expected = ", ".join(SUFFIXES)

    def __init__(
        self,
        name: str,
        root: Path,
        content: Content,
        sounds: Sounds,
        split: str,
        sampling_rate: int,
        heldout_share: float,
    ) -> None:
        self.root, self.sampling_rate = root, sampling_rate
        items, skipped = content.items, dict(content.missing)
        if not items:
            raise ValueError(
                f"{shown(root)}: the lists of {name} name {len(skipped)} recordings, and none of them is below that "
                f"folder, which holds {len(sounds)} sound files{listing_of([*skipped.values()])}"
            )
        lengths = self._lengths(sorted({item.file for item in items.values()}))
        found = {}
        for key, item in items.items():
            try:
                found[key] = self._place(item, lengths[item.file])
            except files.UnreadableAudio as error:
                skipped[key] = str(error)
        self._given = are_given(items[key].split for key in found)
        rows = [Row(key, place, items[key].texts, split=self._split_of(items[key])) for key, place in found.items()]
        if self._given:
            rows.sort(key=lambda row: row.split)
        rows += [Row(key, reason=reason) for key, reason in skipped.items()]
        super().__init__(root, Table.of(rows), split, sampling_rate, heldout_share)
        if unnamed := len(sounds) - len(lengths):
            logging.info("%s: %d sound files are in none of the lists and left out", shown(root), unnamed)

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of the sound files, as of `Recordings`."""
        names = dict.fromkeys(file for file, *_ in self._places[:records])
        return file_digests({name: self.root / name for name in names}, places=3)

    def _lengths(self, names: Sequence[str]) -> dict[str, int | str]:
        """Sound file → its samples, or why it cannot be read."""

        def one(name: str) -> int | str:
            try:
                return files.length(self.root / name, self.sampling_rate)
            except files.UnreadableAudio as error:
                return str(error)

        with ThreadPool(THREADS) as pool:
            return dict(zip(names, pool.map(one, names)))

    def _place(self, item: Item, length: int | str) -> list[Any]:
        """File, first sample and samples of an item.

        Raises:
            UnreadableAudio: the file cannot be read, or does not reach that far.
        """
        if isinstance(length, str):
            raise files.UnreadableAudio(length)
        if item.span is None:
            return [item.file, 0, length]
        begin, end = item.span
        if item.cut and length <= (end - begin + _SPARE) * self.sampling_rate:
            return [item.file, 0, length]
        first, last = round(begin * self.sampling_rate), min(round(end * self.sampling_rate), length)
        if first >= last:
            raise files.UnreadableAudio(
                f"{shown(self.root / item.file)} is {length / self.sampling_rate:.1f} s long, but what is listed lies "
                f"from second {begin:g} to {end:g}"
            )
        return [item.file, first, last - first]

    def _split_of(self, item: Item) -> int:
        """What the table's column has of an item."""
        return GIVEN_SPLITS.index(item.split or GIVEN_SPLITS[0]) if self._given else split_hash(item.file)

    def part_of(self, index: int) -> tuple[str, float]:
        """See `Source.part_of`: the file."""
        file, first, _ = self._places[index]
        return file, first / self.sampling_rate

    def original(self, index: int) -> files.Original:
        """See `Source.original`."""
        file, first, length = self._places[index]
        path = self.root / file
        try:
            if not first and length == files.length(path, self.sampling_rate):
                return files.original(path)
            return files.original(path, part=(first / self.sampling_rate, length / self.sampling_rate))
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        file, first, length = self._places[index]
        if samples is None or samples >= length:
            return files.read(self.root / file, self.sampling_rate, first, length)
        start = first + int(position * (length - samples + 1))
        return files.read(self.root / file, self.sampling_rate, start, samples)


def collect(
    sounds: Sounds,
    entries: Iterable[tuple[str, Sequence[str], Item]],
    near: FolderTest | None = None,
) -> Content:
    """Items whose sound files are here.

    Args:
        sounds: the files there are.
        entries: what messages call an entry, the names without ending that its file may have, and the item without it.
        near: see `FolderTest`.
    """
    content = Content({}, {})
    for where, stems, item in entries:
        file = sounds.find(stems, near)
        if file is None:
            content.missing.setdefault(piece_name(stems[0], item.span), f"{where}: {sounds.why_not(stems)}")
            continue
        content.add(piece_name(file, item.span), item._replace(file=file))
    return content


def piece_name(file: str, span: tuple[float, float] | None) -> str:
    """What the piece of a file is called; the file's name where it is the whole."""
    return file if span is None else f"{file}@{span[0]:g}"


def number(text: str, where: str, what: str) -> float:
    """A number of a list, not negative.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < 2**31:
        raise ValueError(f"{where}: {what} is {text!r}, not a number of seconds")
    return value


def merged(contents: Iterator[Content]) -> Content:
    """The items of several lists."""
    whole = Content({}, {})
    for content in contents:
        for name, item in content.items.items():
            whole.add(name, item)
        whole.missing.update(content.missing)
    return whole
