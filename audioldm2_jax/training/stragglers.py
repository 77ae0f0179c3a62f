"""Which process of several keeps the others waiting: the one whose data or host work takes longer than the others'.

A step goes on once the last process has entered it. So each process counts the seconds that it spends by itself before
it enters a step while its devices have nothing to do, and tells the others when metrics are logged, on the way of what
is told then anyway.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from audioldm2_jax.runtime import watch

FACTOR = 2.0  # times the median of the others
SHARE = 0.1  # of the time of the interval, below which nobody is warned of


class OwnTime(NamedTuple):
    """What a process spent by itself since the last log, while its devices were idle.

    Attributes:
        seconds: before it entered steps.
        data: those of them in which it waited for data.
        steps: how many it entered.
        elapsed: seconds of the interval.
    """

    seconds: float
    data: float
    steps: int
    elapsed: float


class Stragglers:
    """Counts this process' own time, and judges that of all."""

    def __init__(self, say: Callable[[str], None]):
        """Args:
        say: gets a line, once, on who keeps the others waiting.
        """
        self._say, self._said = say, False
        self._reset()

    def _reset(self) -> None:
        self._seconds = self._data = 0.0
        self._steps, self._since = 0, time.monotonic()

    def entered(self, seconds: float, data: float) -> None:
        """Counts a step, entered after so many seconds of one's own, `data` of them spent on waiting for data."""
        self._seconds, self._data, self._steps = self._seconds + seconds, self._data + data, self._steps + 1

    def take(self) -> OwnTime:
        """Returns what was counted since the last call."""
        own = OwnTime(self._seconds, self._data, self._steps, time.monotonic() - self._since)
        self._reset()
        return own

    def judge(self, times: Sequence[OwnTime]) -> dict[str, float]:
        """Returns what is logged of all processes' times, and says who is slow; {} of a single process.

        Seconds a step, the slowest process' and the median; and which one, by its number, the slowest is.
        """
        if len(times) < 2:
            return {}
        lines = [line for index in range(len(times)) if (line := _about(index, times))]
        if lines and not self._said:
            self._said = True
            self._say("; ".join(lines))
        means = [own.seconds / max(own.steps, 1) for own in times]
        slowest = max(range(len(means)), key=means.__getitem__)
        return {
            "slowest_host": float(slowest),
            "slowest_host_seconds": means[slowest],
            "median_host_seconds": statistics.median(means),
        }


def _about(index: int, times: Sequence[OwnTime]) -> str | None:
    """What is to be said of a process; None where it is no slower than others are."""
    own, steps = times[index], max(times[index].steps, 1)
    usual = statistics.median(other.seconds for number, other in enumerate(times) if number != index)
    if own.seconds <= max(FACTOR * usual, SHARE * own.elapsed):
        return None
    return (
        f"{watch.names()[index]} keeps the others waiting: {own.seconds / steps:.3g} s a step of its own, "
        f"{own.data / steps:.3g} of them for data, where others take {usual / steps:.3g} (median)"
    )
