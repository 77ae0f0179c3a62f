"""What is wrong with the compilation cache costs compilations, and one line; it ends nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
import resource, signal, sys
from audioldm2_jax.runtime import start

start.start(sys.argv[1])
if sys.argv[2:]:  # so long a file of the cache may be
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
import jax

for factor in (1.0, 2.0, 3.0):
    print(jax.jit(lambda x: factor * x)(1.0))
"""


def compile_three(cache, *arguments):
    """Compiles three programs in a process of its own; returns the lines that it logs."""
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, cache, *arguments],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.0", "2.0", "3.0"]
    return done.stderr.splitlines()


@pytest.mark.parametrize("damage", ["other bytes", "half", "a folder"])
def test_damaged_entries(tmp_path, damage):
    assert compile_three(tmp_path) == []
    for entry in tmp_path.glob("*-cache"):
        content = entry.read_bytes()
        entry.unlink()
        if damage == "a folder":
            entry.mkdir()
        else:
            entry.write_bytes(b"nothing" if damage == "other bytes" else content[: len(content) // 2])
    (line,) = compile_three(tmp_path)
    assert "what is damaged is compiled anew" in line and f"delete {tmp_path}" in line


def test_a_full_disk(tmp_path):
    (line,) = compile_three(tmp_path, "100")
    assert "nothing more is kept" in line and str(tmp_path) in line


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "file").touch()
    (line,) = compile_three(tmp_path / "file")
    assert f"{tmp_path / 'file'} cannot be written: what XLA compiles is not kept" in line
