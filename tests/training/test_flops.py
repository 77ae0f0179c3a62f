"""What a step is counted as, by other counters and by hand; and what is logged of it."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Line, config

from audioldm2_jax.models.layers import attend
from audioldm2_jax.runtime import chips
from audioldm2_jax.stages.base import Objective
from audioldm2_jax.training import flops

ROOT = Path(__file__).parents[2]
SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)
PRODUCT = 2 * 64**3


def counted(function, *shapes, platform="cpu"):
    return flops.count(jax.jit(function).trace(*shapes), platform)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    size=st.integers(6, 9),
    taps=st.integers(1, 3),
    stride=st.integers(1, 2),
    groups=st.sampled_from((1, 2, 4)),
    apart=st.integers(1, 2),
)
def test_convolutions_without_padding_are_what_xla_counts(batch, size, taps, stride, groups, apart):
    """XLA counts no products with padding, and neither has these."""

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        options = {"rhs_dilation": (1, apart), "feature_group_count": groups, "dimension_numbers": numbers}
        return jax.lax.conv_general_dilated(x, kernel, (stride, 1), "VALID", **options)

    x = jax.ShapeDtypeStruct((batch, size, size, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((taps, 2, 4 // groups, 8), jnp.float32)
    assert counted(convolve, x, kernel) == jax.jit(convolve).lower(x, kernel).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("stride", "groups", "transposed"), [(1, 1, False), (2, 1, False), (2, 4, False), (2, 1, True)]
)
def test_convolutions_and_their_gradients_are_what_pytorch_counts(stride, groups, transposed):
    """On channels and lengths of which the strides divide all."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    taps = 3 if stride == 1 else 4
    x, padding = torch.zeros(2, 8, 16, requires_grad=True), (taps - stride + 1) // 2
    module = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    with FlopCounterMode(display=False) as theirs:
        module(8, 12, taps, stride, padding, bias=False)(x).sum().backward()

    def convolve(x, kernel):
        low = taps - 1 - padding if transposed else padding
        strides, spread = ((1,), (stride,)) if transposed else ((stride,), (1,))
        made = jax.lax.conv_general_dilated(x, kernel, strides, [(low, low)], lhs_dilation=spread)
        return (made**2).sum()  # of a mere sum XLA needs no product

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 16), (12, 8, taps))]
    assert counted(jax.value_and_grad(convolve, (0, 1)), *shapes) == theirs.get_total_flops()


def test_a_loop_counts_as_often_as_it_runs():
    def turns(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0]

    assert counted(turns, SQUARE, SQUARE) == 5 * PRODUCT
    assert jax.jit(turns).lower(SQUARE, SQUARE).compile().cost_analysis()["flops"] < 2 * PRODUCT  # why it is not asked


def test_recomputing_is_no_work():
    def loss(wrapped, w, x):
        return wrapped(lambda x: jnp.sin(jnp.sin(x @ w) @ w))(x).sum()

    for wrapped in (jax.checkpoint, lambda function: function):
        found = counted(jax.value_and_grad(partial(loss, wrapped)), SQUARE, SQUARE)
        assert found == (2 + 3) * PRODUCT  # two forward; all gradients but that of x


def test_what_nothing_is_made_of_is_no_work():
    @jax.jit
    def two(x, w):
        return x @ w, x @ w @ w

    assert counted(lambda x, w: two(x, w)[0], SQUARE, SQUARE) == PRODUCT


