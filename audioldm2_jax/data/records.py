"""Sources that know their records by name: which of them a split has, their captions, what hosts agree on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.draw import digest
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.runtime.text_files import shown

SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".snd", ".w64"),
)
#: Sound that libsndfile does not read.
OTHER_SOUND = (
    *(".3gp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".avi", ".dsf", ".dts", ".flv", ".m4a", ".m4b", ".mid", ".mka"),
    *(".midi", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg", ".ra", ".spx", ".tta", ".weba", ".webm"),
    *(".wma", ".wmv", ".wv"),
)
THREADS = 32  # files at a time, as a network makes each wait
_LISTED = 5  # names that an error or a warning spells out
_PIECE = 2**15  # bytes of a digest at a place of a file


class Records(Source):
    """The records of one split, known by name; a subclass finds them, and reads them when asked for.

    What cannot be read is left out and kept in `skipped`, name → reason.

    Args:
        root: where they were found, for messages; names are relative to it.
        found: name → (where the record lies, as JSON can hold it; what is written about it). The name decides the
            split.
        skipped: name → reason.
        split: "train" or "heldout".
        sampling_rate: Hz, of the waveforms returned.
        heldout_share: of the records, by hash of their names.

    Raises:
        ValueError: no record can be read, or all are held out.
    """

    unit = "records and files"
    """What is counted in messages."""
    expected = ""
    """What would be read, for the message that there is none."""

    def __init__(
        self,
        root: Path,
        found: Mapping[str, tuple[Any, Texts]],
        skipped: dict[str, str],
        split: str,
        sampling_rate: int,
        heldout_share: float,
    ) -> None:
        self.root, self.sampling_rate, self.skipped, self._warned = root, sampling_rate, skipped, False
        total, reasons = len(found) + len(skipped), [shown(reason) for reason in skipped.values()]
        if not found:
            raise ValueError(
                f"{shown(root)} holds no recording that can be read ({total} files or links seem to be some; read "
                f"are {self.expected}){listing_of(reasons)}"
            )
        if skipped:
            message = "%s: %d of %d %s cannot be read and are skipped%s"
            logging.warning(message, shown(root), len(skipped), total, self.unit, listing_of(reasons))
        self.names = self._of_split(list(found), split, heldout_share)
        self._places = [found[name][0] for name in self.names]
        self._texts = [found[name][1] for name in self.names]

    def _of_split(self, names: list[str], split: str, heldout_share: float) -> list[str]:
        """Those of the names that are of a split; a source that is given its splits overrides this."""
        chosen = split_names(names, split, heldout_share)
        if not chosen:
            raise ValueError(
                f"{shown(self.root)}: all {len(names)} records are held out, and none is left to learn from: lower "
                f"--config.data.heldout_share={heldout_share:g}, or add records"
            )
        return chosen

    def _sound(self, index: int) -> Path | bytes:
        """The sound file of a record: where it lies, or its content.

        Raises:
            UnreadableAudio: it cannot be read.
        """
        raise NotImplementedError

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        """An excerpt of a record as of `excerpt`; None: the whole.

        Raises:
            UnreadableAudio: it cannot be read.
        """
        sound = self._sound(index)
        if isinstance(sound, bytes):
            where = shown(self.root / self.names[index])
            return files.read_encoded(sound, where, self.sampling_rate, samples, position)
        start = 0
        if samples is not None and position:
            start = int(position * max(files.length(sound, self.sampling_rate) - samples + 1, 1))
        return files.read(sound, self.sampling_rate, start, samples)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return self._example(index, None, 0.0)

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`; decodes no more than the excerpt."""
        return self._example(index, samples, position)

    def name_of(self, index: int) -> str:
        """See `Source.name_of`."""
        return self.names[index]

    def original(self, index: int) -> files.Original:
        """See `Source.original`."""
        try:
            return files.original(self._sound(index), shown(self.root / self.names[index]))
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error

    def text(self, index: int) -> str | None:
        """The first caption of a record, without reading it."""
        return next(iter(self._texts[index].captions), None)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a record, without reading it."""
        return self._texts[index].captions

    def transcription(self, index: int) -> str | None:
        """What is said in a record, without reading it."""
        return self._texts[index].transcription

    def listing(self) -> Any:
        """See `Source.listing`: the readable records, where they lie, and what is written about them."""
        return [
            [name, place, list(texts.captions), texts.transcription]
            for name, place, texts in zip(self.names, self._places, self._texts)
        ]

    def follow(self, listing: Any) -> str:
        """See `Source.follow`."""
        own, other = {name: rest for name, *rest in self.listing()}, {name: rest for name, *rest in listing}
        different = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        self.names, self._places = ([record[i] for record in listing] for i in range(2))
        self._texts = [Texts(tuple(captions), said) for *_, captions, said in listing]
        reasons = [self.skipped.get(name, f"{self.root / name} is not the same file there") for name in different]
        return f"{self.root}: {len(different)} {self.unit} differ{listing_of(reasons)}" if different else ""

    def _example(self, index: int, samples: int | None, position: float) -> Example:
        said = self.transcription(index)
        # One sample more tells whether there is more: what is said in a part of a record is not known.
        more = samples is not None and said is not None
        try:
            waveform = self._waveform(index, samples + more if more else samples, position)
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        if more and len(waveform) > samples:
            waveform, said = waveform[:samples], None
            self._warn_of_parts(index)
        captions = self.captions(index)
        labels = {"name": self.names[index]}
        return Example(waveform, self.text(index), labels, transcription=said, captions=captions)

    def _warn_of_parts(self, index: int) -> None:
        """Says once a process that transcriptions of longer recordings are of no use."""
        if not self._warned:
            self._warned = True
            logging.warning(
                "%s is longer than a clip, so that its transcription says more than is heard: such recordings teach "
                "nothing about words. Cut them at pauses, or make clips longer (--config.audio.seconds)",
                shown(self.root / self.names[index]),
            )


class Recordings(Records):
    """Records that are sound files. How many recordings have captions and cannot be read, `without_sound` tells.

    Args:
        texts: name → what is written about it, of those of which something is.
        the rest: as of `Records`.
    """

    unit, expected = "files", ", ".join(SUFFIXES)

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        texts: Mapping[str, Texts],
        skipped: dict[str, str],
        split: str,
        sampling_rate: int,
        heldout_share: float,
    ) -> None:
        self.root, found = root, {}
        for name in names:
            try:
                found[name] = files.length(self.path(name), sampling_rate), texts.get(name, Texts())
            except files.UnreadableAudio as error:
                skipped[name] = str(error)
        super().__init__(root, found, skipped, split, sampling_rate, heldout_share)
        self.without_sound = sum(bool(texts.get(name, Texts()).captions) for name in skipped)

    def path(self, name: str) -> Path:
        """Where the recording of that name lies."""
        return self.root / name

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of a file's size and 32 KiB at its beginning, middle and end; "unreadable".

        Of 100,000 files 10 GB are read at most, in 32 threads, whenever a cache is opened: half a minute from a disk of
        300 MB/s, two minutes over a network that takes 10 ms to answer; opening the folder takes no less, as it looks
        for the end of every file. Times of modification would cost less, and a copy of the data has others. A change
        that spares the three places and the size is not seen.
        """
        return file_digests({name: self.path(name) for name in self.names[:records]}, places=3)

    def _sound(self, index: int) -> Path:
        return self.path(self.names[index])

    def _waveform(self, index: int, samples: int | None, position: float) -> np.ndarray:
        start = 0 if samples is None else int(position * max(self._places[index] - samples + 1, 1))
        return files.read(self.path(self.names[index]), self.sampling_rate, start, samples)


