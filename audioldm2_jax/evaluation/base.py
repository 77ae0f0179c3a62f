"""What an evaluator is: something measured or made of a stage's networks at intervals and at its end."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh


class Snapshot(NamedTuple):
    """A stage's networks after `step` steps, as they lie on the mesh.

    Attributes:
        step: steps done.
        params: the current parameters, a tree a group.
        averaged: their moving average, which is what the stage publishes; `params` where there is none.
        model_state: the model state.
        frozen: the weights of the frozen components.
    """

    step: int
    params: Any
    averaged: Any
    model_state: Any
    frozen: Any


class Evaluator(Protocol):
    """Called by all hosts at the same steps; what it computes runs on the mesh, and process 0 writes."""

    name: str
    """What it makes, as the summary of a stage says it."""

    every: int
    """Steps between two evaluations, the last one at the end of the stage; 0: never."""

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        """Returns scalars to log, by name; {} where it only writes files."""
        ...


def due(evaluator: Evaluator, step: int, steps: int) -> bool:
    """Returns whether the evaluator runs after `step` of `steps` steps."""
    return bool(evaluator.every) and (step % evaluator.every == 0 or step == steps)


def of_few_runs(mesh: Mesh) -> dict[str, Any] | None:
    """Returns the XLA options for a program that runs now and then: to optimise it takes a CPU longer than all runs."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    options = {"xla_backend_optimization_level": 0}
    # With the older way to compile what is fused, a program compiles in half the time; JAX 0.12 no longer has it.
    older = {"xla_cpu_use_fusion_emitters": False}
    return options | older if _known(*older) else options


@functools.cache
def _known(option: str) -> bool:
    """Whether this version of XLA has an option that can be switched off."""
    try:
        jax.jit(jnp.negative, compiler_options={option: False}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
