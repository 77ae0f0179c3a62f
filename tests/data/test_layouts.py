"""Data of one's own in layouts other than a folder of recordings with metadata: what is read, skipped, refused."""

import io
import json
import logging
import os
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audioldm2_jax import recipes
from audioldm2_jax.data import encoders, pipeline, text
from audioldm2_jax.data.captions import Texts, captions_of, texts_in
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.sources import open_source

RATE = 8000


def config(source, **data):
    recipe = recipes.get("tiny")
    recipe.audio.sampling_rate = RATE
    recipe.data.update({"source": str(source), "heldout_share": 0.3, **data})
    return recipe


def tone(i=0, samples=800):
    return (0.1 + 0.05 * (i % 8)) * np.sin(np.arange(samples + i) * (0.1 + 0.01 * i)).astype(np.float32)


def sound(i=0, form="WAV", wave=None, rate=RATE):
    file = io.BytesIO()
    wave = tone(i) if wave is None else wave
    soundfile.write(file, wave, rate, format=form, subtype={"WAV": "FLOAT", "FLAC": "PCM_16"}.get(form))
    return file.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def everything(source, **data):
    """{name: captions} of both splits, which must be apart."""
    found = {}
    for split in ("train", "heldout"):
        opened = open_source(config(source, **data), split)
        if len(opened) > 1:
            assert not found.keys() & set(opened.names)
        found |= {name: opened._texts[i].captions for i, name in enumerate(opened.names)}
    return found


def one(source, **data):
    """A source of all records."""
    return open_source(config(source, heldout_share=1.0, **data), "heldout")


# ── captions beside recordings ──


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


# ── Hugging Face ──

N = 7


def written_by_datasets(folder, kind):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    label = datasets.ClassLabel(names=["dog_bark", "rain"])
    features = datasets.Features(
        {
            "audio": datasets.Audio(sampling_rate=RATE),
            "caption": datasets.Value("string"),
            "label": label,
            "labels": datasets.Sequence(label),
            "captions": datasets.Sequence(datasets.Value("string")),
            "meta": {"title": datasets.Value("string"), "kind": label},
            "number": datasets.Value("int64"),
        }
    )
    rows = {
        "audio": [{"bytes": sound(i), "path": f"{i}.wav"} for i in range(N)],
        "caption": [f"tone {i}" if i != 2 else None for i in range(N)],
        "label": [i % 2 if i != 3 else -1 for i in range(N)],
        "labels": [[1, 0]] * N,
        "captions": [["first", "second"]] * N,
        "meta": [{"title": "song", "kind": 0}] * N,
        "number": list(range(N)),
    }
    # Not `from_dict`, which encodes sound by torchcodec.
    made = datasets.Dataset(datasets.table.InMemoryTable(pa.table(rows, schema=features.arrow_schema)))
    if kind == "parquet":
        made.to_parquet(folder / "data" / "train-00000-of-00001.parquet", batch_size=3)
        made.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    elif kind == "disk":
        made.save_to_disk(folder, num_shards=2)
        put(folder / "cache-0123456789abcdef.arrow", b"of a map")
    else:
        datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(folder)


