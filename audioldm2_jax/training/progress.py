"""What a person sees while stages train, or data are prepared: a bar each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from audioldm2_jax.runtime.text_files import shown_lines


class Report(NamedTuple):
    """Where a stage stands. `seconds` is the time left, `rate` examples a second, `heldout` the last loss on held-out
    data, `skipped` how many updates were not finite."""

    stage: str
    step: int
    steps: int
    loss: float
    rate: float
    seconds: float
    heldout: float | None = None
    unit: str = "step"
    skipped: int = 0

    @property
    def text(self) -> str:
        """What stands beside the count."""
        heldout = "" if self.heldout is None else f"held-out {self.heldout:.4g}  "
        skipped = f"{self.skipped} skipped  " if self.skipped else ""
        speed = f"{self.rate:.0f} examples/s  {_clock(self.seconds)} left" if self.rate else "compiled"
        return f"loss {self.loss:.4g}  {heldout}{skipped}{speed}"


class Count(NamedTuple):
    """How much of a work is done that has no loss. `seconds` is the time left, `rate` how many `unit`s a second."""

    stage: str
    step: int
    steps: int
    rate: float
    seconds: float
    unit: str

    @property
    def text(self) -> str:
        """What stands beside the count."""
        return f"{self.rate:.1f} {self.unit}s/s  {_clock(self.seconds)} left"


class Progress(Protocol):
    """Receives reports and lines of text; a pipe to another process serves as well as a screen."""

    def report(self, report: Report) -> None: ...

    def say(self, text: str) -> None: ...


class Screen:
    """Bars on a terminal (rich), one line every `interval` seconds a stage where output is not a terminal.

    Args:
        shown: what lines of text pass through.
    """

    def __init__(self, interval: float = 20.0, shown: Callable[[str], str] = str):
        self._interval, self._last, self._shown = interval, {}, shown
        self._bars, self._tasks = None, {}
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bars = Progress(
                TextColumn("{task.description:>14}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )

    def __enter__(self) -> Screen:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bars:
            self._bars.stop()

    def report(self, report: Report | Count) -> None:
        if self._bars:
            if report.stage not in self._tasks:
                self._tasks[report.stage] = self._bars.add_task(report.stage, total=report.steps, text="")
            self._bars.update(self._tasks[report.stage], completed=report.step, text=report.text)
            return
        now = time.monotonic()
        if report.step >= report.steps or now - self._last.get(report.stage, 0) >= self._interval:
            self._last[report.stage] = now
            print(f"{report.stage:>14}  {report.unit} {report.step}/{report.steps}  {report.text}", flush=True)

    def say(self, text: str) -> None:
        text = shown_lines(self._shown(text))  # paths and captions may hold what a terminal obeys
        if self._bars:
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)


class Silent:
    """Shows nothing: of several processes, one tells how it goes for all."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def report(self, report: Report) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Pipe:
    """Sends everything through a multiprocessing connection: `(method, argument)`."""

    def __init__(self, connection: Any):
        self._connection = connection

    def report(self, report: Report) -> None:
        self._connection.send(("report", report))

    def say(self, text: str) -> None:
        self._connection.send(("say", text))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
