"""A plan as text and as a picture."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from audioldm2_jax.planning import timeline

_ROWS = 16  # modules shown
_WORTH = 1e-3  # share of the step below which something is not shown by itself


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a plan (`estimate.estimate`)."""
    setting, topology = plan["setting"], plan["topology"]
    chip = topology["chip"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in setting["mesh"].items())
    features = "cached features" if setting["cached"] else "sound"
    yield f"{setting['config']}, stage {setting['stage']} from {features}, on {topology['name']}"
    yield (
        f"  {topology['chips']} chips of {chip['flops'] / 1e12:g} TFLOP/s, mesh {mesh}; batch {setting['batch_size']}, "
        f"{setting['batch_size'] / topology['chips']:g} a chip"
        + (f", in {setting['accumulate']} microbatches" if setting["accumulate"] > 1 else "")
    )
    if setting["variants"] > 1:
        yield f"  variant {setting['variant']} of {setting['variants']}, each an executable of its own (--variant)"
    for kind, networks in plan["parameters"].items():
        if networks:
            parts = ", ".join(f"{name} {count:,}" for name, count in networks.items())
            yield f"  parameters {kind}: {sum(networks.values()):,} ({parts})"
    yield ""
    yield from _memory(plan)
    if plan["fits"]:
        yield ""
        yield from _time(plan)
        yield ""
        yield from _modules(plan)
        yield ""
        yield from _not_estimated(plan)
        yield ""
        yield from _whole(plan)


def _memory(plan: dict[str, Any]) -> Iterator[str]:
    memory, advice, setting = plan["memory"], plan["advice"], plan["setting"]
    capacity, total = memory["capacity"], memory["total"]
    yield "memory of a chip, GB"
    for kind, size in memory["kinds"].items():
        if size:
            yield f"  {kind:<28}{size / 1e9:10.3f}"
    if total is not None:
        yield f"  {'all':<28}{total / 1e9:10.3f}  of {capacity / 1e9:.2f} ({total / capacity:.0%})"
    stage = setting["stage"]
    if plan["fits"]:
        if advice.get("batch_size", 0) > setting["batch_size"]:
            yield f"  would fit, too: --config.train.{stage}.batch_size={advice['batch_size']}{_GUESSED}"
        if "smallest" in advice:
            yield f"  would fit, too: --topology={advice['smallest']}{_GUESSED}"
        return
    over = "" if total is None else f" by {(total - capacity) / 1e9:.2f} GB"
    yield f"DOES NOT FIT{over}"
    if "batch_size" in advice:
        yield f"  a smaller batch: --config.train.{stage}.batch_size={advice['batch_size']}{_GUESSED}"
    if "fsdp" in advice:
        yield f"  weights and state shared out: --config.mesh.fsdp={advice['fsdp']}{_GUESSED}"
    if setting["remat"] is False:
        yield "  activations recomputed in the backward pass, for about a third more arithmetic: --config.remat=True"
    if setting["accumulate"] == 1 and setting["batch_size"] % (2 * plan["topology"]["chips"]) == 0:
        yield f"  the same batch in parts: --config.train.{stage}.accumulate=2"


_GUESSED = " (activations taken to grow with the batch: not compiled)"


def _time(plan: dict[str, Any]) -> Iterator[str]:
    seconds, roofline = plan["seconds"], plan["roofline"]
    line = plan["timeline"]
    yield f"a step: {seconds * 1e3:.2f} ms, MFU {plan['mfu']:.1%}, {plan['examples_per_second']:,.1f} examples/s"
    yield f"  the compiler's cycles       {plan['estimated_by_compiler'] * 1e3:10.2f} ms"
    exposed = {
        "waiting for links": sum(tally["exposed"] for *_, tally in line["collectives"]),
        "waiting for copies": line["copies"]["exposed"],
        "custom kernels": sum(tally["exposed"] for tally in line["kernels"].values()),
        "others": sum(tally["exposed"] for tally in line["others"].values()),
    }
    for name, value in exposed.items():
        if value >= _WORTH * seconds:
            yield f"  {name:<28}{value * 1e3:10.2f} ms"
    yield (
        f"roofline: arithmetic {roofline['arithmetic'] * 1e3:.2f} ms ({plan['flops'] / 1e12:.4g} TFLOP a chip), memory "
        f"{roofline['memory'] * 1e3:.2f} ms ({plan['bytes'] / 1e9:.4g} GB, on-chip memory included), links "
        f"{roofline['links'] * 1e3:.2f} ms; bound by {max(roofline, key=roofline.__getitem__)}"
    )


