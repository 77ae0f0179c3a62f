"""The short form of benchmarks/chaos.py: a few kills, and every other event once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", "--kills=2", "--seed=1", f"--folder={tmp_path / 'runs'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "outcome" not in line]
    assert len(rows) >= 8 and all("as it should be" in row for row in rows), done.stdout
    assert "the state at the end, compared to the bit" in rows[-2]
