"""Paths as people type them."""

import os
import unicodedata

import pytest

from audioldm2_jax.runtime.storage import StorageError, local_path


@pytest.mark.parametrize(
    "text", ["gs://b/run", "s3://b/run", "https://example.org/x", "hdfs://n/x", " gs://b/run\r\n", "gs:/b/run"]
)
def test_addresses_of_other_storage_are_refused_in_one_line(text):
    with pytest.raises(StorageError, match=r"--config.run_dir=(\w+:/++)\S*: \1 is not served") as refused:
        local_path(text, "--config.run_dir")
    assert "\n" not in str(refused.value)


def test_a_file_address_is_a_path():
    assert str(local_path("file:///data/a b", "-")) == "/data/a b"
    assert str(local_path("file://localhost/data", "-")) == "/data"
    assert str(local_path("file:///data/a%20b%25", "-")) == "/data/a b%"
    assert str(local_path("file:/data/a", "-")) == "/data/a"
    assert str(local_path("file:///localhost/data", "-")) == "/localhost/data"


def test_home_folders_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(local_path("~/runs", "-")) == "/home/me/runs"
    with pytest.raises(StorageError, match="--model=~nobody-has-this-name/x"):
        local_path("~nobody-has-this-name/x", "--model")


def test_white_space_around_a_path_is_dropped_unless_it_is_part_of_a_name(tmp_path):
    assert str(local_path(f"{tmp_path}/clips\r\n", "-")) == f"{tmp_path}/clips"
    (tmp_path / "clips ").mkdir()
    assert str(local_path(f"{tmp_path}/clips ", "-")) == f"{tmp_path}/clips "
    assert str(local_path("two words", "-")) == "two words"


@pytest.mark.parametrize(("stored", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_composed_and_decomposed_are_one_name(tmp_path, stored, typed):
    there = tmp_path / unicodedata.normalize(stored, "Flöte") / "é.wav"
    there.parent.mkdir()
    there.touch()
    typed_path = unicodedata.normalize(typed, str(there))
    assert local_path(typed_path, "-") == there


def test_names_that_are_no_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(raw)
    assert local_path(os.fsdecode(raw), "-").is_dir()


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "x" * 5000])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(StorageError, match="--model"):
        local_path(text, "--model")
