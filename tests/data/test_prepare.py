"""Prepared sets: as TFDS itself reads them, as training does, the same however they were made, and resumable."""

import filecmp
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import children
from pyarrow import parquet

from audioldm2_jax import recipes
from audioldm2_jax.audio import files
from audioldm2_jax.data import prepared
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.prepare import job, records, report, shards, workers
from audioldm2_jax.data.sources import open_source
from audioldm2_jax.runtime.lock import LockedError, RunLock

ROOT = Path(__file__).parents[2]
RATE = 8000
ODD = os.fsdecode(b"caf\xe9.wav")  # a name that is not UTF-8


def noise(seconds, rate=RATE, seed=0, level=0.1, channels=1):
    rng = np.random.default_rng(seed)
    return level * rng.standard_normal((round(seconds * rate), channels)).astype(np.float32)


def put(folder, name, wave, rate=RATE, subtype=None):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(folder / name), wave, rate, subtype, format=Path(name).suffix[1:].upper())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of many kinds, of which some cannot be read."""
    root = tmp_path_factory.mktemp("recordings")
    for i in range(12):
        rate = (RATE, 22050, 16000, 44100)[i % 4]
        put(root, f"deep/{i}.{'flac' if i % 2 else 'wav'}", noise(0.5 + 0.1 * i, rate, i, channels=1 + i % 3), rate)
    put(root, "loud.wav", 8 * noise(1, seed=20), subtype="FLOAT")
    put(root, "soft.wav", 1e-4 * noise(1, seed=21), subtype="FLOAT")
    put(root, "many.wav", noise(0.5, seed=22, channels=24))
    put(root, "one.wav", noise(1 / RATE, seed=23))
    put(root, ODD, noise(0.5, seed=24))
    put(root, "said.ogg", noise(1, 16000, 25), 16000)
    long = noise(7, seed=26)
    for second in (1.5, 3, 4.6):
        long[int(second * RATE) : int((second + 0.2) * RATE)] *= 1e-4
    put(root, "long.wav", long)
    (root / "junk.wav").write_bytes(b"RIFF no sound")
    put(root, "nan.wav", np.array([0.1, np.nan, 0.2], np.float32), subtype="FLOAT")
    lines = [
        {"file_name": "deep/1.flac", "text": ["rain", "drops on a roof"]},
        {"file_name": "said.ogg", "text": "a voice", "transcription": "good evening"},
        {"file_name": "long.wav", "text": "gusts", "transcription": "nobody knows when"},
        {"file_name": "lost.wav", "text": "was deleted"},
        {"file_name": "nan.wav", "text": "is damaged"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def options(source, out, **others):
    return job.Options(str(source), str(out), **{"sampling_rate": RATE, "max_seconds": 3, "shard_records": 5, **others})


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The same, prepared in one go in one process."""
    out = tmp_path_factory.mktemp("made") / "out"
    said = []
    result = job.prepare(options(folder, out), say=said.append)
    return out, result, said


def opened(source, split="train", share=0.3, rate=RATE, **data):
    config = recipes.get("tiny")
    config.audio.sampling_rate = rate
    config.data.update({"source": str(source), "heldout_share": share, "absent": "skip", **data})
    return open_source(config, split)


def of_name(source):
    return {source.name_of(i): i for i in range(len(source))}


def same_files(first, second):
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    _, differing, unread = filecmp.cmpfiles(first, second, names, shallow=False)
    assert not differing and not unread


# ── what is read back ──


