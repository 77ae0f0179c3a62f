"""The index of a source: what is looked at again, where it lies, what workers are sent, what hosts agree on."""

import json
import logging
import os
import pickle
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2_jax.audio import files
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.table import Row, Table
from audioldm2_jax.data.webdataset import WebDataset
from audioldm2_jax.runtime.storage import OWN_FOLDER

RATE = 8000
OLD = time.time() - 1000


def put(path, content=0.1, at=OLD):
    """A recording of so many seconds or a text file, last modified at `at`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        soundfile.write(path, np.full(round(content * RATE), 0.25, np.float32), RATE)
    os.utime(path, (at, at))
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "more/d"):
        put(tmp_path / f"{name}.wav")
    put(tmp_path / "a.txt", "rain")
    put(tmp_path / "metadata.jsonl", '{"file_name": "b.wav", "text": "wind"}')
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    os.utime(tmp_path / "broken.wav", (OLD, OLD))
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """The names of files whose ends were looked for, and of text files that were read."""
    seen, frames, read_text = [], files.frames, Path.read_bytes
    monkeypatch.setattr(files, "frames", lambda path: (seen.append(Path(path).name), frames(path))[1])
    monkeypatch.setattr(Path, "read_bytes", lambda path: (seen.append(path.name), read_text(path))[1])
    return seen


def opening(folder, share=1e-12):
    """Both splits: {name: (caption, length)}."""
    found = {}
    for split in ("train", "heldout"):
        source = Folder(folder, split, RATE, share)
        found |= {name: (source.text(i), len(source[i].waveform)) for i, name in enumerate(source.names)}
    return found


def test_a_second_opening_reads_no_file(folder, opened):
    first = opening(folder)
    assert first == {"a.wav": ("rain", 800), "b.wav": ("wind", 800), "c.wav": (None, 800), "more/d.wav": (None, 800)}
    assert sorted(opened) == sorted(["a.wav", "b.wav", "c.wav", "d.wav", "broken.wav", "a.txt", "metadata.jsonl"])
    opened.clear()
    source = Folder(folder, "train", 16000, 0.3)  # another rate and share, the same index
    assert opening(folder) == first and opened == []
    assert "broken.wav" in source.skipped and len(source[0].waveform) == 1600
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [OWN_FOLDER]


@pytest.mark.parametrize(
    "change, looked_at, expected",
    [
        (lambda f: put(f / "c.wav", 0.2), ["c.wav"], {"c.wav": (None, 1600)}),
        (lambda f: put(f / "c.wav", at=OLD + 1), ["c.wav"], {}),
        (lambda f: put(f / "e.wav"), ["e.wav"], {"e.wav": (None, 800)}),
        (lambda f: put(f / "broken.wav"), ["broken.wav"], {"broken.wav": (None, 800)}),
        (lambda f: put(f / "a.txt", "storm"), ["a.txt"], {"a.wav": ("storm", 800)}),
        (lambda f: put(f / "c.txt", "hail"), ["c.txt"], {"c.wav": ("hail", 800)}),
        (lambda f: (f / "c.wav").unlink(), [], {"c.wav": None}),
        (lambda f: (f / "a.txt").unlink(), [], {"a.wav": (None, 800)}),
        (lambda f: os.rename(f / "c.wav", f / "g.wav"), ["g.wav"], {"c.wav": None, "g.wav": (None, 800)}),
        (
            lambda f: put(f / "metadata.jsonl", '{"file_name": "c.wav", "text": "falling snow"}'),
            ["a.txt"],
            {"b.wav": (None, 800), "c.wav": ("falling snow", 800)},
        ),
    ],
)
def test_what_has_changed_is_looked_at_again_and_nothing_else(folder, opened, change, looked_at, expected):
    before = opening(folder)
    change(folder)
    opened.clear()
    assert opening(folder) == {k: v for k, v in (before | expected).items() if v}
    assert sorted(opened) == sorted([*looked_at, "metadata.jsonl"])  # of metadata it is not known what it may say now


def test_metadata_that_names_what_is_gone_is_refused_in_a_later_opening_too(folder):
    opening(folder)
    (folder / "b.wav").unlink()
    with pytest.raises(ValueError, match="names 1 files that are not recordings there"):
        opening(folder)
    put(folder / "b.txt", "thunder")
    put(folder / "b.wav")
    with pytest.raises(ValueError, match="different captions of"):
        opening(folder)


def test_a_file_that_changes_within_the_same_instant_is_noticed(tmp_path):
    """As git has it: what was modified just now may be again, with the same size and time."""
    now = time.time()
    put(tmp_path / "a.txt", "rain", now)
    put(tmp_path / "a.wav", at=now)
    assert opening(tmp_path) == {"a.wav": ("rain", 800)}
    put(tmp_path / "a.txt", "hail", now)
    assert opening(tmp_path) == {"a.wav": ("hail", 800)}


def test_a_moved_copy_has_the_index_with_it(folder, opened, tmp_path_factory):
    before = opening(folder)
    copy = tmp_path_factory.mktemp("elsewhere") / "data"
    os.rename(folder, copy)
    opened.clear()
    assert opening(copy) == before and opened == []


def test_where_the_folder_cannot_be_written(folder, opened, monkeypatch, tmp_path_factory, caplog):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (folder / OWN_FOLDER).write_text("not a folder")
    before = opening(folder)
    opened.clear()
    assert opening(folder) == before and opened == []
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".arrow"]
    assert "no index" not in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a.wav"))
    with caplog.at_level(logging.WARNING):
        assert opening(folder) == before
    assert "no index can be written" in caplog.text and sorted(opened)[:2] == ["a.txt", "a.txt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_damaged_index_is_made_again(folder, keep):
    before = opening(folder)
    (path,) = (folder / OWN_FOLDER).iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: round(keep * len(content)) if isinstance(keep, float) else keep])
    assert opening(folder) == before


def test_threads_that_open_at_once_see_the_same(folder):
    found = []
    threads = [threading.Thread(target=lambda: found.append(opening(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(each == found[0] and each for each in found)
    assert not [path for path in (folder / OWN_FOLDER).iterdir() if path.suffix != ".arrow"]


def test_old_indices_go_when_a_new_one_is_made(folder):
    opening(folder)
    (first,) = (folder / OWN_FOLDER).iterdir()
    put(folder / "e.wav")
    opening(folder)
    assert first.exists()  # a worker of a run that goes on may open it
    os.utime(first, (OLD - 10 * 24 * 3600,) * 2)
    put(folder / "f.wav")
    opening(folder)
    assert not first.exists()


def test_workers_are_sent_the_place_of_the_index(folder):
    source = Folder(folder, "train", RATE, 1e-12)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    names = [*source.names]
    put(folder / "e.wav")
    opening(folder)  # another index beside it
    again = pickle.loads(packed)
    assert again.names == names and again.text(0) == source.text(0) and again.skipped == source.skipped


def test_hosts_that_see_the_same_have_the_same_digest(folder, tmp_path_factory):
    source = Folder(folder, "train", RATE, 1e-12)
    assert Folder(folder, "train", 16000, 1e-12).listing_digest() == source.listing_digest()
    assert Folder(folder, "heldout", RATE, 1e-12).listing_digest() != source.listing_digest()
    put(folder / "a.txt", "storm")
    other = Folder(folder, "train", RATE, 1e-12)
    assert other.listing_digest() != source.listing_digest()
    assert "1 files differ" in other.follow(json.loads(json.dumps(source.listing())))
    assert other.listing_digest() == source.listing_digest() and other.names == source.names
    again = pickle.loads(pickle.dumps(other))
    assert again.names == source.names and again.text(0) == source.text(0)


def tar(path, names, at=OLD):
    wave = path.with_suffix(".wav")
    soundfile.write(wave, np.full(800, 0.25, np.float32), RATE)
    with tarfile.open(path, "w") as file:
        for name in names:
            file.add(wave, f"{name}.wav")
    wave.unlink()
    os.utime(path, (at, at))


def test_of_shards_those_that_have_changed_are_read_again(tmp_path, monkeypatch):
    seen, read = [], WebDataset._index
    monkeypatch.setattr(WebDataset, "_index", lambda self, shard: (seen.append(shard), read(self, shard))[1])
    for shard in "012":
        tar(tmp_path / f"{shard}.tar", ("a", "b"))

    def names():
        parts = [
            WebDataset(tmp_path, ["0.tar", "1.tar", "2.tar"], split, RATE, 1e-12) for split in ("train", "heldout")
        ]
        return sorted(name for part in parts for name in part.names)

    assert names() == [f"{shard}.tar/{name}.wav" for shard in "012" for name in "ab"]
    assert sorted(seen) == ["0.tar", "1.tar", "2.tar"]
    seen.clear()
    tar(tmp_path / "1.tar", ("a", "b", "c"))
    assert "1.tar/c.wav" in names() and seen == ["1.tar"]


def test_a_table_keeps_what_rows_hold():
    rows = [Row(os.fsdecode(b"caf\xe9 \n.wav"), [3, "ä", None], Texts(("rain", "hail"), "so"), None, 5, 7)]
    rows += [Row("b", 4, reason="is gone \udcff", stamp=2**64 - 1)]
    table = pickle.loads(pickle.dumps(Table.of(rows)))
    assert table.name(0) == rows[0].name and table.place(0) == [3, "ä", None] and table.texts(0) == rows[0].texts
    assert table.kept().tolist() == [0] and table.reasons() == {"b": "is gone \\udcff"}
    assert table.numbers("stamp").tolist() == [5, 2**64 - 1]
