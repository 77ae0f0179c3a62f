"""How many devices share the weights of a stage where the recipe leaves it open (`mesh.fsdp=0`): as few as can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from audioldm2_jax.runtime import hosts, sharding
from audioldm2_jax.stages.base import Stage
from audioldm2_jax.training import state

#: Of a device's memory, for weights, averages and optimiser state; gradients, activations and programs have the rest.
SHARE = 0.5


def make_mesh(config: ConfigDict, stage: Stage, say: Callable[[str], None]) -> Mesh:
    """Returns the mesh that a stage trains on, over all devices of all hosts; says how it was chosen. Called by all."""
    stats = jax.local_devices()[0].memory_stats() or {}  # CPUs have none
    memory = min(hosts.gather(stats.get("bytes_limit", 0), "memory of the devices"))
    axes, why = choose(config.mesh, stage, jax.devices(), memory)
    if why:
        say(f"{stage.name}: {why}")
    return sharding.make_mesh(axes)


def choose(
    axes: Mapping[str, int], stage: Stage, devices: Sequence[jax.Device], memory: float
) -> tuple[dict[str, int], str]:
    """Returns the sizes of a mesh's axes, and a line that says why; "" where there was nothing to choose.

    Args:
        axes: as in the recipe's `mesh`.
        stage: whose weights and state have to be held.
        devices: of the mesh.
        memory: bytes that a program may use on a device; 0: not known.
    """
    axes, count = dict(axes), len(devices)
    if axes.get("fsdp") != 0 or axes.get("data") != -1 or count == 1 or not memory:
        return axes, ""
    leaves = jax.tree.leaves((state.abstract(stage), stage.frozen))
    within = count // sharding.slices(devices)
    room = SHARE * memory
    needed = {size: _bytes(leaves, size) for size in range(1, within + 1) if within % size == 0}
    fsdp = next((size for size, number in needed.items() if number <= room), within)
    of_all, of_one, has = (f"{number / 1e9:.3g} GB" for number in (needed[1], needed[fsdp], memory))
    mesh = f"mesh data {count // fsdp} × fsdp {fsdp}; --config.mesh.fsdp sets it"
    if needed[fsdp] > room:
        why = (
            f"weights and state are {of_all}, and {of_one} a device if all {fsdp} share them, more than half of its "
            f"{has}: it may not fit ({mesh})"
        )
    elif fsdp == 1:
        why = f"each device holds all weights and state, {of_all} of its {has} ({mesh})"
    else:
        why = (
            f"weights and state are {of_all}, more than half of a device's {has}: {fsdp} share them, {of_one} each "
            f"({mesh})"
        )
    return axes | {"fsdp": fsdp}, why


def _bytes(leaves: Sequence[Any], size: int) -> float:
    """Returns the bytes on a device where `size` of them share what can be shared."""
    return sum(
        np.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize / (size if sharding.is_shared(leaf.shape, size) else 1)
        for leaf in leaves
    )
