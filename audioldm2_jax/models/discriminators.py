"""The critics of the adversarial stages: PatchGAN for the mel VAE, multi-period and multi-scale for the vocoder.

Each returns (logits, features): a list with one array of logits for each critic inside it, and a list of as many
lists with the activations after each of its layers (for feature matching). They are trained, never published.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Critique = tuple[list[jax.Array], list[list[jax.Array]]]

# PyTorch's default for convolutions, U(±1 / sqrt(fan-in)), which jik876 and taming-transformers leave as it is.
_TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_SLOPE = 0.1  # of the leaky ReLUs in jik876/hifi-gan, models.py


class PatchGAN(nn.Module):
    """Judges overlapping patches of a mel (Isola et al. 2017, arXiv 1611.07004, appendix 6.1.2).

    The layers are those of `NLayerDiscriminator` in taming-transformers (taming/modules/discriminator/model.py): 4 × 4
    convolutions of stride 2, the last two of stride 1, with BatchNorm on all but the first and the last.
    widths: channels of each layer but the last; the published one has (64, 128, 256, 512).
    """

    widths: Sequence[int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: jax.Array, *, use_running_average: bool = True) -> Critique:
        """mel [batch, frames, bands, 1] → logits [batch, frames / 2^(n - 1) - 2, bands / 2^(n - 1) - 2, 1], n layers.

        use_running_average: normalise by the running statistics in `batch_stats`; else by the batch's, which then
        move the running ones (make them mutable). These are biased variances, where PyTorch keeps unbiased ones.
        Raises ValueError when the mel is too small to leave a logit.
        """
        shrunk = 2 ** (len(self.widths) - 1)
        if min(mel.shape[1:3]) // shrunk < 3:
            raise ValueError(
                f"A PatchGAN of {len(self.widths)} layers needs at least {3 * shrunk} frames and bands, "
                f"and the mel is {mel.shape[1]} × {mel.shape[2]}: give longer clips or fewer widths."
            )
        x, features, name = mel, [], 0
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            # The first looks at log-mels, which bfloat16 rounds audibly.
            dtype = jnp.float32 if i == 0 else self.dtype
            x = self._conv(width, 1 if last else 2, i == 0, name, dtype)(x).astype(self.dtype)
            if i > 0:
                x = nn.BatchNorm(
                    use_running_average=use_running_average,
                    momentum=0.9,
                    epsilon=1e-5,
                    dtype=self.dtype,
                    scale_init=lambda *args: 1 + 0.02 * jax.random.normal(*args),
                    name=f"main_{name + 1}",
                )(x)
            x = nn.leaky_relu(x, 0.2)
            features.append(x)
            name += 2 if i == 0 else 3  # the names count the activations too, as nn.Sequential does
        return [self._conv(1, 1, True, name, jnp.float32)(x)], [features]

    def _conv(self, width: int, stride: int, bias: bool, name: int, dtype: jnp.dtype) -> nn.Conv:
        return nn.Conv(
            width,
            (4, 4),
            strides=stride,
            padding=1,
            use_bias=bias,
            kernel_init=nn.initializers.normal(0.02),
            dtype=dtype,
            name=f"main_{name}",
        )


class NormedConv(nn.Module):
    """1-D convolution, zero-padded by (kernel_size - 1) // 2, with weight norm or spectral norm on its kernel.

    Weight norm (arXiv 1602.07868, eq. 2): weight_g [features] × weight_v [taps, in / groups, features], each output's
    kernel divided by its length. Spectral norm (arXiv 1802.05957, algorithm 1): weight_orig divided by an estimate of
    its largest singular value, from vectors u and v in the collection `spectral`, which each call with `update_stats`
    improves by one power iteration, as torch.nn.utils.spectral_norm does.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, update_stats: bool = False) -> jax.Array:
        """x [batch, time, in] → [batch, ceil(time / stride), features] for odd kernels."""
        shape = (self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self._spectral_normed(shape, update_stats) if self.spectral else self._weight_normed(shape)
        bound = (shape[0] * shape[1]) ** -0.5
        bias = self.param(
            "bias", lambda *args: jax.random.uniform(*args, minval=-bound, maxval=bound), (self.features,)
        )
        return _conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups) + bias.astype(
            self.dtype
        )

    def _weight_normed(self, shape: tuple[int, ...]) -> jax.Array:
        direction = self.param("weight_v", _TORCH_KERNEL, shape)
        # The length is that of the drawn kernel at first, so that the norm changes nothing before training does.
        length = self.param("weight_g", lambda _: jnp.linalg.norm(direction.reshape(-1, self.features), axis=0))
        return direction * (length / jnp.linalg.norm(direction.reshape(-1, self.features), axis=0))

    def _spectral_normed(self, shape: tuple[int, ...], update_stats: bool) -> jax.Array:
        kernel = self.param("weight_orig", _TORCH_KERNEL, shape)
        matrix = kernel.reshape(-1, self.features).T  # [features, in × taps]
        frozen = jax.lax.stop_gradient(matrix)
        u = self.variable("spectral", "u", lambda: _unit(jax.random.normal(self.make_rng("params"), (self.features,))))
        v = self.variable("spectral", "v", lambda: _unit(frozen.T @ u.value))
        right, left = v.value, u.value
        if update_stats and not self.is_initializing():
            right = _unit(frozen.T @ left)
            left = _unit(frozen @ right)
            if self.is_mutable_collection("spectral"):
                v.value, u.value = right, left
        return kernel / (left @ matrix @ right)


