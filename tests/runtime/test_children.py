"""What a process does that another one has started: it does not outlive that one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Both processes, and what `late` is, are of one file: multiprocessing reads it anew in the child.
_SCRIPT = """
import multiprocessing, sys, time
from audioldm2_jax.runtime import children

def serve(late):
    time.sleep(late)
    children.end_with_parent()
    print("ready", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(float(sys.argv[1]),))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_the_one_that_started_it(tmp_path, late):
    """Also where that one is killed hard, and where it is gone before the process asks for it."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, script, "2" if late else "0"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = int(parent.stdout.readline())
        if late:
            time.sleep(1)  # until the child has begun
        else:
            assert parent.stdout.readline() == "ready\n"
        assert alive(pid)
        parent.kill()
        parent.wait()
        assert gone(pid, 30)
    finally:
        parent.kill()
        parent.stdout.close()
