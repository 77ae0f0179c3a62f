"""Checkpoints: what is damaged is found and passed over, what cannot be written leaves the rest as it was."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import by_variables

from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.training import checkpoint_places
from audioldm2_jax.training.checkpoint import CheckpointError, Checkpoints
from audioldm2_jax.training.checkpoint_places import MANIFEST, digest, place

ROOT = Path(__file__).parents[2]


def state(step: int) -> dict:
    return {"params": {"kernel": jnp.arange(5000.0) + step}, "step": jnp.int32(step), "empty": {}}


ABSTRACT = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    state(0),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restore(folder):
    lines, checkpoints = [], Checkpoints(folder, keep=3)
    found = checkpoints.restore(ABSTRACT, lines.append)
    return checkpoints, found, lines


def flip_a_byte(folder):
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_comes_back_and_only_so_many_are_kept(copied):
    assert sorted(path.name for path in copied.iterdir()) == ["2", "3", "4"]
    checkpoints, found, lines = restore(copied)
    assert lines == [] and checkpoints.latest() == 4
    jax.tree.map(np.testing.assert_array_equal, found, state(4))


def test_an_empty_folder_has_none(tmp_path):
    _, found, lines = restore(tmp_path / "new")
    assert found is None and lines == []


@pytest.mark.parametrize("damage", ["bit", "no manifest", "half a manifest", "file missing"])
def test_the_one_before_a_damaged_one_is_used_and_said(copied, damage):
    newest = copied / "4"
    manifest = newest / "default" / MANIFEST
    if damage == "bit":
        flip_a_byte(newest)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        (newest / "default" / next(iter(json.loads(manifest.read_text())))).unlink()
    checkpoints, found, lines = restore(copied)
    assert int(found["step"]) == 3
    assert len(lines) == 1 and str(newest) in lines[0] and "damaged" in lines[0] and "\n" not in lines[0]

    # The step can be saved again.
    checkpoints.forget_after(3)
    assert checkpoints.latest() == 3
    checkpoints.save(4, state(40))
    checkpoints.close()
    assert place(newest.parent).find_damage(int(newest.name)) == ""
    assert float(restore(copied)[1]["params"]["kernel"][0]) == 40.0


def test_all_damaged_is_an_error(copied):
    for step in copied.iterdir():
        flip_a_byte(step)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* is whole; delete that folder"):
        restore(copied)


@pytest.mark.parametrize("when", ["at once", "in the background", "on signing"])
def test_no_space_left(copied, monkeypatch, when):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = Checkpoints(copied, keep=3)
    if when == "at once":
        monkeypatch.setattr(checkpoints._manager, "save", full)
    elif when == "in the background":
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
    else:
        monkeypatch.setattr(checkpoint_places, "digest", full)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(5, state(5))
        checkpoints.save(6, state(6))
    message = str(caught.value)
    assert "no space left on the disk" in message and "step 5" in message and "\n" not in message
    monkeypatch.undo()
    checkpoints.close()

    _, found, _ = restore(copied)
    assert int(found["step"]) in (4, 5)
    jax.tree.map(np.testing.assert_array_equal, found, state(int(found["step"])))


@pytest.mark.parametrize("when", ["before", "at once", "in the background"])
def test_a_save_that_can_be_done_without(copied, monkeypatch, when):
    """Where there is no space this is said once, and the next one is as any other."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints, lines = Checkpoints(copied, keep=3), []
    save = type(checkpoints._manager).save
    if when == "before":
        usage = shutil._ntuple_diskusage(1000, 900, 100)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    elif when == "at once":
        monkeypatch.setattr(type(checkpoints._manager), "save", full)
    else:
        monkeypatch.setattr(checkpoint_places, "digest", full)
    for step in (5, 6, 7):
        checkpoints.save(step, state(step), lines.append)
    if when == "in the background":  # the last one has not been waited for
        assert "step 5" in lines[0]
        with pytest.raises(CheckpointError, match="could not save step 8"):
            checkpoints.save(8, state(8))
            checkpoints.save(9, state(9))
    else:
        with pytest.raises(CheckpointError, match="could not save step 8") if when == "at once" else nullcontext():
            checkpoints.save(8, state(8))
    (line,) = lines
    assert "no space left for the checkpoint of step 5" in line and "that of step 4 stays" in line and "\n" not in line
    monkeypatch.undo()
    assert type(checkpoints._manager).save is save
    checkpoints.save(10, state(10), lines.append)
    checkpoints.close()
    assert len(lines) == 1 and not list(copied.glob("*tmp*"))
    assert int(restore(copied)[1]["step"]) == 10


def as_earlier_versions_wrote(folder, signed):
    """Their manifest lay beside Orbax's item, and was written when the next checkpoint was saved."""
    (folder / "default" / MANIFEST).unlink()
    files = [path for path in folder.rglob("*") if path.is_file()]
    if signed:
        (folder / MANIFEST).write_text(json.dumps({str(path.relative_to(folder)): digest(path) for path in files}))


def test_checkpoints_of_earlier_versions(copied):
    for step in (2, 3, 4):
        as_earlier_versions_wrote(copied / str(step), signed=step < 4)
    _, found, lines = restore(copied)
    assert int(found["step"]) == 3 and len(lines) == 1  # one that can be verified goes before a newer one
    flip_a_byte(copied / "3")
    shutil.rmtree(copied / "2")
    _, found, lines = restore(copied)
    assert int(found["step"]) == 4 and "has changed" in lines[1] and "not verified: no other is whole" in lines[2]
    jax.tree.map(np.testing.assert_array_equal, found, state(4))


