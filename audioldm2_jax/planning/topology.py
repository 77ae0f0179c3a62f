"""TPU slices that are not here: their chips' figures, and devices to compile for.

libtpu describes a slice and compiles for it on any machine. The figures of the chips are those of
[jax-ml.github.io/scaling-book/tpus]. The clock is the one at which the matrix units reach the chip's rate (v5e: 4 units
of 128², v5p: 8). Whether the compiler's cycles mean the same is asked of a plain product
(tests/planning/test_libtpu.py): at these clocks it comes out at 88 % of the peak of v5e, 90 % of v5p and 70 % of v6e,
so that none is taken for faster than it is.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from audioldm2_jax.runtime.chips import PEAKS


class TopologyError(ValueError):
    """There is no such slice, or nothing that compiles for it."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        name: as topologies begin.
        flops: FLOP/s of matrix products in bfloat16.
        memory: bytes that a program may use.
        bandwidth: bytes/s of its memory.
        ici: bytes/s of one of its links to the other chips of its slice, in one direction.
        dcn: bytes/s that a chip sends to other slices: its share of its host's network.
        clock: Hz, of the cycles that the compiler estimates.
        dimensions: of its torus.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    ici: float
    dcn: float
    clock: float
    dimensions: int


_GIB = 2.0**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", PEAKS["v5e"].bfloat16, 15.75 * _GIB, 819e9, 45e9, 3.125e9, 1.5e9, 2),
        Chip("v5p", PEAKS["v5p"].bfloat16, 95 * _GIB, 2765e9, 90e9, 6.25e9, 1.75e9, 3),
        Chip("v6e", PEAKS["v6e"].bfloat16, 31.25 * _GIB, 1640e9, 90e9, 3.125e9, 1.75e9, 2),
    )
}
_PLANAR = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
KNOWN = {"v5e": _PLANAR, "v5p": _CUBIC, "v6e": _PLANAR}
"""Shapes of the slices that can be had, by chip."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several slices of a shape.

    Attributes:
        name: chip and shape, "v5e:2x2".
        chip: what it is made of.
        shape: chips along each axis of a slice.
        slices: how many.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def slice_chips(self) -> int:
        """Chips of a slice."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slice_chips * self.slices

    def __str__(self) -> str:
        return f"{self.slices} × {self.name}" if self.slices > 1 else self.name


def parse(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name like "v5e:4x4".

    Raises:
        TopologyError: there is no such slice; the message lists those there are.
    """
    found = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+){1,2})", name.strip())
    if not found or found[2] not in KNOWN.get(found[1], ()):
        own = found and KNOWN.get(found[1])
        listed = {found[1]: own} if own else KNOWN
        raise TopologyError(
            f"--topology={name}: there is no such slice; choose from "
            + ", ".join(f"{chip}:{shape}" for chip, shapes in listed.items() for shape in shapes)
        )
    if slices < 1:
        raise TopologyError(f"--slices={slices}: there has to be one at least")
    return Topology(name.strip(), CHIPS[found[1]], tuple(map(int, found[2].split("x"))), slices)


def devices(topology: Topology) -> list[Any]:
    """Returns the devices of a topology, for which JAX compiles and on which nothing runs.

    Raises:
        TopologyError: libtpu is not installed, or knows nothing of it.
    """
    if not importlib.util.find_spec("libtpu"):
        raise TopologyError("libtpu, which compiles for TPUs on any machine, is not installed: pip install '.[tpu]'")
    # Else libtpu asks the metadata server of a cloud machine, for minutes, and complains that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may plan, or train
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.slice_chips == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise TopologyError(f"--topology={topology.name}: libtpu says {str(error).strip().splitlines()[0]}") from error
    if len(found) != topology.chips:
        raise TopologyError(
            f"--topology={topology}: libtpu has {len(found)} devices, and there are {topology.chips} chips"
        )
    return list(found)
