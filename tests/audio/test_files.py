"""Sound files in and out: every format, any rate and channel count, segments, faults."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from audioldm2_jax.audio import files

# What coding costs: 16 bits are written × 32767 and read / 32768, so 3e-5; Vorbis and MP3 keep what is heard, not
# the samples.
FORMATS = {
    "a.wav": ("PCM_16", 4e-5),
    "b.wav": ("FLOAT", 0.0),
    "c.flac": ("PCM_16", 4e-5),
    "d.ogg": ("VORBIS", 0.05),
    "e.mp3": ("MPEG_LAYER_III", 0.1),
}


def tune(samples: int, sampling_rate: int) -> np.ndarray:
    time = np.arange(samples) / sampling_rate
    return (0.4 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_file_was_silent():
    files._silent.clear()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back(tmp_path, name):
    subtype, tolerance = FORMATS[name]
    waveform = tune(32000, 16000)
    files.write(tmp_path / "new" / name, waveform, 16000, subtype)
    got = files.read(tmp_path / "new" / name, 16000)
    assert got.dtype == np.float32
    assert files.length(tmp_path / "new" / name, 16000) == len(got)
    assert len(got) >= 32000
    # Away from the ends, where lossy coders ring.
    np.testing.assert_allclose(got[1000:31000], waveform[1000:31000], atol=tolerance)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (22050, 6), (44100, 2), (96000, 1)])
def test_any_rate_and_channel_count_becomes_mono(tmp_path, rate, channels):
    waveform = tune(rate, rate)
    spread = waveform[:, None] * np.linspace(0.5, 1.5, channels) if channels > 1 else waveform
    files.write(tmp_path / "a.wav", spread, rate, "FLOAT")
    got = files.read(tmp_path / "a.wav", 16000)
    assert got.shape == (16000,)
    assert files.length(tmp_path / "a.wav", 16000) == 16000
    # The same instants at the new rate, away from the ends; 1e-4 for soxr's high quality.
    np.testing.assert_allclose(got[500:-500], tune(16000, 16000)[500:-500], atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_segment_is_that_stretch_of_the_whole(tmp_path, name, rate):
    files.write(tmp_path / name, tune(2 * rate, rate), rate, FORMATS[name][0])
    whole = files.read(tmp_path / name, 16000)
    for start, samples in ((0, 4000), (12345, 4000), (30000, None), (31000, 4000)):
        got = files.read(tmp_path / name, 16000, start, samples)
        want = whole[start:] if samples is None else whole[start : start + samples]
        assert got.shape == want.shape
        # Resampling filters that see 256 samples more, and MP3 frames decoded from a later start.
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "seconds", "channels", "subtype"),
    [(44100, 3.3, 2, "VORBIS"), (22050, 31, 1, "VORBIS"), (48000, 6, 1, "VORBIS"), (48000, 4, 2, "OPUS")],
)
@pytest.mark.parametrize("tail", ["loud", "silent"])
def test_crops_of_ogg_are_where_they_are_asked_for(rate, seconds, channels, subtype, tail, tmp_path):
    """Also in the last page, into which libsndfile jumps hundreds of samples late; a silent one lasts seconds."""
    count = int(rate * seconds)
    sound = 0.2 * np.random.default_rng(0).standard_normal((count, channels), np.float32)
    if tail == "silent":
        sound[count // 3 : -rate // 4] = 0
    soundfile.write(tmp_path / "a.ogg", sound, rate, subtype=subtype)
    whole = files.read(tmp_path / "a.ogg", rate)
    for offset in (0.2, 0.5, 0.7, 0.8, 0.9, 0.93, 0.96, 0.98, 0.99, 0.995):
        start = int(offset * count)
        part = files.read(tmp_path / "a.ogg", rate, start, 2000)
        np.testing.assert_allclose(part, whole[start : start + 2000], atol=1e-4, err_msg=f"at {offset}")


def test_a_segment_decodes_only_itself(tmp_path, monkeypatch):
    files.write(tmp_path / "long.flac", tune(441000, 44100), 44100)
    decoded = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, count=-1, **k: decoded.append(count) or read(self, count, **k),
    )
    files.read(tmp_path / "long.flac", 16000, 100000, 1600)
    assert sum(decoded) < 10000


def test_segment_crops_and_pads():
    waveform = np.arange(5)
    np.testing.assert_array_equal(files.segment(waveform, 3, 1), [1, 2, 3])
    np.testing.assert_array_equal(files.segment(waveform, 4, 3), [3, 4, 0, 0])
    np.testing.assert_array_equal(files.segment(waveform, 2, 9), [0, 0])
    assert files.segment(waveform, 3).dtype == np.float32


def test_normalise():
    got = files.normalise(3 * tune(1000, 16000) + 1)
    assert got.dtype == np.float32
    assert abs(got.mean()) < 1e-6
    assert np.abs(got).max() == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_array_equal(files.normalise(np.full(100, 0.3)), 0)


def test_loud_samples_are_clipped_and_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        files.write(tmp_path / "a.wav", np.array([0.0, 1.7, -3.0, 0.5]), 16000)
    assert "2 samples outside -1..1" in caplog.text
    np.testing.assert_allclose(files.read(tmp_path / "a.wav", 16000), [0, 1, -1, 0.5], atol=1e-4)
    files.write(tmp_path / "b.wav", np.array([0.0, 1.7]), 16000, "FLOAT")
    assert files.read(tmp_path / "b.wav", 16000)[1] == np.float32(1.7)


def test_faulty_files_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "nothing.mp3").write_bytes(b"")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 16000, "FLOAT")
    files.write(tmp_path / "fine.wav", tune(1000, 16000), 16000)
    faults = {
        "text.wav": "cannot be read",
        "nothing.mp3": "cannot be read",
        "empty.wav": "holds no samples",
        "nan.wav": "NaN",
        "absent.wav": "does not exist",
    }
    for name, why in faults.items():
        with pytest.raises(files.UnreadableAudio, match=f"{name}.*{why}"):
            files.read(tmp_path / name, 16000)
        if name != "nan.wav":
            with pytest.raises(files.UnreadableAudio, match=f"{name}.*{why}"):
                files.length(tmp_path / name, 16000)
    with pytest.raises(files.UnreadableAudio, match=r"fine.wav ends before sample 1000"):
        files.read(tmp_path / "fine.wav", 16000, start=1000)
    with pytest.raises(files.UnreadableAudio, match=r"fine.wav ends before sample 3000"):
        files.read(tmp_path / "fine.wav", 48000, start=3000)
    with pytest.raises(ValueError, match="-1"):
        files.read(tmp_path / "fine.wav", 16000, start=-1)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """Whoever runs the tests may read everything as root, so the refusal of the system is put on."""
    path = tmp_path / "private.wav"
    path.write_bytes(b"")  # what libsndfile says of either is alike
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(files.UnreadableAudio, match=r"private.wav may not be read by this user: change"):
        files.read(path, 16000)


def test_half_a_flac_does_not_crash(tmp_path):
    files.write(tmp_path / "a.flac", tune(64000, 16000), 16000)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    try:
        assert 0 < len(files.read(tmp_path / "a.flac", 16000)) <= 64000
    except files.UnreadableAudio as error:
        assert "a.flac" in str(error)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    fine = tune(100, 16000)
    for name, waveform, subtype, why in (
        ("a.wav", np.array([0, np.nan]), "PCM_16", "1 NaN"),
        ("a.wav", np.zeros(0), "PCM_16", "not empty"),
        ("a.flac", fine, "FLOAT", "FLAC has no subtype FLOAT"),
        ("a", fine, "PCM_16", "no ending"),
    ):
        with pytest.raises(ValueError, match=why):
            files.write(tmp_path / name, waveform, 16000, subtype)
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(OSError):
        files.write(tmp_path / "a.wav", fine, 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def as_a_pipe_writes_it(path, frames):
    """Sets the length in the header of a FLAC file."""
    content = bytearray(path.read_bytes())
    content[21:26] = ((content[21] & 0xF0) << 32 | frames).to_bytes(5, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("frames", [0, 2**36 - 1, 17, 70000])
def test_the_length_in_a_header_is_not_trusted(tmp_path, frames):
    """FLAC written to a pipe, or whose header is wrong: what it holds is read, every stretch of it."""
    path = tmp_path / "a.flac"
    files.write(path, tune(64000, 16000), 16000)
    whole = files.read(path, 16000)
    as_a_pipe_writes_it(path, frames)
    held = 17 if frames == 17 else 64000  # libFLAC itself stops at a length that is too short
    try:
        assert files.length(path, 16000) == held
    except files.UnreadableAudio as error:
        assert frames == 70000 and "a.flac" in str(error)
        return
    np.testing.assert_array_equal(files.read(path, 16000), whole[:held])
    if held == 64000:
        np.testing.assert_array_equal(files.read(path, 16000, 60000, 4000), whole[60000:])
        np.testing.assert_array_equal(files.read(path, 16000, 60000, 9000), whole[60000:])
        assert files.length(path, 8000) == 32000
        with pytest.raises(files.UnreadableAudio, match=r"a\.flac"):
            files.read(path, 16000, 70000, 10)


def damaged(path, kind, name):
    """Half of a good file, or one with noise in its middle."""
    rng = np.random.default_rng(0)
    waveform = tune(160000, 16000) + 0.05 * rng.standard_normal(160000).astype(np.float32)
    files.write(path, waveform, 16000, FORMATS[name][0])
    content = bytearray(path.read_bytes())
    if kind == "half":
        content = content[: len(content) // 2]
    else:
        middle = slice(len(content) // 2, len(content) // 2 + 2000)
        content[middle] = rng.integers(0, 256, 2000, np.uint8).tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["half", "noise"])
def test_damaged_files_are_read_as_long_as_they_are_said_to_be_or_refused(tmp_path, name, kind):
    path = tmp_path / name
    damaged(path, kind, name)
    try:
        samples = files.length(path, 16000)
    except files.UnreadableAudio as error:
        assert name in str(error) and "damaged or incomplete" in str(error)
        return
    try:
        # Vorbis' decoder leaves out what it cannot read and goes on.
        assert len(files.read(path, 16000)) == samples or (name, kind) == ("d.ogg", "noise")
    except files.UnreadableAudio as error:
        assert kind == "noise" and name in str(error)
    assert len(files.read(path, 16000, samples - 1000, 1000)) == 1000


@pytest.mark.parametrize("error", [MemoryError(), ValueError("array is too big"), OverflowError("too large")])
def test_every_error_of_decoding_names_the_file(tmp_path, monkeypatch, error):
    files.write(tmp_path / "a.wav", tune(1000, 16000), 16000)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(files.UnreadableAudio, match=r"a\.wav"):
        files.read(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au"])
def test_half_a_file_without_compression_is_refused(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, np.full(16000, 0.1), 16000, format=path.suffix[1:].upper(), subtype="PCM_16")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(files.UnreadableAudio, match=rf"{name} is damaged or incomplete \(\d+ of its \d+ bytes"):
        files.frames(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_whose_writer_did_not_know_its_length(tmp_path, size):
    """As ffmpeg and sox write it into a pipe."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(16000, 0.1), 16000, subtype="PCM_16")
    with open(path, "r+b") as file:
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
    assert files.frames(path) == (16000, 16000)