@pytest.fixture(scope="module", params=["parquet", "disk", "dict"])
def of_datasets(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    written_by_datasets(folder, request.param)
    return folder


def test_what_datasets_writes_is_read(of_datasets):
    captions = everything(of_datasets)
    assert sorted(captions.values()) == sorted([(f"tone {i}",) if i != 2 else () for i in range(N)])
    source = pickle.loads(pickle.dumps(one(of_datasets)))
    for i in range(N):
        text = source.text(i)
        number = int(text.split()[1]) if text else 2
        example = source[i]
        assert example.text == text
        np.testing.assert_array_equal(example.waveform, tone(number))
        np.testing.assert_array_equal(
            source.excerpt(i, 100, 0.5).waveform, tone(number)[(start := (701 + number) // 2) : start + 100]
        )
    assert set(source.digests(N)) == {name.rsplit("/", 1)[0] for name in source.names}
    other = one(of_datasets)
    assert other.follow(json.loads(json.dumps(source.listing()))) == ""
    np.testing.assert_array_equal(other[0].waveform, source[0].waveform)


@pytest.mark.parametrize(
    "feature, captions",
    [
        ("label", [("dog_bark",), ("dog_bark",), ("dog_bark",), ("rain",), ("rain",), ("dog_bark",), ()]),
        ("labels", [("rain, dog_bark",)] * N),
        ("captions", [("first", "second")] * N),
        ("meta/title", [("song",)] * N),
        ("meta/kind", [("dog_bark",)] * N),
    ],
)
def test_columns_by_name(of_datasets, feature, captions):
    assert sorted(everything(of_datasets, text_feature=feature).values()) == sorted(captions)


@pytest.mark.parametrize(
    "data, message",
    [
        ({"text_feature": "words"}, "no column 'words'; it has audio, caption"),
        ({"text_feature": "number"}, "column number holds int64 and no text"),
        ({"text_feature": "meta"}, r"column meta holds struct.* and no text"),
        ({"text_feature": "meta/x"}, "no column 'meta/x'; it has meta/title, meta/kind"),
        ({"text_feature": "caption/x"}, "no column 'caption/x'; it has none"),
        ({"audio_feature": "number"}, "column number holds int64 and no sound files"),
        ({"audio_feature": "sound"}, "no column 'sound'"),
    ],
)
def test_columns_that_are_not_there(of_datasets, data, message):
    with pytest.raises(ValueError, match=message):
        open_source(config(of_datasets, **data), "train")


def table(**columns):
    return pa.table({"audio": [{"bytes": sound(i)} for i in range(3)], **columns})


def stream(path, tables, rows=2):
    with pa.ipc.new_stream(str(path), tables.schema) as writer:
        writer.write_table(tables, max_chunksize=rows)


def test_tables_that_datasets_did_not_write(tmp_path, caplog):
    outer = pa.array([{"sound": b, "words": w} for b, w in zip([sound(0), None, b""], ["x", None, "y"])])
    made = pa.table({"outer": outer, "speech": [sound(i) for i in range(3)], "mood": ["calm", "wild", None]})
    parquet.write_table(made, tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        assert set(everything(tmp_path).values()) == {()}
    assert "text_feature names the column that has them, one of outer, speech, mood" in caplog.text
    assert set(everything(tmp_path / "a.parquet", text_feature="mood").values()) == {("calm",), ("wild",), ()}
    source = one(tmp_path, audio_feature="outer/sound", text_feature="outer/words")
    assert [texts.captions for texts in source._texts] == [("x",), (), ("y",)]
    assert len(source[0].waveform) == 800
    for i in (1, 2):
        with pytest.raises(UnreadableRecord, match=f"a.parquet/{i} has no sound"):
            source[i]
    parquet.write_table(made.append_column("audio", made["speech"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"several columns of sound files \(speech, audio|\(audio, speech"):
        one(tmp_path)
    parquet.write_table(made.select(["mood"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no columns of sound files \(mood\)"):
        one(tmp_path)


def test_rows_that_name_files(tmp_path):
    put(tmp_path / "sounds/a.wav", sound(3))
    paths = ["sounds/a.wav", str(tmp_path / "sounds/a.wav"), "gone.wav"]
    made = pa.table(
        {
            "audio": pa.array(
                [{"bytes": None, "path": path} for path in paths],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        }
    )
    parquet.write_table(made, tmp_path / "a.parquet")
    source = one(tmp_path / "a.parquet")
    for i in (0, 1):
        np.testing.assert_array_equal(source.excerpt(i, 100, 0.999).waveform, tone(3)[703:])
    with pytest.raises(UnreadableRecord, match=r"gone\.wav does not exist"):
        source[2]
    with pytest.raises(ValueError, match=r"holds Parquet or Arrow files \(a.parquet\), recordings \(sounds/a.wav\)"):
        one(tmp_path)


def test_damaged_tables_are_skipped_and_the_whole_rows_of_a_stream_used(tmp_path, caplog):
    made = table(text=["a", "b", "c"])
    parquet.write_table(made, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    put(tmp_path / "cut.parquet", whole[: len(whole) // 2])
    put(tmp_path / "empty.parquet", b"")
    put(tmp_path / "text.arrow", b"no stream")
    stream(tmp_path / "b.arrow", made)
    stream_bytes = (tmp_path / "b.arrow").read_bytes()
    put(tmp_path / "c.arrow", stream_bytes[: len(stream_bytes) - 2000])
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made)
    with caplog.at_level(logging.WARNING):
        source = one(tmp_path)
    shards = [name.rsplit("/", 1)[0] for name in source.names]
    assert {shard: shards.count(shard) for shard in shards} == {"a.parquet": 3, "b.arrow": 3, "c.arrow": 2}
    assert set(source.skipped) == {"cut.parquet", "empty.parquet", "text.arrow", "c.arrow", "file.arrow"}
    assert "the rows before that are used" in source.skipped["c.arrow"]
    assert "5 of 13 records and files cannot be read" in caplog.text
    for i in range(len(source)):
        assert len(source[i].waveform) >= 800
    put(tmp_path / "a.parquet", b"gone")
    with pytest.raises(UnreadableRecord, match=r"a\.parquet/0 cannot be read"):
        source[source.names.index("a.parquet/0")]


def test_rows_are_found_in_every_row_group_and_batch(tmp_path):
    made = pa.table({"audio": [{"bytes": sound(i)} for i in range(40)], "caption": [f"{i}" for i in range(40)]})
    parquet.write_table(made, tmp_path / "a.parquet", row_group_size=13)
    stream(tmp_path / "b.arrow", made, rows=11)
    source = one(tmp_path)
    for i in np.random.default_rng(0).permutation(80)[:40]:
        assert len(source[int(i)].waveform) == 800 + int(source.text(int(i)))


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


def opened_or_refused(path):
    """Reads all of a damaged source."""
    try:
        source = one(path)
    except ValueError as error:
        assert path.name in str(error)
        return
    for i in range(len(source)):
        try:
            assert np.isfinite(source[i].waveform).all()
        except UnreadableRecord as error:
            assert path.name in str(error)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".tar"])
def test_damage_anywhere_is_survived(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    made = pa.table({"audio": [{"bytes": sound(i, wave=tone(i, 20))} for i in range(3)], "text": ["a", None, "c"]})
    if suffix == ".parquet":
        parquet.write_table(made, path, row_group_size=2)
    elif suffix == ".arrow":
        stream(path, made)
    else:
        pack(path, {"a.wav": sound(wave=tone(0, 20)), "a.txt": b"x", "b.wav": sound(wave=tone(1, 20)), "b.json": b"{}"})
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(DAMAGE, st.floats(0.2, 1.2))
    def damaged(damage, kept):
        content = bytearray(whole[: int(len(whole) * kept)])
        for place, value in damage:
            content[int(place * len(content))] = value
        path.write_bytes(content)
        opened_or_refused(path)

    damaged()


# ── WebDataset ──


def pack(path, members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_records_of_tar_files(tmp_path, form):
    long = "x/" * 30 + "y" * 90 if form != tarfile.USTAR_FORMAT else "y" * 90
    pack(
        tmp_path / "0.tar",
        {
            "a.flac": sound(1, "FLAC"),
            "a.json": b'{"text": ["rain", "wet"], "tag": ["x"]}',
            "a.txt": b"rain",
            "b.mp3": sound(2, "MP3", wave=tone(2, 4000)),
            "b.txt": "Wörter\n".encode(),
            "sub/a.wav": sound(3),
            "._a.wav": b"of macOS",
            "c.json": b'{"tags": ["slow", "rock"]}',
            "c.WAV": sound(4),
            "d.cls": b"3",
            f"{long}.ogg": sound(5, "OGG"),
            "24.wav": sound(wave=np.repeat(tone(6)[:, None], 24, 1)),
        },
        form,
    )
    pack(tmp_path / "deep/1.tar", {"ノイズ 1.5.wav": sound(7), "ノイズ 1.5.txt": "雑音".encode()}, tarfile.PAX_FORMAT)
    assert everything(tmp_path) == {
        "0.tar/a.flac": ("rain", "wet"),
        "0.tar/b.mp3": ("Wörter",),
        "0.tar/sub/a.wav": (),
        "0.tar/c.WAV": ("slow, rock",),
        f"0.tar/{long}.ogg": (),
        "0.tar/24.wav": (),
        "deep/1.tar/ノイズ 1.5.wav": ("雑音",),
    }
    source = pickle.loads(pickle.dumps(one(tmp_path)))
    whole = {name: source[i].waveform for i, name in enumerate(source.names)}
    np.testing.assert_allclose(whole["0.tar/a.flac"], tone(1), atol=1e-4)
    np.testing.assert_array_equal(whole["0.tar/sub/a.wav"], tone(3))
    np.testing.assert_allclose(whole["0.tar/24.wav"], tone(6), atol=1e-6)
    assert 4000 <= len(whole["0.tar/b.mp3"]) < 8000
    index = source.names.index("0.tar/c.WAV")
    np.testing.assert_array_equal(source.excerpt(index, 100, 0.999).waveform, tone(4)[704:])
    assert set(source.digests(len(source))) == {"0.tar", "deep/1.tar"}
    assert everything(tmp_path / "0.tar") == {k: v for k, v in everything(tmp_path).items() if k.startswith("0.")}


def test_what_a_tar_file_has_and_cannot_be_used(tmp_path, caplog):
    nan = tone()
    nan[5] = np.nan
    pack(
        tmp_path / "a.tar",
        [
            ("good.wav", sound()),
            ("good.wav", sound(1)),
            ("nan.wav", sound(wave=nan)),
            ("one.wav", sound(wave=np.full(1, 0.5, np.float32))),
            ("empty.wav", b""),
            ("wrong.wav", b"no sound"),
            ("flac.wav", sound(2, "FLAC")),  # told by its content
            ("m.m4a", b"x"),
            ("words.wav", sound()),
            ("words.json", b"[1]"),
            ("two.wav", sound()),
            ("two.txt", b"x"),
            ("two.json", b'{"caption": "y"}'),
        ],
    )
    pack(tmp_path / "none.tar", {"notes.txt": b"x"})
    put(tmp_path / "empty.tar", b"")
    put(tmp_path / "no.tar", b"not a tar file" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "a.wav")
    whole = (tmp_path / "a.tar").read_bytes()
    second = whole.index(b"good.wav", 100)
    put(tmp_path / "cut.tar", whole[: second + 1000])
    put(tmp_path / "boundary.tar", whole[:second])
    put(tmp_path / "damaged.tar", whole[:second] + b"x" * 512 + whole[second + 512 :])
    with caplog.at_level(logging.WARNING):
        source = one(tmp_path)
    names, kept = ["good", "nan", "one", "empty", "wrong", "flac"], ["boundary", "cut", "damaged"]
    assert source.names == [*(f"a.tar/{name}.wav" for name in names), *(f"{name}.tar/good.wav" for name in kept)]
    reasons = source.skipped
    assert "there twice" in reasons["a.tar/good.wav again"]
    assert ".m4a is not read" in reasons["a.tar/m.m4a"]
    assert "words.json holds a list" in reasons["a.tar/words.wav"]
    assert "two.json and" in reasons["a.tar/two.wav"] and "different captions" in reasons["a.tar/two.wav"]
    assert "is incomplete" in reasons["cut.tar/good.wav"]  # the second of that name
    assert f"damaged at byte {second:,}" in reasons["damaged.tar"]
    assert "without tar's mark of the end" in reasons["boundary.tar"]
    assert "holds no sound files" in reasons["none.tar"]
    for name in ("empty.tar", "no.tar", "packed.tar"):
        assert "no tar file, or a compressed one" in reasons[name]
    assert len(source[0].waveform) == 800 and len(source[2].waveform) == 1 and len(source[5].waveform) == 802
    for i in (1, 3, 4):
        with pytest.raises(UnreadableRecord, match=source.names[i]):
            source[i]
    os.truncate(tmp_path / "a.tar", 700)
    with pytest.raises(UnreadableRecord, match=r"a\.tar/flac\.wav"):
        source[5]


def test_a_negative_size_in_a_tar_header_ends_it(tmp_path):
    pack(tmp_path / "a.tar", {"a.wav": sound(), "b.wav": sound()})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    second = content.index(b"b.wav")
    content[second + 124 : second + 136] = b"\xff" * 8 + (-4096).to_bytes(4, "big", signed=True)
    total = sum(content[second : second + 148]) + sum(content[second + 156 : second + 512]) + 8 * 32
    content[second + 148 : second + 156] = b"%06o\0 " % total
    put(tmp_path / "a.tar", bytes(content))
    source = one(tmp_path)
    assert source.names == ["a.tar/a.wav"] and "damaged" in source.skipped["a.tar"]


def test_of_several_splits_train_is_read(tmp_path, caplog):
    for split in ("train", "test", "valid"):
        pack(tmp_path / split / "0.tar", {f"{split}.wav": sound()})
    with caplog.at_level(logging.WARNING):
        assert [*everything(tmp_path)] == ["train/0.tar/train.wav"]
    assert "2 files are of other splits than train and left out" in caplog.text
    assert [*everything(tmp_path / "test")] == ["0.tar/test.wav"]


# ── the authors' layout ──


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
        found = everything(tmp_path / "mine.json")
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


# ── which layout it is ──


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    put(tmp_path / "a.wav", sound())
    pack(tmp_path / "old/a.tar", {"b.wav": sound()})
    put(tmp_path / ".cache/x.parquet", b"hidden")
    put(tmp_path / "state.json", "of something else")
    with pytest.raises(ValueError, match=r"holds recordings \(a.wav\), tar files \(old/a.tar\).*name one file or"):
        open_source(config(tmp_path), "train")
    assert [*everything(tmp_path / "old")] == ["a.tar/b.wav"]
    for name in ("x/dataset_root.json", "y/dataset_root.json"):
        put(tmp_path / name, "{}")
    with pytest.raises(ValueError, match=r"several dataset_root.json \(x/"):
        open_source(config(tmp_path), "train")


def test_files_that_are_no_data(tmp_path):
    put(tmp_path / "a.wav", sound())
    put(tmp_path / "a.json", "[]")
    for name, message in (("a.wav", "there is no folder"), ("a.json", "holds a list"), ("b.tar", "does not exist")):
        with pytest.raises(ValueError, match=message):
            open_source(config(tmp_path / name), "train")
