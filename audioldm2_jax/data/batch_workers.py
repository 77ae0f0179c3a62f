"""Worker processes that make batches: the memory they share with this process, and what their end is told as."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: Where Linux has POSIX shared memory; of a container it is 64 MB, unless it is started with more.
SHARED_MEMORY = Path("/dev/shm")

_MORE = "give it more (docker run --shm-size=8g, or --ipc=host)"
_ENDS = {
    -7: f"as it does where shared memory, {SHARED_MEMORY}, is full: {_MORE}, or lower --config.data.workers, 0 at last",
    -9: "killed, for want of memory most often: lower --config.data.workers or --config.data.prefetch",
}


def check_memory(batch: int, workers: int, prefetch: int) -> None:
    """Looks whether the batches that lie in shared memory at the same time have space there.

    Args:
        batch: bytes of one.
        workers: processes.
        prefetch: batches held ready.

    Raises:
        ValueError: they have not; the message says how many workers would.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if _held(workers, prefetch) * batch <= free:
        return
    fitting = next((count for count in range(workers - 1, 0, -1) if _held(count, prefetch) * batch <= free), 0)
    raise ValueError(
        f"--config.data.workers={workers} with --config.data.prefetch={prefetch} hold up to "
        f"{_held(workers, prefetch)} batches of {batch / 1e6:.1f} MB in shared memory, and {SHARED_MEMORY} has "
        f"{free / 1e6:.1f} MB free: {_MORE}, or set --config.data.workers={fitting}"
        + (", which reads in threads of this process" if not fitting else "")
    )


def buffer_of_each(workers: int, prefetch: int) -> int:
    """Returns how many batches each of the workers holds ready so that all together hold `prefetch`."""
    return max(-(-prefetch // workers), 1)


def _held(workers: int, prefetch: int) -> int:
    """Returns how many batches there are at most (counted with Grain 0.2.18: each worker's queue, as many again that
    this process has received, and three between).
    """
    return workers * (2 * buffer_of_each(workers, prefetch) + 3) + 1


class WorkerBatches(Iterator[dict[str, np.ndarray]]):
    """Batches of worker processes in memory of this process.

    They arrive in shared memory, which a batch that somebody still holds when the process ends would leave behind.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
            ChildProcessError: a worker has ended.
        """
        try:
            return {key: np.array(value) for key, value in next(self._batches).items()}
        except RuntimeError as error:
            code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if not code:
                raise
            how = _ENDS.get(int(code[1]), "what it said stands above")
            raise ChildProcessError(f"a worker process of the data ended with exit code {code[1]}, {how}") from error

    def close(self) -> None:
        """Ends the worker processes."""
        batches, self._batches = self._batches, iter(())  # Grain's iterators complain if they are left to the very end
        getattr(batches, "close", lambda: None)()
