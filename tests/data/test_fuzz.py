"""Whatever lies in a folder: it is read, or left out and counted, or refused in one line that names it."""

import io
import json
import os
import resource
import struct
import tarfile
import time

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipes
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.sources import open_source

RATE = 8000
SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(form="WAV", samples=800, channels=1, rate=RATE, subtype=None, wave=None):
    file = io.BytesIO()
    wave = np.full((samples, channels), 0.25, np.float32) if wave is None else np.asarray(wave, np.float32)
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


def header(rate=RATE, channels=1, bits=16, data=b"\0\1" * 800, size=None):
    """A WAV file by hand, as no program writes it."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, bits)
    size = len(data) if size is None else size
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + size, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + (b"data" + struct.pack("<I", size) + data)
    )


def opened(folder, **data):
    recipe = recipes.get("tiny")
    recipe.audio.sampling_rate = RATE
    recipe.data.update({"source": str(folder), "heldout_share": 1e-12, **data})
    return [open_source(recipe, split) for split in ("train", "heldout")]


def account(folder):
    """Reads all that is opened; returns how many records there are, can be read, and are left out."""
    sources = opened(folder)
    readable = {}
    for source in sources:
        for i, name in enumerate(source.names):
            readable[name] = True
            for position in (0.0, 0.999):
                try:
                    waveform = source.excerpt(i, 400, position).waveform
                except UnreadableRecord as error:
                    assert len(str(error).splitlines()) == 1
                    readable[name] = False
                else:
                    assert 0 < len(waveform) <= 400 and np.isfinite(waveform).all()
    assert all(len(reason.splitlines()) == 1 for reason in sources[0].skipped.values())
    return len(readable), sum(readable.values()), len(sources[0].skipped)


CASES = {
    "empty": (b"", False),
    "of zeros": (bytes(5000), False),
    "a page that says 404": (b"<html>404</html>", False),
    "0 Hz": (header(rate=0), None),
    "2^31 Hz": (header(rate=2**31 - 1), None),
    "no channels": (header(channels=0), False),
    "0 bits": (header(bits=0), False),
    "no samples": (header(data=b""), False),
    "a size of 4 GiB": (header(size=2**32 - 1), None),
    "one sample": (header(data=b"\0\1"), True),
    "NaN": (encoded(subtype="FLOAT", wave=np.full(800, np.nan)), None),
    "infinite": (encoded(subtype="FLOAT", wave=np.r_[np.zeros(799), np.inf]), None),
    "enormous": (encoded(subtype="FLOAT", wave=np.full(800, 3e38)), None),
    "24 channels": (encoded(channels=24), True),
    "192 kHz": (encoded(rate=192000), True),
    "FLAC called WAV": (encoded("FLAC"), True),
    "Ogg called WAV": (encoded("OGG"), True),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_sound_files(tmp_path, case):
    content, fine = CASES[case]
    (tmp_path / "good.wav").write_bytes(encoded())
    (tmp_path / "odd.wav").write_bytes(content)
    total, readable, skipped = account(tmp_path)
    assert total + skipped == 2 and readable >= 1
    if fine is not None:
        assert readable == 1 + fine and skipped == 1 - fine


@SLOW
@given(st.sampled_from(("WAV", "FLAC", "OGG", "MP3", "AIFF")), st.integers(0, 2000), st.binary(max_size=8))
def test_sound_files_cut_and_changed_anywhere(tmp_path_factory, form, place, change):
    folder = tmp_path_factory.mktemp("cut")
    content = encoded(form)
    place = min(place, len(content))
    name = {"AIFF": "aif"}.get(form, form.lower())
    (folder / "good.wav").write_bytes(encoded())
    (folder / f"cut.{name}").write_bytes(content[:place])
    (folder / f"changed.{name}").write_bytes(content[:place] + change + content[place + len(change) :])
    total, readable, skipped = account(folder)
    assert total + skipped == 3 and readable >= 1


def test_hours_are_not_decoded(tmp_path):
    """Four hours of 48 kHz, of which the disk holds nothing."""
    path, size = tmp_path / "long.wav", 4 * 3600 * 48000 * 2
    with path.open("wb") as file:
        file.write(header(rate=48000, data=b"", size=size))
        file.seek(44 + size - 2)
        file.write(b"\0\1")
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    source = opened(tmp_path)[0]
    assert len(source.excerpt(0, 8000, 0.7).waveform) == 8000
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; decoded it were 2.7 GB


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and not name.startswith(b".") and name.strip()
)


@SLOW
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_names_in_any_script(tmp_path_factory, names):
    folder = os.fsencode(tmp_path_factory.mktemp("names"))
    for name in names:
        with open(os.path.join(folder, name + b".wav"), "wb") as file:
            file.write(encoded())
        with open(os.path.join(folder, name + b" broken.wav"), "wb") as file:
            file.write(b"nothing")
    total, readable, skipped = account(os.fsdecode(folder))
    expected = {os.fsdecode(name + b".wav") for name in names}
    assert {name for source in opened(os.fsdecode(folder)) for name in source.names} == expected
    assert (readable, skipped) == (total, len(names))


def test_links_that_loop_end(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.wav").write_bytes(encoded())
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "around").symlink_to(tmp_path)
    (tmp_path / "one.wav").symlink_to(tmp_path / "two.wav")
    (tmp_path / "two.wav").symlink_to(tmp_path / "one.wav")
    source = opened(tmp_path)[0]
    assert source.names == ["a/b/x.wav"] and {*source.skipped} == {"one.wav", "two.wav"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={"file_name": JSON | st.just("a.wav"), "text": JSON, "transcription": JSON})
    | JSON,
    max_size=4,
)


@SLOW
@given(ROWS, st.sampled_from(("utf-8", "utf-8-sig", "utf-16")), st.sampled_from(("\n", "\r\n", "\r")))
def test_metadata_of_any_types(tmp_path_factory, rows, encoding, end):
    folder = tmp_path_factory.mktemp("metadata")
    (folder / "a.wav").write_bytes(encoded())
    (folder / "metadata.jsonl").write_bytes(end.join(map(json.dumps, rows)).encode(encoding))
    try:
        assert account(folder)[0] == 1
    except ValueError as error:
        assert "metadata" in str(error).splitlines()[0]


@SLOW
@given(st.data())
def test_tables_of_any_types(tmp_path_factory, data):
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("parquet")
    (folder / "a.wav").write_bytes(encoded())
    kinds = (["a.wav"], [None], [3], [2.5], [["a.wav"]], [b"a.wav"], [{"x": 1}], ["a.wav", "a.wav"], [])
    names = data.draw(st.sampled_from(kinds))
    texts = data.draw(st.sampled_from([kind * len(names) for kind in (["x"], [3], [None], [["x", "y"]], [b"\xff"])]))
    parquet.write_table(pa.table({"file_name": names, "text": texts}), folder / "metadata.parquet")
    path = folder / "metadata.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        assert account(folder)[0] == 1
    except ValueError as error:
        assert "metadata.parquet" in str(error) and len(str(error).splitlines()[0]) < 1000


def test_a_tar_file_with_odd_members(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as file:

        def add(name, content=b"", kind=tarfile.REGTYPE, link=""):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            file.addfile(info, io.BytesIO(content))

        add("folder/", kind=tarfile.DIRTYPE)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            add(f"{kind.decode()}.wav", kind=kind, link="/etc/passwd")
        add("empty.wav")
        add("../../up.wav", encoded())
        add("/absolute.wav", encoded())
        add("noise.wav", os.urandom(3000))
        add(os.fsdecode(b"\xff\n") + ".wav", encoded())
        add("long" * 100 + ".wav", encoded())
        add("good.flac", encoded("FLAC"))
        add("good.json", b'{"caption": ["a", 3]}')
        add("fine.wav", encoded())
        add("fine.txt", b"rain")
    sources = opened(tmp_path)
    names = {name.removeprefix("0.tar/") for source in sources for name in source.names}
    assert {"../../up.wav", "/absolute.wav", "fine.wav", "long" * 100 + ".wav", "\udcff\n.wav"} <= names
    assert not any(name[:1].isdigit() for name in names)  # links and devices
    assert "good.flac" in "".join(sources[0].skipped)  # its caption is no text
    total, readable, _ = account(tmp_path)
    assert readable >= 5 and total - readable == 2  # empty and noise


def test_many_rows_of_metadata(tmp_path):
    """Every row finds its recording, each a link to the same file."""
    (tmp_path / "a.wav").write_bytes(encoded())
    for i in range(3000):
        os.link(tmp_path / "a.wav", tmp_path / f"{i}.wav")
    rows = "".join(json.dumps({"file_name": f"{i}.wav", "text": f"rain {i}"}) + "\n" for i in range(3000))
    (tmp_path / "metadata.jsonl").write_text(rows)
    train = Folder(tmp_path, "train", RATE, 1e-12)
    assert all(train.text(i) == f"rain {name[:-4]}" for i, name in enumerate(train.names) if name != "a.wav")
