"""One training step: every objective in turn updates its parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audioldm2_jax.rngs import Rngs, of_step
from audioldm2_jax.stages.base import Objective, Stage
from audioldm2_jax.training import optim
from audioldm2_jax.training.state import Optimizers, State


def compiled(stage: Stage, optimizers: Optimizers, on_mesh: State, mesh: Mesh) -> Callable[..., tuple[State, dict]]:
    """Returns `step` as the loop calls it, jitted: (state, frozen, batch, variant=) → (new state, metrics).

    It takes over the memory of the state that it is given.

    Args:
        on_mesh: the sharding of every array of the state.
    """
    return jax.jit(
        partial(step, stage, optimizers, stage.key),
        static_argnames="variant",
        donate_argnums=0,
        out_shardings=(on_mesh, NamedSharding(mesh, PartitionSpec())),
    )


def step(
    stage: Stage, optimizers: Optimizers, key: jax.Array, state: State, frozen: Any, batch: Any, variant: Any
) -> tuple[State, dict[str, jax.Array]]:
    """Returns the new state and the metrics of one step. Pure.

    Args:
        key: the stage's.
        frozen: the weights of the frozen components.
        variant: what is static in this step (`Stage.variant`).
    """
    count, hparams = state["step"], stage.hparams
    size = jax.tree.leaves(batch)[0].shape[0]
    batch = stage.weigh(batch)
    rngs = of_step(key, count, size)
    params, model_state, opt = state["params"], state["model_state"], dict(state["opt"])
    objectives = stage.objectives(variant)
    shared = None
    if hparams.accumulate == 1 and len(objectives) > 1:
        shared = _forward(stage, params, model_state, frozen, batch, rngs, variant)
    metrics = {}
    for objective in objectives:
        grads, (loss, parts, model_state) = gradient(
            stage, objective, params, model_state, frozen, batch, rngs, variant, shared
        )
        own = {group: params[group] for group in objective.groups}
        with jax.named_scope("optimizer"):  # profiles and plans tell it from the losses by its name
            updates, opt[objective.name] = optimizers[objective.name].update(grads, opt[objective.name], own)
            params = stage.constrain({**params, **optax.apply_updates(own, updates)})
        metrics |= {f"{objective.name}/{name}": value for name, value in parts.items()}
        metrics |= {f"{objective.name}/loss": loss, f"{objective.name}/grad_norm": optax.tree.norm(grads)}
    if "replaced" in batch:
        metrics["replaced_records"] = batch["replaced"].sum()
    with jax.named_scope("moving_average"):
        ema = optim.update_ema(state["ema"], params, hparams.ema, count) if state["ema"] else {}
    return {"params": params, "model_state": model_state, "opt": opt, "ema": ema, "step": count + 1}, metrics


def gradient(stage: Stage, objective: Objective, params, model_state, frozen, batch, rngs, variant, shared):
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


def _forward(stage: Stage, params, model_state, frozen, batch, rngs, variant):
    """Returns the stage's shared outputs and their pull-back to `forward_groups`."""
    own = {group: params[group] for group in stage.forward_groups}
    return jax.vjp(lambda own: stage.forward({**params, **own}, model_state, frozen, batch, rngs, variant), own)
