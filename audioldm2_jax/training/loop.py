"""The only training loop: steps, averages, logs, samples, saves and resumes any stage.

The order of one call of `train`:
1. the mesh, and the shape and place of every array of the state, allocating nothing;
2. the newest undamaged checkpoint, or new parameters, or those that the stage starts from;
3. steps: the batch of step s and all randomness in it are functions of (seed, s, slot), so a resumed run is the
   straight run;
4. evaluators at their intervals (evaluation/base.py): the loss on held-out data, samples;
5. a last checkpoint, the averaged parameters.

The state is {params, model_state, opt, ema, step}; `params` and `model_state` hold a tree a parameter group, `opt` one
an objective, `ema` the averages, {} without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from audioldm2_jax.evaluation import heldout_loss
from audioldm2_jax.evaluation.base import Evaluator, Snapshot, due
from audioldm2_jax.rngs import Rngs, named, of_step
from audioldm2_jax.runtime import hosts, sharding
from audioldm2_jax.stages.base import Objective, Stage
from audioldm2_jax.training import init_random, optim
from audioldm2_jax.training.checkpoint import Checkpoints
from audioldm2_jax.training.metrics_writer import MetricsWriter
from audioldm2_jax.training.progress import Progress, Report

State = dict[str, Any]


class Stopped(Exception):
    """The run was asked to stop, by the signal `number`; its state is saved."""

    def __init__(self, message: str, number: int = 0):
        super().__init__(message)
        self.number = number


class NotFinite(RuntimeError):
    """The loss stopped being a number; nothing of that step was saved."""


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
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    folder: Path,
    progress: Progress,
    should_stop: Callable[[], int] = lambda: 0,
    evaluators: Callable[[Mesh, jax.Array], Sequence[Evaluator]] = lambda mesh, key: (),
) -> Trained:
    """Trains `stage` to the end of its recipe, from where `folder` left it.

    Args:
        stage: what to train.
        batches: gives the host's batches from a step on.
        folder: of this stage, for checkpoints and metrics.
        progress: where reports go.
        should_stop: asked after every step for the signal that asks to stop, 0 without one.
        evaluators: made for the mesh and the stage's random key, once.

    Raises:
        Stopped: `should_stop` said so, after saving.
        NotFinite: a loss or gradient was not finite.
        CheckpointError: nothing could be saved, or nothing read.
    """
    hparams, config = stage.hparams, stage.config
    if hparams.steps < 1:
        raise ValueError(f"train.{stage.name}.steps={hparams.steps}: a stage takes at least one step")
    mesh = sharding.make_mesh(config)
    sharding.check_batch(hparams.batch_size, hparams.accumulate, mesh, stage.name)
    if hparams.accumulate > 1 and stage.indivisible():
        raise ValueError(
            f"train.{stage.name}.accumulate={hparams.accumulate}: {stage.indivisible()}, which cannot be accumulated; "
            "set it to 1"
        )

    optimizers = {
        objective.name: optim.optimizer(hparams) for objective in stage.objectives(stage.variant(hparams.steps))
    }
    seed = named(jax.random.key(config.seed), stage.name)
    abstract = jax.eval_shape(partial(_new_state, stage, optimizers), seed)
    places = sharding.state_sharding(abstract, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, places
    )

    checkpoints = Checkpoints(folder / "checkpoints", hparams.keep)
    state = checkpoints.restore(abstract, progress.say)
    if state is None:
        state = _start(stage, optimizers, named(init_random.key(config.seed), stage.name), abstract)
    else:
        checkpoints.forget_after(int(state["step"]))
        progress.say(f"{stage.name}: going on after step {int(state['step'])} of {hparams.steps}")

    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    frozen = sharding.place(stage.frozen, sharding.state_sharding(stage.frozen, mesh))
    step_function = jax.jit(
        partial(_step, stage, optimizers, seed),
        static_argnames="variant",
        donate_argnums=0,
        out_shardings=(places, replicated),
    )
    writer = MetricsWriter(folder) if jax.process_index() == 0 else None
    first, clock = int(state["step"]), _Clock(hparams, int(state["step"]))
    pending: list[tuple[int, dict]] = []
    batch, stream = None, batches(first)
    checks = evaluators(mesh, seed)

    def evaluate(step: int, state: State) -> None:
        snapshot = Snapshot(step, state["params"], averaged(state), state["model_state"], frozen)
        with clock.evaluating():
            metrics = {k: v for check in checks if due(check, step, hparams.steps) for k, v in check(snapshot).items()}
        if metrics and writer:
            writer.scalars(step, metrics)
        clock.heldout = metrics.get(heldout_loss.NAME, clock.heldout)

    try:
        for step in range(first, hparams.steps):
            batch = sharding.to_devices(clock.wait(stream, pending), mesh)
            state, metrics = step_function(state, frozen, batch, variant=stage.variant(step))
            pending.append((step, metrics))
            clock.limit(pending)
            done = step + 1
            logs = done % hparams.log_every == 0 or done in (first + 1, hparams.steps)
            # Several hosts have to agree on the step at which they stop.
            stop = max(hosts.gather(int(should_stop()), "stop")) if logs or jax.process_count() == 1 else 0
            if logs or stop:
                _log(stage, pending, clock, writer, progress, checkpoints)
            if stop or done == hparams.steps or (hparams.save_every and done % hparams.save_every == 0):
                _check(stage, pending, checkpoints)
                checkpoints.save(done, state)
            if stop and done < hparams.steps:
                raise Stopped(f"{stage.name}: stopped and saved after step {done} of {hparams.steps}", stop)
            if done < hparams.steps:
                evaluate(done, state)
        evaluate(hparams.steps, state)
        _conclude(stage, writer, clock, progress)
        checkpoints.close()
    except (Stopped, NotFinite):  # on all hosts at the same step
        checkpoints.close()
        raise
    except BaseException:
        if jax.process_count() == 1:  # others would not come to the place where their saves are finished together
            checkpoints.close()
        raise
    finally:
        if writer:
            writer.close()
        close = getattr(stream, "close", None)
        if close:
            close()
    if batch is None:
        batch = sharding.to_devices(next(batches(first)), mesh)
    return Trained(averaged(state), state["model_state"], frozen, batch, clock.data_wait())


def averaged(state: State) -> Any:
    """Returns the parameters that are published: the moving average where there is one."""
    return state["ema"] or state["params"]


def _new_state(stage: Stage, optimizers: dict[str, optax.GradientTransformation], key: jax.Array) -> State:
    params, model_state = stage.init(key)
    opt = _new_optimizers(stage, optimizers, params)
    ema = jax.tree.map(jnp.copy, params) if stage.hparams.ema else {}
    return {"params": params, "model_state": model_state, "opt": opt, "ema": ema, "step": jnp.zeros((), jnp.int32)}


def _new_optimizers(stage: Stage, optimizers: dict[str, optax.GradientTransformation], params: Any) -> dict[str, Any]:
    objectives = stage.objectives(stage.variant(stage.hparams.steps))
    return {o.name: optimizers[o.name].init({group: params[group] for group in o.groups}) for o in objectives}


def _start(stage: Stage, optimizers: dict[str, optax.GradientTransformation], key: jax.Array, abstract: Any) -> State:
    """Returns the state of step 0: new parameters, or those that the stage starts from."""
    # What is given is not drawn: that would be compiled for nothing.
    initial = stage.initial()
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    drawn = {
        part: {group: place for group, place in places[part].items() if group not in initial}
        for part in ("params", "model_state")
    }

    def draw(key):
        state = _new_state(stage, optimizers, key)
        return {part: {group: state[part][group] for group in groups} for part, groups in drawn.items()}

    state = dict(jax.jit(draw, out_shardings=drawn)(key))
    for group, given in initial.items():
        where = f"{stage.name}.{group}"
        state["params"][group] = _place(abstract["params"][group], given["params"], where)
        if group in abstract["model_state"]:
            statistics = {name: tree for name, tree in given.items() if name != "params"}
            state["model_state"][group] = _place(abstract["model_state"][group], statistics, where)
    state["params"] = stage.constrain(state["params"])
    state["ema"] = jax.tree.map(jnp.copy, state["params"]) if abstract["ema"] else {}
    state["opt"] = jax.jit(partial(_new_optimizers, stage, optimizers), out_shardings=places["opt"])(state["params"])
    return state | {"step": sharding.place(np.zeros((), np.int32), places["step"])}


def _place(wanted: Any, given: Any, where: str) -> Any:
    """Returns the weights `given`, laid out as `wanted`.

    Raises:
        ValueError: they are not those of the recipe's network; the message names the first difference.
    """
    if not isinstance(wanted, dict):
        if wanted.shape != given.shape:
            raise ValueError(f"{where}: the recipe has shape {wanted.shape}, the weights to start from {given.shape}")
        return sharding.place(np.asarray(given, wanted.dtype), wanted.sharding)
    if wanted.keys() != given.keys():
        only = sorted(wanted.keys() ^ given.keys())[0]
        owner = "recipe's network" if only in wanted else "network to start from"
        raise ValueError(f"{where}: only the {owner} has {only!r}; take the sizes of the weights into the recipe")
    return {key: _place(leaf, given[key], f"{where}/{key}") for key, leaf in wanted.items()}


def _step(stage: Stage, optimizers: dict, seed: jax.Array, state: State, frozen: Any, batch: Any, variant: Any):
    """One step: every objective in turn updates its groups. Returns the new state and metrics."""
    count, hparams = state["step"], stage.hparams
    size = jax.tree.leaves(batch)[0].shape[0]
    batch = stage.weigh(batch)
    rngs = of_step(seed, count, size)
    params, model_state, opt = state["params"], state["model_state"], dict(state["opt"])
    objectives = stage.objectives(variant)
    shared = None
    if hparams.accumulate == 1 and len(objectives) > 1:
        shared = _forward(stage, params, model_state, frozen, batch, rngs, variant)
    metrics = {}
    for objective in objectives:
        grads, (loss, parts, model_state) = _gradient(
            stage, objective, params, model_state, frozen, batch, rngs, variant, shared
        )
        own = {group: params[group] for group in objective.groups}
        updates, opt[objective.name] = optimizers[objective.name].update(grads, opt[objective.name], own)
        params = stage.constrain({**params, **optax.apply_updates(own, updates)})
        metrics |= {f"{objective.name}/{name}": value for name, value in parts.items()}
        metrics |= {f"{objective.name}/loss": loss, f"{objective.name}/grad_norm": optax.tree.norm(grads)}
    if "replaced" in batch:
        metrics["replaced_records"] = batch["replaced"].sum()
    ema = optim.update_ema(state["ema"], params, hparams.ema, count) if state["ema"] else {}
    return {"params": params, "model_state": model_state, "opt": opt, "ema": ema, "step": count + 1}, metrics


def _forward(stage: Stage, params, model_state, frozen, batch, rngs, variant):
    """Returns the stage's shared outputs and their pull-back to `forward_groups`."""
    own = {group: params[group] for group in stage.forward_groups}
    return jax.vjp(lambda own: stage.forward({**params, **own}, model_state, frozen, batch, rngs, variant), own)


