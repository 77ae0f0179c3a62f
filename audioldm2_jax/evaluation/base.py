"""What an evaluator is: something measured or made of a stage's networks at intervals and at its end."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

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
    """Returns the XLA options for a program that runs now and then: to optimise it takes a CPU longer than all runs.

    Not among them: xla_cpu_use_fusion_emitters=False, which compiles sooner still. Without optimisation it is wrong
    (JAX 0.10.2: 5 % of a waveform of `audio/sinusoids.py`).
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
