"""A step compiled for chips that are not here: the compiler's figures of it, kept so that it is compiled once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from audioldm2_jax.planning import hlo, timeline
from audioldm2_jax.planning.topology import Topology
from audioldm2_jax.training import step

FORMAT = 2
"""Of the figures that are kept; another one has them made again."""
_VERSIONS = ("jax", "jaxlib", "libtpu")
_INTERVAL = 20.0  # seconds between two lines of progress
_MEMORY = re.compile(
    r"Used (?P<used>[\d.]+)(?P<used_unit>[KMGT]?) of [\d.]+"
    r"|HLO temporaries \((?P<temp>[\d.]+)(?P<temp_unit>[KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
T = TypeVar("T")


class CompileError(RuntimeError):
    """The compiler refuses the step for another reason than memory."""


def figures(
    lowered: jax.stages.Lowered, topology: Topology, folder: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns what the compiler says of a lowered step, from the folder where it is known.

    Args:
        lowered: the step.
        topology: what it is compiled for.
        folder: of figures, made where it is missing; None: they are not kept.
        say: takes lines of progress.

    Returns:
        `fits`; where it does `flops`, `bytes`, `memory` {arguments, outputs, aliased, temporaries, code} of a chip, and
        `timeline` (planning/timeline.py); where it does not `needed`, bytes of all or of `temporaries` alone.

    Raises:
        CompileError: the compiler refuses it.
        HloError: its text cannot be read.
        OSError: figures cannot be written.
    """
    file = folder / f"{_digest(lowered, topology)}.json" if folder else None
    if file and (known := _read(file)):
        say(f"compiled before: {file}")
        return known
    begin = time.monotonic()
    found = with_progress(lambda: _compile(lowered, topology), f"compiling for {topology}", say)
    found["compile_seconds"] = time.monotonic() - begin
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(file)
    return found


def with_progress(work: Callable[[], T], what: str, say: Callable[[str], None]) -> T:
    """Returns what `work` returns, or raises what it raises, and says meanwhile how long it has taken.

    It runs in a thread of its own, so that Ctrl-C ends the wait, which the compiler would not.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again below
            errors.append(error)

    begin = time.monotonic()
    say(f"{what} …")
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_INTERVAL)
        minutes, seconds = divmod(round(time.monotonic() - begin), 60)
        say(f"{what}: {minutes}:{seconds:02}{'' if thread.is_alive() else ', done'}")
    if errors:
        raise errors[0]
    return results[0]


def _digest(lowered: jax.stages.Lowered, topology: Topology) -> str:
    """Returns a digest of all that decides the figures."""
    versions = [importlib.metadata.version(name) for name in _VERSIONS]
    known = repr((FORMAT, topology, versions, timeline.ASSUMED, step.COMPILER_OPTIONS))
    return hashlib.sha256(known.encode() + lowered.as_text().encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: compiled again
        return None


def _compile(lowered: jax.stages.Lowered, topology: Topology) -> dict[str, Any]:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            first = next(filter(None, map(str.strip, str(error).splitlines())), "no reason given")
            raise CompileError(f"libtpu does not compile the step for {topology}: {first}") from error
        return {"fits": False, **needed(str(error))}
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "fits": True,
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "timeline": timeline.run(hlo.parse(compiled.as_text()), topology).to_dict(),
    }


def needed(message: str) -> dict[str, float]:
    """Returns the bytes that the compiler's message about memory names: of all (`needed`), or `temporaries` alone."""
    found = _MEMORY.search(message)
    if not found:
        return {}
    if found["used"]:
        return {"needed": float(found["used"]) * _UNITS[found["used_unit"]]}
    return {"temporaries": float(found["temp"]) * _UNITS[found["temp_unit"]]}
