"""Real processes that find each other as a scheduler's do, train together, and lose each other."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from jax.profiler import ProfileData
from processes import ROOT, Job, alone, by_slurm, by_variables, children, train

from audioldm2_jax.audio import files
from audioldm2_jax.stages import STAGES

LONG = {"steps": 1000, "save_every": 20, "heldout_every": 0}
LINE = re.compile(r"audiomae  step (\d+)/2000")
LINE_OF_60 = re.compile(r"audiomae  step \d+/60")


def toy(folder, *settings, environments, **variables):
    return Job(["tests/toy_run.py", str(folder), "--heartbeat_seconds=20", *settings], environments, **variables)


def shown(job, index):
    """The last step that a process showed."""
    return int(LINE.findall(job.said(index))[-1])


def saved(folder, stage="audiomae"):
    found = (folder / f"stages/{stage}/checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def wait_until(condition, job, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end and job.processes[0].poll() is None, job.said(0)
        time.sleep(0.05)


def test_agreement(tmp_path):
    """Under what Slurm tells its tasks, and nothing else."""
    rng = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "0").mkdir(exist_ok=True)
        files.write(tmp_path / f"0/{number}.wav", 0.1 * rng.standard_normal(8000), 16000)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    damaged = tmp_path / "1/7.wav"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with Job(["tests/together.py", str(tmp_path)], by_slurm(2)) as job:
        assert job.codes(120) == [0, 0], job.said(0) + job.said(1)
    assert "process 1 follows process 0 in what can be read." in job.said(1) and "7.wav" in job.said(1)
    assert job.said(0).endswith("all is well")


def test_an_error_on_one_host_ends_all(tmp_path):
    """The host that has it says it at once; the other names that host, and ends with a code to restart on."""
    with toy(tmp_path / "run", environments=by_variables(2), FAIL="1:30") as job:
        assert job.codes(180) == [75, 1]
    assert "in process 1 (" in job.lines[1][-1] and "the disk of this host does not answer" in job.lines[1][-1]
    last = job.lines[0][-1]
    assert last.startswith("error: process 1 (") and "failed: the disk of this host does not answer" in last
    assert "the same command on all hosts goes on from the last finished checkpoint" in last
    assert not any("step" in line for line in job.lines[1])  # one shows progress for all
    assert not (tmp_path / "run/lock.json").exists()


def test_updates_that_are_not_finite_end_all_alike(tmp_path):
    """After two that were skipped, ten in a row; one process says why, with the records of both in its file."""
    with toy(tmp_path / "run", environments=by_variables(2), NAN="12:13,25:2000") as job:
        assert job.codes(180) == [1, 1], job.said(0) + job.said(1)
    skipped = "audiomae: 2 updates were skipped, the last of step 14: fit/loss was nan (2 in all)"
    assert skipped in job.lines[0] and not any("skipped: fit" in line for line in job.lines[1])
    (last,) = (lines[-1] for lines in job.lines if lines[-1].startswith("error"))
    assert "audiomae: 10 updates in a row were skipped, the last at step 35, as fit/loss was nan; not finite" in last
    assert "first: fit/loss, of the records" in last and "the last good checkpoint is that of step 20" in last
    kept = Path(last.rpartition("(traceback: ")[2].removesuffix(")")).read_text()
    assert all(f"slot {slot}: " in kept for slot in range(4)) and "stage audiomae, step 35" in kept


def test_a_slow_process_is_named_and_one_that_is_asked_is_profiled(tmp_path):
    """The second waits a quarter of a second for each batch, and is sent the signal: the first is not held up."""
    folder = tmp_path / "run"
    with toy(folder, environments=by_variables(2), SLOW="1:0.25", SETTING="config.train.audiomae.steps=60") as job:
        job.wait_for(0, LINE_OF_60.search)
        job.send(1, signal.SIGUSR2)
        job.wait_for(1, "tensorboard --logdir")
        assert job.codes(180) == [0, 0], job.said(0) + job.said(1)
    (named,) = (line for line in job.lines[0] if "keeps the others waiting" in line)
    said = re.fullmatch(
        r"audiomae: process 1 \(.+, pid \d+\) keeps the others waiting: (\S+) s a step of its own, (\S+) of them for "
        r"data, where others take (\S+) \(median\)",
        named,
    )
    own, data, others = map(float, said.groups())
    assert own >= data > 0.24 and own > 2 * others
    rows = [json.loads(line) for line in (folder / "stages/audiomae/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("slowest_host_seconds")]
    assert len(rows) >= 5 and all(row["slowest_host"] == 1 for row in rows)
    assert all(row["slowest_host_seconds"] > max(0.24, row["median_host_seconds"]) for row in rows)

    first, last = map(int, re.search(r"process 1 .*: the profile of steps (\d+) to (\d+)", job.said(1)).groups())
    assert last == min(first + 9, 60) and "tensorboard" not in job.said(0)
    (file,) = folder.glob("stages/audiomae/plugins/profile/*/*.xplane.pb")
    names = {
        event.name for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for event in line.events
    }
    assert "train" in names


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting, said",
    [
        ("config.train.audiomae.learning_rate=0.5", r"--config\.train\.audiomae\.learning_rate: [0-9.]+, there 0\.5"),
        ("config.train.audiomae.log_every=7", r"--config\.train\.audiomae\.log_every: 10, there 7"),
        ("", r"the code of audioldm2_jax: [0-9a-f]{12}, there [0-9a-f]{12}"),
    ],
)
def test_processes_that_were_started_otherwise_end_and_say_in_what(tmp_path, setting, said):
    """With other settings, or from another state of the package: a comment is enough."""
    environments = by_variables(2)
    environments[1]["SETTING"] = setting
    if not setting:
        shutil.copytree(ROOT / "audioldm2_jax", tmp_path / "other/audioldm2_jax", symlinks=True)
        with (tmp_path / "other/audioldm2_jax/rngs.py").open("a") as file:
            file.write("# edited\n")
        environments[1]["PYTHONPATH"] = f"{tmp_path / 'other'}:{ROOT / 'tests'}"
    with toy(tmp_path / "run", environments=environments) as job:
        assert job.codes(120) == [1, 1], job.said(0) + job.said(1)
    last = job.lines[0][-1]
    assert re.search(rf"process 1 \(.*\) was started otherwise than process 0 \({said}\): start the same command", last)
    assert not any(LINE.search(line) for lines in job.lines for line in lines)
    assert not (tmp_path / "run/stages").exists()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_is_named_and_the_run_goes_on(tmp_path, index):
    folder = tmp_path / "run"
    with toy(folder, environments=by_variables(2)) as job:
        job.wait_for(0, lambda line: "step" in line and shown(job, 0) > 25)
        begin = time.monotonic()
        job.send(index, signal.SIGKILL)
        assert job.codes(60)[1 - index] == 75, job.said(1 - index)
        assert time.monotonic() - begin < 30  # the heartbeat's time-out, and what it takes to say so
    last = job.lines[1 - index][-1]
    assert last.startswith(f"error: process {index} (") and " was lost; " in last and "the same command" in last

    done = saved(folder)[-1]
    with toy(folder, environments=by_variables(2)) as job:  # nor is the dead run's lock in the way
        job.wait_for(0, "going on after step")
        assert f"audiomae: going on after step {done} of 2000" in job.said(0)


@pytest.mark.slow
def test_preempted(tmp_path):
    """SIGTERM to one process: all save the same step and end with a code to restart on; Ctrl-C ends with 130."""
    folder = tmp_path / "run"
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with toy(folder, environments=by_variables(2)) as job:
            job.wait_for(0, LINE.search)
            for index in (1,) if number == signal.SIGTERM else (0, 1):
                job.send(index, number)
            assert job.codes(90) == [code, code]
        done = re.search(r"stopped and saved after step (\d+) of 2000. The same command goes on", job.said(0))
        assert saved(folder)[-1] == int(done[1])


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "run"
    with toy(folder, environments=alone()) as first:
        first.wait_for(0, LINE.search)
        with toy(folder, environments=alone()) as second:
            assert second.codes(90) == [1]
        assert f"in use by another run: process {first.processes[0].pid} on " in second.lines[0][-1]
        assert "--coordinator, --num_processes and --process_id" in second.lines[0][-1]
        assert first.processes[0].poll() is None


@pytest.mark.slow
def test_stages_side_by_side_end_with_their_run_and_go_on(tmp_path):
    """The run is killed hard, which tells its stages nothing; nor do their own processes that read data stay."""
    folder, stages = tmp_path / "run", ("audiomae", "vocoder")
    settings = [f"--config.stages={','.join(stages)}", "--config.side_by_side=2", "--config.data.workers=1"]
    # So many steps that none is finished before both have saved some.
    settings += [f"--config.train.{stage}.{key}={value}" for stage in stages for key, value in LONG.items()]
    settings += [f"--config.train.vocoder.discriminator_start={LONG['steps']}"]
    command = train(folder, *settings)
    with Job(command, alone()) as job:
        for stage in stages:
            wait_until(lambda stage=stage: saved(folder, stage), job)
        started = children(job.processes[0].pid)
        assert len(started) >= 2 * len(stages)  # a stage, and what reads its data
        job.send(0, signal.SIGKILL)
        assert job.codes(10) == [-signal.SIGKILL]
    end = time.monotonic() + 30
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, f"{left} of {started} are still there"
        time.sleep(0.1)
    assert not any((folder / f"stages/{stage}/result").exists() for stage in stages)
    done = {stage: saved(folder, stage)[-1] for stage in stages}
    with Job(command, alone()) as job:  # nor is the dead run's lock in the way
        assert job.codes(300) == [0], job.said(0)
    for stage in stages:
        assert f"{stage}: going on after step {done[stage]} of {LONG['steps']}" in job.said(0)
        assert (folder / f"stages/{stage}/result").exists()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the first job compiled, the second need not."""
    return {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla"))}


@pytest.mark.slow
@pytest.mark.parametrize("environments", [by_variables, by_slurm])
def test_all_stages(tmp_path, cache, environments):
    """From nothing to the published model and its samples, the weights over two hosts."""
    settings = [
        f"--config.train.{stage}.{key}=2" for stage in STAGES for key in ("steps", "sample_every", "heldout_every")
    ]
    settings += [f"--config.train.{stage}.discriminator_start=1" for stage in ("vae", "vocoder")]
    settings += ["--config.samples.steps=1", "--config.mesh.data=1", "--config.mesh.fsdp=2"]
    # Two shards of cached features, one made by each host.
    settings += [f"--config.data.{key}=600" for key in ("examples", "cache_records")]
    settings += [f"--config.data.cache={tmp_path / 'features'}"]
    with Job(train(tmp_path / "run", *settings), environments(2), **cache) as job:
        assert job.codes(900) == [0, 0], job.said(0) + job.said(1)
    assert "Done in" in job.said(0)
    shards = {f"0000{i}-of-00002.array_record" for i in range(2)}
    assert {path.name for path in (tmp_path / "features/latents").iterdir()} == {"cache.json", *shards}
    assert re.search(r"diffusion: caching latents, .* of 512 clips", job.said(0))
    assert not any(re.search(r"step \d+/|Done in", line) for line in job.lines[1])
    assert {path.name for path in (tmp_path / "run/samples").iterdir()} >= {
        "0.wav",
        "1.wav",
        "mels.png",
        "captions.txt",
    }
    assert np.abs(files.read(tmp_path / "run/samples/0.wav", 16000)).max() > 0
    assert (tmp_path / "run/model/model_index.json").exists()
    for stage in STAGES:
        rows = [json.loads(line) for line in (tmp_path / f"run/stages/{stage}/metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 2
    with Job(train(tmp_path / "run", *settings), environments(2), **cache) as job:
        assert job.codes(300) == [0, 0]
    assert "This run is finished" in job.said(0)