@pytest.mark.parametrize("form", ["tfds:{}", "{}"])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_examples_are_those_of_the_folder(folder, made, split, form):
    before, after = opened(folder, split), opened(form.format(made[0]), split)
    assert isinstance(after, prepared.Prepared)
    own, other = of_name(before), of_name(after)
    cut = {name for name in other if name.partition("#")[0] == "long.wav"}
    assert own.keys() - {"long.wav", "nan.wav"} == other.keys() - cut and bool(cut) == ("long.wav" in own)
    for name in other.keys() - cut:
        there, here = before[own[name]], after[other[name]]
        peak = np.abs(there.waveform).max()
        # Half a step of 16 bits, where the loudest sample is between half of full scale and full scale, or near.
        tolerance = 2.0**-16 * max(1, 2 * peak) if peak > 2**-5 else 2.0**-15 * peak
        np.testing.assert_allclose(here.waveform, there.waveform, rtol=0, atol=1.01 * tolerance + 1e-7, err_msg=name)
        assert (here.captions, here.text, here.transcription) == (there.captions, there.text, there.transcription)
        assert here.labels == there.labels == {"name": name}
        piece, whole = (
            source.excerpt(number, 1000, 0.4) for source, number in ((after, other[name]), (before, own[name]))
        )
        np.testing.assert_allclose(piece.waveform, whole.waveform, rtol=0, atol=1.01 * tolerance + 1e-4)
        assert piece.transcription == whole.transcription


