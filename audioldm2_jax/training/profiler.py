"""A profile of chosen steps of a stage, as XProf and TensorBoard's profile plugin open it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Profiles steps `first` to `last`, counted from 1; each host writes its part to `folder/plugins/profile/`.

    A training does not fail for want of a profile: what goes wrong is said.
    """

    def __init__(self, first: int, last: int, folder: Path, say: Callable[[str], None]):
        """Args:
        first, last: steps; 0 and 0: none.
        folder: where TensorBoard finds it.
        say: gets a line when the profile is there, or why there is none.
        """
        self._first, self._last, self._folder, self._say = first, last, folder, say
        self._is_on = False

    @contextmanager
    def step(self, number: int) -> Iterator[Callable[[Any], None]]:
        """Around step `number`; what it yields is given the step's results, which the profile waits for."""
        if not self._first <= number <= self._last:
            yield lambda results: None
            return
        if not self._is_on:
            self._begin()
        given: list[Any] = []
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield given.append
        if number == self._last:
            jax.block_until_ready(given)
            self.close()

    def close(self) -> None:
        """Writes what there is of the profile."""
        if not self._is_on:
            return
        self._is_on = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # of XLA's, a full disk among them
            self._say(f"no profile: {_first_line(error)}")
        else:
            self._say(f"the profile of steps {self._first} to {self._last}: tensorboard --logdir {self._folder}")

    def _begin(self) -> None:
        try:
            jax.profiler.start_trace(self._folder)
        except Exception as error:
            self._first = self._last = 0
            self._say(f"no profile: {_first_line(error)}")
        else:
            self._is_on = True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
