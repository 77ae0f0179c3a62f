"""What several networks share: normalisation, dense layers, convolutions, attention, ResNet blocks, resampling.

Feature maps are [batch, time, frequency, channels], sequences [batch, tokens, channels]. Parameters are float32;
`dtype` is what products are computed in. Float32 whatever it is: statistics, softmax, and the layers of a network that
meet what is heard, compared in a loss or fed back, since bfloat16 has 8 bits: log-mels would come in steps of 1/32 to
1/16, and samples in 128 steps an octave. Parameter names are those of diffusers (models/resnet.py, downsampling.py,
upsampling.py, attention_processor.py).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.extend.backend
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models import tpu_attention

# torch.nn.Linear and Conv2d draw weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x: Array, scale: Array, bias: Array, num_groups: int | None, epsilon: float) -> Array:
    """(x - mean) / √(variance + epsilon) · scale + bias, moments and result in float32: [batch, ..., c] → the same.

    num_groups None takes the moments of each position over its channels (Ba et al. 2016), a number those of each
    example over all positions and c / num_groups channels (Wu & He 2018). The gradient is written out: XLA derives
    three times the code to compile from it, and a longer way round.
    """
    return _normalise(x, scale, bias, num_groups, epsilon)[0]


def _average(x: Array, num_groups: int | None) -> Array:
    """The mean over what is normalised together, shaped to be broadcast against x [batch, ..., c]."""
    if num_groups is None:
        return x.mean(-1, keepdims=True)
    batch, *space, c = x.shape
    members = jnp.repeat(jnp.eye(num_groups, dtype=x.dtype), c // num_groups, axis=0)
    dot = partial(jnp.dot, precision="highest")
    mean = dot(dot(x.mean(tuple(range(1, x.ndim - 1))), members * (num_groups / c)), members.T)
    return mean.reshape(batch, *(1 for _ in space), c)


def _normalise(x: Array, scale: Array, bias: Array, num_groups: int | None, epsilon: float) -> tuple[Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = _average(wide, num_groups)
    variance = jnp.maximum(_average(jnp.square(wide), num_groups) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (wide - mean) * (inverse * scale) + bias, (x, mean, inverse, scale)


def _normalise_gradient(num_groups: int | None, epsilon: float, saved: tuple, grad: Array) -> tuple[Array, ...]:
    x, mean, inverse, scale = saved
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = grad * scale
    inward = scaled - _average(scaled, num_groups) - normal * _average(scaled * normal, num_groups)
    others = tuple(range(x.ndim - 1))
    return (inverse * inward).astype(x.dtype), (grad * normal).sum(others), grad.sum(others)


normalise.defvjp(_normalise, _normalise_gradient)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return normalise(x, scale, bias, None, self.epsilon).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation of [batch, ..., channels]; ValueError where the groups do not divide the channels."""

    num_groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        if c % self.num_groups:
            raise ValueError(
                f"norm_num_groups={self.num_groups} does not divide {c} channels; choose a divisor of "
                "every entry of block_out_channels"
            )
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return normalise(x, scale, bias, self.num_groups, self.epsilon).astype(self.dtype)


def gelu(x: Array) -> Array:
    """x · Φ(x), Φ the normal distribution (Hendrycks & Gimpel 2016).

    In float32 by erf; the erfc of jax.nn.gelu takes XLA:CPU three times as long. In half precision by a formula for Φ
    that is exact to 3e-7 and has the density for the gradient at hand: by the TPU compiler's estimate a transformer of
    the UNet takes a twentieth less time with it than with XLA's erf.
    """
    return _gelu_of_half(x) if x.dtype in (jnp.bfloat16, jnp.float16) else x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


@jax.custom_vjp
def _gelu_of_half(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * _normal(wide)[0]).astype(x.dtype)


def _gelu_gradient(x: Array, grad: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    below, density = _normal(wide)
    return ((grad.astype(jnp.float32) * (below + wide * density)).astype(x.dtype),)


_gelu_of_half.defvjp(lambda x: (_gelu_of_half(x), x), _gelu_gradient)


def _normal(x: Array) -> tuple[Array, Array]:
    """The normal distribution below x and its density at x (Abramowitz & Stegun 1964, formula 7.1.26)."""
    exponential = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.5**0.5 * jnp.abs(x))
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * tail * exponential
    return jnp.where(x < 0, tail, 1 - tail), exponential * (2 * jnp.pi) ** -0.5