def grouped(modules: list[list[Any]], depth: int = 3) -> dict[str, dict[str, float]]:
    """Returns seconds by pass of each module down to a depth, the longest first.

    Below a block what differs by its number alone is one: attentions_0 and attentions_1 are "attentions".
    """
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for path, phase, seconds in modules:
        parts = path.split("/")[:depth]
        parts[2:] = [re.sub(r"_\d+$", "", part) for part in parts[2:]]
        found["/".join(parts) or "outside of modules (noise, losses, front ends)"][phase] += seconds
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def _modules(plan: dict[str, Any]) -> Iterator[str]:
    whole, rows = plan["seconds"], grouped(plan["timeline"]["modules"])
    yield "time by module, ms" + " " * 28 + "  forward  backward  recomputed   share"
    shown = [*rows.items()][:_ROWS]
    rest: dict[str, float] = defaultdict(float)
    for _, phases in [*rows.items()][_ROWS:]:
        for phase, seconds in phases.items():
            rest[phase] += seconds
    for name, phases in [*shown, *([(f"{len(rows) - _ROWS} more", rest)] if rest else [])]:
        columns = "".join(
            f"{phases.get(phase, 0.0) * 1e3:{width}.2f}"
            for phase, width in (("forward", 9), ("backward", 10), ("recomputed", 12))
        )
        yield f"  {name:<44}{columns}{sum(phases.values()) / whole:8.1%}"


def _not_estimated(plan: dict[str, Any]) -> Iterator[str]:
    line = plan["timeline"]
    yield "not estimated by the compiler, and reckoned here:"
    yield f"  {'collectives':<24}{'link':>5}{'count':>9}{'MB':>12}{'ms':>10}{'waited ms':>11}"
    for kind, link, tally in line["collectives"]:
        yield (
            f"  {kind:<24}{link:>5}{tally['count']:>9,.0f}{tally['bytes'] / 1e6:>12,.2f}{tally['seconds'] * 1e3:>10.3f}"
            f"{tally['exposed'] * 1e3:>11.3f}"
        )
    if not line["collectives"]:
        yield "  none"
    copies = line["copies"]
    yield (
        f"  copies between memories: {copies['count']:,.0f}, {copies['bytes'] / 1e6:,.1f} MB; waited for "
        f"{copies['exposed'] * 1e3:.3f} ms"
    )
    for name, tally in line["kernels"].items():
        yield (
            f"  custom kernel {name}: {tally['count']:,.0f}, {tally['flops'] / 1e12:.4g} TFLOP, "
            f"{tally['bytes'] / 1e6:,.1f} MB; {tally['seconds'] * 1e3:.3f} ms at "
            f"{timeline.KERNEL_SHARE:.0%} of the peak"
        )
    others = sorted(line["others"].items(), key=lambda item: -item[1]["seconds"])
    total, count = (sum(tally[key] for _, tally in others) for key in ("seconds", "count"))
    names = ", ".join(f"{name} {tally['count']:,.0f}" for name, tally in others[:6])
    yield f"  others by their bytes: {count:,.0f} ({names}{', …' if len(others) > 6 else ''}); {total * 1e3:.3f} ms"
    for note, count in line["notes"].items():
        yield f"  {note}: {count:,}"


def _whole(plan: dict[str, Any]) -> Iterator[str]:
    setting = plan["setting"]
    cost = "" if plan["cost"] is None else f", {_rounded(plan['cost'])} USD at {setting['price']:g} a chip hour"
    yield (
        f"{setting['steps']:,} steps: {_rounded(plan['days'])} days, {_rounded(plan['chip_hours'])} chip hours{cost}; "
        "data, saving and evaluation are not in it"
    )


def _rounded(value: float) -> str:
    """Returns a number with three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(plan: dict[str, Any]) -> bytes:
    """Returns where the time of a step goes, as a PNG file."""
    from matplotlib.figure import Figure

    rows = {name: dict(phases) for name, phases in [*grouped(plan["timeline"]["modules"]).items()][:24]}
    waits = sum(tally["exposed"] for *_, tally in plan["timeline"]["collectives"])
    if waits:
        rows["waiting for links"] = {"waiting": waits}
    figure = Figure(figsize=(10, 1.5 + 0.28 * len(rows)), layout="constrained")
    axis = figure.subplots()
    left = dict.fromkeys(rows, 0.0)
    for phase in ("forward", "backward", "recomputed", "waiting"):
        widths = [rows[name].get(phase, 0.0) * 1e3 for name in rows]
        if any(widths):
            axis.barh([*rows], widths, left=[*left.values()], label=phase)
            left = {name: left[name] + width for name, width in zip(rows, widths)}
    axis.invert_yaxis()
    axis.set_xlabel("ms of a step, as the compiler estimates it")
    axis.legend()
    setting = plan["setting"]
    axis.set_title(
        f"{setting['config']}, {setting['stage']}, {plan['topology']['name']}: {plan['seconds'] * 1e3:.1f} ms, "
        f"MFU {plan['mfu']:.1%}"
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    return drawn.getvalue()
