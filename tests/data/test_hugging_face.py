"""Audio data sets of Hugging Face, in Parquet files and Arrow streams."""

import json
import logging
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.sources import open_source

from .made_sources import RATE, config, everything, one, put, sound, stream, table, tone

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
