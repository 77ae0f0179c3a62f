"""How long a compiled step takes: its instructions in the compiler's order, on a chip's own clock.

The compiler estimates the cycles of its fusions, products and copies. What it does not estimate is given a time here,
and counted by name: collectives by their bytes on their links; copies between memories that run beside the computation,
by their bytes at the memory's bandwidth; custom kernels, by the larger of arithmetic and bytes at a share of the peak;
the rest by its bytes. What runs in the background costs only what the computation then waits for: it has a queue of its
own, begins where the schedule starts it, and is waited for where the schedule needs it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import Any

from audioldm2_jax.planning import hlo
from audioldm2_jax.planning.hlo import Instruction, Program
from audioldm2_jax.planning.topology import Topology

KERNEL_SHARE = 0.6
"""Share of the peak at which a custom kernel is taken to run."""
HOP = 1e-6
"""Seconds until a message is at a neighbour (assumed, not from a data sheet)."""
DCN_DELAY = 50e-6
"""Seconds until a message is at another slice (assumed)."""
ASSUMED = (KERNEL_SHARE, HOP, DCN_DELAY)
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "domain", "add-dependency", "get-dimension-size"),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BACKGROUND = ("copy", "slice", "dynamic-slice", "dynamic-update-slice", "async")
# Custom calls by which the compiler tells itself something, and which do nothing.
_MARKERS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "Sharding",
}


@dataclasses.dataclass
class Tally:
    """What is known of instructions of one kind: how many, their bytes, and seconds.

    `seconds` is what they take by themselves, `exposed` how long the computation waits for them.
    """

    count: float = 0
    bytes: float = 0
    flops: float = 0
    seconds: float = 0
    exposed: float = 0

    def add(self, other: Tally, times: float = 1) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + times * getattr(other, field.name))


@dataclasses.dataclass
class Timeline:
    """A step of one chip.

    Attributes:
        seconds: all of it.
        modules: seconds that the compiler estimates, by (module path, pass).
        collectives: by (kind, link); the link is ICI or DCN.
        copies: between memories, in the background.
        kernels: custom calls, by what they call.
        others: what the compiler estimates nothing of, by opcode.
        notes: what could not be read.
    """

    seconds: float = 0.0
    modules: Counter = dataclasses.field(default_factory=Counter)
    collectives: dict[tuple[str, str], Tally] = dataclasses.field(default_factory=lambda: defaultdict(Tally))
    copies: Tally = dataclasses.field(default_factory=Tally)
    kernels: dict[str, Tally] = dataclasses.field(default_factory=lambda: defaultdict(Tally))
    others: dict[str, Tally] = dataclasses.field(default_factory=lambda: defaultdict(Tally))
    notes: Counter = dataclasses.field(default_factory=Counter)

    def add(self, other: Timeline, times: float = 1) -> None:
        """Adds a part of the program that runs so often."""
        self.seconds += times * other.seconds
        for key, value in other.modules.items():
            self.modules[key] += times * value
        for mine, its in (
            (self.collectives, other.collectives),
            (self.kernels, other.kernels),
            (self.others, other.others),
        ):
            for key, tally in its.items():
                mine[key].add(tally, times)
        self.copies.add(other.copies, times)
        self.notes.update(other.notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON has it."""
        return {
            "seconds": self.seconds,
            "modules": [["/".join(path), phase, value] for (path, phase), value in self.modules.most_common()],
            "collectives": [[*key, dataclasses.asdict(tally)] for key, tally in sorted(self.collectives.items())],
            "copies": dataclasses.asdict(self.copies),
            "kernels": {name: dataclasses.asdict(tally) for name, tally in sorted(self.kernels.items())},
            "others": {name: dataclasses.asdict(tally) for name, tally in sorted(self.others.items())},
            "notes": dict(self.notes),
        }


def run(program: Program, topology: Topology) -> Timeline:
    """Returns the timeline of a program on a chip of a topology."""
    return _Chip(program, topology).run(program.entry)


class _Chip:
    def __init__(self, program: Program, topology: Topology):
        self.program, self.topology, self.chip = program, topology, topology.chip

    def run(self, name: str) -> Timeline:
        return _Run(self, self.program.computations.get(name, [])).timeline


