"""A run folder in a store: checkpoints, the lock, and what is brought there and fetched from there."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import get_config

from audioldm2_jax.runtime import lock, object_folders, object_store
from audioldm2_jax.runtime.lock import LockedError, RunLock
from audioldm2_jax.training import main, run_folder
from audioldm2_jax.training.checkpoint import CheckpointError, Checkpoints
from audioldm2_jax.training.checkpoint_places import COMMITTED, MANIFEST

ON_ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(step: int) -> dict:
    return {"params": {"kernel": jnp.arange(5000.0) + step}, "step": jnp.int32(step), "empty": {}}


def restore(address):
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ON_ONE), state(0))
    said, checkpoints = [], Checkpoints(address, keep=2)
    found = checkpoints.restore(abstract, said.append)
    return checkpoints, found, said


def steps(address):
    return sorted({int(name.partition("/")[0]) for name in object_store.listing(address)})


@pytest.fixture(scope="module")
def _saved(_google_store):
    checkpoints = Checkpoints("gs://bucket/saved", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return {name: object_store.read(f"gs://bucket/saved/{name}") for name in object_store.listing("gs://bucket/saved")}


@pytest.fixture
def saved(_saved, google, request):
    """The address of checkpoints after steps 2 and 3, a test's own."""
    address = f"gs://bucket/{request.node.name}"
    for name, content in _saved.items():
        object_store.write(f"{address}/{name}", content)
    return address


def largest(address):
    found = object_store.listing(address)
    return f"{address}/{max(found, key=lambda name: found[name].size)}"


def test_the_newest_checkpoint_comes_back_and_only_so_many_are_kept(saved):
    assert steps(saved) == [2, 3]
    checkpoints, found, said = restore(saved)
    assert said == [] and checkpoints.latest() == 3
    jax.tree.map(np.testing.assert_array_equal, found, state(3))
    checkpoints.save(4, state(4))
    checkpoints.close()
    assert steps(saved) == [3, 4]


