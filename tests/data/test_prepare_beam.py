"""Prepared sets made by Apache Beam: the same as those that processes of this machine make."""

import dataclasses
import signal
from pathlib import Path

import pytest
from processes import children

from audioldm2_jax.data.prepare import beam, job, shards, workers
from audioldm2_jax.data.prepare.options import PrepareError

from .test_prepare import Crashing, command, folder, made, options, same_files, wait_for  # noqa: F401

pytest.importorskip("apache_beam", reason='needs pip install -e ".[beam]"')
beam_pipeline = beam._beam_pipeline()

LOCAL = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


def ended(process):
    """Waits for the end of all that a process has started."""
    of_it = children(process.pid)

    def wait():
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in of_it))

    return wait


def test_killed_it_goes_on_and_the_result_is_that_of_processes_here(folder, made, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    process = command(folder, out, "--beam", "--runner=FnApiRunner", *LOCAL)
    wait_for(lambda: any(out.glob("recordings-train*")) or process.poll() is not None)
    all_gone = ended(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    all_gone()
    assert not (out / "dataset_info.json").exists()
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("recordings-train*")}
    process = command(folder, out, "--beam", "--runner=DirectRunner", *LOCAL)
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert whole and "recordings are there already" in text
    assert all(time == (out / name).stat().st_mtime_ns for name, time in whole.items())
    same_files(made[0], out)


def test_what_cannot_be_read_is_told_and_threads_of_one_process_do(folder, made, tmp_path):  # noqa: F811
    said, done = [], []
    threads = ("--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading")
    wanted = options(folder, tmp_path / "out", beam=threads)
    assert job.prepare(wanted, lambda count, total: done.append((count, total)), said.append) == made[1]
    assert said == made[2] and done[-1] == (made[1]["recordings"] + 1, made[1]["recordings"] + 1)
    same_files(made[0], tmp_path / "out")


def test_interrupted_nothing_goes_on(folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    process = command(folder, out, "--beam", "--runner=FnApiRunner", *LOCAL)
    wait_for(lambda: len(children(process.pid)) > 2 or process.poll() is not None)
    all_gone = ended(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("interrupted: the same command goes on")
    all_gone()
    assert not (out / "lock.json").exists() and (out / "parts/beam.log").exists()


def test_what_goes_wrong_on_a_worker_is_one_line(folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    (out / "parts/00001-of-00004.parquet").mkdir(parents=True)  # so that no file can have that name
    source = job.open_all(options(folder, out))
    plan = shards.Plan(out, shards.splits_of(source), 5, 8000, 24000)
    (out / "prepare.json").write_text("{}")
    wanted = options(folder, out, beam=("--runner=FnApiRunner",))
    with pytest.raises(workers.WorkerError) as caught:
        list(beam.make_shards(source, plan, [0, 1, 2, 3], wanted, lambda done: None))
    message = str(caught.value)
    assert "\n" not in message and f"Is a directory: '{out}/parts/00001-of-00004.parquet' (on " in message
    assert message.endswith("parts/beam.log says more") and not plan.shard(1).exists()


@pytest.fixture
def worker(folder, tmp_path):  # noqa: F811
    """A function on workers, before it is set up, and the source."""
    wanted = options(folder, tmp_path)
    source = job.open_all(wanted)
    (tmp_path / "parts").mkdir()
    (tmp_path / "prepare.json").write_text("{}")
    plan = shards.Plan(tmp_path, shards.splits_of(source), 5, 8000, 24000)
    return beam_pipeline.MakeShard(wanted, plan, shards.digest_of(source))


def test_a_worker_with_other_folders_is_refused(folder, worker):  # noqa: F811
    (worker._plan.out / "prepare.json").unlink()
    with pytest.raises(workers.WorkerError, match=r"is not there: --out has to be the same folder on all workers \(on"):
        worker.setup()
    (worker._plan.out / "prepare.json").write_text("{}")
    worker._listing = "other"
    with pytest.raises(workers.WorkerError, match="holds other recordings or texts there"):
        worker.setup()


def test_a_decoder_that_crashes_leaves_beams_process_alone(monkeypatch, worker):
    monkeypatch.setattr(beam_pipeline, "open_all", lambda options: Crashing())
    worker._plan = dataclasses.replace(worker._plan, splits=(("train", 8),), size=4)
    worker._listing = shards.digest_of(Crashing())
    worker.setup()
    worker.process(0)
    with pytest.raises(workers.WorkerError, match=r"while it read recording 5 \(exit code -11\).* \(on "):
        worker.process(1)
    worker.teardown()
    assert worker._plan.missing(shards.names_in(worker._plan.out)) == [1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--runner=Nope"], "--beam: Unexpected pipeline runner: Nope"),
        (["--direct_num_workers=x"], "--beam: argument --direct_num_workers: invalid int value: 'x'"),
        (["--direct_num_wrokers=2"], "--beam: --direct_num_wrokers=2 is no option of Beam"),
        (["--runner", "FnApiRunner", "in"], "--beam: in is no option of Beam"),
    ],
)
def test_options_that_beam_has_not_are_refused(folder, tmp_path, arguments, message):  # noqa: F811
    with pytest.raises(PrepareError, match=message):
        job.prepare(options(folder, tmp_path / "out", beam=tuple(arguments)))
    assert not (tmp_path / "out").exists()


def test_a_job_server_has_options_of_its_own():
    options = beam_pipeline.pipeline_options(["--runner=FlinkRunner", "--flink_master=a:1", "--own=3"])
    assert options.get_all_options(retain_unknown_options=True)["own"] == "3"


def test_the_launching_process_reads_its_options_without_what_beam_warns_of(folder, tmp_path):  # noqa: F811
    process = command(folder, tmp_path / "out", "--beam", "--runner=Nope")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and errors.startswith("error: --beam: Unexpected") and errors.count("\n") == 1
