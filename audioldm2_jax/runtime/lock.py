"""One run in a run folder at a time: a lock that is alive as long as its run is.

The lock is a file, or an object in a store, that names who holds it; its holder touches it every few seconds. On the
holder's own machine the process itself is looked for, so that what a killed run left is passed over at once; from
another machine the lock is watched for a touch. `runtime/lock_places.py` reads and writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audioldm2_jax.runtime import lock_places
from audioldm2_jax.runtime.storage import StorageError

FILE = "lock.json"
#: Seconds between two touches, and how many may be missed before a lock of another machine counts as left behind.
TOUCH, MISSED = 5.0, 6
_ADVICE = (
    "Wait for it, end it, or choose another --config.run_dir. (If both are processes of one job, JAX did not find that "
    "out: give each --coordinator, --num_processes and --process_id)"
)


class LockedError(RuntimeError):
    """Another run is at work in the run folder; the message says which."""


class RunLock:
    """The lock of a run folder; `with RunLock(folder):` holds it.

    Args:
        folder: the run folder, which exists, or its address in a store.
        say: told where taking the lock needs a wait.
        on_loss: called, from a thread, where another run has taken the lock away (from a process that was suspended).
        touch: seconds between two touches.
        advice: what the message says to do where another run holds it.

    Raises:
        LockedError: another run holds it.
    """

    def __init__(
        self,
        folder: Path | str,
        say: Callable[[str], None] = lambda text: None,
        on_loss: Callable[[str], None] = lambda holder: None,
        touch: float = TOUCH,
        advice: str = _ADVICE,
    ):
        self._advice = advice
        self._say, self._on_loss, self._every = say, on_loss, touch
        self.token = secrets.token_hex(8)
        self._folder, self._place = folder, lock_places.place(folder, FILE, self.token)
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        while not self._create():
            holder = self._read()
            if holder is None:
                continue  # released between the two calls
            if self._is_alive(holder):
                raise LockedError(f"{self._folder} is in use by another run: {_describe(holder)}. {self._advice}")
            self._place.remove(lambda holder=holder: self._is_of(holder))
        threading.Thread(target=self._hold, name="run lock", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back; does nothing where it is another's by now."""
        self._released.set()
        self._place.remove(lambda: self._is_of({"token": self.token}))

    def _create(self) -> bool:
        """Writes the lock unless there is one."""
        content = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "token": self.token,
        }
        return self._place.create(json.dumps(content, indent=1).encode())

    def _read(self) -> dict[str, Any] | None:
        """Who holds the lock; None without one, {} where it cannot be read."""
        try:
            content = self._place.read()
            return None if content is None else dict(json.loads(content))
        except (OSError, TypeError, ValueError):
            return {}

    def _is_of(self, holder: dict[str, Any]) -> bool:
        now = self._read()
        return now is not None and now.get("token") == holder.get("token")

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if holder.get("machine") == _machine():
            return _started(holder.get("pid", 0)) == holder.get("started") is not None
        seen = self._place.touched()
        patience = MISSED * self._every
        if self._place.now() - seen > 10 * patience:
            return False
        self._say(f"{self._place} was left by {_describe(holder)}; watching for {patience:.0f} s whether it is alive")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(0.2 * self._every, 1.0))
            if self._place.touched() != seen:
                return self._read() is not None
        return False

    def _hold(self) -> None:
        while not self._released.wait(self._every):
            holder = self._read()
            if holder and holder.get("token") != self.token:
                self._released.set()
                self._on_loss(_describe(holder))
                return
            with contextlib.suppress(OSError, StorageError):
                self._place.touch()


def _machine() -> str:
    """A name for all processes that can see each other: of this boot, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19] if fields[0] not in "ZX" else None  # dead, and nobody has asked yet
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    try:  # a system without /proc
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except (OSError, OverflowError):
        return None
    return "running"


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "a run that cannot be read"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