@pytest.mark.parametrize("damage", ["changed", "missing", "unsigned"])
def test_the_one_before_a_damaged_one_is_used_and_said(saved, damage):
    if damage == "changed":
        content = bytearray(object_store.read(largest(f"{saved}/3")))
        content[len(content) // 2] ^= 1
        object_store.write(largest(f"{saved}/3"), bytes(content))
    elif damage == "missing":
        object_store.delete(largest(f"{saved}/3"), [""])
    else:
        object_store.delete(f"{saved}/3/default", [MANIFEST])
    checkpoints, found, said = restore(saved)
    assert int(found["step"]) == 2 and f"checkpoint {saved}/3 is damaged" in said[0]
    checkpoints.forget_after(2)
    assert steps(saved) == [2]


def test_half_a_checkpoint_is_removed(saved):
    """Orbax writes the sign that it is whole last."""
    object_store.delete(f"{saved}/3", [COMMITTED])
    assert run_folder.COMMITTED == COMMITTED
    checkpoints, found, said = restore(saved)
    assert steps(saved) == [2] and int(found["step"]) == 2 and said == []
    checkpoints.save(3, state(3))
    checkpoints.close()
    assert steps(saved) == [2, 3]


def test_checkpoints_copied_from_a_disk_are_read_if_whole_and_never_deleted(tmp_path, google):
    address = "gs://bucket/copied/checkpoints"
    local = Checkpoints(tmp_path / "checkpoints", keep=1)
    local.save(5, state(5))
    local.close()
    object_folders.upload(tmp_path / "checkpoints", address)
    _, found, said = restore(address)
    assert said == []
    jax.tree.map(np.testing.assert_array_equal, found, state(5))

    content = object_store.read(largest(address))
    object_store.write(largest(address), content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* is whole"):
        restore(address)
    object_store.delete(f"{address}/5", [COMMITTED])  # as earlier versions of Orbax left it
    with pytest.raises(CheckpointError, match=f"{address}/5 was copied from a disk without its {COMMITTED}"):
        Checkpoints(address, keep=1)
    assert steps(address) == [5]


def test_a_save_that_is_refused_is_told_in_a_line(saved, google):
    checkpoints, _, _ = restore(saved)
    google.proxy.rule = lambda method, path: 403 if method in ("POST", "PUT") else None
    with pytest.raises(CheckpointError, match=f"could not save step 4 to {saved} ") as refused:
        checkpoints.save(4, state(4))
        checkpoints.close()
    google.proxy.reset()
    assert "\n" not in str(refused.value)
    checkpoints, found, _ = restore(saved)
    assert int(found["step"]) == 3 and steps(saved) == [2, 3]


def locked(folder, **changed):
    """A lock as a run on another machine writes it."""
    known = {"host": "node7", "pid": 41, "since": "2026-01-02 03:04:05 +0000", "machine": "other", "started": "5"}
    object_store.write(f"{folder}/{lock.FILE}", json.dumps(known | {"token": "theirs"} | changed).encode())


def test_one_run_at_a_time(google):
    folder = "gs://bucket/locked"
    with RunLock(folder), pytest.raises(LockedError, match=f"{folder} is in use by another run: process "):
        RunLock(folder).__enter__()
    assert object_store.listing(folder) == {}
    locked(folder, machine=lock._machine(), pid=2**22 + 1)  # of this machine, and dead
    with RunLock(folder):
        assert json.loads(object_store.read(f"{folder}/{lock.FILE}"))["token"] != "theirs"
    assert object_store.listing(folder) == {}


def test_a_lock_of_another_machine_is_watched(google):
    folder, said = "gs://bucket/watched", []
    locked(folder)
    with RunLock(folder, said.append, touch=0.1):
        assert "was left by process 41 on node7" in said[0]
    locked(folder)
    theirs = object_store.stat(f"{folder}/{lock.FILE}").generation
    held = RunLock(folder, lambda line: locked(folder), touch=0.5)  # it is touched meanwhile
    with pytest.raises(LockedError, match="process 41 on node7"):
        held.__enter__()
    assert theirs != object_store.stat(f"{folder}/{lock.FILE}").generation


def test_a_run_that_lost_its_lock_is_told_and_leaves_the_other_ones(google):
    folder, lost = "gs://bucket/lost-lock", []
    with RunLock(folder, on_loss=lost.append, touch=0.2):
        first = object_store.stat(f"{folder}/{lock.FILE}")
        end = time.monotonic() + 20
        while object_store.stat(f"{folder}/{lock.FILE}").generation == first.generation:  # held alive
            assert time.monotonic() < end
            time.sleep(0.05)
        locked(folder)
        while not lost:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert "node7" in lost[0] and b"theirs" in object_store.read(f"{folder}/{lock.FILE}")


@pytest.fixture
def config(google, request):
    config = get_config()
    config.run_dir = f"gs://bucket/{request.node.name}"
    run_folder.make(config)
    return config


def test_what_is_no_part_of_a_whole_folder_follows_by_itself(config, google, monkeypatch):
    monkeypatch.setattr(run_folder, "UPLOAD_EVERY", 0.05)
    stage, said = run_folder.path(config) / "stages/vae", []
    (stage / "result.partial").mkdir(parents=True)
    (stage / "result.partial/weights").touch()
    with run_folder.LogUploads(config, said.append):
        (stage / "metrics.jsonl").write_text("1\n")
        while "stages/vae/metrics.jsonl" not in object_store.listing(config.run_dir):
            time.sleep(0.02)
        google.proxy.rule = lambda method, path: 403
        (stage / "metrics.jsonl").write_text("1\n2\n")
        while not said:
            time.sleep(0.02)
        time.sleep(0.2)
        google.proxy.reset()
    assert len(said) == 1 and "no permission" in said[0] and "training goes on" in said[0]
    assert object_store.read(f"{config.run_dir}/stages/vae/metrics.jsonl") == b"1\n2\n"
    assert object_store.listing(config.run_dir).keys() == {"stages/vae/metrics.jsonl"}


def test_a_start_has_what_the_store_has(config):
    root = run_folder.path(config)
    for name in ("stages/vae/result/vae/weights", "stages/vae/metrics.jsonl", "stages/vae/checkpoints/3/default/d/x"):
        object_store.write(f"{config.run_dir}/{name}", b"x")
    object_store.write(f"{config.run_dir}/model/{object_folders.UPLOADING}", b"")
    object_store.write(f"{config.run_dir}/model/model_index.json", b"{}")
    (root / "stages/clap/result").mkdir(parents=True)  # deleted in the store since
    (root / "stages/clap/result/weights").touch()
    run_folder.fetch(config)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == {"stages/vae/result/vae/weights", "stages/vae/metrics.jsonl"}
    assert not (root / "stages/clap").exists()


def test_a_stage_has_checkpoints_once_one_is_whole(config):
    stage = run_folder.path(config) / "stages/vae"
    assert not run_folder.has_checkpoints(config, stage)
    object_store.write(f"{config.run_dir}/stages/vae/checkpoints/3/default/d/x", b"x")
    assert not run_folder.has_checkpoints(config, stage)
    object_store.write(f"{config.run_dir}/stages/vae/checkpoints/3/{COMMITTED}", b"x")
    assert run_folder.has_checkpoints(config, stage)


@pytest.mark.parametrize("status, code", [(503, 75), (403, 1)])
def test_a_store_that_may_answer_later_is_a_reason_to_start_again(config, google, monkeypatch, status, code):
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    google.proxy.rule = lambda method, path: status
    with pytest.raises(object_store.StoreError) as caught:
        object_store.listing(config.run_dir)
    assert main._fail(config, caught.value, str(caught.value)) == code


def test_messages_name_the_address(config):
    stage = run_folder.path(config) / "stages/vae"
    assert run_folder.place(config, stage) == f"{config.run_dir}/stages/vae"
    assert run_folder.place(config) == config.run_dir
    assert run_folder.shown(config, f"delete {stage} to train it anew") == (
        f"delete {config.run_dir}/stages/vae to train it anew"
    )
