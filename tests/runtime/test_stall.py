"""A process that stands still: it says where, writes its stacks, and ends with the code to start it again on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audioldm2_jax.runtime import watch
from audioldm2_jax.runtime.stall import StallWatch

ROOT = Path(__file__).parents[2]
STANDING = """
import sys, time
from pathlib import Path
from audioldm2_jax.runtime.stall import StallWatch

def read_forever():
    time.sleep(0.2)

with StallWatch(float(sys.argv[1]), Path(sys.argv[2])) as stall:
    stall.doing("reading the batch of vae, step 7")
    if sys.argv[3] == "in pauses":
        with stall.paused():
            time.sleep(3)
        for _ in range(8):
            time.sleep(0.3)
            stall.doing("computing")
    else:
        begin = time.monotonic()
        while sys.argv[3] == "for ever" or time.monotonic() - begin < 13:
            read_forever()
print("went on")
"""


def run(tmp_path, seconds, how):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STANDING, str(seconds), tmp_path / "stacks-0.txt", how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - begin


def test_one_that_stands_still_ends_with_its_stacks(tmp_path):
    done, seconds = run(tmp_path, 1, "for ever")
    assert done.returncode == watch.RESTART and seconds < 30 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error in this process: no step was finished in 1 s, in which this process was reading the batch of vae, step "
        "7; the stacks of its threads are in "
    )
    assert "It ends (code 75); the same command goes on" in line and str(tmp_path / "stacks-0.txt") in line
    assert "read_forever" in (tmp_path / "stacks-0.txt").read_text()


def test_one_that_goes_on_or_pauses_does_not(tmp_path):
    done, _ = run(tmp_path, 1, "in pauses")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


@pytest.mark.slow
def test_one_that_was_suspended_goes_on(tmp_path):
    """Ctrl-Z for longer than it may stand still."""
    command = [sys.executable, "-c", STANDING, "2", tmp_path / "stacks-0.txt", "suspended"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(12)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=30)[0] == "went on\n"


def test_where_the_stacks_cannot_be_written(tmp_path):
    done, _ = run(tmp_path / "not there", 0.5, "for ever")
    assert done.returncode == watch.RESTART and "stacks" not in done.stderr


@pytest.mark.parametrize("seconds", [0, 100])
def test_it_ends_with_the_block(tmp_path, seconds):
    with StallWatch(seconds, tmp_path / "stacks.txt"):
        assert watch.dump_stacks()
    (tmp_path / "stacks.txt").unlink()
    assert not watch.dump_stacks() and not (tmp_path / "stacks.txt").exists()
