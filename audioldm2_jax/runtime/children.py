"""What a process does that another one has started; no JAX."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process, which `multiprocessing` has started, once the one that started it is gone.

    That one may be killed hard, for want of memory, say; then nobody else would tell this one.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
