"""What ends a training that stands still: the stacks of all threads in a file, one line, and the code to restart on.

A process that waits for others, for data or for a disk waits without end and without a word. So a thread looks how long
the last step is ago. Where it is too long, it says what every process of the job was doing, and ends this one as
`watch` does, so that the others leave, too, each with its own stacks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from audioldm2_jax.runtime import watch

_SUSPENDED = 10.0  # seconds between two looks after which the process itself was stopped, by Ctrl-Z say


class StallWatch:
    """Watches the steps of a training: a context manager.

    Attributes:
        stacks: the file for the stacks.
    """

    def __init__(self, seconds: float, stacks: Path):
        """Args:
        seconds: without a finished step after which the training stands still; 0: it is not watched.
        stacks: where the stacks are written; its folder exists.
        """
        self.stacks, self._seconds = stacks, seconds
        self._last, self._doing = time.monotonic(), ""
        self._paused, self._closed = 0, threading.Event()

    def __enter__(self) -> StallWatch:
        watch.dump_stacks_to(self.stacks)
        if self._seconds:
            threading.Thread(target=self._look, name="stall watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        watch.dump_stacks_to(None)

    def doing(self, what: str) -> None:
        """Says what this process is at from here on, "reading the batch of step 7" say: that is progress."""
        self._last, self._doing = time.monotonic(), what
        watch.doing(what)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch what is inside: compiling and evaluation take as long as they do."""
        self._paused += 1
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._paused -= 1

    def _look(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            now = time.monotonic()
            if now - looked > _SUSPENDED:
                self._last = now
            looked = now
            if not self._paused and now - self._last > self._seconds:
                self._end()

    def _end(self) -> None:
        where = f"; the stacks of its threads are in {self.stacks}" if watch.dump_stacks() else ""
        others = [f"{name}: {what}" for name, what in watch.others_doing().items()]
        beside = f" ({'; '.join(others)})" if others else ""
        message = f"no step was finished in {self._seconds:g} s, in which this process was {self._doing}{beside}"
        print(
            f"error in {watch.own_name()}: {message}{where}. It ends (code {watch.RESTART}); the same command goes on "
            "from the last finished checkpoint",
            file=sys.stderr,
            flush=True,
        )
        watch.fail(message, watch.RESTART)
        os._exit(watch.RESTART)