def test_what_does_not_fit_in_memory_is_refused(tmp_path):
    """A few bytes at 1 Hz are hours at 48 kHz."""
    soundfile.write(tmp_path / "long.wav", np.zeros(40_000), 1)
    with pytest.raises(files.UnreadableAudio, match=r"long.wav.*longer than the 1,073,741,824 samples"):
        files.read(tmp_path / "long.wav", 48000)
    assert len(files.read(tmp_path / "long.wav", 48000, 10**9, 1000)) == 1000


def test_a_name_that_is_not_utf8(tmp_path):
    import os

    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    soundfile.write(os.fsencode(path), tune(1000, 16000), 16000)
    assert files.length(path, 16000) == len(files.read(path, 16000)) == 1000
    os.truncate(path, 5)
    with pytest.raises(files.UnreadableAudio, match=r"caf\\udce9.wav") as caught:
        files.read(path, 16000)
    str(caught.value).encode()  # can be printed


def test_silence_is_said_once_a_file(tmp_path, caplog):
    wave = tune(16000, 16000)
    files.write(tmp_path / "opposite.wav", np.stack([wave, -wave], 1), 16000)
    files.write(tmp_path / "silent.flac", np.zeros(16000), 16000)
    files.write(tmp_path / "constant.wav", np.full(16000, 0.25), 16000)
    files.write(tmp_path / "quiet.wav", 0.001 * wave, 16000)
    with caplog.at_level(logging.WARNING):
        for name in ("opposite.wav", "silent.flac", "constant.wav", "quiet.wav"):
            for start in (0, 100):
                files.read(tmp_path / name, 16000, start, 8000)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3, said
    assert "opposite.wav becomes silence: its channels have opposite phase" in said[0]
    assert "silent.flac is silence" in said[1] and "constant.wav is silence" in said[2]


def test_minutes_of_vorbis_are_written(tmp_path):
    """In a process of its own: libsndfile crashed on this."""
    code = (
        "import sys, numpy as np; from audioldm2_jax.audio import files;"
        "files.write(sys.argv[1], 0.1 * np.random.default_rng(0).standard_normal(4_000_000), 16000, 'VORBIS')"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.ogg"], check=False).returncode == 0
    assert files.length(tmp_path / "a.ogg", 16000) == 4_000_000
    with pytest.raises(ValueError, match=r"cannot write .*b.mp3: MP3 takes no 1 channels at 96000 Hz"):
        files.write(tmp_path / "b.mp3", np.zeros(100), 96000, "MPEG_LAYER_III")


def test_loaders_need_no_jax():
    code = "import sys, audioldm2_jax.audio.files; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
