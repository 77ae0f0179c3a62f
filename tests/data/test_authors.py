"""Data as the authors' training code has it."""

import json
import logging
import pickle

import numpy as np
import pytest

from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.sources import open_source

from .made_sources import config, everything, one, put, sound, tone


def authors(folder, **changes):
    data = folder / "data/dataset"
    put(data / "audioset/part/a.wav", sound(1))
    put(data / "audioset/part/b.wav", sound(2))
    put(data / "audioset/c.wav", sound(3))
    rows = [
        {"wav": "part/a.wav", "caption": "A woman talks", "labels": "/m/09x0r", "seg_label": "x.npy"},
        {"wav": "./part/a.wav", "caption_1": "Speech", "caption_2": "A woman talks"},
        {"wav": "part/b.wav", "caption": "", "labels": "/m/05zppz,/m/09x0r,/m/0none"},
        {"wav": "c.wav", "labels": "Dog, Rain"},
        {"wav": "gone.wav", "caption": "x"},
    ]
    put(data / "metadata/audiocaps/train.json", json.dumps({"data": changes.pop("rows", rows)}))
    table = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    put(data / "metadata/audiocaps/class_labels_indices.csv", table)
    content = {
        "audiocaps": "./data/dataset/audioset",
        "comments": {},
        "metadata": {
            "path": {
                "audiocaps": {
                    "train": "./data/dataset/metadata/audiocaps/train.json",
                    "test": "./data/dataset/metadata/audiocaps/test.json",
                    "class_label_indices": "audiocaps/class_labels_indices.csv",
                },
                "wavcaps": {"train": "/mnt/elsewhere/train.json"},
            }
        },
    }
    put(data / "metadata/dataset_root.json", json.dumps(content | changes))
    return folder


AUTHORS = {
    "audiocaps/part/a.wav": ("A woman talks", "Speech"),
    "audiocaps/part/b.wav": ("Male speech, man speaking, Speech",),
    "audiocaps/c.wav": ("Dog, Rain",),
}


@pytest.mark.parametrize(
    "named", ["", "data/dataset", "data/dataset/metadata", "data/dataset/metadata/dataset_root.json"]
)
def test_the_authors_layout(tmp_path, named):
    assert everything(authors(tmp_path) / named) == AUTHORS
    source = pickle.loads(pickle.dumps(one(tmp_path / named)))
    assert set(source.skipped) == {"audiocaps/gone.wav", "wavcaps"}
    np.testing.assert_array_equal(source[source.names.index("audiocaps/c.wav")].waveform, tone(3))
    assert set(source.digests(9)) == set(AUTHORS)
    listing = [*source.listing(), ["wavcaps/d.wav", 800, [], None]]  # another host has it
    assert "1 files differ" in source.follow(listing)
    with pytest.raises(UnreadableRecord, match=r"d\.wav does not exist"):
        source[3]


def test_a_file_of_records_alone(tmp_path, caplog):
    put(tmp_path / "a.wav", sound())
    rows = [{"wav": "a.wav", "labels": ["/m/09x0r"]}, {"wav": str(tmp_path / "a.wav"), "caption": ["x", "y"]}]
    put(tmp_path / "mine.json", json.dumps({"data": rows}))
    with caplog.at_level(logging.WARNING):
        source = one(tmp_path / "mine.json")
    found = {name: source.captions(index) for index, name in enumerate(source.names)}
    assert found == {"mine/a.wav": (), f"mine/{tmp_path}/a.wav": ("x", "y")}
    assert "1 labels have no name and are left out, each with how often it stands there: /m/09x0r (1)" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metadata": {}}, "has no data sets: it needs"),
        ({"metadata": {"path": {"audiocaps": "train.json"}}}, "has no data sets: it needs"),
        ({"audiocaps": "/elsewhere"}, "audiocaps is /elsewhere, which is not here"),
        ({"audiocaps": 3}, "audiocaps is 3, not a path"),
        ({"metadata": {"path": {}}}, r"none of its data sets \(none\)"),
        ({"rows": {}}, "has no list of records"),
        ({"rows": [["a.wav"]]}, "train.json, record 1: no wav"),
        ({"rows": [{"wav": None}]}, "record 1: no wav"),
        ({"rows": [{"wav": "c.wav", "caption": 3}]}, "record 1: caption is 3, not a text"),
        ({"rows": []}, "holds no recording that can be read"),
        ({"metadata": {"path": {"a": {"class_label_indices": "gone.csv"}}}}, "class_label_indices of a is gone.csv"),
    ],
)
def test_the_authors_layout_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_source(config(authors(tmp_path, **changes)), "train")
