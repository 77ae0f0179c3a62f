"""How many operations a second accelerators can do at most, by their makers' data sheets, without sparsity.

TPUs: jax-ml.github.io/scaling-book/tpus, and cloud.google.com/tpu/docs/v4. XLA computes their products of float32
numbers in bfloat16, unless a precision is asked for, so that there is one rate.
NVIDIA's: the data sheets of the A100, H100 (SXM, PCIe: the Hopper white paper), H100 NVL, H200, H200 NVL and L4 Tensor
Core GPUs. Their float32 is TF32, in which XLA computes there unless a precision is asked for.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """FLOP/s of products of matrices, by the type of their numbers."""

    bfloat16: float
    float32: float


PEAKS = {
    "v4": Peak(275e12, 275e12),
    "v5e": Peak(197e12, 197e12),
    "v5p": Peak(459e12, 459e12),
    "v6e": Peak(918e12, 918e12),
    "A100": Peak(312e12, 156e12),
    "H100 SXM": Peak(989.4e12, 494.7e12),
    "H100 PCIe": Peak(756e12, 378e12),
    "H100 NVL": Peak(835.5e12, 417.5e12),
    "H200 SXM": Peak(989.4e12, 494.7e12),
    "H200 NVL": Peak(835.5e12, 417.5e12),
    "L4": Peak(121e12, 60e12),
}
# JAX's `device_kind`. A part of a GPU (MIG) has a longer name, and is none of these.
_KINDS = {
    r"TPU v4": "v4",
    r"TPU v5 lite|TPU v5e": "v5e",
    r"TPU v5|TPU v5p": "v5p",
    r"TPU v6 lite|TPU v6e": "v6e",
    r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": "A100",
    r"NVIDIA H100 \d+GB HBM\w+": "H100 SXM",
    r"NVIDIA H100 PCIe": "H100 PCIe",
    r"NVIDIA H100 NVL": "H100 NVL",
    r"NVIDIA H200": "H200 SXM",
    r"NVIDIA H200 NVL": "H200 NVL",
    r"NVIDIA L4": "L4",
}


def peak(device_kind: str, dtype: str) -> float | None:
    """Returns the FLOP/s of a device of JAX ("TPU v5 lite") for products of a type; None where nobody has said it."""
    name = next((name for kind, name in _KINDS.items() if re.fullmatch(kind, device_kind)), None)
    return getattr(PEAKS[name], dtype, None) if name and dtype in Peak._fields else None
