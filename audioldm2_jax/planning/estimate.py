"""What the compiler's figures of a step mean: time, use of the chips, memory, days and cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from audioldm2_jax.planning.abstract_step import AbstractStep, Shapes
from audioldm2_jax.planning.topology import KNOWN, Topology


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is planned.

    Attributes:
        config: the config's name, as it was given.
        stage: of training.
        variant: of the step, as text; "" where there is one only.
        variants: how many there are, each an executable of its own.
        cached: whether features come from the cache; of stages that read none, False.
        mesh: sizes by axis.
        batch_size: examples a step, over all chips.
        steps: of the recipe.
        accumulate: microbatches a step.
        remat: whether the UNet's blocks are recomputed; None where there is no UNet to train.
        price: of a chip hour in US dollars; None where nobody said.
    """

    config: str
    stage: str
    variant: str
    variants: int
    cached: bool
    mesh: dict[str, int]
    batch_size: int
    steps: int
    accumulate: int
    remat: bool | None
    price: float | None


def parameters(step: AbstractStep) -> dict[str, dict[str, int]]:
    """Returns the number of parameters of what is trained and of what is frozen, by name."""
    return {
        "trained": {name: _count(tree) for name, tree in step.state["params"].items()},
        "frozen": {name: _count(tree) for name, tree in step.frozen.items()},
    }


def bytes_of_arguments(step: AbstractStep) -> dict[str, int]:
    """Returns the bytes of a chip, by kind, as they are laid out on the mesh, without padding."""
    kinds = {
        "parameters": step.state["params"],
        "optimizer": step.state["opt"],
        "average": step.state["ema"],
        "model state": step.state["model_state"],
        "frozen networks": step.frozen,
        "batch": step.batch,
    }
    return {kind: _bytes(tree) for kind, tree in kinds.items()}


def estimate(
    setting: Setting, topology: Topology, figures: dict[str, Any], step: AbstractStep, flops: float
) -> dict[str, Any]:
    """Returns the plan, as JSON has it.

    Args:
        figures: from `compiling.figures`; its `flops` are the compiler's count of what a chip does, loops once.
        flops: of a step, as MFU has them (training/flops.py).
    """
    arguments = bytes_of_arguments(step)
    plan: dict[str, Any] = {
        "setting": dataclasses.asdict(setting),
        "topology": {"name": str(topology), "chips": topology.chips, "chip": dataclasses.asdict(topology.chip)},
        "parameters": parameters(step),
        "fits": figures["fits"],
        "compile_seconds": figures["compile_seconds"],
    }
    plan["memory"] = _memory(topology, arguments, figures)
    plan["advice"] = _advice(setting, topology, plan["memory"])
    if figures["fits"]:
        plan |= _time(setting, topology, figures, flops / topology.chips)
    return plan


def _memory(topology: Topology, arguments: dict[str, int], figures: dict[str, Any]) -> dict[str, Any]:
    """Returns bytes of a chip by kind, their sum, and the capacity."""
    if figures["fits"]:
        said = figures["memory"]
        padding = max(said["arguments"] - sum(arguments.values()), 0)
        kinds = arguments | {
            "padding of these": padding,
            "activations and temporaries": said["temporaries"],
            "new outputs": max(said["outputs"] - said["aliased"], 0),
            "program": said["code"],
        }
        total: float | None = sum(kinds.values())
    else:
        temporaries = figures.get("temporaries")
        if temporaries is None and "needed" in figures:
            temporaries = figures["needed"] - sum(arguments.values())
        kinds = arguments | ({} if temporaries is None else {"activations and temporaries": temporaries})
        total = None if temporaries is None else sum(kinds.values())
    return {"kinds": kinds, "total": total, "capacity": topology.chip.memory}


def _advice(setting: Setting, topology: Topology, memory: dict[str, Any]) -> dict[str, Any]:
    """Returns what fits otherwise, where activations are taken to grow with the examples of a chip.

    `batch_size` is the largest that fits this mesh, `chips` the fewest for this batch, `fsdp` the smallest that lets
    a batch fit that does not; each is missing where there is none.
    """
    kinds, chips = memory["kinds"], topology.chips
    if "activations and temporaries" not in kinds:
        return {}
    clips = setting.batch_size / chips
    growing = (kinds["activations and temporaries"] + kinds["batch"]) / clips
    shared = sum(kinds[kind] for kind in ("parameters", "optimizer", "average", "model state", "frozen networks"))
    fixed = shared + kinds.get("padding of these", 0) + kinds.get("program", 0) + kinds.get("new outputs", 0)
    found: dict[str, Any] = {"bytes_per_clip": growing}
    most = math.floor((memory["capacity"] - fixed) / growing) // setting.accumulate * setting.accumulate
    if most >= 1:
        found["batch_size"] = most * chips
    fsdp = setting.mesh.get("fsdp", 1)
    if most >= clips:
        fewer = [
            (count, f"{topology.chip.name}:{shape}")
            for shape in KNOWN[topology.chip.name]
            if (count := math.prod(map(int, shape.split("x")))) < chips
            and count % fsdp == 0
            and setting.batch_size % (count * setting.accumulate) == 0
            and setting.batch_size / count <= most
        ]
        if fewer and topology.slices == 1:
            found["smallest"] = min(fewer)[1]
    else:
        for size in (size for size in range(fsdp + 1, topology.slice_chips + 1) if chips % size == 0):
            if fixed - shared + shared * fsdp / size + growing * clips <= memory["capacity"]:
                found["fsdp"] = size
                break
    return found


def _time(setting: Setting, topology: Topology, figures: dict[str, Any], flops: float) -> dict[str, Any]:
    chip, line = topology.chip, figures["timeline"]
    links = sum(tally["seconds"] for *_, tally in line["collectives"])
    roofline = {
        "arithmetic": figures["flops"] / chip.flops,
        "memory": figures["bytes"] / chip.bandwidth,
        "links": links,
    }
    seconds = line["seconds"]
    days = setting.steps * seconds / 86400
    hours = days * 24 * topology.chips
    return {
        "flops": figures["flops"],
        "model_flops": flops,
        "bytes": figures["bytes"],
        "timeline": line,
        "roofline": roofline,
        "seconds": seconds,
        "estimated_by_compiler": sum(value for *_, value in line["modules"]),
        "mfu": flops / seconds / chip.flops,
        "examples_per_second": setting.batch_size / seconds,
        "days": days,
        "chip_hours": hours,
        "cost": None if setting.price is None else hours * setting.price,
    }


def _count(tree: Shapes) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Shapes) -> int:
    """Returns the bytes of the part of each array that a chip has."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