def test_tfds_reads_it_without_this_package_and_without_tensorflow(made):
    code = f"""
import io, sys
import soundfile, tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(made[0])!r}).as_data_source("train")
for i in range(len(source)):
    record = source[i]
    sound, rate = soundfile.read(io.BytesIO(record["audio"]), dtype="float32")
    print(ascii((record["name"], record["recording"], [*record["captions"]], record["transcription"],
        len(sound), rate, float(abs(sound).max() * record["scale"]), float(record["start"]),
        int(record["sampling_rate"]))))
print([name for name in ("tensorflow", "audioldm2_jax", "jax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=600)
    *rows, loaded = map(eval, done.stdout.splitlines())
    source = opened(made[0], "heldout", share=1.0)
    assert len(rows) == len(source) == made[1]["records"] and "tensorflow" not in loaded
    for i, (name, recording, captions, said, samples, rate, peak, start, stated) in enumerate(rows):
        example = source[i]
        assert os.fsdecode(name) == source.name_of(i) and name.partition(b"#")[0] == recording
        assert tuple(text.decode() for text in captions) == example.captions
        assert (said.decode() or None) == example.transcription
        assert (samples, rate, stated) == (len(example.waveform), RATE, RATE)
        assert peak == pytest.approx(np.abs(example.waveform).max(), rel=1e-6)
        assert (start > 0) == (name.endswith((b"#1", b"#2", b"#3")))


def test_long_recordings_are_cut_at_silences_and_their_pieces_stay_together(folder, made):
    source = opened(made[0], "heldout", share=1.0)
    pieces = [source[i] for name, i in of_name(source).items() if name.startswith("long.wav#")]
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    np.testing.assert_allclose(np.concatenate([piece.waveform for piece in pieces]), whole, atol=2.0**-15)
    cuts = np.cumsum([len(piece.waveform) for piece in pieces])[:-1] / RATE
    assert len(pieces) == 4 and all(len(piece.waveform) <= 3 * RATE for piece in pieces)
    np.testing.assert_allclose(cuts, [1.6, 3.1, 4.7], atol=0.05)  # the middles of the silences
    assert all(piece.transcription is None and piece.captions == ("gusts",) for piece in pieces)
    for share in (0.1, 0.3, 0.5, 0.7):
        found = [name for name in of_name(opened(made[0], "train", share)) if name.startswith("long.wav")]
        assert len(found) in (0, 4)
        assert bool(found) == ("long.wav" in of_name(opened(folder, "train", share)))


def test_a_single_recording_in_pieces_is_in_both_splits(tmp_path):
    put(tmp_path / "in", "a.wav", noise(5))
    job.prepare(options(tmp_path / "in", tmp_path / "out"))
    assert len(opened(tmp_path / "out", "train")) == len(opened(tmp_path / "out", "heldout")) >= 2


def test_it_is_prepared_again_from_what_was_prepared(made, tmp_path):
    job.prepare(options(f"tfds:{made[0]}", tmp_path / "again"))
    before, after = opened(made[0], share=1.0, split="heldout"), opened(tmp_path / "again", share=1.0, split="heldout")
    assert of_name(before) == of_name(after)
    for i in range(len(before)):
        np.testing.assert_array_equal(before[i].waveform, after[i].waveform)
        assert before.captions(i) == after.captions(i) and before.transcription(i) == after.transcription(i)


def test_a_set_that_has_lost_a_part_is_refused(made, tmp_path):
    for lost, message in (
        ("recordings.parquet", "recordings.parquet cannot be read"),
        ("features.json", "is damaged"),
    ):
        copy = shutil.copytree(made[0], tmp_path / lost)
        (copy / lost).unlink()
        with pytest.raises(ValueError, match=message):
            opened(copy)
    copy = shutil.copytree(made[0], tmp_path / "shard")
    for shard in copy.glob("*00000-of*"):
        shard.write_bytes(shard.read_bytes()[:-100_000])
    source = opened(copy, "heldout", share=1.0)
    assert source.digests(9) != opened(made[0], "heldout", share=1.0).digests(9)


@given(st.floats(1e-6, 50), st.integers(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sixteen_bits_are_enough_at_any_level(peak, samples, seed):
    wave = np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)
    wave *= np.float32(peak) / np.abs(wave).max()
    content, scale = records.encode_sound(wave, RATE)
    sound, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == RATE and np.log2(scale) == round(np.log2(scale))
    np.testing.assert_allclose(sound * scale, wave, rtol=0, atol=max(2.0**-15 if peak > 2**-5 else 0, peak * 2.0**-14))


def test_sixteen_bits_stay_as_they_are():
    numbers = np.arange(-(2**15), 2**15).astype(np.int16)
    for shift in (0, 3, 6, 11):
        content, _scale = records.encode_sound((numbers >> shift) / np.float32(2**15), RATE)
        stored, _ = soundfile.read(io.BytesIO(content), dtype="float32")
        assert np.array_equal(stored * _scale * 2**15, numbers >> shift)


@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    st.sampled_from([8000, 16000, 24000, 48000]),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=6),
)
@settings(max_examples=30, deadline=None)
def test_resampling_in_blocks_is_resampling(rate, wanted, lengths):
    wave = noise(1, sum(lengths), seed=1)[:, 0]
    blocks = np.split(wave, np.cumsum(lengths)[:-1])
    made = np.concatenate([*shards.resampled(blocks, rate, wanted)])
    whole = files.segment_of(lambda offset, count: (wave, 0.0), rate, "it", wanted)
    assert made.shape == whole.shape
    np.testing.assert_allclose(made, whole, atol=2e-5)


# ── how it is made ──


def command(source, out, *flags, limit=0):
    """`launch/prepare.py` as a process of its own, of which no file may have more than `limit` bytes."""
    code = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv[0] = "launch/prepare.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    wanted = ["--source", str(source), "--out", str(out), "--sampling_rate", str(RATE), "--max_seconds=3"]
    program = ["-c", code, str(limit)] if limit else ["launch/prepare.py"]
    return subprocess.Popen(
        [sys.executable, *program, *wanted, "--shard_records=5", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's job in the background ignores it
    )


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def kill(source, out, moment):
    """Runs the command until `moment` holds and ends it without a warning; its workers end by themselves."""
    process = command(source, out, "--workers=2")
    wait_for(lambda: moment() or process.poll() is not None)
    of_it = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in of_it))


def test_killed_at_any_moment_it_goes_on_and_the_result_is_the_same(folder, made, tmp_path):
    out = tmp_path / "out"
    kill(folder, out, lambda: (out / "prepare.json").exists())
    kill(folder, out, lambda: any(out.glob(".recordings-train*.partial")))
    with pytest.raises(ValueError, match="is not finished: the same command"):
        opened(f"tfds:{out}")
    kill(folder, out, lambda: any(out.glob("recordings-train*")))
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("recordings-train*")}
    process = command(folder, out, "--workers=2")
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert whole and "recordings are there already" in text
    assert all(time == (out / name).stat().st_mtime_ns for name, time in whole.items())
    same_files(made[0], out)
    assert job.prepare(options(folder, out)) == made[1]  # finished: nothing is done
    same_files(made[0], out)


def test_interrupted_it_says_how_to_go_on(folder, tmp_path):
    for _ in range(5):  # a fast machine may be done before the signal comes
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = command(folder, tmp_path / "out", "--workers=1")
        wait_for(lambda pid=process.pid: children(pid))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        if process.returncode:
            break
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert not (tmp_path / "out/lock.json").exists()


def test_where_the_disk_is_full_one_line_says_so_and_no_shard_is_there(folder, tmp_path):
    out = tmp_path / "out"
    process = command(folder, out, "--workers=1", limit=20_000)
    _, errors = process.communicate(timeout=300)
    lines = [line for line in errors.splitlines() if not line.startswith(("warning", " "))]
    assert process.returncode == 1 and len(lines) == 1, errors
    assert lines[0].startswith(f"error: cannot write {out}/recordings-train.array_record-") and "Make room" in lines[0]
    assert not [*out.glob("*.array_record-*")] and not [*out.glob(".*")]
    assert job.prepare(options(folder, out))["records"]


def test_other_settings_and_other_data_are_refused(folder, made, tmp_path):
    source, out = shutil.copytree(folder, tmp_path / "in"), tmp_path / "out"
    job.prepare(options(source, out))
    moved = shutil.move(source, tmp_path / "moved")
    job.prepare(options(moved, out))  # the same data elsewhere
    with pytest.raises(job.PrepareError, match=r"other settings \(sampling_rate 8000 → 16000\)"):
        job.prepare(options(moved, out, sampling_rate=16000))
    with pytest.raises(job.PrepareError, match=r"max_seconds 3.0 → 4.0"):
        job.prepare(options(moved, out, max_seconds=4))
    before = (moved / "deep/3.flac").read_bytes()
    put(moved, "deep/3.flac", noise(0.8, 44100, 77, channels=1), 44100)
    with pytest.raises(job.PrepareError, match=r"recordings of the source have changed|names, lengths"):
        job.prepare(options(moved, out))
    (moved / "deep/3.flac").write_bytes(before)
    (moved / "deep/3.txt").write_text("a new caption")
    with pytest.raises(job.PrepareError, match="captions in the source have changed"):
        job.prepare(options(moved, out))
    (moved / "deep/3.txt").unlink()
    put(moved, "more.wav", noise(1))
    with pytest.raises(job.PrepareError, match="has 21 records and had 20 when"):
        job.prepare(options(moved, out))
    assert len(opened(out, "heldout", share=1.0)) == made[1]["records"]  # it is as it was


@pytest.mark.parametrize(
    "source, others, message",
    [
        ("builtin:music", {}, "made while it is read, and there is nothing to prepare"),
        ("{folder},1;{folder},2", {}, "is a mixture: prepare each of its 2 sources by itself"),
        ("{folder}/absent", {}, "there is no folder"),
        ("{folder}", {"sampling_rate": 0}, "--sampling_rate=0"),
        ("{folder}", {"max_seconds": float("nan")}, "--max_seconds=nan"),
        ("{folder}", {"max_seconds": 0.5}, "--max_seconds=0.5: it has to be from 1 to 3600"),
        ("{folder}", {"workers": -1}, "--workers=-1"),
        ("{folder}", {"workers": 2, "beam": ("--runner=FlinkRunner",)}, "--workers=2 and --beam"),
        ("{folder}", {"out": "{folder}/within"}, "lies in the source"),
        ("{folder}", {"out": "{folder}/metadata.jsonl"}, "lies in the source|is a file"),
        ("{folder}", {"out": "{used}"}, r"holds other files \(notes.txt\)"),
        ("{folder}", {"out": "hdfs://node/x"}, "hdfs:// is not served"),
        ("{folder}", {"out": "s3://bucket"}, "--out=s3://bucket: an address has the form s3://BUCKET/NAME"),
    ],
)
def test_what_cannot_be_prepared_is_refused(folder, tmp_path, source, others, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    names = {"folder": folder, "used": tmp_path / "used"}
    others = {key: value.format(**names) if isinstance(value, str) else value for key, value in others.items()}
    out = others.pop("out", str(tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        job.prepare(options(source.format(**names), out, **others))
    assert not (tmp_path / "out").exists() and not (folder / "within").exists()


def test_one_at_a_time(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with RunLock(tmp_path / "out"), pytest.raises(LockedError, match="or choose another --out"):
        job.prepare(options(folder, tmp_path / "out"))


def test_nothing_readable_is_an_error(tmp_path):
    put(tmp_path / "in", "a.wav", np.array([np.nan, 0.1], np.float32), subtype="FLOAT")
    with pytest.raises(job.PrepareError, match=r"none of the 1 recordings can be read; the first: .*NaN"):
        job.prepare(options(tmp_path / "in", tmp_path / "out"))
    assert not (tmp_path / "out/dataset_info.json").exists()


class Crashing(Source):
    """A decoder that takes its process with it."""

    def __len__(self):
        return 8

    def name_of(self, index):
        return f"recording {index}"

    def captions(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        raise files.UnreadableAudio("not that one")


def test_a_decoder_that_crashes_is_told_with_its_recording(tmp_path):
    (tmp_path / "parts").mkdir()
    plan = shards.Plan(tmp_path, (("train", 8),), 4, RATE, RATE)
    with pytest.raises(workers.WorkerError, match=r"while it read recording 5 \(exit code -11\)"):
        list(workers.make_shards(Crashing(), plan, [0, 1], 1, lambda done: None))
    assert plan.is_made(0) and not plan.is_made(1)


def test_without_librosa_it_says_what_to_install(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'audioldm2-jax\[prepare\]'"):
        job.prepare(options(folder, tmp_path / "out"))


def test_without_beam_it_says_what_to_install(monkeypatch, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "audioldm2_jax.data.prepare.beam_pipeline", raising=False)
    monkeypatch.delattr("audioldm2_jax.data.prepare.beam_pipeline", raising=False)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[beam\]"'):
        job.prepare(options(folder, tmp_path / "out", beam=()))
    assert not (tmp_path / "out").exists()


# ── other sources ──


def test_every_kind_of_source_is_prepared(tmp_path):
    import tarfile

    import pyarrow as pa

    encoded = []
    for i in range(6):
        file = io.BytesIO()
        soundfile.write(file, noise(0.5, 16000, i), 16000, format="FLAC")
        encoded.append(file.getvalue())
    (tmp_path / "hf").mkdir()
    rows = [{"audio": {"bytes": sound, "path": None}, "text": f"sound {i}"} for i, sound in enumerate(encoded)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "hf/train.parquet")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar/0.tar", "w") as tar:
        for i, sound in enumerate(encoded):
            for name, content in ((f"{i}.flac", sound), (f"{i}.txt", f"sound {i}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "authors").mkdir()
    for i, sound in enumerate(encoded):
        (tmp_path / f"authors/{i}.flac").write_bytes(sound)
    data = {"data": [{"wav": f"{i}.flac", "caption": f"sound {i}"} for i in range(7)]}  # of which one is not there
    (tmp_path / "authors/train.json").write_text(json.dumps(data))
    for source in ("hf", "tar", "authors/train.json"):
        before = opened(tmp_path / source, "heldout", share=1.0)
        out = tmp_path / source.replace("/", "-").replace(".", "-")
        result = job.prepare(options(tmp_path / source, f"{out}-out"))
        after = opened(f"{out}-out", "heldout", share=1.0)
        assert of_name(before) == of_name(after) and len(after) == 6
        for i in range(6):
            assert before.captions(i) == after.captions(i) == (f"sound {i}",)
            np.testing.assert_allclose(after[i].waveform, before[i].waveform, atol=2.0**-15)
        missing = source.startswith("authors")
        assert result["captions"]["without_sound"] == result["unreadable"]["count"] == missing
