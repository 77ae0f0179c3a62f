"""Public data sets, prepared: training learns from the same records, and holds out the same, as from the original."""

import json

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from pyarrow import parquet

from audioldm2_jax.data.prepare import job
from audioldm2_jax.data.prepared import Prepared
from audioldm2_jax.data.public.listed import Listed
from audioldm2_jax.data.sources import open_source

from .test_public_captions import RATE, audiocaps, audioset, config, fma, musiccaps, record, wavcaps, write
from .test_public_speech import gigaspeech, ljspeech


def clotho(folder):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    parts = {"development": "abc", "validation": "de", "evaluation": "f"}
    for part, names in parts.items():
        rows = [f'{name}.wav,"{name}, {part}",two,three,four,five\n' for name in names]
        write(folder / f"clotho_captions_{part}.csv", header + "".join(rows))
        for number, name in enumerate(names):
            record(folder / part / f"{name}.wav", 1 + number)


def libritts(folder):
    for part, count in (("train-clean-100", 3), ("dev-clean", 2), ("test-other", 1)):
        for number in range(count):
            stem = f"{number}_1_000000_{len(part):06}"
            record(folder / part / str(number) / "1" / f"{stem}.wav", 1)
            write(folder / part / str(number) / "1" / f"{stem}.normalized.txt", f"Text {number} of {part}.")


def by_hash(folder):
    """Twelve recordings of four pieces each, of which nobody says what is held out."""
    audios = []
    for i in range(12):
        record(folder / f"audio/A{i}.wav", 5, value=0.03 * i)
        segments = [
            {"sid": f"A{i}_S{k}", "begin_time": k, "end_time": k + 1, "text_tn": f"PIECE {k}", "subsets": []}
            for k in range(4)
        ]
        audios.append({"aid": f"A{i}", "path": f"audio/A{i}.opus", "source": "x", "segments": segments})
    write(folder / "GigaSpeech.json", json.dumps({"audios": audios}))


SETS = {
    audiocaps: {"train": 3, "test": 1},
    audioset: {"train": 2, "test": 1},
    clotho: {"train": 3, "validation": 2, "test": 1},
    fma: {"train": 1, "test": 1},
    libritts: {"train": 3, "validation": 2, "test": 1},
    musiccaps: {"train": 1, "test": 1},
    wavcaps: {"train": 4},
    ljspeech: {"train": 2},
    gigaspeech: {"train": 4, "validation": 1},
    by_hash: {"train": 48},
}


@pytest.fixture(params=SETS, ids=lambda made: made.__name__)
def pair(request, tmp_path):
    """A public data set, what is prepared from it, and the number of records of each split."""
    request.param(tmp_path / "in")
    options = job.Options(str(tmp_path / "in"), str(tmp_path / "out"), sampling_rate=RATE, shard_records=2)
    job.prepare(options)
    return tmp_path / "in", tmp_path / "out", SETS[request.param]


def test_both_splits_are_those_of_the_original(pair):
    for split in ("train", "heldout"):
        before, after = (open_source(config(source), split) for source in pair[:2])
        assert isinstance(before, Listed) and isinstance(after, Prepared)
        assert [*before.names] == [*after.names]  # in the same order, so that each step draws the same
        assert before.draw(5, seed=3) == after.draw(5, seed=3)
        for i in range(len(before)):
            there, here = before[i], after[i]
            assert (here.captions, here.text, here.transcription) == (there.captions, there.text, there.transcription)
            np.testing.assert_allclose(here.waveform, there.waveform, rtol=0, atol=2.0**-16)
            part, other = (source.excerpt(i, 500, 0.7) for source in (after, before))
            np.testing.assert_allclose(part.waveform, other.waveform, rtol=0, atol=2.0**-16)
            assert part.transcription == other.transcription


def test_tfds_has_the_splits_and_the_parts_of_files(pair):
    source, out, splits = pair
    builder = tfds.builder_from_directory(out)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == splits
    before = open_source(config(source, share=1.0), "heldout")
    where = {name: before.part_of(i) for i, name in enumerate(before.names)}
    for split in splits:
        for found in builder.as_data_source(split):
            assert (found["recording"].decode(), found["start"]) == where[found["name"].decode()]
    rows = parquet.read_table(out / "recordings.parquet").to_pylist()
    assert {row["name"].decode(): row["recording"].decode() for row in rows} == {n: w for n, (w, _) in where.items()}
    assert {row["split"] for row in rows} == ({*splits} if len(splits) > 1 else {None})


def test_prepared_again_it_is_the_same(pair, tmp_path):
    _, out, _ = pair
    job.prepare(job.Options(str(out), str(tmp_path / "again"), sampling_rate=RATE, shard_records=2))
    for split in ("train", "heldout"):
        before, after = (open_source(config(source), split) for source in (out, tmp_path / "again"))
        assert [*before.names] == [*after.names]
        for i in range(len(before)):
            assert before.part_of(i) == after.part_of(i)
            np.testing.assert_array_equal(before[i].waveform, after[i].waveform)


@pytest.mark.parametrize("form", ["wav", "mp3", "ogg"])
def test_a_part_of_a_file_at_another_rate_is_what_training_hears(tmp_path, form):
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal((44100 * 25, 2))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / f"in/whole.{form}", wave, 44100)
    soundfile.write(tmp_path / f"in/other.{form}", wave[:44100], 44100)
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write(tmp_path / "in/train.csv", header + "1,whole,7,rain\n2,other,0,wind\n")
    job.prepare(job.Options(str(tmp_path / "in"), str(tmp_path / "out")))
    sources = []
    for name in ("in", "out"):
        recipe = config(tmp_path / name, share=1.0)
        recipe.audio.sampling_rate = 16000
        sources.append(open_source(recipe, "heldout"))
    for i in range(2):
        there, here = (source[i].waveform for source in sources)
        assert len(there) == len(here) == (160000, 16000)[i]
        # Of a whole file the filter runs over blocks.
        np.testing.assert_allclose(here, there, rtol=0, atol=2.0**-16 + (0, 2e-5)[i])
    rows = parquet.read_table(tmp_path / "out/recordings.parquet").to_pylist()
    assert [(row["seconds"], row["rate"], row["channels"]) for row in rows] == [(10, 44100, 2), (1, 44100, 2)]
    heard = wave[7 * 44100 : 17 * 44100]
    if form == "wav":
        assert rows[0]["peak"] == pytest.approx(np.abs(heard).max(), abs=1e-4)
    # Of noise an MP3 file lacks what is above 16 kHz.
    assert rows[0]["rms"] == pytest.approx(10 * np.log10(np.square(heard).mean()), abs=0.5 if form != "mp3" else 3)


def test_lists_that_move_a_clip_to_another_split_are_refused(tmp_path):
    audiocaps(tmp_path / "in")
    options = job.Options(str(tmp_path / "in"), str(tmp_path / "out"), sampling_rate=RATE)
    job.prepare(options)
    train, test = (tmp_path / f"in/dataset/{split}.csv" for split in ("train", "test"))
    moved = "8,wholevideo0,20,An engine\n"
    assert moved in train.read_text()
    train.write_text(train.read_text().replace(moved, ""))
    test.write_text(test.read_text() + moved)
    with pytest.raises(job.PrepareError, match="the splits that are given have changed since"):
        job.prepare(options)
