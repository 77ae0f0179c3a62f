"""What a process does before its first computation: here, that it does not outlive the one that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CHILD = "import sys, time; from audioldm2_jax.runtime import start; {before}start.end_with_parent(int(sys.argv[1])); "
_PARENT = (
    "import os, subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], stdout=sys.stdout); "
    "print(child.pid, flush=True); time.sleep(60)"
)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_the_one_that_started_it(late):
    """Also where that one is killed hard, and where it is gone before the process asks for it."""
    child = _CHILD.format(before="time.sleep(1); " if late else "") + "print('ready', flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, child], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        if not late:
            assert parent.stdout.readline() == "ready\n"
        assert alive(pid)
        parent.kill()
        parent.wait()
        assert gone(pid, 30)
    finally:
        parent.kill()
        parent.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
def test_stages_side_by_side_end_with_the_run(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    flags = ["--config.side_by_side=2", "--config.stages=audiomae,vae", f"--config.run_dir={tmp_path / 'run'}"]
    flags += [f"--config.train.{stage}.steps=100000" for stage in ("audiomae", "vae")]
    run = subprocess.Popen(
        [sys.executable, "launch/train.py", "--config=tests/smallest.py", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in run.stdout:
            if "step" in line:  # one of them is at work
                break
        children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        trainers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert trainers and all(map(alive, trainers))
        run.kill()
        run.wait()
        assert all(gone(pid, 30) for pid in trainers)
    finally:
        run.kill()
        run.stdout.close()
