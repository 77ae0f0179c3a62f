"""AudioCaps, MusicCaps and AudioSet: lists of ten seconds in videos, and the recordings that people have of them.

    AudioCaps    train.csv, val.csv, test.csv            audiocap_id,youtube_id,start_time,caption
                 (cdjkim/audiocaps, dataset/ and dataset2.0/; val and test describe a clip five times)
    MusicCaps    musiccaps-public.csv                    ytid,start_s,end_s,audioset_positive_labels,aspect_list,
                                                         caption,author_id,is_balanced_subset,is_audioset_eval
    AudioSet     eval_segments.csv, balanced_train_segments.csv, unbalanced_train_segments.csv
                                                         # YTID, start_seconds, end_seconds, positive_labels
                 class_labels_indices.csv                index,mid,display_name

The authors publish no sound. A clip is sought as Y{id}, {id}, {id}_{start}, {id}_{start}_{end} (30, 30000 or
30.000; all of them with or without the Y), and for AudioCaps {audiocap_id}, at any depth. A file that is longer
than the clip is the whole video, and the clip is cut out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from audioldm2_jax.data.captions import Texts, captions_of, joined_labels
from audioldm2_jax.data.class_names import FILE, ClassNames, python_list
from audioldm2_jax.data.csv_rows import fields_of, rows_of
from audioldm2_jax.data.public.listed import Content, FolderTest, Item, Sounds, collect, merged, number
from audioldm2_jax.runtime.text_files import shown

_SECONDS = 10.0  # of AudioCaps' clips
_TRUE = "true"
_NAMED = re.compile(r"(^|[^a-z])(val|valid|validation|test|eval|evaluation)([^a-z]|$)", re.IGNORECASE)


def audiocaps(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """Captions as they are; val.csv and test.csv are held out."""

    def entries(file: Path, split: str) -> Iterator[tuple[str, list[str], Item]]:
        for where, row in rows_of(file, ("youtube_id", "start_time", "caption")):
            begin = number(row["start_time"], where, "start_time")
            span = begin, begin + _SECONDS
            stems = _stems(row["youtube_id"], span) + ([row["audiocap_id"]] if row.get("audiocap_id") else [])
            yield where, stems, Item("", Texts(captions_of(row["caption"], where)), split, span, cut=True)

    def near(split: str) -> FolderTest:
        return lambda folder: (split_named(folder) == "train") == (split == "train")

    splits = {name: split_named(name) for name in lists}
    return merged(collect(sounds, entries(root / name, split), near(split)) for name, split in splits.items())


def musiccaps(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """Captions as they are, without one the aspects together; what AudioSet has in its evaluation set is held out."""

    def entries(file: Path) -> Iterator[tuple[str, list[str], Item]]:
        for where, row in rows_of(file, ("ytid", "start_s", "end_s", "caption")):
            captions = captions_of(row["caption"], where)
            captions = captions or joined_labels(python_list(row.get("aspect_list", ""), where))
            span = number(row["start_s"], where, "start_s"), number(row["end_s"], where, "end_s")
            tested = row["is_audioset_eval"].strip().lower() == _TRUE if "is_audioset_eval" in row else None
            split = None if tested is None else "test" if tested else "train"
            yield where, _stems(row["ytid"], span), Item("", Texts(captions), split, span, cut=True)

    return merged(collect(sounds, entries(root / name)) for name in lists)


def audioset(root: Path, lists: list[str], sounds: Sounds) -> Content:
    """The names of the classes together are the caption; eval_segments.csv is held out.

    Raises:
        ValueError: there is no table of their names.
    """
    tables = sorted(root.rglob(FILE))
    if not tables:
        raise ValueError(
            f"{shown(root)} has AudioSet's {shown(lists[0])}, but not its {FILE}, which says what the classes are "
            "called: put it there"
        )
    classes = ClassNames.read(tables[0])

    def entries(file: Path, split: str) -> Iterator[tuple[str, list[str], Item]]:
        for where, fields in fields_of(file):
            if len(fields) != 4:
                raise ValueError(f"{where}: {len(fields)} fields; a segment has four: id, start, end, labels")
            video, begin, end, labels = fields
            span = number(begin, where, "the start"), number(end, where, "the end")
            texts = Texts(classes.captions(labels.split(",")))
            yield where, _stems(video, span), Item("", texts, split, span, cut=True)

    content = merged(collect(sounds, entries(root / name, split_named(name))) for name in lists)
    classes.warn(root)
    return content


def split_named(name: str) -> str:
    """The split of which a list, or a folder, is by its name."""
    found = _NAMED.search(name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".csv"))
    if not found:
        return "train"
    return "validation" if found[2].lower().startswith("val") else "test"


def _stems(video: str, span: tuple[float, float]) -> list[str]:
    """The names without ending that people give to a clip."""
    video = video.strip()
    ends = [[f"_{time * scale:.{digits}f}" for time in span] for scale, digits in ((1, 0), (1000, 0), (1, 3))]
    times = [*(begin + end for begin, end in ends), *(begin for begin, _ in ends)]
    return [f"{prefix}{video}{time}" for time in ("", *times) for prefix in ("Y", "")]
