"""A profile of steps of a stage, as XProf and TensorBoard's profile plugin open it: of chosen or of the next ones.

`train.STAGE.profile=first,last` chooses steps, on all hosts. SIGUSR2 asks a process for the next `BY_SIGNAL` of them:
that process profiles itself, and none waits for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from audioldm2_jax.runtime import hosts, watch

BY_SIGNAL = 10  # steps
SIGNAL = signal.SIGUSR2
_asked = threading.Event()  # the signal came, and no steps have been profiled since


@contextmanager
def listening() -> Iterator[None]:
    """Takes the signal, which would end the process otherwise, as asking for a profile of the steps that come next."""
    before = signal.signal(SIGNAL, lambda *_: _asked.set())
    try:
        yield
    finally:
        signal.signal(SIGNAL, before)
        _asked.clear()


@contextmanager
def ignoring() -> Iterator[None]:
    """Has a process that is started inside ignore the signal until it listens."""
    before = signal.signal(SIGNAL, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(SIGNAL, before)


def take_request() -> bool:
    """Returns whether the signal came since the last call."""
    asked = _asked.is_set()
    _asked.clear()
    return asked


class Profiler:
    """Profiles steps `first` to `last`, counted from 1, and those that the signal asks for.

    Each host writes its part to `folder/plugins/profile/`. A training does not fail for want of a profile: what goes
    wrong is said.
    """

    def __init__(self, first: int, last: int, folder: Path, say: Callable[[str], None]):
        """Args:
        first, last: steps; 0 and 0: none.
        folder: where TensorBoard finds it.
        say: gets a line when the profile is there, or why there is none; of what the signal asked for, a process says
            so itself.
        """
        self._first, self._last, self._folder, self._say = first, last, folder, say
        self._by_signal = False
        self._steps: tuple[int, int] | None = None  # of the profile that is being taken
        self._done = 0  # the last step of it that is done

    @contextmanager
    def step(self, number: int) -> Iterator[Callable[[Any], None]]:
        """Around step `number`; what it yields is given the step's results, which the profile waits for."""
        if self._steps is None:
            self._begin_at(number)
        if self._steps is None:
            yield lambda results: None
            return
        given: list[Any] = []
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield given.append
        self._done = number
        if number == self._steps[1]:
            jax.block_until_ready(given)
            self.close()

    def close(self) -> None:
        """Writes what there is of the profile."""
        if self._steps is None:
            return
        first, self._steps = self._steps[0], None
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # of XLA's, a full disk among them
            self._tell(f"no profile: {_first_line(error)}")
        else:
            self._tell(f"the profile of steps {first} to {self._done}: tensorboard --logdir {self._folder}")

    def _begin_at(self, number: int) -> None:
        """Begins a profile with step `number` if one is due."""
        chosen = self._first <= number <= self._last
        self._by_signal = not chosen and take_request()
        if not (chosen or self._by_signal):
            return
        last = self._last if chosen else number + BY_SIGNAL - 1
        try:
            jax.profiler.start_trace(self._folder)
        except Exception as error:
            self._tell(f"no profile: {_first_line(error)}")
            if chosen:
                self._first = self._last = 0
            return
        self._steps, self._done = (number, last), number
        if self._by_signal:
            self._tell(f"asked for a profile: it is taken of steps {number} to {last}")

    def _tell(self, text: str) -> None:
        self._say(text)
        if self._by_signal and not hosts.is_first():  # whose progress nobody sees
            print(f"{watch.own_name()}: {text}", flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
