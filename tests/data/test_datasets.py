"""TFDS sets: written without TensorFlow, read without TensorFlow."""

import io
import json
import logging
import pickle
import sys

import numpy as np
import pytest
import soundfile

from audioldm2_jax import recipes
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.sources import open_source

tfds = pytest.importorskip("tensorflow_datasets")

RATE = 8000
N = 12


def tone(i: int) -> np.ndarray:
    return (0.1 + 0.05 * i) * np.sin(np.arange(2000 + i) * (0.1 + 0.01 * i)).astype(np.float32)


def sound_file(i: int) -> bytes:
    if i == 3:
        return b"not a sound file"
    file = io.BytesIO()
    soundfile.write(file, tone(i), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def prepare(folder, kind: str):
    """A prepared set of `N` tones; TFDS' audio feature needs TensorFlow to write, so its name is put in afterwards."""
    features = tfds.features
    stored = {
        "tensor": features.Tensor(shape=(None,), dtype=np.float32),
        "audio": features.Tensor(shape=(None,), dtype=np.int64),
        "file": features.Tensor(shape=(), dtype=np.str_),
    }[kind]

    class Tones(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict({"audio": stored, "caption": features.Text(), "number": np.int64}),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(N):
                value = {"tensor": tone(i), "audio": np.round(tone(i) * 32767).astype(np.int64), "file": sound_file(i)}
                yield i, {"audio": value[kind], "caption": f"tone {i}", "number": i}

    builder = Tones(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    if kind != "tensor":
        path = builder.data_path / "features.json"
        written = json.loads(path.read_text())
        content = {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "NONE", "sampleRate": str(RATE)}
        content |= {"lazyDecode": True, "fileFormat": "wav"} if kind == "file" else {}
        written["featuresDict"]["features"]["audio"] = {
            "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
            "audio": content,
        }
        path.write_text(json.dumps(written))
    return builder.data_path


@pytest.fixture(scope="module", params=["tensor", "audio", "file"])
def prepared(request, tmp_path_factory):
    return request.param, prepare(tmp_path_factory.mktemp("tfds"), request.param)


def config(path, **data):
    recipe = recipes.get("tiny")
    recipe.audio.sampling_rate = RATE
    recipe.data.update({"source": f"tfds:{path}", "heldout_share": 0.3, **data})
    return recipe


def test_records_and_captions_of_both_splits(prepared):
    kind, path = prepared
    seen = {}
    for split in ("train", "heldout"):
        source = open_source(config(path), split)
        for i in range(len(source)):
            try:
                example = source[i]
            except UnreadableRecord as error:
                assert kind == "file" and "record" in str(error)
                continue
            assert source.text(i) == example.text
            assert example.text not in seen
            seen[example.text] = example.waveform
    assert len(seen) == (N - 1 if kind == "file" else N)
    for i in range(N):
        if f"tone {i}" in seen:
            # 16-bit integers round by half a step of 1/32767, and are read back with 1/32768.
            np.testing.assert_allclose(seen[f"tone {i}"], tone(i), atol=6e-5)
    assert "tensorflow" not in sys.modules


def test_other_rates_are_resampled_and_sources_travel_to_workers(prepared):
    kind, path = prepared
    if kind == "tensor":
        pytest.skip("a plain tensor has no rate")
    recipe = config(path)
    recipe.audio.sampling_rate = 2 * RATE
    source = pickle.loads(pickle.dumps(open_source(recipe, "train")))
    example = source[0]
    assert len(example.waveform) == 2 * len(tone(int(example.text.split()[1])))


def test_unnamed_rate_is_warned_of(prepared, caplog):
    kind, path = prepared
    with caplog.at_level(logging.WARNING):
        open_source(config(path), "train")
    assert ("taking it for 8000 Hz" in caplog.text) == (kind == "tensor")


def test_errors_say_what_there_is(prepared, tmp_path):
    _, path = prepared
    with pytest.raises(ValueError, match="no feature 'sound'; it has audio, caption, number"):
        open_source(config(path, audio_feature="sound"), "train")
    with pytest.raises(ValueError, match="no feature 'words'"):
        open_source(config(path, text_feature="words"), "train")
    with pytest.raises(ValueError, match="not a prepared set"):
        open_source(config(tmp_path), "train")
    with pytest.raises(ValueError, match="no such folder"):
        open_source(config(tmp_path / "absent"), "train")
    with pytest.raises(ValueError, match="tfds build nowhere_near"):
        open_source(config("nowhere_near"), "train")


def labelled(folder):
    """A set with labels in the place of captions."""
    features = tfds.features
    names = ["dog_bark", "rain"]

    class Labelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "audio": features.Tensor(shape=(None,), dtype=np.float32),
                        "label": features.ClassLabel(names=names),
                        "labels": features.Sequence(features.ClassLabel(names=names)),
                        "bare": features.ClassLabel(num_classes=3),
                        "number": np.int64,
                        "captions": features.Sequence(features.Text()),
                        "caption": {"en": features.Text(), "kind": features.ClassLabel(names=names)},
                        "stereo": features.Tensor(shape=(None, 2), dtype=np.float32),
                        "nothing": features.Sequence(features.ClassLabel(names=names)),
                        "table": features.Tensor(shape=(2, 2), dtype=np.str_),
                        "tags": features.Sequence({"name": features.Text(), "kind": features.ClassLabel(names=names)}),
                        "gap": features.ClassLabel(names=["", *names]),
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield (
                    i,
                    {
                        "audio": tone(i),
                        "label": 1,
                        "labels": [1, 0],
                        "bare": 2,
                        "number": i,
                        "captions": ["first", "second"],
                        "caption": {"en": "words", "kind": 0},
                        "stereo": np.stack([tone(i), -tone(i)], 1),
                        "nothing": [],
                        "table": [["first", "second"], ["third", "second"]],
                        "tags": [{"name": "loud", "kind": 1}, {"name": "far", "kind": 0}],
                        "gap": 1,
                    },
                )

    builder = Labelled(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("labelled"))


@pytest.mark.parametrize(
    "feature, caption",
    [
        ("label", "rain"),
        ("labels", "rain, dog_bark"),
        ("captions", "first"),
        ("caption/en", "words"),
        ("caption/kind", "dog_bark"),
        ("nothing", None),
        ("tags/kind", "rain, dog_bark"),
    ],
)
def test_captions_of_labels_are_their_names(labels, feature, caption):
    source = open_source(config(labels, text_feature=feature), "train")
    assert source.text(0) == source[0].text == source.excerpt(0, 100, 0.5).text == caption


@pytest.mark.parametrize("feature, captions", [("table", ("first", "second", "third")), ("tags/name", ("loud", "far"))])
def test_several_texts_are_several_captions(labels, feature, captions):
    """However they lie in the record."""
    assert open_source(config(labels, text_feature=feature), "train").captions(0) == captions


@pytest.mark.parametrize(
    "feature, message",
    [
        ("gap", "gap has 3 labels and 2 names"),
        ("tags", "tags is no caption but holds tags/kind, tags/name"),
        ("bare", "bare has labels without names"),
        ("number", "number holds int64 numbers and no text"),
        ("caption", "caption is no caption but holds caption/en, caption/kind"),
        ("", "caption is no caption but holds caption/en, caption/kind"),
        ("caption/fr", "no feature 'caption/fr'; it has caption/en, caption/kind"),
        ("label/x", "no feature 'label/x'"),
    ],
)
def test_features_that_are_no_captions_are_named(labels, feature, message):
    with pytest.raises(ValueError, match=message):
        open_source(config(labels, text_feature=feature), "train")


def test_excerpts_are_pieces_of_the_record(prepared):
    kind, path = prepared
    recipe = config(path)
    recipe.audio.sampling_rate = RATE if kind == "tensor" else 2 * RATE
    source = open_source(recipe, "train")
    whole = source[0].waveform
    for position in (0.0, 0.4, 0.999):
        piece = source.excerpt(0, 1000, position).waveform
        start = int(position * (len(whole) - 1000 + 1))
        np.testing.assert_allclose(piece, whole[start : start + 1000], atol=1e-3)  # resampled around the piece only
    assert len(source.excerpt(0, 100_000, 0.5).waveform) == len(whole)


def test_a_record_that_the_reader_cannot_read_is_unreadable(prepared, monkeypatch):
    _, path = prepared
    source = open_source(config(path), "train")

    class Broken:
        def __getitem__(self, number):
            raise RuntimeError("ArrayRecord: bad chunk")

    source._records = Broken()
    for read in (source.__getitem__, source.text, lambda i: source.excerpt(i, 10, 0.5)):
        with pytest.raises(UnreadableRecord, match=r"record .*bad chunk"):
            read(0)


def test_channels_that_cancel_out_are_said_to(labels, caplog):
    with caplog.at_level(logging.WARNING):
        open_source(config(labels, audio_feature="stereo", text_feature="label"), "train")[0]
    assert "record" in caplog.text and "channels have opposite phase" in caplog.text