def _gradient(stage: Stage, objective: Objective, params, model_state, frozen, batch, rngs, variant, shared):
    """Returns the gradient over the objective's groups and (loss, metrics, model state), averaged over microbatches.

    Each microbatch begins with the step's own model state, so that statistics move once a step however it is divided.
    """

    def one(batch, rngs, shared):
        outputs, pull = shared or _forward(stage, params, model_state, frozen, batch, rngs, variant)

        def loss(own, outputs):
            return objective.loss({**params, **own}, outputs, model_state, frozen, batch, rngs)

        own = {group: params[group] for group in objective.groups}
        reached = [group for group in objective.groups if group in stage.forward_groups]
        if not reached:
            (value, (parts, after)), grads = jax.value_and_grad(loss, has_aux=True)(own, outputs)
            return grads, (value, parts, after)
        (value, (parts, after)), (grads, at_outputs) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            own, outputs
        )
        (through,) = pull(at_outputs)
        added = {group: jax.tree.map(jnp.add, grads[group], through[group]) for group in reached}
        return {**grads, **added}, (value, parts, after)

    parts = stage.hparams.accumulate
    if parts == 1:
        return one(batch, rngs, shared)

    # Microbatch m takes the slots m, m + parts, ...: every device keeps the examples it has.
    def split(leaf):
        return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)

    steps = jax.vmap(partial(jax.random.fold_in, rngs.step_key))(jnp.arange(1, parts + 1))
    batches = (jax.tree.map(split, batch), Rngs(steps, split(rngs.example_keys)))
    first = jax.eval_shape(lambda: one(*jax.tree.map(lambda leaf: leaf[0], batches), None))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, _ = jax.lax.scan(lambda total, micro: (jax.tree.map(jnp.add, total, one(*micro, None)), None), zero, batches)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def _conclude(stage: Stage, writer: MetricsWriter | None, clock: _Clock, progress: Progress) -> None:
    """Says what the stage has reached on held-out data, and what it cost to know."""
    best = writer.best(heldout_loss.NAME) if writer else None
    if clock.heldout is None or best is None:
        return
    progress.say(
        f"{stage.name}: held-out loss {clock.heldout:.4g}; the best was {best[0]:.4g} after step {best[1]} "
        f"({clock.share(clock.evaluated):.1%} of the time went into evaluation)"
    )


