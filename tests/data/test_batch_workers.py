"""Worker processes that make batches: shared memory that is too small, and workers that end."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audioldm2_jax.data import batch_workers, pipeline
from audioldm2_jax.data.encoders import Waveform
from audioldm2_jax.data.example import Example, Source

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux'")


class Noise(Source):
    sampling_rate = 16000

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return Example(np.full(20_000, 0.1 * index, np.float32), None)


def stream(workers=2, prefetch=2, batch_size=5):
    return pipeline.batches(
        Noise(), [Waveform(20_000)], batch_size=batch_size, samples=20_000, seed=0, workers=workers, prefetch=prefetch
    )


def free(monkeypatch, megabytes):
    usage = shutil._ntuple_diskusage(1e9, 1e9 - 1e6 * megabytes, int(1e6 * megabytes))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize(("megabytes", "fitting"), [(64, 4), (47, 2), (1, 0)])
def test_too_little_shared_memory_is_told_before_a_worker_starts(monkeypatch, megabytes, fitting):
    free(monkeypatch, megabytes)
    said = (
        rf"workers=8 .* hold up to 41 batches of 2.0 MB .* has {megabytes}.0 MB free: .*--shm-size.*workers={fitting}\b"
    )
    with pytest.raises(ValueError, match=said):
        stream(workers=8, prefetch=8, batch_size=25)
    assert not multiprocessing.active_children()
    assert next(stream(workers=0))["waveform"].shape == (5, 20_000)  # threads share none
    if fitting:
        batch_workers.check_memory(2_000_000, fitting, 8)


def test_as_many_batches_lie_there_as_is_said(monkeypatch):
    mine = {*batch_workers.SHARED_MEMORY.glob("psm_*")}
    batches, most = stream(workers=2, prefetch=8), 0
    try:
        for _ in range(8):
            next(batches)
            time.sleep(0.3)  # the workers fill what they may
            most = max(most, sum(path.stat().st_size for path in {*batch_workers.SHARED_MEMORY.glob("psm_*")} - mine))
    finally:
        batches.close()
    assert 0.7 * batch_workers._held(2, 8) < most / (5 * 20_004 * 4) <= batch_workers._held(2, 8)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGBUS, "exit code -7, .*shared memory"), (signal.SIGKILL, "-9, killed")]
)
def test_a_worker_that_is_lost_is_told_in_a_line(number, said):
    batches = stream()
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    with pytest.raises(ChildProcessError, match=said) as caught:
        for _ in range(100):
            next(batches)
    batches.close()
    assert "\n" not in str(caught.value)


FULL = """
import sys
from test_batch_workers import stream
from audioldm2_jax.data import batch_workers

if __name__ == "__main__":
    batch_workers.check_memory = lambda *_: None  # others have filled it meanwhile
    try:
        for _ in zip(range(100), stream()):
            pass
    except ChildProcessError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a small /dev/shm")
def test_shared_memory_that_is_full(tmp_path):
    (tmp_path / "run.py").write_text(FULL)
    command = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} {tmp_path / 'run.py'}"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no right to mount")
    assert "exit code -7" in done.stdout and "--shm-size" in done.stdout, done.stderr
