"""WebDataset: tar files with key.flac beside key.txt or key.json, read in place.

A record's parts have the same name but for the ending. The sound is any that soundfile reads; the text file is its
caption, and a JSON object says more (data/captions.py). One pass over the headers finds where everything lies; after
that a record is read by its place. Compressed tar files have no places and are not read.
"""

from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts, captions_of, texts_in
from audioldm2_jax.data.records import OTHER_SOUND, SUFFIXES
from audioldm2_jax.data.shards import Index, Shards
from audioldm2_jax.runtime.text_files import decode_text, json_object, shown

_BLOCK = 512  # bytes: tar's unit


class WebDataset(Shards):
    """The records of one split in tar files; arguments as of `Shards`.

    Of a damaged or truncated tar file, what comes before the damage is used.
    """

    expected = f"key{', key'.join(SUFFIXES)} in tar files"

    def _index(self, shard: str) -> Index:
        path = self.root / shard
        sounds: dict[str, tuple[str, list[int]]] = {}
        texts: dict[str, dict[str, bytes]] = defaultdict(dict)
        problems: dict[str, str] = {}
        with path.open("rb") as file:
            for member in _members(file, problems):
                stem, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                if os.path.basename(stem).startswith("."):  # what macOS adds
                    continue
                if suffix in (".txt", ".json"):
                    file.seek(member.offset_data)
                    texts[stem].setdefault(suffix, file.read(member.size))
                elif suffix in OTHER_SOUND:
                    problems[member.name] = f"{suffix} is not read; convert it to FLAC"
                elif suffix in SUFFIXES and member.name in sounds:
                    problems[f"{member.name} again"] = "the name is there twice; the first one counts"
                elif suffix in SUFFIXES:
                    sounds[member.name] = stem, [member.offset_data, member.size]
        if not sounds and not problems:
            problems[""] = "holds no sound files"
        records = {}
        for name, (stem, place) in sounds.items():
            try:
                records[name] = place, _texts(texts.get(stem, {}), shown(path / stem))
            except ValueError as error:
                problems[name] = str(error)
        return Index(records, problems)

    def _sound(self, index: int) -> bytes:
        shard, (offset, size) = self._places[index]
        try:
            with (self.root / shard).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            where = shown(self.root / self.names[index])
            raise files.UnreadableAudio(f"{where} cannot be read: {error.strerror or error}") from error


def _texts(beside: dict[str, bytes], where: str) -> Texts:
    """What the text and the JSON file of a record say; `where` is what messages call it, without ending."""
    text = decode_text(beside[".txt"], f"{where}.txt") if ".txt" in beside else None
    captions = captions_of(text, f"{where}.txt")
    if ".json" not in beside:
        return Texts(captions)
    record = json_object(decode_text(beside[".json"], f"{where}.json"), f"{where}.json")
    return texts_in(record, f"{where}.json", captions, f"{where}.txt")


def _members(file: BinaryIO, problems: dict[str, str]) -> Iterator[tarfile.TarInfo]:
    """The whole files in a tar file; why the rest of it is not used goes to `problems`.

    Raises:
        ValueError: it is no tar file.
    """
    size, end = os.fstat(file.fileno()).st_size, 0
    try:
        tar = tarfile.open(fileobj=file, mode="r:", errorlevel=0)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ValueError(f"is no tar file, or a compressed one ({error}): unpack and pack it anew") from error
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            problems[""] = f"is damaged or incomplete from byte {end:,} on ({error}): what comes before is used"
            return
        if member is None:
            break
        tar.members.clear()  # which would keep every header of a large file
        if tar.offset <= end:
            problems[""] = f"is damaged at byte {end:,}: what comes before is used"
            return
        end = tar.offset
        if member.offset_data + member.size > size:
            problems[member.name] = "is incomplete, as the tar file ends before it does: download or pack it again"
        elif member.isreg() and not member.issparse():
            yield member
    file.seek(tar.offset)
    block = file.read(_BLOCK)
    if not block:
        problems[""] = "ends without tar's mark of the end, so files may be missing: what there is is used"
    elif block.strip(b"\0"):
        problems[""] = f"is damaged at byte {tar.offset:,}: what comes before is used"
