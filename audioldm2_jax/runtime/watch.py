"""Which of the processes of a job has failed or is lost; the others say so, and end.

JAX ends a process of a job once another is lost, from C++, with a stack trace and without a name. Here a thread of each
process keeps a sign of life in JAX's key-value store and reads the others'. When another process has failed, or JAX
has found that one is lost, it prints which one that was and what to do, as the last line, and ends the process with
`RESTART`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: Exit code of a run that is to be started again as it is (EX_TEMPFAIL of sysexits.h): preempted, or another was lost.
RESTART = 75
_KEYS = "audioldm2_jax/watch"
_PING = 1.0  # seconds between signs of life
_HANGS = 3.0  # seconds without an answer; the key-value store answers in milliseconds
_SUSPECT = 8.0  # seconds of silence that are enough where communication has failed, too
_LINGER = 2.0  # seconds in which process 0, which keeps the store, lets the others read what it says
_on_end: list[Callable[[], None]] = []
_watch: Watch | None = None
_doing = "starting"
_stacks: Path | None = None


def delay_abort() -> None:
    """Gives the watch some seconds to speak between JAX's decision to abort this process and its end.

    JAX aborts by SIGABRT, from a thread of its own that Python cannot interrupt. As the handler, sleep() of the C
    library is called with the signal's number, 6, so the end comes six seconds later.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.signal(signal.SIGABRT, library.sleep)


def start(heartbeat_seconds: float) -> None:
    """Starts the watch of this process, which has joined others."""
    global _watch
    import jax
    from jax._src import distributed

    state = distributed.global_state
    _watch = Watch(state.client, jax.process_index(), state.num_processes, state.coordinator_address, heartbeat_seconds)


def stop() -> None:
    """Ends the watch: from here on others may leave. Called by all processes, after they have met for the last time."""
    global _watch
    if _watch:
        _watch.stop()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    _watch = None


def at_end(action: Callable[[], None]) -> None:
    """Has `action` called before a process of several ends by `fail` or because of another."""
    _on_end.append(action)


def names() -> list[str]:
    """How each process is called in messages."""
    return _watch.names if _watch else ["this process"]


def own_name() -> str:
    """How this process is called in messages."""
    return _watch.names[_watch.index] if _watch else "this process"


def doing(what: str) -> None:
    """Says what this process is at; the others read it with its signs of life."""
    global _doing
    _doing = what


def others_doing() -> dict[str, str]:
    """What the other processes were doing when they gave their last sign of life, by name."""
    return _watch.others_doing() if _watch else {}


def dump_stacks_to(path: Path | None) -> None:
    """From here on the stacks of all threads are written to `path` when this process ends because of another one."""
    global _stacks
    _stacks = path


