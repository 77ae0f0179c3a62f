"""What the TPU compiler writes of a program (`Compiled.as_text()`), read: instructions in order, and their figures.

The text is a list of computations, each an instruction a line in the order in which a chip runs them:

    %fusion.7 = f32[8,64]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused_computation.3,
        metadata={op_name="jit(step)/jvp(UNet)/…/dot_general"}, backend_config={…"estimated_cycles":"1825"…}
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np


class HloError(ValueError):
    """The text is not the compiler's."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in its computation.
        opcode: "fusion", "all-gather", …
        shape: of the result, as text.
        operands: names of instructions; of a constant its value.
        rest: the attributes, as text.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        """Bytes of the result, without padding."""
        return shape_bytes(self.shape)

    @property
    def cycles(self) -> int | None:
        """What the compiler estimates, None where it does not."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, "" where that is not known."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def calls(self) -> tuple[str, ...]:
        """The computations that it runs: of a loop its body, of a conditional its branches, of a fusion its inside."""
        if self.opcode == "while":
            return tuple(re.findall(r"body=%?([\w.\-]+)", self.rest))
        found = re.findall(
            r"(?:to_apply|calls|true_computation|false_computation|async_computation)=%?([\w.\-]+)", self.rest
        )
        for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.rest):
            found += re.findall(r"%?([\w.\-]+)", group)
        return tuple(found)

    @property
    def target(self) -> str:
        """Of a custom call: what it calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def channel(self) -> str:
        """Of a collective: its channel, "" without one."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        return found[1] if found else ""

    def declared(self, quantity: str) -> float | None:
        """Returns what the author of a custom kernel says of it ("flops", "bytes_accessed"), None where nothing."""
        estimate = re.search(r'"cost_estimate":\{([^}]*)\}', self.rest)
        found = estimate and re.search(rf'"{quantity}":"?(\d+)', estimate[1])
        return float(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: instructions in their order, by the computation's name.
        entry: the name of the one that runs.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """Returns how often a loop runs, None where that is not known.

        JAX's scans count from 0 while they are below a constant, where the compiler does not say it itself.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        inside = self.computations.get(condition[1], []) if condition else []
        below = [one for one in inside if one.opcode == "compare" and "direction=LT" in one.rest]
        limits = (
            [one.operands[0] for one in inside if one.opcode == "constant" and one.name in below[0].operands[1:]]
            if below
            else []
        )
        return int(limits[0]) if limits and limits[0].isdigit() else None


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")


def parse(text: str) -> Program:
    """Returns the program.

    Raises:
        HloError: there is no program in the text.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current.append(instruction)
    if not entry:
        raise HloError("the compiler's text has no ENTRY computation: this version of libtpu writes it in another form")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    named = _NAMED.match(line)
    if not named:
        return None
    begin = named.end()
    end = _closing(line, begin) + 1 if line[begin] == "(" else line.index(" ", begin)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    operands = (inside,) if opcode[1] == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(named[1], opcode[1], line[begin:end], operands, line[close + 1 :])


def _closing(line: str, begin: int) -> int:
    """Returns where the bracket that opens at `begin` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, begin):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(line)


_ARRAY = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w*)\[([\d,]*)\]")


@functools.lru_cache(maxsize=65536)
def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape, of a tuple those of all its arrays."""
    total = 0
    for kind, sides in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else 8 if kind.startswith("f8") else int(re.sub(r"\D", "", kind))
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def arrays(shape: str) -> list[int]:
    """Returns the bytes of each array of a shape."""
    return [shape_bytes(found[0]) for found in re.finditer(_ARRAY, shape)]


_EXPLICIT = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")


def groups(rest: str, devices: int) -> list[list[int]]:
    """Returns which devices exchange data in a collective; all of them where its text says nothing that is known."""
    if explicit := _EXPLICIT.search(rest):
        return [[*map(int, group.split(","))] for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    if iota := _IOTA.search(rest):
        return _ordered(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    mesh = _MESH.search(rest)
    if mesh and "(" not in mesh[4]:
        axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        chosen = [[*axes].index(name) for name in re.findall(r"'([^']*)'", mesh[4])]
        ids = _ordered(mesh[2] or str(math.prod(axes.values())), mesh[3]).reshape([*axes.values()])
        size = math.prod(ids.shape[axis] for axis in chosen)
        return np.moveaxis(ids, chosen, range(ids.ndim - len(chosen), ids.ndim)).reshape(-1, size).tolist()
    return [[*range(devices)]]


def _numbers(text: str) -> list[int]:
    return [*map(int, text.split(","))]


def _ordered(sides: str, order: str | None) -> np.ndarray:
    """Returns the device numbers of an iota of sides, transposed."""
    ids = np.arange(math.prod(_numbers(sides))).reshape(_numbers(sides))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


_WRAPPED = re.compile(r"^(\w+)\((.*)\)$")
_NOT_MODULES = re.compile(
    r"^(while|body|cond|scan|branch_\d+_fun|closed_call|checkpoint|remat2?|rematted_computation|custom_[jv][vj]p\w*|pjit)$"
)
FORWARD, BACKWARD, RECOMPUTED = "forward", "backward", "recomputed"


@functools.lru_cache(maxsize=65536)
def module_of(op_name: str) -> tuple[tuple[str, ...], str]:
    """Returns the path of the Flax module that an operation belongs to, or of a named scope, and in which pass.

    "jit(step)/transpose(jvp(UNet))/UNet.predict/up_blocks_0/norm1/mul" is of UNet/up_blocks_0/norm1, backward. () is
    what belongs to none. The last part names the operation; what JAX's transformations add is left out.
    """
    parts = op_name.split(";")[0].split("/")[1:]  # of several operations that became one, the first; without jit(step)
    path: list[str] = []
    phase = FORWARD
    for part in parts[:-1]:
        functions = set()
        while wrapped := _WRAPPED.match(part):
            functions.add(wrapped[1])
            part = wrapped[2]
        if "transpose" in functions:
            phase = BACKWARD
        if part == "rematted_computation":
            phase = RECOMPUTED
        if functions & {"jit", "pjit"} or _NOT_MODULES.match(part):
            continue
        name = part.split(".")[0]
        if name and name[:1] != "<" and path[-1:] != [name]:
            path.append(name)
    return tuple(path), phase


def walk(program: Program) -> Iterator[Instruction]:
    """Yields the instructions of all computations."""
    yield from itertools.chain.from_iterable(program.computations.values())
