"""Errors for people: one line on the screen, and everything else in a file.

Libraries print on their own when something fails in one of their threads: Orbax writes a screenful about a full disk,
some of it after the run has said what happened. `collect` keeps all that for the file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

from audioldm2_jax.runtime.text_files import shown, shown_lines

FILE = "error.txt"
_MOST = 500  # texts kept
_WANTED = {
    errno.ENOSPC: "no space is left on the disk: free some",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would be larger than is allowed here (ulimit -f)",
    errno.EROFS: "the disk can only be read: choose another folder",
    errno.EACCES: "there is no permission: choose another folder or change its owner",
    errno.EPERM: "there is no permission: choose another folder or change its owner",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.EIO: "the disk fails: look at the system's log",
}
_collected: dict[str, int] = {}  # text → how often
_installed = False
_told = False  # whether the user has been told what went wrong


def collect() -> None:
    """From here on to its end, what threads of this process print about errors is kept for `write`."""
    global _installed
    if _installed:
        return
    _installed = True
    uncaught = sys.excepthook

    def elsewhere(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        # Once the user has been told, what Orbax's and JAX's ends raise in the main thread is of no use either.
        after = _told and isinstance(value, RuntimeError | OSError)
        if threading.current_thread() is threading.main_thread() and not after:
            uncaught(kind, value, trace)
        else:
            _keep("".join(traceback.format_exception(kind, value, trace)))

    sys.excepthook = elsewhere
    threading.excepthook = lambda args: elsewhere(args.exc_type, args.exc_value, args.exc_traceback)
    # Of errors in callbacks of C++ threads, among others; those of destructors while Python ends are of no use either.
    sys.unraisablehook = lambda args: _keep(
        "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    )
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_divert)
    # Of a save that failed on its way; Python says it whenever it finds the rest of it, at its end at the latest.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _divert(record: logging.LogRecord) -> bool:
    """Keeps errors that are logged with a traceback for the file alone."""
    if record.levelno < logging.ERROR or not record.exc_info:
        return True
    _keep(logging.Formatter("%(name)s: %(message)s").format(record) + "\n")
    return False


def escape_output() -> None:
    """From here on what this process prints may hold any character: what the terminal has not is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def describe(error: BaseException) -> str:
    """What to tell of an error, in one line; of the operating system's with the file and what to do."""
    if isinstance(error, OSError) and error.errno:
        what = _WANTED.get(error.errno, (error.strerror or "").lower())
        where = error.filename2 or error.filename
        return f"{shown(where)} cannot be written or read: {what}" if where else what
    text = " ".join(str(error).split("\n")) if isinstance(error, OSError) else str(error)
    return shown_lines(text) or type(error).__name__


def write(path: Path) -> Path | None:
    """Writes the traceback of the error in hand, and what was collected, to a file.

    Where that cannot be written, for the disk is full, say, it goes to the folder for temporary files.

    Returns:
        the file; None where neither can be written.
    """
    global _told
    _told = True
    repeated = [text + (f"(so {count} times)\n" if count > 1 else "") for text, count in _collected.items()]
    content = "\n".join([traceback.format_exc(), *repeated])
    for place in (path, Path(tempfile.gettempdir()) / f"audioldm2-jax-{path.name}"):
        try:
            place.write_text(content, encoding="utf-8", errors="backslashreplace")
            return place
        except OSError:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)  # half of it
    return None


def _keep(text: str) -> None:
    if text in _collected or len(_collected) < _MOST:
        _collected[text] = _collected.get(text, 0) + 1
