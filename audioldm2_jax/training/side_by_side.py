"""Trains stages that do not wait for each other at the same time, each in a process with CPU cores of its own.

On two cores, two stages on one core each get more done than one stage on both. A stage on an accelerator has it for
itself, so there the stages run one after the other in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import jax
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.runtime import hosts, warnings_once, watch
from audioldm2_jax.training import profiler, run, run_folder
from audioldm2_jax.training.checkpoint import CheckpointError
from audioldm2_jax.training.loop import NotFinite, Stopped, Unreadable
from audioldm2_jax.training.progress import Pipe, Progress

# Of a process that trains on CPU cores. Large pages spare it about a third of a step, in page faults; XLA's first
# level of optimisation is meant to compile sooner, and ran no slower.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "XLA_FLAGS": "--xla_backend_optimization_level=1"}
SEPARATORS = {"GLIBC_TUNABLES": ":", "XLA_FLAGS": " "}
# What a stage may raise that is told in one line, without a traceback.
REPORTED_ERRORS = (run.RunError, NotFinite, Unreadable, CheckpointError, FolderError, ValueError, OSError)


class StageFailed(RuntimeError):
    """A stage in another process failed; the message is that of its error."""


def train_all(config: ConfigDict, progress: Progress) -> dict[str, float]:
    """Trains the stages of `config.stages` that have no result yet; returns each one's share of time waiting for data.

    Raises:
        Stopped: asked to stop by Ctrl-C or SIGTERM; everything is saved.
        StageFailed, and what `run.train_stage` raises.
    """
    chosen = run.plan(config)
    # One host decides: what another sees of the run folder may be older.
    left = hosts.broadcast([name for name in chosen if not run.finished(config, name)], "stages left")
    for name in chosen:
        if name not in left:
            progress.say(f"{name}: finished before")
    with stop_flag() as stopped:
        if config.side_by_side > 1 and left and jax.default_backend() == "cpu" and jax.process_count() == 1:
            return WorkerPool(config, left, progress, stopped).work()
        waits = {}
        for name in sorted(left, key=list(run.STAGES).index):
            progress.say(f"{name}: training")
            waits[name] = run.train_stage(config, name, progress, stopped)
        return waits


@contextmanager
def stop_flag() -> Iterator[Callable[[], int]]:
    """Turns the first Ctrl-C or SIGTERM into its number, for which the loop asks, 0 before that.

    A second Ctrl-C interrupts at once.
    """
    asked = []

    def ask(number: int, _: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: int(asked[0]) if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class WorkerPool:
    """Processes at work, each on one stage with its own cores; this process starts them and shows their progress."""

    def __init__(self, config: ConfigDict, left: list[str], progress: Progress, stopped: Callable[[], int]):
        self.config, self.left, self.progress, self.stopped = config, list(left), progress, stopped
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.size = min(config.side_by_side, max(1, len(self.cores) or config.side_by_side))
        self.at_work: dict[Connection, tuple[str, Any, list[int]]] = {}
        self.waits: dict[str, float] = {}
        self.failure: BaseException | None = None
        self._told = False  # whether it was said that a signal to stop was heard

    def work(self) -> dict[str, float]:
        while self.at_work or (self.left and not self._ending()):
            while not self._ending() and len(self.at_work) < self.size and (name := self._next()):
                self._start(name)
            if self.stopped() and not self._told and self.at_work:
                self._told = True
                at_work = ", ".join(name for name, _, _ in self.at_work.values())
                self.progress.say(f"stopping: {at_work} will save and leave, once what is being compiled is compiled")
            if self._ending():
                for _, process, _ in self.at_work.values():
                    process.terminate()
            if self.at_work and profiler.take_request():
                for _, process, _ in self.at_work.values():
                    with suppress(ProcessLookupError):  # it has just ended
                        os.kill(process.pid, profiler.SIGNAL)
            for connection in wait(list(self.at_work), timeout=1.0):
                self._hear(connection)
        if self.failure:
            raise self.failure
        if self.stopped() and self.left:
            raise Stopped("stopped; what was trained is saved", self.stopped())
        return self.waits

    def _ending(self) -> bool:
        return self.stopped() or self.failure is not None

    def _next(self) -> str | None:
        """Returns the first stage left whose inputs are there."""
        busy = [name for name, _, _ in self.at_work.values()]
        pending = [*busy, *self.left]
        return next((name for name in self.left if not run.waits_for(self.config, name, pending)), None)

    def _start(self, name: str) -> None:
        self.left.remove(name)
        taken = {core for _, _, cores in self.at_work.values() for core in cores}
        share = max(1, len(self.cores) // self.size)
        alone = not self.left and not self.at_work
        free = [core for core in self.cores if core not in taken]
        cores = free if alone else free[:share]
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(self.config.to_dict(), name, theirs, warnings_once.given()), name=name
        )
        with _on_cores(cores), profiler.ignoring():
            process.start()
        theirs.close()
        self.at_work[ours] = (name, process, cores)
        self.progress.say(f"{name}: training")

    def _hear(self, connection: Connection) -> None:
        name, process, _ = self.at_work[connection]
        try:
            kind, content = connection.recv()
        except EOFError:
            process.join()
            kind, content = "failed", StageFailed(f"{name}: its process exited with code {process.exitcode}")
            if process.exitcode == watch.RESTART:  # it has said why
                content = Stopped(f"{name}: its process ended, to be started again")
            if self.stopped() and process.exitcode in (-signal.SIGTERM, -signal.SIGINT):
                kind, content = "stopped", f"{name}: stopped before its first step"
        if kind in ("report", "say"):
            getattr(self.progress, kind)(content)
            return
        process.join()
        del self.at_work[connection]
        connection.close()
        if kind == "done":
            self.waits[name] = content
        elif kind == "stopped":
            self.left.append(name)
            self.progress.say(content)
        else:
            self.failure = self.failure or content


@contextmanager
def _on_cores(cores: list[int]) -> Iterator[None]:
    """Lets processes started here run on `cores` alone: XLA makes as many threads as there are cores it may use."""
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    for name, value in ENVIRONMENT.items():
        # Of a setting that is there twice the last one holds: the user's own.
        os.environ[name] = SEPARATORS[name].join(filter(None, (value, environment[name])))
    before = os.sched_getaffinity(0) if cores else None
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _train(fields: dict, name: str, connection: Connection, warned: list[str]) -> None:
    """Trains one stage in this process and tells `connection`, and so the one that started it, how it went.

    Args:
        warned: what that one has warned of.
    """
    from audioldm2_jax.runtime import children, error_log, start

    children.end_with_parent()
    error_log.collect()
    warnings_once.show_plainly()
    warnings_once.adopt(warned)
    config = ConfigDict(fields)
    start.start(config.compilation_cache)  # joins nobody: the process that started this one is alone in its job
    try:
        with stop_flag() as stopped, profiler.listening():
            wait_share = run.train_stage(config, name, Pipe(connection), stopped)
        connection.send(("done", wait_share))
    except Stopped as stop:
        connection.send(("stopped", str(stop)))
    except REPORTED_ERRORS as error:
        path = error_log.write(run_folder.path(config) / error_log.FILE)
        kept = f" (traceback: {path})" if path else ""
        connection.send(("failed", StageFailed(f"{error_log.describe(error)}{kept}")))
