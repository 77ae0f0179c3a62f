"""How many floating-point operations a step needs, and which share of the devices' peak a training reaches (MFU).

Counted in JAX's own text of the step (its jaxpr) are products of matrices and convolutions, a multiplication and an
addition as two operations, as PaLM (Chowdhery et al. 2022, appendix B) and MaxText define the model FLOPs of MFU: each
as often as its loop runs it, without what the backward pass computes a second time to save memory (`jax.checkpoint`),
and without what nothing is made of. Of a convolution every tap counts for every output, padding too, as PyTorch's
FlopCounterMode has it.

XLA's `cost_analysis` is another number. It counts a loop's body once however often it runs, so that microbatches and
the tokens that GPT-2 writes would be missing; it knows nothing of what cuDNN computes; and it counts what is
recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal
from jax.sharding import Mesh

from audioldm2_jax.runtime import chips

_RECOMPUTED = "rematted_computation"  # the scope in which jax.checkpoint computes again


class Utilization:
    """What steps come to on the devices of a mesh.

    Attributes:
        peak: FLOP/s of one of them in the type of the computation; None where it is not known, as of CPUs.
    """

    def __init__(self, mesh: Mesh, dtype: str):
        self._devices = mesh.devices.size
        self.peak = chips.peak(mesh.devices.flat[0].device_kind, dtype)

    def of_device(self, flops: float) -> float:
        """Returns a device's share of the operations of all."""
        return flops / self._devices

    def scalars(self, rate: float) -> dict[str, float]:
        """Returns what is logged of `rate` operations a second on each device: MFU, too, where the peak is known."""
        return {"flops_per_second": rate} | ({"mfu": rate / self.peak} if self.peak else {})

    def shown(self, rate: float) -> str:
        """Returns the same in words."""
        return f"{rate / self.peak:.1%} MFU" if self.peak else f"{rate / 1e9:.3g} GFLOP/s a device"


def count(traced: jax.stages.Traced, platform: str) -> float:
    """Returns the operations of a traced function (`jitted.trace(…)`): those of all devices and hosts together.

    Of branches the one with the most operations counts, of a loop whose end is not known beforehand one turn. Kernels
    other than attention's are not known here.

    Args:
        platform: of the devices, `device.platform`, by which `jax.lax.platform_dependent` chooses.
    """
    jaxpr = traced.jaxpr.jaxpr
    return float(_of(jaxpr, [True] * len(jaxpr.outvars), "cuda" if platform == "gpu" else platform))


def _of(jaxpr: Any, wanted: Sequence[bool], platform: str) -> float:
    """Returns the operations that the wanted ones among the results take."""
    total, live = 0, {var for var, is_wanted in zip(jaxpr.outvars, wanted) if is_wanted and type(var) is not Literal}
    for equation in reversed(jaxpr.eqns):
        used = [var in live for var in equation.outvars]
        if any(used) or equation.effects:
            live.update([var for var in equation.invars if type(var) is not Literal])
            total += _of_equation(equation, used, platform)
    return total


def _of_equation(equation: Any, used: Sequence[bool], platform: str) -> float:
    name, params = equation.primitive.name, equation.params
    own = _COUNTED.get(params.get("name") if name == "jit" else name)
    inside = [] if own else _inside(params)
    if not (own or inside) or _RECOMPUTED in str(equation.source_info.name_stack):
        return 0
    if own:
        return own(equation)
    if name == "cond":
        chosen = _chosen(params.get("branches_platforms"), platform)
        return max(_of(branch, used, platform) for branch in (inside if chosen is None else [inside[chosen]]))
    # What a loop carries is used by its next turn.
    same = name not in ("scan", "while") and all(len(inner.outvars) == len(used) for inner in inside)
    turns = {"scan": params.get("length"), "shard_map": _devices(params)}.get(name, 1)
    return turns * sum(_of(inner, used if same else [True] * len(inner.outvars), platform) for inner in inside)


def _devices(params: dict[str, Any]) -> int:
    """Returns how many devices do what is in a `jax.shard_map`, each of them on a part of its own."""
    mesh = params.get("mesh")
    return mesh.size if mesh is not None else 1


def _inside(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs in the parameters of an equation."""
    found = []
    for value in params.values():
        for one in value if type(value) is tuple else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def _chosen(platforms: Sequence[Sequence[str] | None] | None, platform: str) -> int | None:
    """Returns which branch of `jax.lax.platform_dependent` is taken, None where branches do not go by platforms."""
    return next((n for n, names in enumerate(platforms or ()) if names is None or platform in names), None)


def _of_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> float:
    """Every output meets every tap of its kernel, but for the zeros between the elements of a dilated input."""
    params, kernel = equation.params, equation.invars[1].aval.shape
    met = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * met / math.prod(params["lhs_dilation"])


def _of_attention(products: int) -> Callable[[Any], int]:
    """Of a kernel that is given query [batch, n, heads, dim], key [batch, m, heads, dim] and so on.

    Args:
        products: of matrices; backward those of the formula, not the scores, which it computes again.
    """

    def own(equation: Any) -> int:
        query, key = (operand.aval.shape for operand in equation.invars[:2])
        return products * 2 * math.prod(query) * key[1]

    return own


_COUNTED = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_convolution,
    "dot_product_attention_fwd_wrapper": _of_attention(2),
    "dot_product_attention_bwd_wrapper": _of_attention(4),
    "tpu_attention_forward": _of_attention(2),
    "tpu_attention_backward": _of_attention(4),
}