def split_names(names: list[str], split: str, heldout_share: float, recording: Callable[[str], str] = str) -> list[str]:
    """The names of one split: a name's own hash decides, so that adding records moves none from split to split.

    The held-out split is never empty: where chance leaves it so, it takes the name with the lowest hash (a single
    record is in both splits).

    Args:
        recording: name → that of the recording of which the record is a piece. All pieces of it are in one split.
    """
    recordings = {recording(name) for name in names}
    heldout = {name for name in recordings if digest("split", name) < heldout_share * 2**64}
    heldout = heldout or {min(recordings, key=lambda name: digest("split", name))}
    if split == "heldout" or len(recordings) == 1:
        return [name for name in names if recording(name) in heldout]
    return [name for name in names if recording(name) not in heldout]


def file_digests(paths: Mapping[str, Path], places: int) -> dict[str, str]:
    """Name → digest of a file's size and of 32 KiB at so many places, evenly from beginning to end."""

    def one(path: Path) -> str:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found = hashlib.sha256(str(size).encode())
                for place in range(places):
                    file.seek(max((size - _PIECE) * place // (places - 1), 0))
                    found.update(file.read(_PIECE))
        except OSError:
            return "unreadable"
        return found.hexdigest()[:16]

    with ThreadPool(THREADS) as pool:
        return dict(zip(map(shown, paths), pool.map(one, paths.values())))


def listing_of(lines: list[str]) -> str:
    """The first few lines, for the end of a message."""
    more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_LISTED], *more])