class _Clock:
    """Times the steps, evaluation, and how long the device had nothing to do because the batch was not there."""

    def __init__(self, hparams: Any, first: int):
        self.hparams, self.first = hparams, first
        self.waited, self.evaluated, self.logged = 0.0, 0.0, first
        self.heldout: float | None = None
        self.begin = self.last = None

    def wait(self, stream: Iterator, pending: list) -> dict[str, np.ndarray]:
        """Returns the next batch; counts the time as waiting unless a step was still in progress when it came."""
        before = time.monotonic()
        batch = next(stream)
        busy = pending and not jax.tree.leaves(pending[-1][1])[0].is_ready()
        if not busy and self.begin is not None:
            self.waited += time.monotonic() - before
        return batch

    def limit(self, pending: list) -> None:
        """Lets the host run at most one step ahead of the device. The first step compiles and is not timed."""
        if self.begin is None:
            jax.block_until_ready(pending[-1][1])
            self.begin = self.last = time.monotonic()
        elif len(pending) > 1:
            jax.block_until_ready(pending[-2][1])

    def tick(self, step: int) -> tuple[float, float]:
        """Returns examples/s since the last tick and the seconds left."""
        now = time.monotonic()
        seconds = max(now - self.last, 1e-6)
        rate = (step - self.logged) / seconds if step > self.first + 1 else 0.0
        self.last, self.logged = now, step
        overall = (step - self.first - 1) / max(now - self.begin, 1e-6)
        return rate * self.hparams.batch_size, (self.hparams.steps - step) / overall if overall > 0 else 0.0

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Counts the time inside as evaluation and not as that of steps."""
        before = time.monotonic()
        yield
        spent = time.monotonic() - before
        self.evaluated += spent
        self.last = self.last and self.last + spent

    def share(self, seconds: float) -> float:
        """Returns which share of the time since the first step `seconds` are."""
        return seconds / max(time.monotonic() - self.begin, 1e-6) if self.begin else 0.0

    def data_wait(self) -> float:
        """Returns the share of the time since the first step that was spent waiting for data."""
        return self.share(self.waited)


def _log(
    stage: Stage, pending: list, clock: _Clock, writer: MetricsWriter | None, progress: Progress, checkpoints
) -> None:
    """Writes the mean of the metrics since the last log, and forgets them."""
    _check(stage, pending, checkpoints)
    if not pending:
        return
    step = pending[-1][0] + 1
    means = {name: float(np.mean([float(m[name]) for _, m in pending if name in m])) for name in pending[-1][1]}
    rate, left = clock.tick(step)
    means["examples_per_second"], means["data_wait"] = rate, clock.data_wait()
    means["learning_rate"] = float(optim.learning_rate(stage.hparams)(step))
    if writer:
        writer.scalars(step, means)
    # The last objective's: of a GAN, the generator's.
    loss = means[stage.objectives(stage.variant(step - 1))[-1].name + "/loss"]
    progress.report(Report(stage.name, step, stage.hparams.steps, loss, rate, left, clock.heldout))
    pending.clear()


def _check(stage: Stage, pending: list, checkpoints: Checkpoints) -> None:
    """Raises NotFinite if any step since the last log had a loss or gradient that is not finite."""
    for step, metrics in pending:
        losses_first = sorted(metrics.items(), key=lambda item: not item[0].endswith("/loss"))
        bad = [name for name, value in losses_first if not math.isfinite(float(value))]
        if bad:
            latest = checkpoints.latest()
            kept = (
                f"the last good checkpoint is that of step {latest}"
                if latest is not None
                else "there is no checkpoint yet"
            )
            raise NotFinite(
                f"{stage.name}: {bad[0]} was {float(metrics[bad[0]])} at step {step + 1}; nothing of it was saved and "
                f"{kept}. "
                f"Lower --config.train.{stage.name}.learning_rate, or look at the data, and run the same command again"
            )
