"""Checkpoints: what is damaged is found and passed over, what cannot be written leaves the rest as it was."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audioldm2_jax.training import checkpoint
from audioldm2_jax.training.checkpoint import MANIFEST, CheckpointError, Checkpoints, find_damage


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
    if damage == "bit":
        flip_a_byte(newest)
    elif damage == "no manifest":
        (newest / MANIFEST).unlink()
    elif damage == "half a manifest":
        (newest / MANIFEST).write_text((newest / MANIFEST).read_text()[:50])
    else:
        name = next(iter(json.loads((newest / MANIFEST).read_text())))
        (newest / name).unlink()
    checkpoints, found, lines = restore(copied)
    assert int(found["step"]) == 3
    assert len(lines) == 1 and str(newest) in lines[0] and "damaged" in lines[0] and "\n" not in lines[0]

    # The step can be saved again.
    checkpoints.forget_after(3)
    assert checkpoints.latest() == 3
    checkpoints.save(4, state(40))
    checkpoints.close()
    assert find_damage(newest) == ""
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
        monkeypatch.setattr(checkpoint, "sign", full)
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
