"""What a stage reports while it trains: loss, speed, waiting for data, evaluation; and the check for NaN."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audioldm2_jax.evaluation import heldout_loss
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training import optim
from audioldm2_jax.training.checkpoint import Checkpoints
from audioldm2_jax.training.metrics_writer import MetricsWriter
from audioldm2_jax.training.progress import Progress, Report


class NotFinite(RuntimeError):
    """The loss stopped being a number; nothing of that step was saved."""


class Record:
    """The metrics of one stage's run: held back until they are wanted, so that the host does not wait for the device.

    Process 0 writes files; all processes check and time.
    """

    def __init__(self, stage: Stage, folder: Path, progress: Progress, checkpoints: Checkpoints, first: int):
        """Args:
        stage: whose metrics.
        folder: for the files of metrics.
        progress: where reports go.
        checkpoints: named in errors.
        first: steps that were done before.
        """
        self.stage, self.hparams, self.progress, self.checkpoints = stage, stage.hparams, progress, checkpoints
        self.heldout: float | None = None
        self._began = time.monotonic()
        self._clock = _Clock(first)
        self._writer = MetricsWriter(folder) if jax.process_index() == 0 else None
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []

    def next_batch(self, stream: Iterator) -> Any:
        """Returns the next batch; the time counts as waiting unless the device had a step to do meanwhile."""
        before = time.monotonic()
        batch = next(stream)
        busy = self._pending and not jax.tree.leaves(self._pending[-1][1])[0].is_ready()
        if not busy and self._clock.begin is not None:
            self._clock.waited += time.monotonic() - before
        return batch

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step that may still be running, and waits for the step before it.

        So the host is at most one step ahead of the device. The first step compiles: it is waited for and not timed.
        """
        self._pending.append((step, metrics))
        if self._clock.begin is None:
            jax.block_until_ready(metrics)
            self._clock.start()
        elif len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2][1])

    def log(self) -> None:
        """Writes the mean of the metrics since the last log, and forgets them.

        Raises:
            NotFinite: see `check`.
        """
        self.check()
        if not self._pending:
            return
        step = self._pending[-1][0] + 1
        several = [metrics for _, metrics in self._pending]
        means = {name: float(np.mean([float(m[name]) for m in several if name in m])) for name in several[-1]}
        rate, left = self._clock.tick(step, self.hparams.steps)
        means["examples_per_second"], means["data_wait"] = rate * self.hparams.batch_size, self.data_wait()
        means["learning_rate"] = float(optim.learning_rate(self.hparams)(step))
        self.write(step, means)
        # The last objective's: of a GAN, the generator's.
        loss = means[self.stage.objectives(self.stage.variant(step - 1))[-1].name + "/loss"]
        self.progress.report(
            Report(self.stage.name, step, self.hparams.steps, loss, means["examples_per_second"], left, self.heldout)
        )
        self._pending.clear()

    def check(self) -> None:
        """Raises NotFinite if any step since the last log had a loss or gradient that is not finite."""
        for step, metrics in self._pending:
            losses_first = sorted(metrics.items(), key=lambda item: not item[0].endswith("/loss"))
            bad = [name for name, value in losses_first if not math.isfinite(float(value))]
            if bad:
                raise NotFinite(
                    f"{self.stage.name}: {bad[0]} was {float(metrics[bad[0]])} at step {step + 1}; nothing of it was "
                    f"saved and {self._advice()}"
                )

    def _advice(self) -> str:
        """What to do where training has diverged: a stage that is begun keeps its settings."""
        name, latest = self.stage.name, self.checkpoints.latest()
        lower = f"lower --config.train.{name}.learning_rate"
        if latest is None:
            return f"there is no checkpoint yet. Mend the data, or {lower}, and run the command again"
        return (
            f"the last good checkpoint is that of step {latest}. If the data is at fault, mend it, and the same "
            f"command goes on from there; else {lower} and delete {self.checkpoints.folder.parent} to train {name} anew"
        )

    @contextmanager
    def evaluating(self, name: str) -> Iterator[None]:
        """Counts the time inside as that of the evaluator `name` and not as that of steps."""
        with self._clock.evaluating(name):
            yield

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes scalars of a step to the files; remembers the held-out loss for the reports."""
        if metrics and self._writer:
            self._writer.scalars(step, metrics)
        self.heldout = metrics.get(heldout_loss.NAME, self.heldout)

    def conclude(self) -> None:
        """Says what the stage has reached on held-out data, and which share of its time each evaluator took.

        With the compilation of both: an evaluation is another program, whose compilation is most of what it costs a
        short stage.
        """
        best = self._writer.best(heldout_loss.NAME) if self._writer else None
        if self.heldout is None or best is None:
            return
        whole = max(time.monotonic() - self._began, 1e-6)
        shares = ", ".join(f"{seconds / whole:.1%} {name}" for name, seconds in self._clock.evaluated.items())
        self.progress.say(
            f"{self.stage.name}: held-out loss {self.heldout:.4g}; the best was {best[0]:.4g} after step {best[1]} "
            f"(of the time: {shares})"
        )

    def data_wait(self) -> float:
        """Returns the share of the time since the first step that was spent waiting for data."""
        return self._clock.share(self._clock.waited)

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()


class _Clock:
    """Times the steps, evaluation, and how long the device had nothing to do because the batch was not there."""

    def __init__(self, first: int):
        self.first, self.logged = first, first
        self.waited, self.evaluated = 0.0, defaultdict(float)
        self.begin = self.last = None

    def start(self) -> None:
        """Begins to count, after the first step."""
        self.begin = self.last = time.monotonic()

    def tick(self, step: int, steps: int) -> tuple[float, float]:
        """Returns steps/s since the last tick and the seconds left."""
        now = time.monotonic()
        seconds = max(now - self.last, 1e-6)
        rate = (step - self.logged) / seconds if step > self.first + 1 else 0.0
        self.last, self.logged = now, step
        overall = (step - self.first - 1) / max(now - self.begin, 1e-6)
        return rate, (steps - step) / overall if overall > 0 else 0.0

    @contextmanager
    def evaluating(self, name: str) -> Iterator[None]:
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.evaluated[name] += spent
        self.last = self.last and self.last + spent

    def share(self, seconds: float) -> float:
        """Returns which share of the time since the first step `seconds` are."""
        return seconds / max(time.monotonic() - self.begin, 1e-6) if self.begin else 0.0