def test_an_unsigned_one_that_cannot_be_read(copied):
    for step in ("2", "3"):
        shutil.rmtree(copied / step)
    as_earlier_versions_wrote(copied / "4", signed=False)
    for path in (copied / "4/default").rglob("manifest.ocdbt"):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* is whole; delete that folder"):
        restore(copied)


def test_a_whole_one_of_another_network(copied):
    other = {"params": {"weights": ABSTRACT["params"]["kernel"]}, "step": ABSTRACT["step"], "empty": {}}
    with pytest.raises(
        CheckpointError, match=r"4 cannot be read into this stage .*; delete .* to train the stage"
    ) as e:
        Checkpoints(copied, keep=3).restore(other, print)
    assert "\n" not in str(e.value)


def process(folder, what, steps="0", megabytes=1, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "tests/saving_process.py", str(folder), what, steps, str(megabytes)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("steps", ["1", "1,2,3"])
def test_killed_after_a_finished_save(tmp_path, steps):
    """With one checkpoint, and with keep=1: what was saved is there."""
    last = steps[-1]
    saving = process(tmp_path, "save", steps)
    while f"saved {last}" not in (line := saving.stdout.readline()):
        assert line, "it ended"
    saving.kill()
    saving.wait()
    out, _ = process(tmp_path, "restore").communicate(timeout=120)
    assert f"restored {last} True" in out and "said:" not in out


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    """Whenever it dies, the last finished save, or a newer one, is whole; what was unfinished does not stay."""
    begin = 1
    for seed in range(3):
        saving = process(tmp_path, "save", ",".join(map(str, range(begin, begin + 1000))), megabytes=20)
        while not (line := saving.stdout.readline()).startswith("saved"):
            assert line, "it ended"
        time.sleep(random.Random(seed).uniform(0.1, 0.5))
        saving.kill()
        saved = [line for line in saving.communicate()[0].splitlines() if line.startswith("saved")] or [line]
        out, _ = process(tmp_path, "restore", megabytes=20).communicate(timeout=120)
        restored = int(out.split("restored ")[1].split()[0])
        assert restored >= int(saved[-1].split()[1]) and f"restored {restored} True" in out and "said:" not in out, out
        assert not list(tmp_path.glob("*tmp*"))
        begin = restored + 1


def pair(folder, what, steps="0", megabytes=1, **environment):
    """What two processes print that save or restore together."""
    both = [
        process(folder, what, steps, megabytes, **{"KEEP": "2", **variables}, **environment)
        for variables in by_variables(2)
    ]
    outs = [each.communicate(timeout=120)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], outs
    return outs


def test_two_hosts_sign_and_check_what_each_wrote(tmp_path):
    pair(tmp_path, "save", "1,2")
    manifest = json.loads((tmp_path / "2/default" / MANIFEST).read_text())
    for host in range(2):
        assert any(name.startswith(f"ocdbt.process_{host}/") for name in manifest)
    there = {path.relative_to(tmp_path / "2/default").as_posix() for path in (tmp_path / "2/default").rglob("*")}
    assert {name for name in there if "/d/" in name or name.endswith("ocdbt")} <= manifest.keys()

    flip_a_byte(tmp_path / "2/default/ocdbt.process_1")
    saved = place(tmp_path)
    assert saved.find_damage(2, 0, 2) == "" and "process_1" in saved.find_damage(2, 1, 2)
    for out in pair(tmp_path, "restore"):  # only the second sees it, both take the one before
        assert "restored 1 True" in out and out.count("said:") == 1 and "ocdbt.process_1" in out
    assert "process_1" in saved.find_damage(2)  # one host checks all


@pytest.mark.parametrize("split", ["", "fsdp"])
def test_each_byte_is_read_once_over_all_hosts(tmp_path, split):
    """Once for the digests and once for the state, whether that lies whole on every host or split over them."""
    pair(tmp_path, "save", "1", 8, SPLIT=split)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    outs = pair(tmp_path, "restore", "1", 8, SPLIT=split)
    assert all("restored 1 True" in out for out in outs)
    read = [int(out.rpartition("read ")[2].split()[0]) for out in outs]
    assert size <= sum(read) < 2.2 * size and max(read) < 1.2 * size


def test_copies_in_a_bucket(amazon, tmp_path, monkeypatch):
    """What Orbax cannot write to counts once it has arrived there, and another machine goes on from it."""
    address, listing = "s3://bucket/run/checkpoints", object_store.listing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one machine"))
    checkpoints = Checkpoints(address, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.close()
    assert {name.split("/")[0] for name in listing(address)} == {"2", "3"}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    object_store.write(f"{address}/3/{object_folders.UPLOADING}", b"")  # killed while it uploaded
    checkpoints, found, lines = restore(address)
    assert found["step"] == 2 and not lines
    np.testing.assert_array_equal(found["params"]["kernel"], state(2)["params"]["kernel"])
    assert {name.split("/")[0] for name in listing(address)} == {"2"}

    amazon.proxy.rule = lambda method, path: 403 if method == "PUT" and "/4/" in path else None
    checkpoints.save(4, state(4))
    with pytest.raises(CheckpointError, match=r"could not save step 4 to s3://.*no permission"):
        checkpoints.close()
    amazon.proxy.reset()
    checkpoints, found, _ = restore(address)
    assert found["step"] == 2
    checkpoints.close()