class _Run:
    """One run through a computation: the clock is `timeline.seconds`."""

    def __init__(self, chip: _Chip, instructions: list[Instruction]):
        self.of, self.chip, self.topology = chip, chip.chip, chip.topology
        self.timeline = Timeline()
        self.bytes = {instruction.name: instruction.bytes for instruction in instructions}
        self.free_at: dict[str, float] = defaultdict(float)  # when a queue is free again
        self.pending: dict[str, tuple[float, Tally]] = {}  # what runs in the background: its end
        for instruction in instructions:
            self.take(instruction)
        for key in [*self.pending]:
            self.wait(key)

    def take(self, one: Instruction) -> None:
        kind, _, half = one.opcode.rpartition("-")
        if one.opcode in _FREE:
            return
        if one.opcode == "while":
            self.loop(one)
        elif one.opcode in ("call", "conditional"):
            self.branch(one)
        elif one.opcode in COLLECTIVES:
            self.now(*self.exchange(one.opcode, one, self.moved(one)))
        elif half == "start" and kind in COLLECTIVES:
            self.begin(one.name, *self.exchange(kind, one, max(hlo.arrays(one.shape), default=0)))
        elif half == "start" and kind in _BACKGROUND:
            self.begin_copy(one)
        elif half in ("done", "update"):
            if half == "done":
                self.wait(one.operands[0] if one.operands else "")
        elif one.opcode in ("send", "recv"):
            self.now(*self.across_slices(one))
        elif one.opcode == "fusion" and self.fused_collective(one):
            pass
        elif one.opcode == "custom-call" and one.target in _MARKERS:
            return
        else:
            self.compute(one)

    def compute(self, one: Instruction) -> None:
        """An instruction of the chip's own units."""
        if (cycles := one.cycles) is not None:
            seconds = cycles / self.chip.clock
            self.timeline.modules[hlo.module_of(one.op_name)] += seconds
            self.timeline.seconds += seconds
            return
        moved = one.bytes + sum(self.bytes.get(name, 0) for name in one.operands)
        if one.opcode == "custom-call":
            flops, moved = one.declared("flops"), one.declared("bytes_accessed") or moved
            if flops is None:
                self.timeline.notes[f"{one.target} does not say its arithmetic: its time is that of its bytes"] += 1
            seconds = max((flops or 0) / self.chip.flops, moved / self.chip.bandwidth) / KERNEL_SHARE
            self.now(self.timeline.kernels[one.target], Tally(1, moved, flops or 0, seconds))
            return
        self.now(self.timeline.others[one.opcode], Tally(1, moved, 0, moved / self.chip.bandwidth))

    def now(self, into: Tally, one: Tally) -> None:
        """What the computation waits for from beginning to end."""
        one.exposed = one.seconds
        into.add(one)
        self.timeline.seconds += one.seconds

    def begin(self, key: str, into: Tally, one: Tally, queue: str = "links") -> None:
        """What runs in the background, behind what is in its queue."""
        end = max(self.timeline.seconds, self.free_at[queue]) + one.seconds
        self.free_at[queue] = end
        into.add(one)
        self.pending[key] = end, into

    def wait(self, key: str) -> None:
        end, into = self.pending.pop(key, (0.0, Tally()))
        missing = max(end - self.timeline.seconds, 0.0)
        into.exposed += missing
        self.timeline.seconds += missing

    def begin_copy(self, one: Instruction) -> None:
        """A copy, or a part of one: ((source), destination, context), or ((target, part, …), target, context)."""
        sizes = hlo.arrays(one.shape) or [0]
        place = {"slice-start": -2, "dynamic-slice-start": -2, "dynamic-update-slice-start": 1}.get(one.opcode)
        moved = max(sizes) if place is None or len(sizes) < 3 else sizes[place]
        self.begin(one.name, self.timeline.copies, Tally(1, moved, 0, moved / self.chip.bandwidth), "memory")

    def loop(self, one: Instruction) -> None:
        trips = self.of.program.trips(one)
        if trips is None:
            self.timeline.notes["loops of unknown length, counted as one round"] += 1
        for body in one.calls:
            self.timeline.add(self.of.run(body), trips or 1)

    def branch(self, one: Instruction) -> None:
        """A call, or the longest of several branches."""
        runs = [self.of.run(name) for name in one.calls if name in self.of.program.computations]
        if one.opcode == "conditional" and len(runs) > 1:
            self.timeline.notes["branches, of which the longest counts"] += 1
        if runs:
            self.timeline.add(max(runs, key=lambda run: run.seconds))

    def fused_collective(self, one: Instruction) -> bool:
        """Takes a fusion that starts a collective, ends it, or holds the whole; returns whether it is one.

        The compiler spreads a collective over fusions that compute beside: AsyncCollectiveStart, some
        async_collective_fusion with cycles of their own, AsyncCollectiveDone.
        """
        inside = [each for name in one.calls for each in self.of.program.computations.get(name, [])]
        found = [each for each in inside if each.opcode in COLLECTIVES]
        if not found or any("async_collective_fusion" in name for name in one.calls):
            return False
        collective, targets = found[0], {each.target for each in inside if each.opcode == "custom-call"}
        key, kind = f"channel {collective.channel}", collective.opcode
        moved = max(
            collective.bytes, *(hlo.shape_bytes(each.shape) for each in inside if each.opcode == "parameter"), 0
        )
        if "AsyncCollectiveStart" in targets:
            self.begin(key, *self.exchange(kind, collective, moved))
        elif "AsyncCollectiveDone" in targets:
            self.wait(key)
        else:
            scattered = kind == "all-reduce" and one.bytes < collective.bytes
            self.now(*self.exchange("reduce-scatter" if scattered else kind, collective, collective.bytes))
            if one.cycles:
                self.compute(one)
        return True

    def moved(self, one: Instruction) -> int:
        """Bytes of the whole array of a collective, which is what goes in or what comes out."""
        return max(one.bytes, sum(self.bytes.get(name, 0) for name in one.operands))

    def exchange(self, kind: str, one: Instruction, moved: float) -> tuple[Tally, Tally]:
        """Returns where a collective is counted, and what it takes on its links."""
        groups = hlo.groups(one.rest, self.topology.chips)
        size = max(map(len, groups))
        slices = max(len({device // self.topology.slice_chips for device in group}) for group in groups)
        seconds = _on_ici(kind, moved, max(size // slices, 1), self.topology)
        if slices > 1:
            seconds += _on_dcn(kind, moved, size, slices, self.topology)
        link = "DCN" if slices > 1 else "ICI"
        return self.timeline.collectives[kind, link], Tally(1, moved, 0, seconds)

    def across_slices(self, one: Instruction) -> tuple[Tally, Tally]:
        moved = max(hlo.arrays(one.shape), default=0)
        tally = Tally(1, moved, 0, moved / self.chip.dcn + DCN_DELAY)
        return self.timeline.collectives[one.opcode, "DCN"], tally


def _on_ici(kind: str, moved: float, size: int, topology: Topology) -> float:
    """Seconds of a collective of so many bytes among `size` chips of a slice: a ring, on two links of each chip.

    What goes round the ring is (n - 1) / n of the array, of an all-reduce twice that [jax-ml.github.io/scaling-book].
    """
    if kind == "collective-permute":
        return moved / topology.chip.ici + HOP
    if size == 1:
        return 0.0
    dimensions = topology.chip.dimensions
    hops = dimensions * (size ** (1 / dimensions) - 1)
    rounds = {"all-reduce": 2.0, "all-to-all": max(size / 8, 1.0)}.get(kind, 1.0)
    return rounds * ((size - 1) / size * moved / (2 * topology.chip.ici) + hops * HOP)


def _on_dcn(kind: str, moved: float, size: int, slices: int, topology: Topology) -> float:
    """Seconds that the part of each chip of a slice takes to the other slices."""
    rounds = 2.0 if kind == "all-reduce" else 1.0
    part = moved if kind == "collective-permute" else moved * slices / size
    return rounds * ((slices - 1) / slices * part / topology.chip.dcn + DCN_DELAY)
