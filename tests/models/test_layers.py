"""The shared layers whose gradients or layouts are our own, against Flax and plain formulas."""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from audioldm2_jax.models.layers import Dense, GroupNorm, LayerNorm, Upsample, attend, conv3x3, gelu

# float32: sums of some hundred terms in another order.
TOLERANCE = 2e-5


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("ours", "flax", "shape"),
    [
        (GroupNorm(4, 1e-5, jnp.float32), nn.GroupNorm(4, epsilon=1e-5), (2, 5, 3, 8)),
        (LayerNorm(1e-5, jnp.float32), nn.LayerNorm(epsilon=1e-5), (2, 5, 8)),
        (Dense(6, jnp.float32), nn.Dense(6), (2, 5, 8)),
    ],
    ids=["group", "layer", "dense"],
)
def test_values_and_gradients_equal_flax(ours: nn.Module, flax: nn.Module, shape: tuple[int, ...]) -> None:
    x = 3 + 2 * draw(*shape)
    variables = jax.tree.map(lambda leaf: draw(*leaf.shape), jax.eval_shape(flax.init, jax.random.key(0), x))

    def loss(module: nn.Module, variables: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(module.apply(variables, x)).sum()

    got, wanted = (jax.value_and_grad(loss, argnums=(1, 2))(module, variables, x) for module in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE), got, wanted)


@pytest.mark.parametrize("norm", [GroupNorm(2, 1e-6, jnp.bfloat16), LayerNorm(1e-6, jnp.bfloat16)])
def test_statistics_are_float32_and_a_constant_is_finite(norm: nn.Module) -> None:
    x = (100 + draw(1, 4, 4, 8)).astype(jnp.bfloat16)
    variables = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    wanted = norm.clone(dtype=jnp.float32).apply(variables, x.astype(jnp.float32))
    got = norm.apply(variables, x)
    # One rounding to bfloat16 at the end, of values up to 4.
    assert got.dtype == jnp.bfloat16 and np.abs(got.astype(jnp.float32) - wanted).max() < 0.02
    constant = jnp.full((1, 4, 4, 8), 1000.0)
    gradient = jax.grad(lambda x: norm.apply(variables, x).astype(jnp.float32).sum())(constant)
    assert np.isfinite(norm.apply(variables, constant)).all() and np.isfinite(gradient).all()


def test_attend_is_softmax_attention() -> None:
    query, key, value, bias = draw(2, 3, 2, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 4), draw(2, 5)
    wanted = jax.nn.dot_product_attention(query, key, value, bias[:, None, None, :])
    np.testing.assert_allclose(attend(query, key, value, bias), wanted, atol=1e-6)


def test_many_queries_in_turns_change_neither_values_nor_gradients() -> None:
    query, key, value, bias = draw(1, 600, 2, 4), draw(1, 520, 2, 4), draw(1, 520, 2, 4), draw(1, 520)

    def loss(ours: bool, *given: jax.Array) -> jax.Array:
        *three, bias = given
        if ours:
            return jnp.sin(attend(*three, bias)).sum()
        return jnp.sin(jax.nn.dot_product_attention(*three, bias[:, None, None, :])).sum()

    got, wanted = (jax.value_and_grad(partial(loss, way), range(4))(query, key, value, bias) for way in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE), got, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gelu_in_half_precision_is_rounded_and_nothing_else(dtype: jnp.dtype) -> None:
    """Values and gradients within the rounding of their type of PyTorch's in double precision, far out, too."""
    torch = pytest.importorskip("torch")
    x = jnp.linspace(-12, 12, 4801).astype(dtype)
    exact = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    wanted = torch.nn.functional.gelu(exact)
    wanted.sum().backward()
    rounding = float(jnp.finfo(dtype).eps)
    for got, theirs in ((gelu(x), wanted.detach()), (jax.vmap(jax.grad(gelu))(x), exact.grad)):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), theirs.numpy(), rtol=rounding, atol=2e-6)


KERNELS = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]


@pytest.mark.parametrize(
    ("shape", "keys", "dtype", "platform", "kernels"),
    [
        ((2, 1024, 4, 32), 1024, jnp.bfloat16, "cuda", KERNELS),
        ((2, 256, 4, 32), 256, jnp.bfloat16, "cuda", KERNELS),
        ((2, 1024, 4, 32), 1024, jnp.bfloat16, "cpu", []),
        ((2, 1024, 4, 32), 1024, jnp.bfloat16, "tpu", []),
        ((2, 1024, 4, 32), 1024, jnp.float32, "cuda", []),
        ((2, 1024, 4, 32), 8, jnp.bfloat16, "cuda", []),  # scores no larger than the queries
        ((2, 1024, 4, 36), 1024, jnp.bfloat16, "cuda", []),
        ((2, 1024, 1, 512), 1024, jnp.bfloat16, "cuda", []),
    ],
)
def test_attends_by_cudnn_where_it_can(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    keys: int,
    dtype: jnp.dtype,
    platform: str,
    kernels: list[str],
) -> None:
    """What a process with an NVIDIA GPU lowers for it, and for other platforms, forward and backward."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: SimpleNamespace(platform_version="cuda 13000"))
    query = jax.ShapeDtypeStruct(shape, dtype)
    key = jax.ShapeDtypeStruct((shape[0], keys, *shape[2:]), dtype)

    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(*given: jax.Array) -> jax.Array:
        return attend(*given).astype(jnp.float32).sum()

    text = jax.jit(gradient).trace(query, key, key).lower(lowering_platforms=(platform,)).as_text()
    assert sorted(set(re.findall(r"__cudnn\$fmha\w+", text))) == kernels


def test_upsample_equals_doubling_and_a_plain_convolution() -> None:
    x, kernel, bias = draw(2, 5, 3, 4), draw(3, 3, 4, 6), draw(6)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return Upsample(6, jnp.float32).apply({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv3x3(6, jnp.float32).apply({"params": {"kernel": kernel, "bias": bias}}, x.repeat(2, 1).repeat(2, 2))

    got, wanted = (
        jax.value_and_grad(lambda *given: jnp.sin(way(*given)).sum(), (0, 1))(x, kernel)  # noqa: B023
        for way in (ours, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE), got, wanted)
    np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), rtol=TOLERANCE, atol=TOLERANCE)


def test_upsample_doubles_and_cuts() -> None:
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    variables = {"params": {"conv": {"kernel": middle, "bias": jnp.zeros(1)}}}
    got = Upsample(1, jnp.float32).apply(variables, x, (3, 4))
    assert got[0, ..., 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
