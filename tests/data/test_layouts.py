"""Which layout it is, and damage to any of those in single files."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.sources import open_source

from .made_sources import config, everything, one, pack, put, sound, stream, tone

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
