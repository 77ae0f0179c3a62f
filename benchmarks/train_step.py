"""A training step of each stage on the devices that are there, and that of diffusion beside its twin in PyTorch.

    python benchmarks/train_step.py --config music:base --stage diffusion --batch_size 16 32 --json OUT.json

Ours is the loop's own step (training/step.py): loss, gradient, clipping, optimiser (AdamW beside a twin), moving
average; weights and batch are random and lie on the devices. By default what frozen networks make comes with the
batch, as from the cache, and these networks are neither run nor held; with --from_audio they run in the step. λ of the
LOA is that of generation.

The twin is diffusers' UNet of the same config with the same work in a step: latents drawn and noise added, guidance
dropout, forward, mean squared error, backward, clipping, AdamW (fused on a GPU), average; parameters float32,
bfloat16 by autocast; eager, and through torch.compile. Ours and theirs take turns, and `ratio` is the median over the
turns of theirs by ours: above one, ours is faster.

MFU is of the products of matrices and convolutions in the step (training/flops.py), by the rate of a large product of
two matrices in the same run. What fails is told in a line, and the next part goes on; what is
measured is printed, and written, at once.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Both frameworks share the device: XLA is not to take most of it at once. Read when JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
from flax_step import GPU, Ours
from ml_collections import ConfigDict

from audioldm2_jax import config_files
from audioldm2_jax.models import layers
from audioldm2_jax.stages import STAGES

CPU = jax.default_backend() == "cpu"
VERSIONS = ("jax", "jaxlib", "torch", "diffusers", "transformers")
PEERS = ("eager", "compiled")
TURN = 1 if CPU else 5  # steps between two waits for the device
WARM_UP = 2


def seconds(way: Any, steps: int) -> float:
    start = time.perf_counter()
    way.run(steps)
    return (time.perf_counter() - start) / steps


def in_turns(ways: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Seconds a step of each, turn by turn, so that all see the same noise."""
    turns = [{name: seconds(way, TURN) for name, way in ways.items()} for _ in range(max(2, steps // TURN))]
    return {name: [turn[name] for turn in turns] for name in ways}


def matrix_rate(dtype: str) -> float:
    """FLOP/s of a product of two square matrices of random numbers on one device, the best of five."""
    n = 2048 if CPU else 8192
    count = 1 if CPU else 10
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    product = jax.jit(jnp.dot)

    def several() -> float:
        start = time.perf_counter()
        for _ in range(count):
            b = product(a, a)
        jax.block_until_ready(b)
        return time.perf_counter() - start

    several()
    return count * 2 * n**3 / min(several() for _ in range(5))


class Results:
    """What was measured, printed as it comes and kept in a file."""

    def __init__(self, path: str | None, head: dict[str, Any]):
        self.path, self.found = path and Path(path), head | {"steps": []}
        self.write()

    def write(self) -> None:
        if self.path:
            partial_file = self.path.with_name(self.path.name + ".partial")
            partial_file.write_text(json.dumps(self.found, indent=1) + "\n")
            partial_file.replace(self.path)

    def add(self, line: str, **found: Any) -> None:
        self.found["steps"].append(found)
        self.write()
        print(line, flush=True)


def measure(config: ConfigDict, name: str, flags: argparse.Namespace, results: Results) -> None:
    """One stage at each batch size: ours alone, then in turns with each peer."""
    cached = bool(flags.cached and STAGES[name].reads_features(config))
    what = {"stage": name, "dtype": config.dtype, "from": "cache" if cached else "audio"}
    ours = attempt(lambda: Ours(config, name, cached), results, what | {"way": "ours"})
    for size in flags.batch_size if ours else ():
        sized = what | {"batch_size": size}
        if attempt(partial(_measure_ours, ours, flags, results, sized), results, sized | {"way": "ours"}):
            for peer in flags.peer if name == "diffusion" and cached else ():
                measured = partial(_measure_peer, config, ours, peer, flags, results, sized)
                attempt(measured, results, sized | {"way": peer})


def _measure_ours(ours: Ours, flags: argparse.Namespace, results: Results, what: dict) -> bool:
    ours.prepare(what["batch_size"])
    ours.run(WARM_UP)
    median = statistics.median(in_turns({"ours": ours}, flags.steps)["ours"])
    found = _row(ours, ours, median, what | {"way": "ours"}, results)
    found |= {"trace_seconds": ours.trace_seconds, "compile_seconds": ours.compile_seconds}
    found |= {"products": ours.products, "flops_by_xla": ours.counted_by_xla}
    further = f", {ours.products / 1e12:.3f} TFLOP of products"
    if ours.counted_by_xla:
        further += f" ({ours.counted_by_xla / 1e12:.3f} of all kinds by XLA's count)"
    if what["stage"] == "diffusion" and what["from"] == "cache":
        found["unet_products"] = ours.unet_products()
        further += f", {ours.products / found['unet_products']:.3f} times the UNet's forward"
    times = f"traced {ours.trace_seconds:.1f} s, compiled {ours.compile_seconds:.1f} s"
    stats = next(iter(ours.state["step"].devices())).memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        found["process_peak_gb"] = stats["peak_bytes_in_use"] / 1e9
        times += f", {found['process_peak_gb']:.1f} GB the most so far"
    results.add(f"{_line(found)}  {times}{further}", **found)
    return True


def _measure_peer(
    config: ConfigDict, ours: Ours, peer: str, flags: argparse.Namespace, results: Results, what: dict
) -> None:
    from torch_step import Theirs  # not before ours is measured, which needs no PyTorch

    theirs = Theirs(config, ours, compiled=peer == "compiled")
    try:
        first = seconds(theirs, 1)
        theirs.run(WARM_UP)
        times = in_turns({"ours": ours, peer: theirs}, flags.steps)
        found = _row(theirs, ours, statistics.median(times[peer]), what | {"way": peer}, results)
        found["first_step_seconds"] = first
        found["ours_ms"] = 1e3 * statistics.median(times["ours"])
        found["ratio"] = statistics.median(their / our for their, our in zip(times[peer], times["ours"]))
        beside = f"first step {first:.1f} s; ours in turns {found['ours_ms']:.1f} ms: ratio {found['ratio']:.3f}"
        results.add(f"{_line(found)}  {beside}", **found)
    finally:
        theirs.close()


def _row(way: Any, ours: Ours, median: float, what: dict[str, Any], results: Results) -> dict[str, Any]:
    rate = results.found["matrix_flops"] * ours.mesh.devices.size
    return what | {
        "ms": 1e3 * median,
        "examples_per_second": what["batch_size"] / median,
        "mfu": ours.products / median / rate,
        "gb": way.memory(),
    }


def _head(what: dict[str, Any]) -> str:
    return f"{what['stage']:<15}{what.get('batch_size', ''):>5}  {what['way']:<9}"


def _line(found: dict[str, Any]) -> str:
    memory = "" if found["gb"] is None else f"{found['gb']:.1f} GB"
    return (
        f"{_head(found)}{found['ms']:>10.1f} ms{found['examples_per_second']:>9.2f} /s"
        f"{100 * found['mfu']:>7.1f} % MFU{memory:>10}"
    )


def attempt(part: Callable[[], Any], results: Results, what: dict[str, Any]) -> Any:
    """What `part` returns, None where it fails: that is told in a line."""
    try:
        return part()
    except Exception as error:
        message = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:300]}"
        results.add(f"{_head(what)}  failed: {message}", **what, error=message)
        return None
    finally:
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="music:base", help="a recipe, as of the command train")
    parser.add_argument("--stage", default="diffusion", choices=("all", *STAGES))
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1 if CPU else 16], help="examples a step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation; default: the recipe's")
    parser.add_argument("--peer", default="eager,compiled" if GPU else "eager", help="eager, compiled, both, or none")
    parser.add_argument("--steps", type=int, default=20, help="steps measured of each")
    parser.add_argument("--attention", default="auto", choices=("auto", "xla"), help="xla: never by a GPU's kernel")
    parser.add_argument("--json", help="file for the results")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cached", action="store_true", default=True, help="without the frozen networks (default)")
    source.add_argument(
        "--from_audio", dest="cached", action="store_false", help="with the frozen networks in the step"
    )
    flags = parser.parse_args()
    flags.peer = [] if flags.peer == "none" else flags.peer.split(",")
    if unknown := sorted({*flags.peer} - {*PEERS}):
        parser.error(f"--peer {unknown[0]}: choose from {', '.join(PEERS)} and none")
    try:
        config = ConfigDict(config_files.load(flags.config).to_dict())
    except ValueError as error:
        parser.error(f"--config: {error}")
    if flags.dtype:
        config.dtype = flags.dtype
    if flags.attention == "xla":
        layers._has_kernel = lambda query, key: False
    if flags.peer:
        config.train.diffusion.optimizer = "adamw"  # the twin's
    config.loa.training_poolings = (config.loa.pooling,)  # each is an executable of its own
    rate = matrix_rate(config.dtype)
    installed = [name for name in VERSIONS if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in installed}
    kind = platform.processor() or platform.machine() if CPU else jax.devices()[0].device_kind
    head = {"config": flags.config, "device": kind, "devices": jax.device_count(), "dtype": config.dtype}
    head["attention"] = flags.attention
    results = Results(flags.json, head | {"versions": versions, "matrix_flops": rate, "turn": TURN})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{kind} × {jax.device_count()}; Python {platform.python_version()}, {listed}")
    print(f"{flags.config}, {config.dtype}; product of two matrices {rate / 1e12:.4g} TFLOP/s", flush=True)
    for name in STAGES if flags.stage == "all" else [flags.stage]:
        measure(config, name, flags, results)
    if not any("ms" in found for found in results.found["steps"]):
        sys.exit("nothing could be measured")


if __name__ == "__main__":
    main()
