"""Warnings that a run gives once, in plain words: by real processes, since handlers belong to a process."""

import subprocess
import sys

CHILD = """
import multiprocessing
from absl import logging
from audioldm2_jax.runtime import warnings_once

def child(given):
    warnings_once.show_plainly()
    warnings_once.adopt(given)
    warnings_once.warn("%s has %d faults", "a", 2)
    warnings_once.warn("%s has %d faults", "b", 3)

if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)  # as app.run does
    warnings_once.show_plainly()
    logging.info("loading, which nobody asked for")
    for _ in range(3):
        warnings_once.warn("%s has %d faults", "a", 2)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(warnings_once.given(),))
    process.start()
    process.join()
"""


def test_once_over_processes_and_without_a_logger_s_name(tmp_path):
    (tmp_path / "run.py").write_text(CHILD)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["warning: a has 2 faults", "warning: b has 3 faults"]
