"""Prepared sets in real object stores: the same as in a folder, also after a kill, and read from there."""

import signal

import numpy as np
import pytest
from object_stores import STALL
from processes import children

from audioldm2_jax.data import prepared, sources
from audioldm2_jax.data.prepare import job, places
from audioldm2_jax.data.prepare.options import PrepareError
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.object_store import StoreError

from .test_prepare import command, folder, made, opened, options, same_files, wait_for  # noqa: F401


def fetched(address, to):
    """All that is at an address, as a folder."""
    object_folders.fetch(address, to)
    return to


def shards_there(address):
    return {name for name in object_store.listing(address) if name.startswith(prepared.SET)}


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_it_is_that_of_a_folder_and_is_read_from_there(request, scheme, folder, made, tmp_path):  # noqa: F811
    request.getfixturevalue({"gs": "google", "s3": "amazon"}[scheme])
    address, done, said = f"{scheme}://bucket/sets/made", [], []
    wanted = options(folder, f" {address}/", workers=2)
    assert job.prepare(wanted, lambda count, total: done.append((count, total)), said.append) == made[1]
    assert said == made[2] and done[-1] == (made[1]["recordings"] + 1, made[1]["recordings"] + 1)
    same_files(made[0], fetched(address, tmp_path / "fetched"))
    assert not places.Address(address).there() - {path.name for path in made[0].iterdir()}
    assert job.prepare(wanted, say=said.append) == made[1] and said[-1] == f"{address} is prepared already"
    for source in (f"tfds:{address}", address):
        there, here = opened(source), opened(made[0])
        assert isinstance(there, prepared.Prepared) and there.names == here.names
        assert all(np.array_equal(there[i].waveform, here[i].waveform) for i in range(len(here)))


def test_killed_it_goes_on_and_what_arrived_is_not_made_again(google, folder, made, tmp_path):  # noqa: F811
    address = "gs://bucket/sets/killed"
    google.proxy.rule = lambda method, path: STALL if method == "POST" and "-00003-of-" in path else None
    process = command(folder, address, "--workers=2")
    wait_for(lambda: len(shards_there(address)) > 1 or process.poll() is not None)
    of_it = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    google.proxy.reset()
    whole = object_store.listing(address)
    rows = {name for name in whole if name.startswith("parts/")}
    assert of_it and 2 <= len(shards_there(address)) <= len(rows) and prepared.INFO not in whole
    with pytest.raises(ValueError, match=f"{address} is not finished: the same command"):
        opened(f"tfds:{address}")
    with pytest.raises(ValueError, match=f"{address} was begun with other settings"):
        job.prepare(options(folder, address, max_seconds=2))
    process = command(folder, address, "--workers=2")
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "recordings are there already" in text and f"--config.data.source=tfds:{address}\n" in text
    after = object_store.listing(address)
    assert all(whole[name] == after[name] for name in whole if name.startswith(prepared.SET))
    same_files(made[0], fetched(address, tmp_path / "fetched"))


def test_recordings_in_a_bucket_are_prepared(google, folder, made, tmp_path):  # noqa: F811
    """A folder of recordings is copied there by another tool; names, sound and captions are those of the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.isascii()]
    address = "gs://bucket/recordings"
    object_store.upload(address, {path.relative_to(folder).as_posix(): path for path in paths})
    job.prepare(options(address, tmp_path / "out"))
    kept = [*object_folders.copy_of(address).rglob("*.arrow")]
    sources._fetched.cache_clear()
    object_folders.cached.cache_clear()
    opened(address)  # as another process does
    assert kept and all(path.exists() for path in kept)
    there, here = opened(tmp_path / "out"), opened(made[0])
    assert len(there) >= len(here) - 1
    for name in {*there.names} & {*here.names}:
        first, second = (one[one.names.index(name)] for one in (there, here))
        assert np.array_equal(first.waveform, second.waveform) and first.captions == second.captions


def test_what_is_wrong_is_told_and_nothing_is_lost(monkeypatch, google, folder, tmp_path):  # noqa: F811
    object_store.write("gs://bucket/sets/used/notes.txt", b"mine")
    with pytest.raises(PrepareError, match=r"--out=gs://bucket/sets/used holds other files \(notes.txt\)"):
        job.prepare(options(folder, "gs://bucket/sets/used"))
    assert {*object_store.listing("gs://bucket/sets/used")} == {"notes.txt"}
    with pytest.raises(PrepareError, match=r"--out=gs://bucket/x and --beam: Beam's workers write to a folder"):
        options(folder, "gs://bucket/x", beam=())
    with pytest.raises(StoreError, match="nowhere"):
        job.prepare(options(folder, "gs://nowhere/set"))
    with pytest.raises(StoreError, match="there is nothing at gs://bucket/nothing"):
        opened("tfds:gs://bucket/nothing")
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    google.proxy.rule = lambda method, path: 403 if method == "POST" and prepared.SET in path else None
    with pytest.raises(StoreError, match="gs://bucket/sets/forbidden cannot be written: no permission"):
        job.prepare(options(folder, "gs://bucket/sets/forbidden"))
    google.proxy.reset()
    assert job.prepare(options(folder, "gs://bucket/sets/forbidden"))["recordings"]
