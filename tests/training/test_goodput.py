"""Where the time of a stage goes, over several processes."""

import json
import time

import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from toys import Line, config

from audioldm2_jax.training import goodput


def line(step, begun, elapsed, **parts):
    named = {f"seconds_{part}": seconds for part, seconds in parts.items()}
    return {"step": step, "loss": 1.0, "seconds_all": elapsed, "unix_time": begun + elapsed, **named}


def test_two_processes():
    """The first was killed after step 50, the second began 100 s later and went on from the checkpoint of step 40."""
    first = [line(1, 1000, 25, compiling=20), line(50, 1000, 100, compiling=20, saving=10)]
    second = [line(41, 1200, 12, compiling=5), line(60, 1200, 60, compiling=5, waiting_for_data=5)]
    found = goodput.lifetime([*first, {"step": 50, "heldout/loss": 1.0}, *second])
    assert found == pytest.approx(
        {
            "steps": 70 + 50 - 14,
            "steps done again": 14,  # ten of the fifty that took 70 s
            "no process": 100,
            "compiling": 25,
            "saving": 10,
            "waiting for data": 5,
        }
    )
    assert sum(found.values()) == pytest.approx(1260 - 1000)
    assert goodput.shown(found) == (
        "40.8% steps, 38.5% no process, 9.6% compiling, 5.4% steps done again, 3.8% saving, 1.9% waiting for data"
    )


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 50), st.floats(1, 99), st.integers(0, 30)), min_size=1))
def test_parts_are_the_whole(processes):
    """Whatever happened: from the beginning of the first process to the last log of the last one."""
    logged, now, step = [], 1000.0, 0
    for steps, gap, took, lost in processes:
        now, step = now + gap + 0.01, max(step - lost, 0)
        logged += [line(step + 1, now, took / 2, compiling=took / 4), line(step + steps, now, took, compiling=took / 4)]
        now, step = now + took, step + steps
    found = goodput.lifetime(logged)
    assert all(seconds >= 0 for seconds in found.values())
    assert sum(found.values()) == pytest.approx(now - 1000 - processes[0][1] - 0.01, abs=0.1)


def test_nothing_was_logged():
    assert goodput.lifetime([{"step": 3, "loss": 1.0}]) == {"steps": 0.0}


def test_a_run_that_was_stopped_tells_of_both_processes(tmp_path):
    """Each evaluation takes a fifth of a second; what follows the last log is told, and not in the file."""

    class Slow:
        name, every = "listening", 4

        def __call__(self, snapshot):
            time.sleep(0.2)
            return {}

    stage = Line(config(steps=8, log_every=1, save_every=2), {})
    began = time.time()
    toys.train(stage, tmp_path, stop_after=5, evaluators=(Slow(),))
    time.sleep(0.3)
    _, said = toys.train(stage, tmp_path, evaluators=(Slow(),))
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (told,) = (line for line in said.lines if "of the time" in line)
    assert "% listening" in told and "% no process" in told
    found = goodput.lifetime(lines)
    assert sum(found.values()) <= time.time() - began
    assert 0.2 <= found["listening"] < 2 and found["no process"] >= 0.3
    assert found["compiling"] > 0 and found["saving"] > 0 and found["starting or restoring"] > 0
