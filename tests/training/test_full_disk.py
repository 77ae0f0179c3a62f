"""A full disk, and folders without permission: one line, the last one printed; the rest is in error.txt."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audioldm2_jax.runtime import error_log

ROOT = Path(__file__).parents[2]
# A training whose disk is full after `size` bytes of any one file; Orbax, safetensors and NumPy all write through it.
TRAIN = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from smallest import get_config
from audioldm2_jax.training import main
config = get_config()
config.update(run_dir=sys.argv[2], stages="audiomae")
config.train.audiomae.steps = 3
sys.exit(main.main(config))
"""


@pytest.mark.parametrize("size", [3_000, 60_000])
def test_the_line_for_the_user_is_the_last_one_and_the_only_one(tmp_path, size):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(size), tmp_path / "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and str(tmp_path / "run") in lines[0], done.stderr
    if size > 50_000:  # nothing as long as a traceback can be kept otherwise
        kept = lines[0].rpartition("(traceback: ")[2].removesuffix(")")
        assert "Traceback" in Path(kept).read_text()


def test_errors_of_the_system_say_what_to_do():
    for code, wanted in (
        (errno.ENOSPC, "no space is left on the disk: free some"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "can only be read"),
        (errno.EDQUOT, "quota"),
    ):
        said = error_log.describe(OSError(code, os.strerror(code), "/runs/caf\udce9"))
        assert wanted in said and "/runs/caf\\udce9" in said and "\n" not in said
        said.encode()
    assert error_log.describe(ValueError("as it is\nin two lines")) == "as it is\nin two lines"


def test_nothing_that_a_terminal_obeys_is_printed():
    assert error_log.describe(ValueError("/a/\x1b[31m\u202e is no folder")) == "/a/\\x1b[31m\\u202e is no folder"
    assert error_log.describe(ValueError("caf\udce9")) == "caf\\udce9"


def test_where_the_run_folder_is_full_the_traceback_is_elsewhere(tmp_path):
    (tmp_path / "file").touch()
    try:
        raise ValueError("reason")
    except ValueError:
        path = error_log.write(tmp_path / "file" / "error.txt")
    assert path and path.parent != tmp_path / "file" and "ValueError: reason" in path.read_text()
    path.unlink()


def test_half_a_traceback_is_not_left(tmp_path, monkeypatch):
    def full(path, content, **_):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(error_log.tempfile, "gettempdir", lambda: tmp_path / "tmp")
    assert error_log.write(tmp_path / "error.txt") is None
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("error", ["RuntimeError", "OSError"])
def test_before_the_user_is_told_nothing_is_hidden(error):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from audioldm2_jax.runtime import error_log
error_log.collect()
raise {error}("out of memory")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.endswith(f"{error}: out of memory\n")


def test_coroutines_that_a_failed_save_leaves_behind_are_not_mentioned():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from audioldm2_jax.runtime import error_log
if sys.argv[1:]:
    error_log.collect()

async def write_fragment():
    pass

kept = write_fragment()  # until Python ends
write_fragment()
"""
    said = [
        subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stderr
        for arguments in ((), ("collect",))
    ]
    assert "never awaited" in said[0] and not said[1]


def test_what_threads_print_of_errors_is_kept_for_the_file(tmp_path, capfd):
    """In a process of its own, since it is for the whole process and to its end."""
    code = f"""
import logging, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from audioldm2_jax.runtime import error_log
error_log.collect()
error_log.collect()

def fail():
    raise OSError(28, "No space left on device")

for _ in range(3):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
try:
    fail()
except OSError:
    logging.getLogger("absl").exception("a save failed")
logging.getLogger("asyncio").error("this is said")
error_log.write(Path({str(tmp_path / "error.txt")!r}))
raise ValueError("a fault of the program")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    kept = (tmp_path / "error.txt").read_text()
    assert "a save failed" in kept and "No space left" in kept
    assert "No space left" not in done.stderr and "this is said" in done.stderr
    assert "ValueError: a fault of the program" in done.stderr
