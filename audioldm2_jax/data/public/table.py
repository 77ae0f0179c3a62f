"""Public data sets in the layouts that their authors publish, and what tells one from another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from audioldm2_jax.data.public import captioned, fma, speech, youtube
from audioldm2_jax.data.public.listed import Content, Listed, Sounds

_HEAD = 4096  # bytes of a list that tell which one it is
_AUDIOSET = re.compile(r"#\s*YTID\s*,", re.IGNORECASE)
_LJSPEECH = re.compile(r"[^|\s][^|\n]*\|[^|\n]*(\|[^|\n]*)?(\n|$)")
_WAVCAPS = re.compile(r"(^|/)((as|bbc|fsd|sb)_final(_2s)?|json_files/(?!blacklist/)(.*/)?[^/]+)\.json$")


class Layout(NamedTuple):
    """How the authors of a data set lay it out.

    Attributes:
        name: what they call it.
        read: (folder, names of the lists below it, sound files) → what the lists hold.
    """

    name: str
    read: Callable[[Path, list[str], Sounds], Content]


AUDIOCAPS = Layout("AudioCaps", youtube.audiocaps)
MUSICCAPS = Layout("MusicCaps", youtube.musiccaps)
AUDIOSET = Layout("AudioSet", youtube.audioset)
WAVCAPS = Layout("WavCaps", captioned.wavcaps)
CLOTHO = Layout("Clotho", captioned.clotho)
FMA = Layout("FMA", fma.fma)
LJSPEECH = Layout("LJSpeech", speech.ljspeech)
LIBRITTS = Layout("LibriTTS", speech.libritts)
GIGASPEECH = Layout("GigaSpeech", speech.gigaspeech)

LAYOUTS = {
    layout.name: layout
    for layout in (AUDIOCAPS, MUSICCAPS, AUDIOSET, WAVCAPS, CLOTHO, FMA, LJSPEECH, LIBRITTS, GIGASPEECH)
}


def layout_of(file: Path, name: str) -> Layout | None:
    """The layout in which a file is a list of recordings; None where it is no such list.

    Args:
        file: where it lies.
        name: its path below the folder of the data set.
    """
    base = os.path.basename(name)
    if base.endswith(speech.NORMALIZED):
        return LIBRITTS
    if base == "GigaSpeech.json":
        return GIGASPEECH
    if base.endswith(".json"):
        return WAVCAPS if _WAVCAPS.search(name) else None
    return _of_csv(file) if base.lower().endswith(".csv") else None


def open_public(name: str, root: Path, lists: list[str], split: str, rate: int, heldout_share: float) -> Listed:
    """Opens the data set whose layout is called `name`; the rest as of `Listed`.

    Raises:
        ValueError: a list is not as published, or none of its recordings is here.
    """
    sounds = Sounds(root)
    return Listed(name, root, LAYOUTS[name].read(root, lists, sounds), sounds, split, rate, heldout_share)


def _of_csv(file: Path) -> Layout | None:
    try:
        with file.open("rb") as content:
            head = content.read(_HEAD).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    except OSError:
        return None
    lines = head.split("\n")
    columns = {name.strip(' "') for name in lines[0].split(",")}
    if {"youtube_id", "caption"} <= columns:
        return AUDIOCAPS
    if {"ytid", "caption"} <= columns:
        return MUSICCAPS
    if {"file_name", "caption_1"} <= columns:
        return CLOTHO
    if any(_AUDIOSET.match(line) for line in lines[:5]):
        return AUDIOSET
    if file.name == "tracks.csv" and {"album", "track", "set"} <= columns:
        return FMA
    wavs = file.with_name("wavs")
    return LJSPEECH if file.name == "metadata.csv" and _LJSPEECH.match(head) and wavs.is_dir() else None