def dump_stacks() -> bool:
    """Writes the stacks of all threads to the file of `dump_stacks_to`; returns whether there is one."""
    if _stacks is None:
        return False
    try:
        with open(_stacks, "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        return False
    return True


def first_says(message: str, seconds: float = 2.0) -> bool:
    """Whether process 0 fails for the same reason, so that this one need not say it again."""
    return bool(_watch and _watch.index and _watch.said_by_first(message, seconds))


def fail(message: str, code: int, *, look_for_cause: bool = False) -> None:
    """Ends this process, one of several, and has the others end, too. Returns where there are no others.

    Args:
        message: for the others, one line; this process has printed it.
        code: its exit code.
        look_for_cause: the failure may be that of another process, which is waited for.
    """
    if _watch:
        _watch.fail(message, code, look_for_cause)


class Watch:
    """The watch of one process; two threads, since the store's client hangs while JAX aborts."""

    def __init__(self, client, index: int, count: int, coordinator: str, heartbeat_seconds: float):
        self.client, self.index, self.count, self.coordinator = client, index, count, coordinator
        self.heartbeat = heartbeat_seconds
        # Each process reads all others', so that with many it has to be less often.
        self.interval = max(_PING, count / 64)
        self.failing, self.suspecting = threading.Event(), threading.Event()
        self._stopped = threading.Event()
        self._alive: dict[int, tuple[str, float]] = {}
        self._failed: dict[int, str] = {}
        self._read = time.monotonic()  # when the others' signs were read last
        self._asked: float | None = None  # since when the store has not answered
        client.key_value_set(f"{_KEYS}/name/{index}", f"{socket.gethostname()}, pid {os.getpid()}")
        self.names = [
            f"process {i} ({client.blocking_key_value_get(f'{_KEYS}/name/{i}', int(heartbeat_seconds * 1000))})"
            for i in range(count)
        ]
        for task in (self._poll, self._judge):
            threading.Thread(target=task, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def others_doing(self) -> dict[str, str]:
        alive = sorted(self._alive.items())
        return {self.names[index]: value.partition(" ")[2] for index, (value, _) in alive if index != self.index}

    def said_by_first(self, message: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(Exception):  # not there yet
                return self.client.key_value_try_get(f"{_KEYS}/failed/0") == f"failed: {message}"
            time.sleep(0.1)
        return False

    def fail(self, message: str, code: int, look_for_cause: bool) -> None:
        if look_for_cause:  # the judge ends this process if it is another's fault
            self.suspecting.set()
            self._stopped.wait(self.heartbeat + 4 * self.interval)
        self.failing.set()
        self._tell(self.index, f"failed: {message}")
        self._end(code, _LINGER + 2 * self.interval)

    def _tell(self, index: int, what: str) -> None:
        """Tells the others, if the store answers: a process 0 that is stopped takes calls and does not."""

        def tell() -> None:
            with contextlib.suppress(Exception):
                self.client.key_value_set(f"{_KEYS}/failed/{index}", what, allow_overwrite=True)

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(_HANGS)

    def _poll(self) -> None:
        """Leaves a sign of life and reads the others'."""
        beat, read = 0, 0.0
        while not self._stopped.wait(_PING if beat else 0.0):
            beat += 1
            self._asked = self._asked or time.monotonic()
            try:
                self.client.key_value_set(f"{_KEYS}/alive/{self.index}", f"{beat} {_doing}", allow_overwrite=True)
                if time.monotonic() - read >= self.interval:
                    read = time.monotonic()
                    self._note(self._all("alive"), self._all("failed"))
                self._asked = None
            except Exception:  # the judge sees that there is no answer
                continue

    def _note(self, alive: dict[int, str], failed: dict[int, str]) -> None:
        self._failed, self._read = failed, time.monotonic()
        for index, value in alive.items():
            if self._alive.get(index, ("",))[0] != value:
                self._alive[index] = value, self._read

    def _all(self, what: str) -> dict[int, str]:
        found = self.client.key_value_dir_get(f"{_KEYS}/{what}/")
        return {int(key.rpartition("/")[2]): value for key, value in found}

    def _silent(self, seconds: float) -> list[int]:
        """Who had given no sign for so long when they were read last. Of process 0 the store itself tells."""
        others = [(index, at) for index, (_, at) in self._alive.items() if index not in (0, self.index)]
        return [index for index, at in others if self._read - at > max(seconds, 3.5 * self.interval)]

    def _judge(self) -> None:
        while not self._stopped.wait(0.25):
            if self.failing.is_set():
                continue
            others = {index: text for index, text in self._failed.items() if index != self.index}
            if others:
                self._leave(others)
            hangs = time.monotonic() - self._asked if self._asked else 0.0
            # JAX, which has lost someone, holds the store's client while it aborts this process.
            silent = self._silent(0.4 * self.heartbeat) if hangs > _HANGS else []
            if self.suspecting.is_set():
                silent = silent or self._silent(_SUSPECT)
            if silent:
                self._leave(dict.fromkeys(silent, "was lost"))
            elif self.index and hangs > _PING and (hangs > 0.8 * self.heartbeat or not self._reachable()):
                self._leave({0: "was lost"})

    def _reachable(self) -> bool:
        """Whether something still listens where process 0 did."""
        host, _, port = self.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.5).close()
        except ConnectionRefusedError:
            return False
        except OSError:  # no answer, which may come late
            return time.monotonic() - self._read < 0.5 * self.heartbeat
        return True

    def _leave(self, others: dict[int, str]) -> None:
        """Says which processes are missing, and ends this one."""
        if self.failing.is_set() or self._stopped.is_set():
            return
        answers = self._asked is None
        for index, what in others.items() if answers else ():
            self._tell(index, what)
        stacks = f"; its stacks are in {_stacks}" if dump_stacks() else ""
        missing = ", ".join(f"{self.names[index]} {what}" for index, what in sorted(others.items()))
        self._end(
            RESTART,
            _LINGER + 2 * self.interval if answers else 0.0,
            f"error: {missing}; {self.names[self.index]} cannot go on alone and ends (code {RESTART}){stacks}. Once "
            "the cause is gone, the same command on all hosts goes on from the last finished checkpoint",
        )

    def _end(self, code: int, linger: float, last_line: str = "") -> None:
        """Ends the process at once: everything orderly would wait for the others."""
        for action in _on_end:
            with contextlib.suppress(Exception):
                action()
        if self.index == 0:
            time.sleep(linger)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            if last_line:
                print(last_line, file=sys.stderr)
            sys.stderr.flush()
        os._exit(code)