def test_branches():
    def by_platform(x, w):
        return jax.lax.platform_dependent(x, w, cpu=lambda x, w: x, default=lambda x, w: x @ w)

    def by_value(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert counted(by_platform, SQUARE, SQUARE) == 0
    assert counted(by_platform, SQUARE, SQUARE, platform="tpu") == PRODUCT
    assert counted(jax.grad(lambda *given: by_platform(*given).sum()), SQUARE, SQUARE, platform="tpu") == PRODUCT
    assert counted(by_value, SQUARE, SQUARE) == 2 * PRODUCT


def test_a_kernel_counts_as_its_formula(monkeypatch):
    """cuDNN's attention, traced as on a machine that has it, and that of TPUs: as many as elsewhere, either way."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: SimpleNamespace(platform_version="cuda 13000"))
    query, key = (jax.ShapeDtypeStruct((2, length, 4, 32), jnp.bfloat16) for length in (250, 72))

    def loss(*given):
        return attend(*given).astype(jnp.float32).sum()

    wanted = 2 * 2 * 250 * 72 * 4 * 32
    for function, products in ((loss, 2), (jax.value_and_grad(loss, (0, 1, 2)), 6)):
        traced = jax.jit(function).trace(query, key, key)
        assert "dot_product_attention_fwd" in str(traced.jaxpr)
        assert [flops.count(traced, platform) for platform in ("gpu", "tpu", "cpu")] == [products * wanted] * 3
        assert "tpu_attention_forward" in str(traced.jaxpr)


class Twofold(Line):
    """Two kinds of steps, of which the second has twice the products."""

    def variant(self, step):
        return 1 + step % 2

    def objectives(self, variant):
        return (Objective("fit", ("line",), lambda *given: self._loss(variant, *given)),)

    def _loss(self, variant, params, outputs, state, frozen, batch, rngs):
        losses = [(batch["waveform"] @ params["line"]["kernel"] - number) ** 2 for number in range(variant)]
        return jnp.mean(sum(losses)), ({}, state)


STEP = 2 * 2 * 8 * toys.WIDTH**2  # batch times kernel, and the kernel's gradient


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "examples_per_second" in line]


def test_what_is_logged(tmp_path):
    """Operations a second are those of the steps of the interval, whichever variants these were; on CPUs no MFU."""
    _, said = toys.train(Twofold(config(steps=9, log_every=4), {}), tmp_path)
    first, *others = rows(tmp_path)
    assert "flops_per_second" not in first  # it compiles
    for row, steps in zip(others, ((2, 1, 2), (1, 2, 1, 2), (1,)), strict=True):
        rate = row["examples_per_second"] / 8
        assert row["flops_per_second"] == pytest.approx(rate * STEP * sum(steps) / len(steps))
    assert others[-1]["flops_all"] == (5 + 2 * 4) * STEP
    assert not any("mfu" in row for row in rows(tmp_path))
    (told,) = (line for line in said.lines if "of the time" in line)
    assert re.search(r"; steps at [\d.e+-]+ GFLOP/s a device$", told)


def test_mfu_where_the_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "_KINDS", {"cpu": "Z80"})
    monkeypatch.setattr(chips, "PEAKS", {"Z80": chips.Peak(2e9, 1e9)})
    _, said = toys.train(Line(config(steps=4), {}), tmp_path)
    assert all(row["mfu"] == row["flops_per_second"] / 1e9 for row in rows(tmp_path)[1:])
    (told,) = (line for line in said.lines if "of the time" in line)
    assert re.search(r"; steps at [\d.]+% MFU$", told)


TWO_DEVICES = """
import sys, jax, json, pathlib, toys
from audioldm2_jax.training import flops
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.ShapeDtypeStruct((64, 64), "float32", sharding=jax.NamedSharding(mesh, jax.P("data")))
whole = jax.ShapeDtypeStruct((64, 64), "float32", sharding=jax.NamedSharding(mesh, jax.P()))
traced = jax.jit(lambda x, w: x @ w).trace(rows, whole)
all = flops.count(traced, "cpu")
assert all == 2 * 64**3, all
own = flops.Utilization(mesh, "float32").of_device(all)
assert own == all / 2 == traced.lower().compile().cost_analysis()["flops"], own
toys.train(toys.Line(toys.config(steps=3), {}), pathlib.Path(sys.argv[1]))
"""


def test_of_several_devices_each_has_its_share(tmp_path):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", TWO_DEVICES, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path)[1:]:
        assert row["flops_per_second"] == pytest.approx(row["examples_per_second"] / 8 * STEP / 2)


@pytest.mark.parametrize(
    ("kind", "dtype", "wanted"),
    [
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v6 lite", "float32", 918e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100 80GB PCIe", "float32", 156e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "float32", 494.7e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA L40S", "bfloat16", None),
        ("TPU v5 lite", "float64", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, dtype, wanted):
    assert chips.peak(kind, dtype) == wanted