def conv3x3(features: int, dtype: jnp.dtype, *, kernel_init: Callable = torch_uniform, **options) -> nn.Conv:
    """A 3 × 3 convolution over [batch, time, frequency, channels], padded by one all round unless told otherwise."""
    options = {"padding": 1, **options}
    return nn.Conv(features, (3, 3), dtype=dtype, kernel_init=kernel_init, **options)


class MelConv(nn.Module):
    """A convolution over natural-log mels, padded to their size, whose bias starts where an average mel gives zero.

    Log-mels lie around -5 and not around 0. A network that starts elsewhere spends its first hundreds of steps on
    finding that, since a step of Adam moves a bias by no more than the learning rate.

    In float32 but for its result: the products of an average mel and the bias cancel, and rounding them does not.
    """

    MEAN = -5.0  # near the middle of log-mels, which end at log(1e-5) = -11.5 below

    features: int
    kernel_size: tuple[int, ...]
    dtype: jnp.dtype
    kernel_init: Callable = torch_uniform

    @nn.compact
    def __call__(self, mel: Array) -> Array:
        """mel [batch, *space, in] → [batch, *space, features]."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, mel.shape[-1], self.features))
        bias = self.param("bias", lambda key: -self.MEAN * kernel.sum(tuple(range(kernel.ndim - 1))))
        space = "HW"[-len(self.kernel_size) :]
        x = jax.lax.conv_general_dilated(
            mel.astype(jnp.float32),
            kernel,
            (1,) * len(space),
            "SAME",
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        )
        return (x + bias).astype(self.dtype)


class Dense(nn.Module):
    """A linear layer as one product of two matrices: [..., in] → [..., features].

    nn.Dense keeps the leading axes, and XLA:CPU then transposes for the kernel's gradient: three times slower here.
    With `window` the kernel is that of a 1 × 1 convolution, [1, 1, in, features], which is the same product.
    """

    features: int
    dtype: jnp.dtype
    use_bias: bool = True
    window: tuple[int, ...] = ()
    kernel_init: Callable = torch_uniform

    def __call__(self, x: Array) -> Array:
        return self.products(x, 1)[0]

    @nn.compact
    def products(self, x: Array, parts: int) -> tuple[Array, ...]:
        """The features in so many equal parts: [..., in] → parts × [..., features / parts].

        On accelerators each is a product of its own, since parts that are split off one product are written and read
        once more, forward and backward.
        """
        *leading, width = x.shape
        kernel = self.param("kernel", self.kernel_init, (*self.window, width, self.features))
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        given = [x.reshape(-1, width), kernel.reshape(width, self.features)]
        if self.use_bias:
            given.append(self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))

        def linear(x: Array, kernel: Array, *bias: Array) -> Array:
            return (x @ kernel + bias[0] if bias else x @ kernel).reshape(*leading, kernel.shape[-1])

        def at_once(*given: Array) -> tuple[Array, ...]:
            return tuple(jnp.split(linear(*given), parts, axis=-1))

        def one_by_one(x: Array, *weights: Array) -> tuple[Array, ...]:
            return tuple(linear(x, *part) for part in zip(*(jnp.split(each, parts, axis=-1) for each in weights)))

        if parts == 1:
            return (linear(*given),)
        return jax.lax.platform_dependent(*given, cpu=at_once, default=one_by_one)


def conv1x1(features: int, dtype: jnp.dtype, **options) -> Dense:
    """A 1 × 1 convolution over [..., channels], with a convolution's kernel."""
    return Dense(features, dtype, window=(1, 1), **options)


# Of so many queries at a time XLA:CPU keeps the scores in its caches, a third faster than all at once from 1024 on.
_QUERIES = 256
# Of fewer keys the scores are no larger than queries and keys, and writing them out costs nothing.
_KEYS_OF_KERNEL = 64


