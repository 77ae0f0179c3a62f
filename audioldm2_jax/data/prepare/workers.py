"""Processes that make shards, each one at a time, as told by this one."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from audioldm2_jax.data.example import Source
from audioldm2_jax.data.prepare.shards import Plan, ShardMaker
from audioldm2_jax.runtime import children
from audioldm2_jax.runtime.text_files import shown

_POLL = 0.5  # seconds between two looks at how far they are
#: Not forked: the libraries that read and write have threads, which a forked process lacks.
CONTEXT = multiprocessing.get_context("spawn")


class WorkerError(RuntimeError):
    """A process that ended on its own; the message says at which record, and what to do."""


def make_shards(
    source: Source, plan: Plan, numbers: Sequence[int], workers: int, told: Callable[[int], None]
) -> Iterator[list[str]]:
    """Makes shards; yields what `ShardMaker.make` returns, as they get done.

    Args:
        source: of which they are made.
        plan: what is made.
        numbers: of the shards.
        workers: processes; 0: this one.
        told: how many records are done, every now and then.

    Raises:
        CacheError, OSError: a shard cannot be written. The others are stopped, and what they have not finished goes.
        WorkerError: a process was killed, or its decoder crashed.
    """
    if not workers:
        yield from _make_here(ShardMaker(source, plan), numbers, told)
        return
    done, waiting = CONTEXT.Value("q", 0), deque(numbers)
    crew: dict[connection.Connection, Worker] = {}
    try:
        for _ in range(min(workers, len(numbers))):
            worker = Worker(source, plan, done)
            crew[worker.ours] = worker
            worker.ours.send(waiting.popleft())
        while crew:
            for ready in connection.wait([*crew], timeout=_POLL):
                yield crew[ready].answer()
                if waiting:
                    ready.send(waiting.popleft())
                else:
                    crew.pop(ready).end()
            told(done.value)
    finally:
        for worker in crew.values():
            worker.process.kill()
        for worker in crew.values():
            worker.process.join()


def _make_here(maker: ShardMaker, numbers: Sequence[int], told: Callable[[int], None]) -> Iterator[list[str]]:
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1
        told(count)

    for number in numbers:
        yield maker.make(number, lambda index: None, one_more)


class Worker:
    """A process, and this end of the pipe to it, which takes the number of a shard; of the next one once it has
    answered."""

    def __init__(self, source: Source, plan: Plan, done: Any) -> None:
        """Args:
        source, plan: as of `make_shards`.
        done: a number of `CONTEXT`, with a lock, to which it adds the records that it has done.
        """
        self.ours, theirs = CONTEXT.Pipe()
        self._source, self._done = source, done  # whose lock goes with its last holder on this side
        self._at = CONTEXT.Value("q", -1, lock=False)  # the record that it reads
        arguments = theirs, source, plan, done, self._at
        self.process = CONTEXT.Process(target=_serve, args=arguments, name="prepare", daemon=True)
        self.process.start()
        theirs.close()  # so that its end is noticed here

    def answer(self) -> list[str]:
        """Waits for what it has to say of the shard that it was given.

        Raises:
            CacheError, OSError, WorkerError: as of `make_shards`.
        """
        try:
            found = self.ours.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            at = f" while it read {shown(self._source.name_of(self._at.value))}" if self._at.value >= 0 else ""
            raise WorkerError(
                f"a worker process ended by itself{at} (exit code {self.process.exitcode}): where memory ran out, take "
                "fewer workers; where that recording crashes the decoder, remove it. What was made stays"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        """Lets it go."""
        self.ours.close()
        self.process.join()


def _serve(theirs: connection.Connection, source: Source, plan: Plan, done: Any, at: Any) -> None:
    """The life of a worker process: takes numbers of shards until its parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it, too, decides
    children.end_with_parent()
    maker = ShardMaker(source, plan)

    def begins(index: int) -> None:
        at.value = index

    def one_more() -> None:
        with done.get_lock():
            done.value += 1

    while True:
        try:
            number = theirs.recv()
        except EOFError:
            return
        try:
            answer: Any = maker.make(number, begins, one_more)
        except (OSError, ValueError) as error:
            answer = error
        except Exception:
            answer = WorkerError(traceback.format_exc())
        theirs.send(answer)
