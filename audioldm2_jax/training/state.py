"""The state of a training: {params, model_state, opt, ema, step}, and how it begins.

`params` and `model_state` hold a tree a parameter group, `opt` one an objective, `ema` the averages, {} without.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from audioldm2_jax.rngs import named
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training import init_random, optim

State = dict[str, Any]
Optimizers = dict[str, optax.GradientTransformation]


def optimizers(stage: Stage) -> Optimizers:
    """Returns the optimiser of each of the stage's objectives, by name."""
    last = stage.variant(stage.hparams.steps)
    return {objective.name: optim.optimizer(stage.hparams) for objective in stage.objectives(last)}


def abstract(stage: Stage) -> State:
    """Returns shape and dtype of every array of the state; allocates nothing."""
    return jax.eval_shape(partial(_new, stage), stage.key)


def shapes(stage: Stage, mesh: Mesh) -> State:
    """Returns shape, dtype and place on the mesh of every array of the state; allocates nothing."""
    bare = abstract(stage)
    places = sharding.state_sharding(bare, mesh)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), bare, places)


def places(abstract: State) -> State:
    """Returns the sharding of every array of `shapes`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def start(stage: Stage, abstract: State) -> State:
    """Returns the state of step 0: new parameters, or those that the stage starts from.

    Args:
        abstract: from `shapes`.

    Raises:
        ValueError: the weights to start from are not those of the recipe's network.
    """
    # What is given is not drawn: that would be compiled for nothing.
    initial = stage.initial()
    on_mesh = places(abstract)
    drawn = {
        part: {group: place for group, place in on_mesh[part].items() if group not in initial}
        for part in ("params", "model_state")
    }

    def draw(key):
        state = _new(stage, key)
        return {part: {group: state[part][group] for group in groups} for part, groups in drawn.items()}

    state = dict(jax.jit(draw, out_shardings=drawn)(named(init_random.key(stage.config.seed), stage.name)))
    for group, given in initial.items():
        where = f"{stage.name}.{group}"
        state["params"][group] = _place(abstract["params"][group], given["params"], where)
        if group in abstract["model_state"]:
            statistics = {name: tree for name, tree in given.items() if name != "params"}
            state["model_state"][group] = _place(abstract["model_state"][group], statistics, where)
    state["params"] = stage.constrain(state["params"])
    state["ema"] = jax.tree.map(jnp.copy, state["params"]) if abstract["ema"] else {}
    state["opt"] = jax.jit(partial(_new_opt, stage), out_shardings=on_mesh["opt"])(state["params"])
    return state | {"step": sharding.place(np.zeros((), np.int32), on_mesh["step"])}


def averaged(state: State) -> Any:
    """Returns the parameters that are published: the moving average where there is one."""
    return state["ema"] or state["params"]


def _new(stage: Stage, key: jax.Array) -> State:
    params, model_state = stage.init(key)
    opt = _new_opt(stage, params)
    ema = jax.tree.map(jnp.copy, params) if stage.hparams.ema else {}
    return {"params": params, "model_state": model_state, "opt": opt, "ema": ema, "step": jnp.zeros((), jnp.int32)}


def _new_opt(stage: Stage, params: Any) -> dict[str, Any]:
    objectives = stage.objectives(stage.variant(stage.hparams.steps))
    rules = optimizers(stage)
    return {o.name: rules[o.name].init({group: params[group] for group in o.groups}) for o in objectives}


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
