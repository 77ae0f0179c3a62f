"""LJSpeech, LibriTTS and GigaSpeech: speech with what is said.

    LJSpeech      metadata.csv                              LJ001-0001|text|text with numbers written out
                  wavs/LJ001-0001.wav
    LibriTTS      train-clean-100/103/1241/103_1241_000000_000001.wav, ….normalized.txt, ….original.txt
                  speakers.tsv                              READER, GENDER, SUBSET, NAME
    GigaSpeech    GigaSpeech.json                           {"audios": [{"aid", "path", "source", "segments": [{"sid",
                                                            "begin_time", "end_time", "text_tn", "subsets"}]}]}
                  audio/podcast/P0000/POD0000000001.opus    hours long; or POD0000000001 in another format, anywhere

The transcription is the normalised text. Nobody wrote captions: what is known of the speaker or of the
source makes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

from audioldm2_jax.data.captions import Texts, transcription_of
from audioldm2_jax.data.public.json_objects import objects_of
from audioldm2_jax.data.public.listed import Content, FolderTest, Item, Sounds, collect, merged
from audioldm2_jax.data.records import THREADS
from audioldm2_jax.runtime.text_files import read_text, shown

NORMALIZED, ORIGINAL, SPEAKERS = ".normalized.txt", ".original.txt", "speakers.tsv"
#: How the names of LibriTTS' parts begin that are held out.
_PARTS = {"dev-": "validation", "test-": "test"}
_SOMEBODY = {"F": ("a woman speaks",), "M": ("a man speaks",)}
_SOURCES = {
    "audiobook": ("someone speaks in an audiobook",),
    "podcast": ("someone speaks in a podcast",),
    "youtube": ("someone speaks in a video",),
}
_MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
#: GigaSpeech's utterances without words → what is heard in their place.
_NO_WORDS = {"<SIL>": ("silence",), "<MUSIC>": ("music",), "<NOISE>": ("noise",), "<OTHER>": ()}
_TAG = re.compile(r"<[^<>\s]*>")


def ljspeech(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """One woman reads. The authors hold nothing out."""

    def entries(file: Path) -> Iterator[tuple[str, list[str], Item]]:
        for count, line in enumerate(read_text(file).split("\n"), 1):
            where = f"{shown(file)}, line {count}"
            if not line.strip():
                continue
            name, *texts = line.split("|")  # quotation marks are part of the text
            if len(texts) not in (1, 2) or not name.strip():
                raise ValueError(f"{where}: {len(texts) + 1} fields; it needs NAME|text|normalised text")
            said = next(filter(str.strip, reversed(texts)), None)
            yield where, [name.strip()], Item("", Texts(_SOMEBODY["F"], transcription_of(said, where)))

    def near(beside: str) -> FolderTest:
        return lambda folder: folder.startswith(beside)

    return merged(collect(sounds, entries(root / name), near(os.path.dirname(name))) for name in lists)


def libritts(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """The speaker's gender makes the caption; dev-… and test-… are held out."""
    genders = {}
    for file in sorted(root.rglob(SPEAKERS)):
        for line in read_text(file).split("\n"):
            reader, gender, *_ = [*line.split("\t"), "", ""]
            genders[reader.strip()] = gender.strip().upper()

    def entry(name: str) -> tuple[str, list[str], Item]:
        file, stem = root / name, os.path.basename(name).removesuffix(NORMALIZED)
        original = file.with_name(stem + ORIGINAL)
        said = transcription_of(read_text(file), shown(file))
        if said is None and original.is_file():
            said = transcription_of(read_text(original), shown(original))
        # The parts of the corpus are called dev-clean, test-other, train-clean-100: those are not the last folder.
        folders = name.split("/")
        split = next((_PARTS[begin] for folder in folders for begin in _PARTS if folder.startswith(begin)), "train")
        texts = Texts(_SOMEBODY.get(genders.get(stem.partition("_")[0], ""), ()), said)
        return shown(file), [stem], Item("", texts, split)

    with ThreadPool(THREADS) as pool:
        return collect(sounds, pool.imap(entry, lists, chunksize=64))


def gigaspeech(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """Pieces of long recordings; the source makes the caption; the subsets {DEV} and {TEST} are held out."""
    content = Content({}, {})
    for name in lists:
        for where, audio in objects_of(root / name, "audios"):
            _add_segments(content, root, os.path.dirname(name), where, audio, sounds)
    return content


def _add_segments(content: Content, root: Path, folder: str, where: str, audio: dict, sounds: Sounds) -> None:
    aid, path, segments = audio.get("aid"), audio.get("path"), audio.get("segments")
    if not isinstance(aid, str) or not isinstance(segments, list):
        raise ValueError(f"{where}: it needs aid, path and a list of segments")
    stems = [os.path.splitext(os.path.basename(path))[0] if isinstance(path, str) else aid, aid]
    listed = os.path.normpath(os.path.join(folder, path)) if isinstance(path, str) else ""
    file = sounds.find(stems, lambda place: place == os.path.dirname(listed))
    if file is None:
        content.missing[aid] = f"{where}: {sounds.why_not(stems)}"
        return
    heard = _SOURCES.get(str(audio.get("source")).lower(), ())
    for segment in segments:
        sid = segment.get("sid") if isinstance(segment, dict) else None
        if not isinstance(sid, str):
            raise ValueError(f"{where}, {aid}: a segment has no sid")
        span, subsets = (segment.get("begin_time"), segment.get("end_time")), segment.get("subsets") or ()
        if not all(isinstance(time, int | float) for time in span) or not 0 <= span[0] < span[1]:
            content.missing[sid] = f"{where}, {sid}: it lies from {span[0]} to {span[1]}, which is no piece of time"
            continue
        texts = _said(segment.get("text_tn"), heard, f"{where}, {sid}")
        split = "test" if "{TEST}" in subsets else "validation" if "{DEV}" in subsets else "train"
        content.add(sid, Item(file, texts, split, (span[0], span[1])))


def _said(text: object, heard: tuple[str, ...], where: str) -> Texts:
    """What GigaSpeech's text says: punctuation in words as punctuation, capitals as small letters, other marks as what
    is heard in the place of words."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: text_tn is {text!r}, not a text")
    for tag, mark in _MARKS.items():
        text = re.sub(rf"\s*{tag}", mark, text)
    tags = _TAG.findall(text)
    if not tags:
        return Texts(heard, transcription_of(text.lower(), where))
    # Between words a mark stands for something that the transcription does not have.
    alone = not _TAG.sub("", text).strip()
    return Texts(_NO_WORDS.get(tags[0], ()) if alone else heard)
