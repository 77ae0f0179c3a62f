"""The report on a source: what was put into it is what it says, in all three forms."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import soxr
from matplotlib import image
from pyarrow import parquet

from audioldm2_jax.data.prepare import job, report

RATE = 44100


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    source = root / "in"
    source.mkdir()
    rng = np.random.default_rng(0)

    def put(name, wave, rate=RATE):
        soundfile.write(source / name, wave, rate)

    for i in range(4):
        put(f"good{i}.wav", 0.1 * rng.standard_normal((RATE * (i + 1), 2)))
    put("phone.wav", soxr.resample(0.1 * rng.standard_normal(16000), 8000, RATE, "HQ"))
    put("clipped.wav", np.clip(3 * np.sin(np.arange(RATE) * 0.05), -1, 1))
    put("silent.wav", np.zeros(RATE))
    put("dc.wav", 0.2 + 0.1 * rng.standard_normal(16000), 16000)
    soundfile.write(source / "copy of good0.flac", soundfile.read(source / "good0.wav")[0], RATE)
    shutil.copy(source / "good0.wav", source / "third `` |.wav")
    (source / "broken.wav").write_bytes(b"RIFF")
    lines = [("good0.wav", "rain"), ("good1.wav", ["rain", "heavy rain on a tin roof"]), ("gone.wav", "a bell")]
    rows = [{"file_name": name, "text": text} for name, text in lines]
    rows += [{"file_name": "good2.wav", "transcription": "yes"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "out", job.prepare(job.Options(str(source), str(root / "out")))


def test_numbers(made):
    _, found = made
    assert (found["recordings"], found["records"], found["cut"]) == (10, 10, 0)
    assert found["hours"] == pytest.approx(18 / 3600, abs=1e-3)
    assert found["rates"] == {"44100": 9, "16000": 1} and found["channels"] == {"2": 6, "1": 4}
    assert found["encodings"] == {"WAV PCM_16": 9, "FLAC PCM_16": 1}
    assert (found["seconds"]["min"], found["seconds"]["max"]) == (1, 4)
    assert found["seconds"]["count"] == sum(found["seconds"]["histogram"]["counts"]) == 10
    assert found["rms"]["count"] == 9 and found["rms"]["max"] == pytest.approx(-0.7, abs=0.3)


def test_faults(made):
    _, found = made
    for key, names in {
        "narrow": ["phone.wav"],
        "clipped": ["clipped.wav"],
        "silent": ["silent.wav"],
        "dc": ["dc.wav"],
    }.items():
        assert found[key] == {"count": 1, "first": names}, key
    assert found["duplicates"] == {
        "count": 2,
        "groups": 1,
        "first": [["copy of good0.flac", "good0.wav", "third `` |.wav"]],
    }
    assert found["unreadable"]["count"] == 2
    assert any("broken.wav cannot be read as sound" in line for line in found["unreadable"]["reasons"])
    assert any("names gone.wav" in line for line in found["unreadable"]["reasons"])


def test_captions(made):
    _, found = made
    words = found["captions"]["words"]
    assert {key: value for key, value in found["captions"].items() if key != "words"} == {
        "recordings_with": 2,
        "recordings_without": 8,
        "transcribed": 1,
        "count": 3,
        "different": 2,
        "repeated": [["rain", 2]],
        "without_sound": 1,
    }
    assert (words["min"], words["max"], words["count"]) == (1, 6, 3)


def test_files(made):
    out, found = made
    assert json.loads((out / "report.json").read_text()) == found
    text = (out / "report.md").read_text()
    assert "`` phone.wav ``" in text and "the same sound as another recording: 2" in text
    drawn = image.imread(out / "report.png")
    assert drawn.shape[0] > 400 and drawn.std() > 0.05
    assert "0.3 minutes: 10 recordings, 10 records of 16000 Hz" in report.summary(found)[0]


def test_the_table_has_every_recording(made):
    rows = parquet.read_table(made[0] / "recordings.parquet").to_pylist()
    assert len(rows) == 10
    phone = next(row for row in rows if row["name"] == b"phone.wav")
    assert phone["rate"] == RATE and 3500 < phone["bandwidth"] < 4500 and phone["pieces"] == [32000]


def test_recordings_of_one_length_are_seen_in_the_histogram(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "in" / f"{number}.wav", np.full(800, 0.1 * number + 0.1), 8000)
    found = job.prepare(job.Options(str(tmp_path / "in"), str(tmp_path / "out")))["seconds"]["histogram"]
    assert sum(found["counts"]) == 3 and np.diff(found["edges"]).min() > 0


def test_names_and_captions_hold_nothing_that_a_terminal_obeys():
    assert report._code("a\x1b[2J `` $x_1$ [b]\u202e") == r"`` a\x1b[2J ' ' $x_1$ [b]\u202e ``"