def _conv(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """x [batch, time, in], kernel [taps, in / groups, out] → [batch, ceil(time / stride), out], for odd taps."""
    batch, time, channels = x.shape
    taps, _, features = kernel.shape
    pad = (taps - 1) // 2
    padding, steps = (pad, pad), -(-time // stride)
    if stride > 1 and groups == 1:
        # As a convolution of stride 1 over groups of `stride` samples: XLA:CPU takes a third of the time.
        near = -(-taps // stride)
        x = jnp.pad(x, ((0, 0), (pad, (steps + near - 1) * stride - time - pad), (0, 0)))
        x = x.reshape(batch, steps + near - 1, stride * channels)
        kernel = jnp.pad(kernel, ((0, near * stride - taps), (0, 0), (0, 0))).reshape(near, stride * channels, features)
        stride, padding = 1, (0, 0)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), [padding], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


class WaveCritic(nn.Module):
    """A stack of convolutions with leaky ReLUs between them, and one more to the logits: the body of both families."""

    channels: Sequence[int]
    kernel_sizes: Sequence[int]
    strides: Sequence[int]
    groups: Sequence[int]
    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, update_stats: bool = False) -> tuple[jax.Array, list[jax.Array]]:
        """x [batch, time, 1] → logits [batch, time / prod(strides)], features (the logits are the last)."""
        features = []
        layers = zip(self.channels, self.kernel_sizes, self.strides, self.groups, strict=True)
        for i, (width, kernel_size, stride, groups) in enumerate(layers):
            dtype = jnp.float32 if i == 0 else self.dtype  # the first looks at samples, which bfloat16 rounds audibly
            conv = NormedConv(width, kernel_size, stride, groups, self.spectral, dtype, name=f"convs_{i}")
            x = nn.leaky_relu(conv(x, update_stats=update_stats).astype(self.dtype), _SLOPE)
            features.append(x)
        x = NormedConv(1, 3, spectral=self.spectral, dtype=jnp.float32, name="conv_post")(x, update_stats=update_stats)
        return x[..., 0], [*features, x]


class MultiPeriodDiscriminator(nn.Module):
    """Looks at every p-th sample, for several p (arXiv 2010.05646, section 2.3; jik876/hifi-gan, models.py).

    periods: (2, 3, 5, 7, 11) published; channels: width of each layer, (32, 128, 512, 1024, 1024) published;
    kernel_size 5 and stride 3 (the last layer's is 1) published. The published 2-D kernels are one sample wide across
    the phases of a period, so here each phase is an example of a 1-D convolution: the same sums.
    """

    periods: Sequence[int]
    channels: Sequence[int]
    kernel_size: int = 5
    stride: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, waveform: jax.Array) -> Critique:
        """waveform [batch, samples] → by period p: logits [batch, p × steps], features [batch × p, steps, width]."""
        batch, samples = waveform.shape
        layers = len(self.channels)
        logits, features = [], []
        for i, period in enumerate(self.periods):
            x = jnp.pad(waveform, ((0, 0), (0, -samples % period)), mode="reflect")
            x = x.reshape(batch, -1, period).transpose(0, 2, 1).reshape(batch * period, -1, 1)
            judged, seen = WaveCritic(
                self.channels,
                (self.kernel_size,) * layers,
                (self.stride,) * (layers - 1) + (1,),
                (1,) * layers,
                dtype=self.dtype,
                name=f"discriminators_{i}",
            )(x)
            logits.append(judged.reshape(batch, -1))
            features.append(seen)
        return logits, features


class MultiScaleDiscriminator(nn.Module):
    """Looks at the waveform and at its smoothed halves (MelGAN, arXiv 1910.06711; jik876/hifi-gan, models.py).

    The first scale has spectral norm, the others weight norm. Published: 3 scales, channels
    (128, 128, 256, 512, 1024, 1024, 1024), groups (1, 4, 16, 16, 16, 16, 1), kernels of 15, 41 (five times) and 5,
    strides 1, 2, 2, 4, 4, 1, 1. With fewer channels the kernels and strides between the first and the last are as many
    of these as there are layers. On a CPU groups cost more than they save: a narrow variant takes 1 throughout.
    """

    scales: int
    channels: Sequence[int]
    groups: Sequence[int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, waveform: jax.Array, *, update_stats: bool = False) -> Critique:
        """waveform [batch, samples] → for each scale logits [batch, steps] and features [batch, steps, width].

        update_stats: improve the singular vectors of the first scale; make the collection `spectral` mutable to keep
        them.
        """
        between = len(self.channels) - 2
        if not 0 <= between <= 5:
            raise ValueError(
                f"A critic of a scale has 2 to 7 layers, not {len(self.channels)}: channels {self.channels}."
            )
        x = waveform[..., None]
        logits, features = [], []
        for i in range(self.scales):
            if i > 0:
                x = nn.avg_pool(x, (4,), (2,), padding=[(2, 2)])  # the zeros beyond the ends count, as in PyTorch
            judged, seen = WaveCritic(
                self.channels,
                (15, *(41,) * between, 5),
                (1, *(2, 2, 4, 4, 1)[:between], 1),
                self.groups,
                spectral=i == 0,
                dtype=self.dtype,
                name=f"discriminators_{i}",
            )(x, update_stats=update_stats)
            logits.append(judged)
            features.append(seen)
        return logits, features
