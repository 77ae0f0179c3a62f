"""What a stage reports while it trains: loss, speed, waiting for data, skipped updates, evaluation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from audioldm2_jax.evaluation import heldout_loss
from audioldm2_jax.runtime import error_log
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training import diagnosis, goodput, optim
from audioldm2_jax.training.checkpoint import Checkpoints
from audioldm2_jax.training.flops import Utilization
from audioldm2_jax.training.idle import Idle
from audioldm2_jax.training.metrics_writer import MetricsWriter
from audioldm2_jax.training.progress import Progress, Report
from audioldm2_jax.training.step import REPLACED, SKIPPED

_FEW = 10  # records that cannot be read and never stop a training


class Unreadable(RuntimeError):
    """Too many of the records that were drawn cannot be read; the message says how many, and what to do."""


class Record:
    """The metrics of one stage's run: held back until they are wanted, so that the host does not wait for the device.

    Process 0 writes files; all processes count skipped updates, and time.

    Attributes:
        idle: since when the devices have had nothing to do.
    """

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        progress: Progress,
        checkpoints: Checkpoints,
        first: int,
        clock: goodput.Clock,
        mesh: Mesh,
        max_unreadable: float = 1.0,
    ):
        """Args:
        stage: whose metrics.
        folder: for the files of metrics.
        progress: where reports go.
        checkpoints: named in errors.
        first: steps that were done before.
        clock: times the stage.
        mesh: the devices, whose use is reported.
        max_unreadable: share of the records drawn, see `log`.
        """
        self.stage, self.hparams, self.progress, self.checkpoints = stage, stage.hparams, progress, checkpoints
        self.heldout: float | None = None
        self._most_unreadable = max_unreadable
        self._failed = self._drawn = 0  # records that could not be read, and all that were drawn
        self._full = False  # whether it has been said that there is no space
        self.idle = Idle()
        self.clock, self._utilization = clock, Utilization(mesh, stage.config.dtype)
        self._writer = MetricsWriter(folder) if jax.process_index() == 0 else None
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []  # whose `SKIPPED` has not been looked at
        self._skipped: list[int] = []  # the last steps without a gap whose update was skipped
        self._total = int(self._writer.last(SKIPPED, first) or 0) if self._writer else 0

    def next_batch(self, stream: Iterator) -> Any:
        """Returns the next batch; the time in which the devices had nothing to do meanwhile counts as waiting."""
        begin = time.monotonic()
        batch = next(stream)
        if self.clock.runs:
            self.clock.parts[goodput.DATA] += self.idle.seconds(begin)
        return batch

    def add(self, step: int, metrics: dict[str, jax.Array], flops: float) -> bool:
        """Adds the metrics of a step that may still be running, and waits for the step before it.

        So the host is at most one step ahead of the device. The first step compiles: it is waited for and not timed.
        So is one with which there may be too many skipped updates: the state is still what it found.

        Args:
            flops: its operations on all devices.

        Returns:
            whether `max_skipped_updates` in a row were skipped, this one last.
        """
        self._pending.append((step, metrics))
        self.idle.begun(metrics[SKIPPED])
        self.clock.flops += self._utilization.of_device(flops)
        self._unread.append((step, metrics))
        most = self.hparams.max_skipped_updates
        at_once = not self.clock.runs or 0 < most <= len(self._skipped) + len(self._unread)
        while len(self._unread) > (0 if at_once else 1):
            number, read = self._unread.pop(0)
            self._skipped = [*self._skipped, number] if int(read[SKIPPED]) else []
        if not self.clock.runs:
            self.clock.start(step + 1)
        return 0 < most <= len(self._skipped)

    def log(self, further: Mapping[str, float] = MappingProxyType({})) -> None:
        """Writes the metrics since the last log, and forgets them: of numbers the mean of those that are finite.

        Of a gradient's norm also the largest, of skipped updates how many there were in all.

        Args:
            further: what else is written.

        Raises:
            Unreadable: more than `max_unreadable` of the records that this process has seen drawn cannot be read. All
                hosts count alike.
        """
        if not self._pending:
            return
        step = self._pending[-1][0] + 1
        several = [{name: float(value) for name, value in metrics.items()} for _, metrics in self._pending]
        finite = {name: [m[name] for m in several if math.isfinite(m.get(name, math.nan))] for name in several[-1]}
        means = {name: float(np.mean(values)) for name, values in finite.items() if values}
        means |= {f"{name}_max": max(finite[name]) for name in means if name.endswith("/grad_norm")}
        self._tell_unreadable(several)
        self._tell_skipped([done for done, metrics in zip(self._pending, several) if metrics[SKIPPED]])
        means[SKIPPED] = float(self._total)
        rate, flops_rate, left = self.clock.tick(step, self.hparams.steps)
        means["examples_per_second"], means["data_wait"] = rate * self.hparams.batch_size, self.clock.waited()
        if flops_rate:
            means |= self._utilization.scalars(flops_rate)
        means |= self.clock.scalars() | _memory() | further
        means["learning_rate"] = float(optim.learning_rate(self.hparams)(step))
        self.write(step, means)
        # The last objective's: of a GAN, the generator's.
        name, steps = self.stage.objectives(self.stage.variant(step - 1))[-1].name, self.hparams.steps
        loss, rate = means.get(f"{name}/loss", math.nan), means["examples_per_second"]
        self.progress.report(Report(self.stage.name, step, steps, loss, rate, left, self.heldout, skipped=self._total))
        self._pending.clear()

    def _tell_unreadable(self, several: list[dict[str, float]]) -> None:
        """Counts the records that could not be read since the last log; says it the first time."""
        failed = round(sum(metrics.get(REPLACED, 0) for metrics in several))
        if failed and not self._failed:
            self.progress.say(
                f"{self.stage.name}: {failed} records that were drawn cannot be read; others replace them"
            )
        self._failed += failed
        self._drawn += len(several) * self.hparams.batch_size + failed
        share = self._failed / self._drawn
        if self._failed > _FEW and share > self._most_unreadable:
            raise Unreadable(
                f"{self.stage.name}: {self._failed} of {self._drawn} records drawn cannot be read ({share:.0%}), more "
                f"than --config.data.max_unreadable={self._most_unreadable:g}: look at the data, or raise it"
            )

    def _tell_skipped(self, skipped: list[tuple[int, dict[str, jax.Array]]]) -> None:
        """Adds the steps, with their metrics, whose updates were skipped since the last log, and says so."""
        if not skipped:
            return
        self._total += len(skipped)
        number, metrics = skipped[-1]
        those = f"the update of step {number + 1} was skipped"
        if len(skipped) > 1:
            those = f"{len(skipped)} updates were skipped, the last of step {number + 1}"
        self.progress.say(f"{self.stage.name}: {those}: {_not_finite(metrics)} ({self._total} in all)")

    def not_finite(self, found: str, details: str) -> diagnosis.NotFinite:
        """Returns the error to stop with once `add` has said so.

        Args:
            found, details: what is at fault in the last step, in a line, and the rest of it.
        """
        count, (step, metrics) = len(self._skipped), self._pending[-1]
        several = f"{count} updates in a row were skipped, the last" if count > 1 else "the update was skipped"
        error = diagnosis.NotFinite(
            f"{self.stage.name}: {several} at step {step + 1}, as {_not_finite(metrics)}; {found}; nothing of "
            f"it was saved and {self._advice()}"
        )
        error.add_note(f"steps that were skipped: {', '.join(str(number + 1) for number in self._skipped)}\n{details}")
        return error

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

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes scalars of a step to the files; remembers the held-out loss for the reports.

        Where there is no space for them, that is said once, and they wait for the next ones.
        """
        if metrics and self._writer:
            try:
                self._writer.scalars(step, metrics)
            except OSError as error:
                if not error_log.is_full(error):
                    raise
                if not self._full:
                    self.progress.say(
                        f"{self.stage.name}: {error_log.describe(error)}; training goes on, and metrics wait for space"
                    )
                self._full = True
            else:
                self._full = False
        self.heldout = metrics.get(heldout_loss.NAME, self.heldout)

    def conclude(self) -> None:
        """Says what the stage has reached on held-out data, where its time went, and how well steps used the devices.

        Of an evaluator with its compilation, which is most of what it costs a short stage.
        """
        with contextlib.suppress(OSError):  # no space; that was said
            if self._writer:
                self._writer.flush()
        if not self._writer:
            return
        last = {"step": self.hparams.steps} | self.clock.scalars()
        lines = [*self._writer.lines(), last]
        shares, rate = goodput.shown(goodput.lifetime(lines)), goodput.flops_rate(lines)
        best = self._writer.best(heldout_loss.NAME)
        reached = ""
        if self.heldout is not None and best:
            reached = f"held-out loss {self.heldout:.4g}; the best was {best[0]:.4g} after step {best[1]}; "
        used = f"; steps at {self._utilization.shown(rate)}" if rate else ""
        self.progress.say(f"{self.stage.name}: {reached}of the time {shares}{used}")

    def close(self) -> None:
        """Closes the files."""
        self.idle.close()
        if self._writer:
            self._writer.close()


def _not_finite(metrics: dict[str, jax.Array]) -> str:
    """Returns the first metric of a skipped step that is not finite, a loss if there is one, and its value."""
    losses_first = sorted(metrics.items(), key=lambda item: not item[0].endswith("/loss"))
    bad = [f"{name} was {float(value)}" for name, value in losses_first if not math.isfinite(float(value))]
    return bad[0] if bad else "the new model state was not finite"


def _memory() -> dict[str, float]:
    """Returns the most memory that was in use on a device of this host so far, GB; {} where JAX does not know."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return {"device_memory_gb": max(peaks) / 1e9} if peaks else {}
