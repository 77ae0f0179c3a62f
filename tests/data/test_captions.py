"""Captions beside recordings, several of one recording, and metadata.parquet."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audioldm2_jax.data import encoders, pipeline, text
from audioldm2_jax.data.captions import Texts, captions_of, texts_in
from audioldm2_jax.data.sources import open_source

from .made_sources import config, everything, one, put, sound, tone


def test_captions_stand_beside_recordings(tmp_path):
    for name in ("a.wav", "b.flac", "deep/c.wav", "d.wav", "e.wav", "f.wav", "ノイズ.wav", "h.wav"):
        put(tmp_path / name, sound())
    put(tmp_path / "a.txt", "\ufeffrain on a roof\r\n")
    put(tmp_path / "b.json", '{"caption": ["wind", "leaves in wind", " "], "tags": ["x"]}')
    put(tmp_path / "deep/c.json", '{"tags": ["rock", "slow"], "bpm": 90, "label": 3}')
    put(tmp_path / "d.TXT", "   ")
    put(tmp_path / "e.json", '{"bpm": 90, "text": null, "tags": [1, 2]}')
    put(tmp_path / "f.txt", "a")
    put(tmp_path / "f.json", '{"captions": ["b", "a"]}')
    put(tmp_path / "ノイズ.txt", "雑音")
    put(tmp_path / "metadata.csv", "file_name,text\na.wav,rain on a roof\nd.wav,drums\nh.wav,\n")
    put(tmp_path / "README.txt", b"\xff\xfe not read")
    put(tmp_path / "notes.json", "not read either")
    assert everything(tmp_path) == {
        "a.wav": ("rain on a roof",),
        "b.flac": ("wind", "leaves in wind"),
        "deep/c.wav": ("rock, slow",),
        "d.wav": ("drums",),
        "e.wav": (),
        "f.wav": ("b", "a"),
        "ノイズ.wav": ("雑音",),
        "h.wav": (),
    }
    source = one(tmp_path)
    assert source[source.names.index("b.flac")].text == source.text(source.names.index("b.flac")) == "wind"


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"metadata.csv": "file_name,text\na.wav,x\n", "a.txt": "y"},
            r"a\.txt and .*metadata\.csv: different captions",
        ),
        ({"metadata.csv": "file_name,text\na.wav,x\n", "a.json": '{"text": "y"}'}, r"a\.json and .*csv: different"),
        ({"a.txt": "x", "a.json": '{"text": "y"}'}, r"a\.json and .*a\.txt: different captions"),
        ({"a.json": "[1]"}, r"a\.json holds a list"),
        ({"a.json": "{"}, r"a\.json is not JSON"),
        ({"a.json": "[" * 100_000}, r"a\.json is not JSON"),
        ({"a.json": "1" * 5000}, r"a\.json is not JSON"),
        ({"a.json": '{"text": 3}'}, r"a\.json: text is 3, not a text"),
        ({"a.json": '{"captions": [{"en": "x"}]}'}, r"captions is \{'en': 'x'\}, not a text"),
        ({"a.txt": b"caf\xe9"}, r"a\.txt, line 1: not UTF-8"),
    ],
)
def test_captions_that_cannot_be_told_are_refused(tmp_path, files, message):
    put(tmp_path / "a.wav", sound())
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        open_source(config(tmp_path), "train")


def test_a_caption_beside_a_link_is_that_of_the_recording(tmp_path):
    put(tmp_path / "data/a.wav", sound())
    (tmp_path / "data/b.wav").symlink_to(tmp_path / "data/a.wav")
    put(tmp_path / "data/b.txt", "rain")
    assert everything(tmp_path / "data") == {"a.wav": ("rain",)}


def test_labels_are_no_contradiction_of_a_caption():
    assert texts_in({"tags": ["rock"]}, "a", ("a song",)).captions == ("a song",)
    assert texts_in({"tags": "rock"}, "a").captions == ("rock",)
    assert texts_in({"title": "x", "caption": ""}, "a") == Texts(("x",))


def test_of_several_captions_one_is_drawn_for_each_example(tmp_path):
    put(tmp_path / "a.wav", sound())
    put(tmp_path / "metadata.jsonl", '{"file_name": "a.wav", "text": ["rain", "drops", "rain"]}')
    source = one(tmp_path)
    assert source.captions(0) == ("rain", "drops") and source.text(0) == "rain" == source[0].text
    slots = pipeline.ExampleIndex(source, [Words()], 2, 400, seed=1)
    drawn = [str(slots[k]["words"]) for k in range(100)]
    assert 30 < drawn.count("rain") < 70 and drawn.count("rain") + drawn.count("drops") == 100
    assert [str(slots.example(k // 2, k % 2)["words"]) for k in range(100)] == drawn
    assert {*text.captions(source)} == {"rain", "drops"}


class Words(encoders.Encoder):
    fields = ("words",)

    def __call__(self, example):
        return {"words": np.str_(example.text)}


def test_what_is_said(tmp_path):
    """In metadata, beside recordings, in tables and in tar files; only of what is heard whole."""
    put(tmp_path / "folder/a.wav", sound(wave=tone(0, 1000)))
    put(tmp_path / "folder/b.wav", sound(wave=tone(0, 1001)))
    put(tmp_path / "folder/c.wav", sound())
    put(
        tmp_path / "folder/metadata.csv",
        "file_name,transcription,text\na.wav,good morning,a man\nb.wav,good evening,\n",
    )
    put(tmp_path / "folder/c.json", '{"transcript": " good night ", "caption": "a woman"}')
    source = one(tmp_path / "folder")
    found = {source.names[i]: (source.transcription(i), source.text(i)) for i in range(len(source))}
    assert found == {
        "a.wav": ("good morning", "a man"),
        "b.wav": ("good evening", None),
        "c.wav": ("good night", "a woman"),
    }
    for name, said in (("a.wav", "good morning"), ("b.wav", None)):
        heard = source.excerpt(source.names.index(name), 1000, 0.5)
        assert heard.transcription == said and len(heard.waveform) == 1000
    assert source[source.names.index("b.wav")].transcription == "good evening"
    followed = one(tmp_path / "folder")
    followed.follow(json.loads(json.dumps(source.listing())))
    assert followed.transcription(followed.names.index("b.wav")) == "good evening"

    put(tmp_path / "folder/c.json", '{"transcript": ["one", "two"]}')
    with pytest.raises(ValueError, match="transcript holds 2 texts, and a transcription is one"):
        one(tmp_path / "folder")
    rows = {"audio": [{"bytes": sound(i)} for i in range(2)], "sentence": ["one", None], "text": ["x", "y"]}
    put(tmp_path / "table/a.parquet", b"")
    parquet.write_table(pa.table(rows), tmp_path / "table/a.parquet")
    source = one(tmp_path / "table")
    assert [(source.transcription(i), source.text(i)) for i in range(2)] == [("one", "x"), (None, "y")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("text", "tags", "x")), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_value_is_captions_or_refused(value):
    try:
        found = captions_of(value, "here")
    except ValueError as error:
        assert "here is" in str(error)
    else:
        assert all(isinstance(text, str) and text == text.strip() != "" for text in found)
        assert len(set(found)) == len(found)


# ── metadata.parquet ──


def test_metadata_in_parquet(tmp_path):
    put(tmp_path / "a.wav", sound())
    put(tmp_path / "b.wav", sound())
    table = pa.table({"file_name": ["a.wav", "b.wav"], "text": ["rain", None], "x": [{"y": 1}, None]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert everything(tmp_path) == {"a.wav": ("rain",), "b.wav": ()}
    put(tmp_path / "metadata.csv", "file_name,text\nb.wav,wind\n")  # the other says nothing of it
    assert everything(tmp_path) == {"a.wav": ("rain",), "b.wav": ("wind",)}


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"file": ["a.wav"]}, "no column file_name; it has file"),
        ({"file_name": ["a.wav"]}, "has no text"),
        ({"file_name": [1], "text": ["x"]}, "row 1: no file_name"),
        ({"file_name": ["a.wav"] * 2, "text": ["x", "x"]}, "row 2: a.wav is named twice"),
        ({"file_name": ["a.wav"], "text": [{"en": "x"}]}, r"row 1: text is \{'en'"),
        ({"file_name": ["a.wav"], "text": [1.5]}, "row 1: text is 1.5"),
        ({"file_name": ["b.wav"], "text": ["x"]}, "names 1 files that are not recordings"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_metadata_in_parquet_that_is_refused(tmp_path, columns, message):
    put(tmp_path / "a.wav", sound())
    if columns is None:
        put(tmp_path / "metadata.parquet", b"PAR1 and nothing")
    else:
        parquet.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(config(tmp_path), "train")
