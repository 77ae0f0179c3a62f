"""The only training loop: steps, averages, logs, samples, saves and resumes any stage.

The order of one call of `train`:
1. the shape and place on the mesh of every array of the state (training/state.py), allocating nothing;
2. the newest undamaged checkpoint, or new parameters, or those that the stage starts from;
3. steps (training/step.py): the batch of step s and all randomness in it are functions of (seed, s, slot), so a
   resumed run is the straight run; what they report goes to training/record.py; updates that are not finite are
   skipped, and a run of them ends the training with what is at fault (training/diagnosis.py);
4. a checkpoint at intervals and after the last step;
5. evaluators at their intervals and at the end (evaluation/base.py): the loss on held-out data, samples.
It returns the averaged parameters.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from audioldm2_jax.evaluation.base import Evaluator, Snapshot, due
from audioldm2_jax.runtime import hosts, sharding
from audioldm2_jax.runtime.stall import StallWatch
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training import diagnosis, flops, goodput, state, step
from audioldm2_jax.training.checkpoint import Checkpoints
from audioldm2_jax.training.diagnosis import NotFinite
from audioldm2_jax.training.profiler import Profiler
from audioldm2_jax.training.progress import Progress
from audioldm2_jax.training.record import Record, Unreadable
from audioldm2_jax.training.state import State, averaged
from audioldm2_jax.training.stragglers import OwnTime, Stragglers


class Stopped(Exception):
    """The run was asked to stop, by the signal `number`; its state is saved."""

    def __init__(self, message: str, number: int = 0):
        super().__init__(message)
        self.number = number


class Trained(NamedTuple):
    """What a finished stage hands on, laid out on the mesh as in training: arrays may lie on several hosts.

    `data_wait` is the share of the time that was spent waiting for data.
    """

    params: Any
    model_state: Any
    frozen: Any
    batch: Any
    data_wait: float


def train(
    stage: Stage,
    mesh: Mesh,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    folder: Path,
    progress: Progress,
    should_stop: Callable[[], int] = lambda: 0,
    *,
    evaluators: Sequence[Evaluator] = (),
    records: Callable[[int], Sequence[str]] = lambda number: (),
    max_unreadable: float = 1.0,
    stall: StallWatch | None = None,
    saved: Path | str | None = None,
) -> Trained:
    """Trains `stage` to the end of its recipe, from where `folder` left it.

    Args:
        stage: what to train.
        mesh: the devices.
        batches: gives the host's batches from a step on.
        folder: of this stage, for metrics.
        progress: where reports go.
        should_stop: asked after every step for the signal that asks to stop, 0 without one.
        evaluators: called at their intervals and at the end.
        records: names the records in the host's slots of a step, for people.
        max_unreadable: share of the records drawn that may be unreadable.
        stall: is told what the loop is doing; entered.
        saved: where the checkpoints lie, a path or an address; by default in `folder`.

    Raises:
        Stopped: `should_stop` said so, after saving.
        NotFinite: `max_skipped_updates` in a row had a loss or gradient that was not finite.
        Unreadable: too many records cannot be read.
        CheckpointError: nothing could be saved, or nothing read.
        ValueError: the batch or its accumulation does not fit the devices or the stage.
    """
    hparams = stage.hparams
    _check(stage, mesh)
    abstract = state.shapes(stage, mesh)
    checkpoints = Checkpoints(saved or folder / "checkpoints", hparams.keep)
    clock = goodput.Clock()
    with clock.spending(goodput.STARTING):
        current = _resume(stage, checkpoints, abstract, progress) or state.start(stage, abstract)
    frozen = sharding.place(stage.frozen, sharding.state_sharding(stage.frozen, mesh))
    take_step = step.compiled(stage, state.optimizers(stage), state.places(abstract), mesh)
    first = int(current["step"])
    record = Record(stage, folder, progress, checkpoints, first, clock, mesh, max_unreadable)
    stream, stall = batches(first), stall or StallWatch(0, folder)
    profiler = Profiler(*hparams.profile, folder, progress.say)
    steps = _Steps(stage, take_step, frozen, mesh, stream, record, records, stall)

    def evaluate(done: int, current: State) -> None:
        snapshot = Snapshot(done, current["params"], averaged(current), current["model_state"], frozen)
        found = {}
        for evaluator in evaluators:
            if due(evaluator, done, hparams.steps):
                with record.clock.spending(evaluator.name), stall.paused():
                    found |= evaluator(snapshot)
        record.write(done, found)

    try:
        for number in range(first, hparams.steps):
            done = number + 1
            with profiler.step(done) as finished:
                current = steps.take(number, current)
                finished(current["step"])
            logs = done % hparams.log_every == 0 or done in (first + 1, hparams.steps)
            stop, times = steps.agree(int(should_stop())) if logs or jax.process_count() == 1 else (0, [])
            if logs or stop:
                record.log(steps.stragglers.judge(times))
            if stop or done == hparams.steps or (hparams.save_every and done % hparams.save_every == 0):
                stall.doing(f"saving {stage.name}, step {done}")
                with record.clock.spending(goodput.SAVING):
                    checkpoints.save(done, current, None if stop or done == hparams.steps else progress.say)
            if stop and done < hparams.steps:
                raise Stopped(f"{stage.name}: stopped and saved after step {done} of {hparams.steps}", stop)
            if done < hparams.steps:
                evaluate(done, current)
        evaluate(hparams.steps, current)
        with record.clock.spending(goodput.SAVING):
            checkpoints.close()
        record.conclude()
    except (Stopped, NotFinite, Unreadable):  # on all hosts at the same step
        checkpoints.close()
        raise
    except BaseException:
        if jax.process_count() == 1:  # others would not come to the place where their saves are finished together
            checkpoints.close()
        raise
    finally:
        profiler.close()
        record.close()
        getattr(stream, "close", lambda: None)()
    batch = sharding.to_devices(next(batches(first)), mesh) if steps.batch is None else steps.batch
    return Trained(averaged(current), current["model_state"], frozen, batch, record.clock.waited())


class _Steps:
    """Takes the steps of one call of `train`; arguments as there.

    Attributes:
        batch: the last one, None before the first step.
        stragglers: knows what this process spends by itself.
    """

    def __init__(self, stage, take_step, frozen, mesh, stream, record, records, stall):
        self._stage, self._take_step, self._frozen, self._mesh = stage, take_step, frozen, mesh
        self._stream, self._record, self._records, self._stall = stream, record, records, stall
        self.batch: Any = None
        self.stragglers = Stragglers(lambda line: record.progress.say(f"{stage.name}: {line}"))
        self._flops: dict[Any, float] = {}  # of a step, by variants that are compiled

    def take(self, number: int, current: State) -> State:
        """Returns the state after step `number`, which may still be running.

        Raises:
            NotFinite: this update, and too many before it, were skipped.
        """
        stage, stall, variant = self._stage, self._stall, self._prepare(number)
        stall.doing(f"computing {stage.name}, step {number + 1}")
        with contextlib.nullcontext() if variant in self._flops else self._compiling():
            if variant not in self._flops:
                # The call below finds what was traced here.
                traced = self._take_step.trace(current, self._frozen, self.batch, variant=variant)
                self._flops[variant] = flops.count(traced, self._mesh.devices.flat[0].platform)
            current, metrics = self._take_step(current, self._frozen, self.batch, variant=variant)
        too_many = self._record.add(number, metrics, self._flops[variant])
        if too_many:
            with stall.paused():
                found = diagnosis.find(stage, current, self._frozen, self.batch, number, self._mesh)
                names = diagnosis.names_of(self._records, number)
            raise self._record.not_finite(*diagnosis.explain(found, stage.name, number, names))
        return current

    def agree(self, stop: int) -> tuple[int, list[OwnTime]]:
        """Returns the signal to stop, as all processes stop at the same step, and what each spent by itself.

        Called by all, with the signal that each has been given.
        """
        told = hosts.gather([stop, *self.stragglers.take()], "stop")
        return max(signal for signal, *_ in told), [OwnTime(*own) for _, *own in told]

    def _prepare(self, number: int) -> Any:
        """Reads the batch of a step, and returns its variant: what a process does by itself before it enters the step.

        It keeps others waiting while its devices have nothing to do.
        """
        record, begin = self._record, time.monotonic()
        before = record.clock.parts[goodput.DATA]
        variant = self._stage.variant(number)
        self._stall.doing(f"reading the batch of {self._stage.name}, step {number + 1}")
        self.batch = sharding.to_devices(record.next_batch(self._stream), self._mesh)
        if record.clock.runs:
            self.stragglers.entered(record.idle.seconds(begin), record.clock.parts[goodput.DATA] - before)
        return variant

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """Around the first step of a variant, whose call returns once it is compiled."""
        with self._stall.paused(), self._record.clock.spending(goodput.COMPILING):
            yield


def _check(stage: Stage, mesh: Mesh) -> None:
    """Raises ValueError unless the stage has steps, and batches that can be divided as the recipe says."""
    hparams = stage.hparams
    if hparams.steps < 1:
        raise ValueError(f"train.{stage.name}.steps={hparams.steps}: a stage takes at least one step")
    sharding.check_batch(hparams.batch_size, hparams.accumulate, mesh, stage.name)
    if hparams.accumulate > 1 and stage.indivisible():
        raise ValueError(
            f"train.{stage.name}.accumulate={hparams.accumulate}: {stage.indivisible()}, which cannot be accumulated; "
            "set it to 1"
        )


def _resume(stage: Stage, checkpoints: Checkpoints, abstract: State, progress: Progress) -> State | None:
    """Returns the state of the newest undamaged checkpoint, None without one."""
    found = checkpoints.restore(abstract, progress.say)
    if found is not None:
        checkpoints.forget_after(int(found["step"]))
        progress.say(f"{stage.name}: going on after step {int(found['step'])} of {stage.hparams.steps}")
    return found