def attend(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """softmax(query keyᵀ / √dim + bias) value (Vaswani et al. 2017, equation 1), the softmax in float32.

    query [batch, n, heads, dim]; key, value [batch, m, heads, dim]; bias [batch, m] → [batch, n, heads, dim].

    The same formula everywhere, by the platform that it is compiled for: on NVIDIA's in half precision by cuDNN, which
    keeps the scores on the chip (Dao et al. 2022), where `_has_kernel` says that it can; on TPUs by kernels that do so,
    where `tpu_attention.takes` them.
    """
    ways = {}
    if min(query.shape[1], key.shape[1]) > 2 * _QUERIES:
        ways["cpu"] = _attend_in_turns
    if bias is None and _has_kernel(query, key):
        ways["cuda"] = _attend_by_kernel
    if tpu_attention.takes(query, key):
        ways["tpu"] = tpu_attention.attend
    if not ways:
        return _attend(query, key, value, bias)
    return jax.lax.platform_dependent(query, key, value, bias, **ways, default=_attend)


def _has_kernel(query: Array, key: Array) -> bool:
    """Whether cuDNN is here, without which its kernel cannot be traced, and computes attention of these shapes."""
    dim = query.shape[-1]
    return (
        query.dtype in (jnp.bfloat16, jnp.float16)
        and dim % 8 == 0
        and dim <= 128
        and key.shape[1] >= _KEYS_OF_KERNEL
        and jax.default_backend() == "gpu"
        and "cuda" in jax.extend.backend.get_backend().platform_version.lower()
    )


def _attend_by_kernel(query: Array, key: Array, value: Array, bias: None) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _attend_in_turns(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    b, n, heads, dim = query.shape
    query = jnp.pad(query, ((0, 0), (0, -n % _QUERIES), (0, 0), (0, 0)))
    turns = query.reshape(b, -1, _QUERIES, heads, dim).swapaxes(0, 1)
    mixed = jax.lax.map(lambda some: _attend(some, key, value, bias), turns)
    return mixed.swapaxes(0, 1).reshape(b, -1, heads, dim)[:, :n]


def _attend(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    b, n, heads, dim = query.shape
    # One batch axis: XLA:CPU compiles the products in half the time and runs several heads twice as fast.
    query, key, value = (x.swapaxes(1, 2).reshape(b * heads, -1, dim) for x in (query, key, value))
    scores = jnp.einsum("bqd,bkd->bqk", query * dim**-0.5, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + jnp.repeat(bias, heads, axis=0)[:, None, :]
    mixed = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores).astype(value.dtype), value)
    return mixed.reshape(b, heads, n, dim).swapaxes(1, 2)


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a context: [batch, n, channels] → the same shape.

    use_bias concerns to_q, to_k and to_v; to_out_0 always has one. Raises ValueError where the heads do not
    divide the channels.
    """

    channels: int
    num_heads: int
    use_bias: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        def dense(use_bias: bool) -> nn.Dense:
            return Dense(self.channels, self.dtype, use_bias=use_bias)

        if self.channels % self.num_heads:
            raise ValueError(
                f"{self.num_heads} heads do not divide {self.channels} channels; attention_head_dim counts heads"
            )
        self.to_q, self.to_k, self.to_v = (dense(self.use_bias) for _ in range(3))
        self.to_out_0 = dense(True)

    def keys_values(self, context: Array) -> tuple[Array, Array]:
        """Keys and values of a context: [batch, m, dim] → twice [batch, m, heads, channels / heads]."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def __call__(self, x: Array, keys_values: tuple[Array, Array] | None = None, bias: Array | None = None) -> Array:
        """x [batch, n, channels], keys and values of a context (None: of x), bias [batch, m] added to the scores."""
        keys, values = keys_values or self.keys_values(x)
        mixed = attend(self._heads(self.to_q(x)), keys, values, bias)
        return self.to_out_0(mixed.reshape(x.shape))

    def weights(self, x: Array, keys: Array, bias: Array | None = None) -> Array:
        """How much each place attends to which token, a mean over the heads: [batch, n, tokens] float32."""
        query = self._heads(self.to_q(x))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        return jax.nn.softmax(scores if bias is None else scores + bias[:, None, None, :]).mean(1)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut: [batch, time, frequency, in] → [..., channels].

    Between the convolutions a projection of the timestep's embedding is added, which `timestep_projection` makes.
    last_init starts the second convolution; zeros make the block begin as its shortcut.
    """

    channels: int
    norm_num_groups: int
    epsilon: float
    dtype: jnp.dtype
    last_init: Callable = torch_uniform

    def setup(self) -> None:
        self.norm1, self.norm2 = (GroupNorm(self.norm_num_groups, self.epsilon, self.dtype) for _ in range(2))
        self.conv1 = conv3x3(self.channels, self.dtype)
        self.conv2 = conv3x3(self.channels, self.dtype, kernel_init=self.last_init)
        # Parameters come into being where these are called.
        self.conv_shortcut = conv1x1(self.channels, self.dtype)
        self.time_emb_proj = Dense(self.channels, self.dtype)

    def timestep_projection(self, time_embedding: Array) -> Array:
        """An embedding that went through its SiLU, [batch, dim] → [batch, channels]."""
        return self.time_emb_proj(time_embedding)

    def __call__(self, x: Array, timestep_projection: Array | None = None) -> Array:
        """timestep_projection [batch, channels], or [1, channels] for the same in the whole batch."""
        h = self.conv1(nn.silu(self.norm1(x)))
        if timestep_projection is not None:
            h = h + timestep_projection[:, None, None, :]
        h = self.conv2(nn.silu(self.norm2(h)))
        if x.shape[-1] != self.channels:
            x = self.conv_shortcut(x)
        return x.astype(h.dtype) + h


class Downsample(nn.Module):
    """A convolution of stride 2. Padding 1 all round makes n into ceil(n / 2); ((0, 1), (0, 1)) into floor(n / 2)."""

    channels: int
    dtype: jnp.dtype
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return conv3x3(self.channels, self.dtype, strides=(2, 2), padding=self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Every element doubled in time and frequency, cut to `size` (time, frequency) where given, then a convolution.

    The cut equals torch's nearest interpolation to 2n - 1, the only other size that a stride of 2 comes from.
    """

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        return _DoublingConv(self.channels, self.dtype, name="conv")(x, size)


class _DoublingConv(nn.Module):
    """What `Upsample` says, with the parameters of a 3 × 3 convolution."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None) -> Array:
        kernel = self.param("kernel", torch_uniform, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        whole = (2 * x.shape[1], 2 * x.shape[2])
        if size in (None, whole):
            y = _convolve_doubled(x, kernel)
        else:
            y = _double_and_convolve(x, kernel, size)
        return y + bias


def _double_and_convolve(x: Array, kernel: Array, size: tuple[int, int] | None = None) -> Array:
    b, t, f, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, t, 2, f, 2, c)).reshape(b, 2 * t, 2 * f, c)
    if size is not None:
        x = x[:, : size[0], : size[1]]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _convolve_doubled(x: Array, kernel: Array) -> Array:
    """As the accelerator or the CPU has it faster. The gradient is the plain formula's, which is the faster on both."""
    return jax.lax.platform_dependent(x, kernel, cpu=_convolve_in_phases, default=_double_and_convolve)


_convolve_doubled.defvjp(
    lambda x, kernel: (_convolve_doubled(x, kernel), (x, kernel)),
    lambda saved, grad: jax.vjp(_double_and_convolve, *saved)[1](grad),
)


def _convolve_in_phases(x: Array, kernel: Array) -> Array:
    """The same with 4 / 9 of the products: of the three taps in a row, two meet the two copies of one element.

    So an output at an odd place has the taps (k0 + k1, k2), one at an even place (k0, k1 + k2), and all four pairs of
    places are channels of one 2 × 2 convolution of the elements themselves.
    """
    b, t, f, _ = x.shape
    taps = jnp.asarray([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], kernel.dtype)  # [odd or even, new, old]
    phases = jnp.einsum("pij,qkl,jlco->ikcpqo", taps, taps, kernel, precision="highest")
    phases = phases.reshape(2, 2, x.shape[-1], -1)
    y = jax.lax.conv_general_dilated(x, phases, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # Between elements q - 1 and q lie the odd place of the one and the even place of the other.
    y = y.reshape(b, t + 1, f + 1, 2, 2, -1).swapaxes(2, 3).reshape(b, 2 * t + 2, 2 * f + 2, -1)
    return y[:, 1:-1, 1:-1]
