"""One run in a run folder at a time: a lock that is alive as long as its run is.

The lock is a file that names who holds it; its holder touches it every few seconds. On the holder's own machine the
process itself is looked for, so that what a killed run left is passed over at once; from another machine, over a shared
file system, the file is watched for a touch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        folder: the run folder, which exists.
        say: told where taking the lock needs a wait.
        on_loss: called, from a thread, where another run has taken the lock away (from a process that was suspended).
        touch: seconds between two touches.
        advice: what the message says to do where another run holds it.

    Raises:
        LockedError: another run holds it.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = lambda text: None,
        on_loss: Callable[[str], None] = lambda holder: None,
        touch: float = TOUCH,
        advice: str = _ADVICE,
    ):
        self._advice = advice
        self.path, self._say, self._on_loss, self._every = folder / FILE, say, on_loss, touch
        self.token = secrets.token_hex(8)
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        while not self._create():
            holder = _read(self.path)
            if holder is None:
                continue  # released between the two calls
            if self._is_alive(holder):
                raise LockedError(f"{self.path.parent} is in use by another run: {_describe(holder)}. {self._advice}")
            self._remove(holder)
        threading.Thread(target=self._hold, name="run lock", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back; does nothing where it is another's by now."""
        self._released.set()
        holder = _read(self.path)
        if holder and holder.get("token") == self.token:
            self.path.unlink(missing_ok=True)

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
        partial = self.path.with_name(f".{FILE}.{self.token}")
        try:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        except OSError:  # a full disk
            partial.unlink(missing_ok=True)
            raise
        try:
            os.link(partial, self.path)  # whole or not at all, also over NFS
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                file = open(self.path, "x", encoding="utf-8")
            except FileExistsError:
                return False
            try:
                with file:
                    file.write(json.dumps(content, indent=1))
            except OSError:  # half a lock would keep this run out, too
                self.path.unlink(missing_ok=True)
                raise
            return True
        finally:
            partial.unlink(missing_ok=True)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if holder.get("machine") == _machine():
            return _started(holder.get("pid", 0)) == holder.get("started") is not None
        seen = _touched(self.path)
        patience = MISSED * self._every
        if self._now() - seen > 10 * patience:
            return False
        self._say(f"{self.path} was left by {_describe(holder)}; watching for {patience:.0f} s whether it is alive")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(0.2 * self._every, 1.0))
            if _touched(self.path) != seen:
                return _read(self.path) is not None
        return False

    def _now(self) -> float:
        """The time of the file system's clock."""
        probe = self.path.with_name(f".{FILE}.{self.token}.time")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _remove(self, holder: dict[str, Any]) -> None:
        """Takes a dead lock away; of several that try, one does, and none takes away the lock of that one."""
        guard = self.path.with_name(f".{FILE}.guard")
        with guard.open("a") as file:
            with contextlib.suppress(OSError):  # a file system without such locks; the kernel frees those of the dead
                fcntl.flock(file, fcntl.LOCK_EX)
            now = _read(self.path)
            if now is not None and now.get("token") == holder.get("token"):
                self.path.unlink(missing_ok=True)
            guard.unlink(missing_ok=True)

    def _hold(self) -> None:
        while not self._released.wait(self._every):
            holder = _read(self.path)
            if holder and holder.get("token") != self.token:
                self._released.set()
                self._on_loss(_describe(holder))
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None without one, {} where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _touched(path: Path) -> float:
    """When a file was last touched; opened for that, since NFS asks its server only then."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


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
