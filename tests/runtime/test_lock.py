"""One run in a run folder at a time, and none that is kept out by one that is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from audioldm2_jax.runtime import lock
from audioldm2_jax.runtime.lock import LockedError, RunLock

ROOT = Path(__file__).parents[2]


def other_process(folder: Path) -> subprocess.Popen:
    """A process that holds the lock until it is killed."""
    code = (
        "import sys, time, pathlib; from audioldm2_jax.runtime.lock import RunLock\n"
        "with RunLock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def of_another_machine(folder: Path, **changed: object) -> Path:
    """A lock as a run on another host writes it."""
    path = folder / lock.FILE
    known = {"host": "node7", "pid": 41, "since": "2026-01-02 03:04:05 +0000", "machine": "other", "started": "5"}
    path.write_text(json.dumps(known | {"token": "theirs"} | changed))
    return path


def test_a_live_run_is_named_and_a_killed_one_passed_over_at_once(tmp_path):
    process = other_process(tmp_path)
    try:
        with pytest.raises(LockedError, match=rf"in use by another run: process {process.pid} on .*, since 2"):
            RunLock(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
        process.poll()  # and nobody waits for it: a zombie is dead, too
        time.sleep(0.2)
        begin = time.monotonic()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
        assert time.monotonic() - begin < 2
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_a_dead_process_may_be_anothers_by_now(tmp_path):
    of_another_machine(tmp_path, machine=lock._machine(), pid=os.getpid(), started="1")
    with RunLock(tmp_path):
        pass


def test_another_machines_lock_is_watched(tmp_path):
    """Alive while it is touched; dead where it is not, after a wait that is announced."""
    path, said = of_another_machine(tmp_path), []
    stop = threading.Event()

    def touch():
        while not stop.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(LockedError, match="process 41 on node7, since 2026-01-02 03:04:05"):
        RunLock(tmp_path, said.append, touch=0.1).__enter__()
    stop.set()
    thread.join()
    with RunLock(tmp_path, said.append, touch=0.1):
        assert json.loads(path.read_text())["token"] != "theirs"
    assert len(said) == 2 and "node7" in said[1]

    os.utime(of_another_machine(tmp_path), (time.time() - 3600,) * 2)  # long dead: no wait
    with RunLock(tmp_path, said.append):
        assert len(said) == 2


def test_a_lock_that_cannot_be_read_does_not_block_for_ever(tmp_path):
    (tmp_path / lock.FILE).write_text("")
    with RunLock(tmp_path, touch=0.1):
        pass


def test_of_several_at_once_one_gets_a_dead_lock(tmp_path):
    of_another_machine(tmp_path, machine=lock._machine(), pid=2**22 + 1)
    start, got, refused, release = threading.Barrier(8), [], [], threading.Event()

    def take():
        start.wait()
        try:
            with RunLock(tmp_path):
                got.append(None)
                release.wait(20)
        except LockedError:
            refused.append(None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while len(got) + len(refused) < 8 and time.monotonic() < end:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_losing_the_lock_is_told(tmp_path):
    """A run that was suspended finds another's lock in the place of its own, and leaves that alone."""
    lost = threading.Event()
    with RunLock(tmp_path, on_loss=lambda holder: lost.set(), touch=0.05):
        path = of_another_machine(tmp_path)
        assert lost.wait(5)
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_nothing_in_the_run_folder(tmp_path, links):
    """A limit on the size of files, which a lock is beyond: the system's own error, of a process of its own."""
    code = (
        "import os, resource, signal, sys, pathlib; from audioldm2_jax.runtime.lock import RunLock\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def no_links(*_): resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)); raise OSError(95, 'no links')\n"
        "if sys.argv[2] == 'True': resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"
        "else: os.link = no_links\n"
        "try: RunLock(pathlib.Path(sys.argv[1])).__enter__()\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(links)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []
