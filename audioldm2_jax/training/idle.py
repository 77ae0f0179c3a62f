"""Since when the devices have had nothing to do: what tells waiting for the host from work that hides behind a step."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any

import jax


class Idle:
    """Notes when each step is done, in a thread that waits for its results; steps are given in their order."""

    def __init__(self) -> None:
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._given = self._done = 0
        self._since = time.monotonic()
        threading.Thread(target=self._note, name="idle", daemon=True).start()

    def begun(self, result: jax.Array) -> None:
        """Says what a step will return once it is done."""
        self._given += 1
        self._results.put(result)

    def seconds(self, begin: float) -> float:
        """Returns how long the devices have been idle, since `begin` (`time.monotonic`) at most; 0 while they work."""
        return max(time.monotonic() - max(begin, self._since), 0.0) if self._done == self._given else 0.0

    def close(self) -> None:
        """Ends the thread, once the steps are done that it was told of."""
        self._results.put(None)

    def _note(self) -> None:
        for result in iter(self._results.get, None):
            with contextlib.suppress(Exception):  # the loop meets it, too
                jax.block_until_ready(result)
            self._since = time.monotonic()
            self._done += 1
