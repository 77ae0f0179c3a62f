"""A folder of one's own recordings, with captions as Hugging Face's AudioFolder has them.

    recordings/
      metadata.jsonl      {"file_name": "a.wav", "text": "rain on a tin roof"}   (or metadata.csv: file_name,text)
      a.wav
      more/b.flac

Metadata may lie in any subfolder; names are relative to it. Recordings that it does not name have no caption.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

from audioldm2_jax.audio import files
from audioldm2_jax.data.draw import digest
from audioldm2_jax.data.example import Example, Source, UnreadableRecord

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
_METADATA = ("metadata.jsonl", "metadata.csv")
_LISTED = 5  # names that an error or a warning spells out


class Folder(Source):
    """The recordings of one split of a folder, read from disk when asked for.

    Files whose header cannot be read are left out and kept in `skipped`, file → reason.

    Raises:
        ValueError: no such folder, no readable recording in it, metadata that cannot be parsed or that names files
            which are not there.
    """

    def __init__(self, path: str | Path, split: str, sampling_rate: int, heldout_share: float) -> None:
        self.root, self.sampling_rate = Path(path).expanduser(), sampling_rate
        if not self.root.is_dir():
            raise ValueError(f"there is no folder {self.root}; data.source must name a folder of recordings")
        names = sorted(
            file.relative_to(self.root).as_posix()
            for file in self.root.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        captions = _captions(self.root, set(names))
        lengths, self.skipped = {}, {}
        for name in names:
            try:
                lengths[name] = files.length(self.root / name, sampling_rate)
            except files.UnreadableAudio as error:
                self.skipped[name] = str(error)
        if not lengths:
            raise ValueError(
                f"{self.root} holds no recording that can be read ({len(names)} files end in {', '.join(SUFFIXES)})"
                + _listing(list(self.skipped.values()))
            )
        if self.skipped:
            logging.warning(
                "%s: %d of %d files cannot be read and are skipped%s",
                self.root,
                len(self.skipped),
                len(names),
                _listing(list(self.skipped.values())),
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

    def text(self, index: int) -> str | None:
        """The caption of a recording, without reading it."""
        return self._captions[index]

    def _read(self, index: int, start: int, samples: int | None) -> Example:
        name = self.names[index]
        try:
            waveform = files.read(self.root / name, self.sampling_rate, start, samples)
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        return Example(waveform, self._captions[index], {"name": name})


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


def parse_metadata(content: str, where: str) -> dict[str, str | None]:
    """Reads metadata.jsonl or metadata.csv, told apart by the ending of `where`.

    Returns:
        file_name → caption, None where it is missing or empty.

    Raises:
        ValueError: naming `where` and the line.
    """
    rows = _json_rows(content, where) if where.endswith(".jsonl") else _csv_rows(content, where)
    captions: dict[str, str | None] = {}
    named = False
    for line, row in rows:
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}, line {line}: no file_name; each record needs file_name and text")
        if not isinstance(text, str | None):
            raise ValueError(f"{where}, line {line}: text is {text!r}, not a string")
        if name in captions:
            raise ValueError(f"{where}, line {line}: {name} is named twice")
        named = named or "text" in row
        captions[name] = (text or "").strip() or None
    if captions and not named:
        raise ValueError(f"{where} has no text; captions go under that name")
    return captions


def _json_rows(content: str, where: str) -> list[tuple[int, dict]]:
    rows = []
    for line, record in enumerate(content.split("\n"), 1):
        if not record.strip():
            continue
        try:
            row = json.loads(record)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}, line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}, line {line}: not an object such as {{"file_name": "a.wav", "text": "…"}}')
        rows.append((line, row))
    return rows


def _csv_rows(content: str, where: str) -> list[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if "file_name" not in columns:
            raise ValueError(f"{where} has no column file_name; its first line names {', '.join(columns) or 'nothing'}")
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}: not CSV ({error})") from error


def _captions(root: Path, names: set[str]) -> dict[str, str | None]:
    """The captions of all metadata below `root`, by path relative to it."""
    captions, absent = {}, []
    for file in sorted(file for pattern in _METADATA for file in root.rglob(pattern)):
        try:
            content = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 ({error})") from error
        for name, text in parse_metadata(content, str(file)).items():
            path = (file.parent.relative_to(root) / name).as_posix()
            if path in names:
                captions[path] = text
            else:
                absent.append(f"{file} names {name}")
    if absent:
        raise ValueError(f"{root}: metadata names {len(absent)} files that are not recordings there{_listing(absent)}")
    return captions


def _listing(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:_LISTED], *more])
