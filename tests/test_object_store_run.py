"""Whole runs in a real object store: killed in the middle of a save, through failures of the store, to the sound."""

import json
import re
import signal
import time

import pytest
from object_stores import STALL
from processes import Job, alone, by_variables, train
from tiny_folder import write_model

from audioldm2_jax.runtime import object_folders, object_store

pytestmark = pytest.mark.slow


def toy(run_dir, *settings, environments=None, **variables):
    """A toy run, with the store's environment, which the fixtures set for this process and those that it starts."""
    command = ["tests/toy_run.py", run_dir, "--heartbeat_seconds=20", *settings]
    return Job(command, environments or alone(), **variables)


def steps(run_dir):
    """The steps of the finished checkpoints."""
    last = "commit_success.txt" if run_dir.startswith("gs:") else "_CHECKPOINT_METADATA"
    names = object_folders.whole(object_store.listing(f"{run_dir}/stages/audiomae/checkpoints"))
    return sorted(int(name.split("/")[0]) for name in names if re.fullmatch(rf"\d+/{last}", name))


def metrics(run_dir):
    lines = object_store.read(f"{run_dir}/stages/audiomae/metrics.jsonl").splitlines()
    return {entry["step"]: entry["fit/loss"] for entry in map(json.loads, lines) if "fit/loss" in entry}


def wait(condition, job, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end and job.processes[0].poll() is None, job.said(0)
        time.sleep(0.1)


@pytest.mark.parametrize("scheme, count", [("gs", 1), ("gs", 2), ("s3", 1)])
def test_killed_in_the_middle_of_a_save(request, tmp_path, scheme, count):
    """The next start, as of another machine, goes on from the save before it, and what is half there is gone."""
    store = request.getfixturevalue({"gs": "google", "s3": "amazon"}[scheme])
    run_dir = f"{scheme}://bucket/killed-{count}"
    last = {"gs": ("POST", "40/commit_success.txt"), "s3": ("DELETE", "40/.uploading")}[scheme]
    held = []

    def hold(method, path):
        """Stops the second save before its last object."""
        if method == last[0] and path.strip().endswith(f"checkpoints/{last[1]}"):
            held.append(path)
            return STALL
        return None

    store.proxy.rule = hold
    environments = alone() if count == 1 else by_variables(count)
    with toy(run_dir, environments=environments, XDG_CACHE_HOME=str(tmp_path / "first")) as job:
        wait(lambda: held, job)
        for index in range(count):
            job.send(index, signal.SIGKILL)
        job.processes[0].wait()
    store.proxy.reset()
    assert steps(run_dir) == [20]
    assert any(name.startswith("40/default/") for name in below(run_dir))

    environments = alone() if count == 1 else by_variables(count)
    with toy(run_dir, environments=environments, XDG_CACHE_HOME=str(tmp_path / "second")) as job:
        job.wait_for(0, "going on after step")
        assert "audiomae: going on after step 20 of 2000" in job.said(0)
        wait(lambda: steps(run_dir)[-1] > 40, job)
        job.send(0, signal.SIGTERM)
        assert job.codes(180) == [75] * count, job.said(0)
    assert object_store.read(f"{run_dir}/lock.json") is None
    assert {30, 40, 50} <= metrics(run_dir).keys()  # those of the seconds before the kill are lost


def below(run_dir):
    return object_store.listing(f"{run_dir}/stages/audiomae/checkpoints")


def test_a_store_that_fails_for_a_while(google):
    """Training goes on, and so do saves once it answers again; a run without a store to write to says so."""
    run_dir = "gs://bucket/failing"
    with toy(run_dir) as job:
        wait(lambda: steps(run_dir), job)
        google.proxy.rule = lambda method, path: 503
        shown = len(job.lines[0])
        time.sleep(8)
        google.proxy.reset()
        done = steps(run_dir)[-1]
        wait(lambda: steps(run_dir)[-1] > done, job)
        assert "Traceback" not in job.said(0), job.lines[0][shown:]
        with toy(run_dir) as other:
            assert other.codes(120) == [1]
        assert f"error: {run_dir} is in use by another run: process {job.processes[0].pid} on" in other.lines[0][-1]
        job.send(0, signal.SIGTERM)
        assert job.codes(180) == [75], job.said(0)

    with toy("s3://bucket/run", environments=by_variables(2)) as job:
        assert job.codes(120) == [1, 1]
    assert ": --config.run_dir=s3://bucket/run: several hosts write a checkpoint together" in job.said(0)
    with toy("gs://no-such-bucket/run") as job:
        assert job.codes(120) == [1]
    said = "error: gs://no-such-bucket/run/.writable-0: there is no bucket no-such-bucket; create it first"
    assert job.lines[0][-1].startswith(said)


def test_from_a_model_to_sound(google, amazon, tmp_path):
    """A stage trained from a model in the store and published there; generated from there, and from the other store."""
    run_dir = "gs://bucket/trained"
    object_folders.upload(write_model(tmp_path / "tiny"), "gs://bucket/tiny")
    train_vae = train(run_dir, "--config.stages=vae", "--config.init_from.model=gs://bucket/tiny")
    with Job(train_vae, alone()) as job:
        assert job.codes(900) == [0], job.said(0)
    there = object_store.listing(run_dir).keys()
    assert {"model/model_index.json", "samples/captions.txt", "stages/vae/result/vae/config.json"} <= there
    assert any("events.out.tfevents" in name for name in there) and "stages/vae/metrics.jsonl" in there
    assert not any(".uploading" in name or "partial" in name or "/." in name for name in there)
    assert f"Clips of held-out captions: {run_dir}/samples" in job.said(0)
    with Job(train_vae, alone()) as job:
        assert job.codes(300) == [0], job.said(0)
    assert f"This run is finished; its model is {run_dir}/model." in job.said(0)

    generate = ["-t", "a slow melody", "-s", str(tmp_path), "--ddim_steps", "2", "-n", "1"]
    copy = "s3://bucket/models/trained"
    for command in (
        ["launch/generate.py", "--model", run_dir, *generate],
        ["launch/convert.py", "--from", run_dir, "--to", copy],
        ["launch/generate.py", "--model", copy, *generate],
    ):
        with Job(command, alone()) as job:
            assert job.codes(300) == [0], job.said(0)
    assert len(list(tmp_path.glob("*.wav"))) == 2
    assert [json.loads(path.read_text())["model"] for path in sorted(tmp_path.glob("*.json"))] == [run_dir, copy]
