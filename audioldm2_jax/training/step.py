"""One training step: every objective in turn updates its parameter groups.

An update whose loss, gradient or new model state is not finite is skipped: the objective's parameters, their average,
its optimiser state and the model state stay as they were, and the step counts, so that the data move on. Each objective
of a GAN is judged by itself: judged together, the discriminator's former state would have to be kept beside the new one
until the generator's gradient is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audioldm2_jax.rngs import Rngs, of_step
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Objective, Stage
from audioldm2_jax.training import optim
from audioldm2_jax.training.state import Optimizers, State

#: The metrics that say of a step whether an update was skipped, 1 or 0, and how many records could not be read.
SKIPPED, REPLACED = "skipped_updates", "replaced_records"
# By platform. TPUs: products are not cut up to exchange weights piece by piece meanwhile, which made the base model's
# take a fifth longer; the weights of a layer are there in good time anyway.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}


def compiled(stage: Stage, optimizers: Optimizers, on_mesh: State, mesh: Mesh) -> Callable[..., tuple[State, dict]]:
    """Returns `step` as the loop calls it, jitted: (state, frozen, batch, variant=) → (new state, metrics).

    It takes over the memory of the state that it is given.

    Args:
        on_mesh: the sharding of every array of the state.
    """
    return jax.jit(
        sharding.within(mesh, partial(step, stage, optimizers, stage.key)),
        static_argnames="variant",
        donate_argnums=0,
        out_shardings=(on_mesh, NamedSharding(mesh, PartitionSpec())),
        compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].platform),
    )


def step(
    stage: Stage, optimizers: Optimizers, key: jax.Array, state: State, frozen: Any, batch: Any, variant: Any
) -> tuple[State, dict[str, jax.Array]]:
    """Returns the new state and the metrics of one step, `SKIPPED` among them. Pure.

    Args:
        key: the stage's.
        frozen: the weights of the frozen components.
        variant: what is static in this step (`Stage.variant`).
    """
    count, hparams = state["step"], stage.hparams
    size = jax.tree.leaves(batch)[0].shape[0]
    batch, frozen = stage.weigh(batch), sharding.gathered(frozen)
    rngs = of_step(key, count, size)
    params, model_state, opt = state["params"], state["model_state"], dict(state["opt"])
    objectives = stage.objectives(variant)
    shared = None
    if hparams.accumulate == 1 and len(objectives) > 1:
        shared = _forward(stage, params, model_state, frozen, batch, rngs, variant)
    metrics, taken = {}, {}
    for objective in objectives:
        grads, (loss, parts, after) = gradient(
            stage, objective, params, model_state, frozen, batch, rngs, variant, shared
        )
        own = {group: params[group] for group in objective.groups}
        norms = {group: optax.tree.norm(tree) for group, tree in grads.items()}
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _finite(after)
        with jax.named_scope("optimizer"):  # profiles and plans tell it from the losses by its name
            updates, moved = optimizers[objective.name].update(grads, opt[objective.name], own)
            updated = stage.constrain({**params, **optax.apply_updates(own, updates)})
            params, opt[objective.name], model_state = _where(
                finite, (updated, moved, after), (params, opt[objective.name], model_state)
            )
        taken |= dict.fromkeys(objective.groups, finite)
        metrics |= {f"{objective.name}/{name}": value for name, value in parts.items()}
        metrics |= {f"{objective.name}/loss": loss, f"{objective.name}/grad_norm": norm}
        if len(norms) > 1:
            metrics |= {f"{objective.name}/grad_norm/{group}": value for group, value in norms.items()}
    metrics[SKIPPED] = 1 - jnp.array(list(taken.values())).all().astype(jnp.int32)
    if "replaced" in batch:
        metrics[REPLACED] = batch["replaced"].sum()
    with jax.named_scope("moving_average"):
        ema = optim.update_ema(state["ema"], params, hparams.ema, count) if state["ema"] else {}
        ema = {
            group: _where(taken[group], tree, state["ema"][group]) if group in taken else tree
            for group, tree in ema.items()
        }
    return {"params": params, "model_state": model_state, "opt": opt, "ema": ema, "step": count + 1}, metrics


def gradient(stage: Stage, objective: Objective, params, model_state, frozen, batch, rngs, variant, shared):
    """Returns the gradient over the objective's groups and (loss, metrics, model state), averaged over microbatches.

    Each microbatch begins with the step's own model state, so that statistics move once a step however it is divided.
    """

    def one(batch, rngs, shared):
        outputs, pull = shared or _forward(stage, params, model_state, frozen, batch, rngs, variant)

        def loss(own, outputs):
            whole = sharding.gathered({**params, **own})
            return objective.loss(whole, outputs, model_state, frozen, batch, rngs)

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

    batches = microbatches(batch, rngs, parts)
    first = jax.eval_shape(lambda: one(*jax.tree.map(lambda leaf: leaf[0], batches), None))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, _ = jax.lax.scan(lambda total, micro: (jax.tree.map(jnp.add, total, one(*micro, None)), None), zero, batches)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def microbatches(batch: Any, rngs: Rngs, parts: int) -> tuple[Any, Rngs]:
    """Returns batch and streams of `parts` microbatches, stacked.

    Microbatch m takes the slots m, m + parts, ...: every device keeps the examples it has.
    """

    def split(leaf):
        return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)

    steps = jax.vmap(partial(jax.random.fold_in, rngs.step_key))(jnp.arange(1, parts + 1))
    return jax.tree.map(split, batch), Rngs(steps, split(rngs.example_keys))


def _finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite; its leaves are few and small."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves])) if leaves else jnp.bool_(True)


def _where(condition: jax.Array, first: Any, second: Any) -> Any:
    """Returns the first tree where the condition is true, else the second; both may have leaves in common."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), first, second)


def _forward(stage: Stage, params, model_state, frozen, batch, rngs, variant):
    """Returns the stage's shared outputs and their pull-back to `forward_groups`."""
    own = {group: params[group] for group in stage.forward_groups}

    def forward(own):
        return stage.forward(sharding.gathered({**params, **own}), model_state, frozen, batch, rngs, variant)

    return jax.vjp(forward, own)
