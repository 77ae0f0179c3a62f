"""Where the time of a stage goes: steps, and what stands beside them, over all processes that worked on it.

Goodput is the share of the wall time in which a stage took steps that count. Each process counts its seconds by part
and logs them with its metrics (`seconds_PART`, since its start), and the operations of its steps beside them; what is
lost between two processes, the time in which none ran and the steps that were done again after a kill, shows in those
logs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

STARTING, COMPILING, DATA, SAVING = "starting or restoring", "compiling", "waiting for data", "saving"
STEPS, REPEATED, STOPPED = "steps", "steps done again", "no process"
# In the metrics, without the slash that those of the training have.
_PREFIX, _ALL, _NOW, _FLOPS = "seconds_", "seconds_all", "unix_time", "flops_all"


class Clock:
    """Times the parts of one process' work on a stage, from its making on.

    Attributes:
        parts: seconds by part.
        flops: operations of the steps so far, of one device.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.flops = 0.0
        self._born = time.monotonic()
        self._first = self._logged = 0
        self._logged_flops = 0.0
        self._begin = self._last = 0.0  # of the steps, and of the last tick; 0 before the first step is done

    @property
    def runs(self) -> bool:
        """Whether the first step is done."""
        return self._begin > 0

    def start(self, step: int) -> None:
        """Begins to count steps, after the first one of this process, the `step`th."""
        self._first = self._logged = step
        self._logged_flops = self.flops
        self._begin = self._last = time.monotonic()

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Counts the time inside as that of `part` and not as that of steps.

        The rate of steps is without it, unless it comes with every few of them.
        """
        before = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - before
            self.parts[part] += spent
            if self._last and part not in (DATA, SAVING):
                self._last += spent

    def tick(self, step: int, steps: int) -> tuple[float, float, float]:
        """Returns steps/s and a device's FLOP/s since the last tick, and the seconds left, other parts included."""
        now = time.monotonic()
        seconds = max(now - self._last, 1e-6)
        rate, flops_rate = (step - self._logged) / seconds, (self.flops - self._logged_flops) / seconds
        self._last, self._logged, self._logged_flops = now, step, self.flops
        overall = (step - self._first) / max(now - self._begin, 1e-6)
        return rate, flops_rate, (steps - step) / overall if overall > 0 else 0.0

    def waited(self) -> float:
        """Returns the share of the time since the first step that was spent waiting for data."""
        return self.parts[DATA] / max(time.monotonic() - self._begin, 1e-6) if self.runs else 0.0

    def scalars(self) -> dict[str, float]:
        """Returns the seconds by part and the operations, to be logged."""
        parts = {_PREFIX + part.replace(" ", "_"): seconds for part, seconds in self.parts.items()}
        return parts | {_ALL: time.monotonic() - self._born, _NOW: time.time(), _FLOPS: self.flops}


def lifetime(logged: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the seconds by part over the life of a stage, `STEPS` first, from its metrics in the order of writing."""
    found: dict[str, float] = defaultdict(float, {STEPS: 0.0})
    before: Mapping[str, float] | None = None
    first = 0  # steps that had been done when the process began that logged `before`
    for start, last in _processes(logged):
        if before:
            found[STOPPED] += _begun(start) - before[_NOW]
            again = max(before["step"] - start["step"] + 1, 0)
            found[REPEATED] += again * _steps(before) / max(before["step"] - first, 1)
        _add(found, last)
        first, before = start["step"] - 1, last
    repeated = min(found[REPEATED], found[STEPS])
    found[STEPS] -= repeated
    found[REPEATED] = repeated
    return {part: seconds for part, seconds in found.items() if seconds or part == STEPS}


def flops_rate(logged: Iterable[Mapping[str, float]]) -> float | None:
    """Returns a device's operations a second while it took steps, over the life of a stage; None where nothing says it.

    Steps that were done again count: the device was as busy.
    """
    known = [last for _, last in _processes(logged) if last.get(_FLOPS)]
    seconds = sum(map(_steps, known))
    return sum(last[_FLOPS] for last in known) / seconds if seconds else None


def _processes(logged: Iterable[Mapping[str, float]]) -> list[tuple[Mapping[str, float], Mapping[str, float]]]:
    """Returns the first and the last line of each process; it logs its first step."""
    found: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    for line in logged:
        if _ALL not in line:
            continue
        if not found or _begun(line) > found[-1][1][_NOW]:
            found.append((line, line))
        found[-1] = found[-1][0], line
    return found


def _begun(line: Mapping[str, float]) -> float:
    """Returns when its process began."""
    return line[_NOW] - line[_ALL]


def _steps(line: Mapping[str, float]) -> float:
    others = sum(value for name, value in line.items() if name.startswith(_PREFIX) and name != _ALL)
    return max(line[_ALL] - others, 0.0)


def _add(found: dict[str, float], line: Mapping[str, float]) -> None:
    """Adds what a process has logged last."""
    found[STEPS] += _steps(line)
    for name, value in line.items():
        if name.startswith(_PREFIX) and name != _ALL:
            found[name.removeprefix(_PREFIX).replace("_", " ")] += value


def shown(parts: Mapping[str, float]) -> str:
    """Returns the shares of a lifetime in words: steps, then the others, the largest first; those below 0.1 % not."""
    whole = max(sum(parts.values()), 1e-9)
    others = sorted(((seconds, part) for part, seconds in parts.items() if part != STEPS), reverse=True)
    shares = [(parts[STEPS], STEPS), *(item for item in others if item[0] >= 0.001 * whole)]
    return ", ".join(f"{seconds / whole:.1%} {part}" for seconds, part in shares)
