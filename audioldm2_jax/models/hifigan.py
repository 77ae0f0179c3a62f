"""HiFi-GAN generator: mel spectrogram → waveform (Kong et al. 2020, arXiv 2010.05646, section 2.2).

The network and its parameter names are those of transformers' `SpeechT5HifiGan`
(models/speecht5/modeling_speecht5.py), which diffusers uses as the vocoder of AudioLDM 2. The weights are plain,
as in a published vocoder: the weight normalisation with which jik876/hifi-gan trains its generator is left out
here, in training too, so that what is trained is what is published.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Log-mels lie in about -11.5..2: their root mean square of about 6 is what the first convolution brings to 1.
_MEL_SCALE = 6.0
# The last leaky ReLU has PyTorch's default slope rather than the network's, in jik876 as in transformers.
_LAST_SLOPE = 0.01


def _normal(variance: float) -> Callable[..., jax.Array]:
    """Normal initialiser of `variance` / fan-in.

    The generator has no norms, so this alone sets the loudness: N(0, 0.01) of jik876, meant for wide layers with
    weight norm, makes a narrow plain generator silent, and the clipped log-mel of silence passes no gradient.
    """
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")


class TransposedConv(nn.Module):
    """Strided transposed convolution along time: PyTorch's ConvTranspose1d with padding (kernel_size - stride) // 2.

    kernel [kernel_size, in, out]: tap j of input t is added to output stride * t + j - padding. All taps that meet
    in one output come from ceil(kernel_size / stride) neighbouring inputs, so the whole is one matrix product of
    those neighbours with the kernel cut into phases. XLA:CPU takes 10 to 20 times as long for the gradient of the
    dilated convolution that would say the same.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, time, in] → [batch, time * stride + (kernel_size - stride) % 2, features]."""
        batch, time, channels = x.shape
        # An output sees kernel_size / stride of the taps: variance 1 / (that many taps times the channels).
        kernel = self.param("kernel", _normal(self.stride), (self.kernel_size, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        near = -(-self.kernel_size // self.stride)
        kernel = jnp.pad(kernel, ((0, near * self.stride - self.kernel_size), (0, 0), (0, 0)))
        kernel = kernel.reshape(near, self.stride, channels, self.features).transpose(0, 2, 1, 3)
        neighbours = [jnp.pad(x, ((0, 0), (i, near - 1 - i), (0, 0))) for i in range(near)]
        y = jnp.concatenate(neighbours, axis=-1) @ kernel.reshape(near * channels, self.stride * self.features)
        start = (self.kernel_size - self.stride) // 2
        length = time * self.stride + (self.kernel_size - self.stride) % 2
        return y.reshape(batch, -1, self.features)[:, start : start + length] + bias


class ResBlock(nn.Module):
    """Pairs of dilated and plain convolutions, each a residual branch (arXiv 2010.05646, appendix A.1)."""

    channels: int
    kernel_size: int
    dilations: Sequence[int]
    slope: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, time, channels] → the same shape."""
        for i, dilation in enumerate(self.dilations):
            y = self._conv(f"convs1_{i}", dilation, 1.0)(nn.leaky_relu(x, self.slope))
            # A small last convolution keeps the sum over the branches near the size of its input.
            x = x + self._conv(f"convs2_{i}", 1, 0.1)(nn.leaky_relu(y, self.slope))
        return x

    def _conv(self, name: str, dilation: int, variance: float) -> nn.Conv:
        pad = (self.kernel_size - 1) * dilation // 2
        return nn.Conv(
            self.channels,
            (self.kernel_size,),
            kernel_dilation=(dilation,),
            padding=[(pad, pad)],
            kernel_init=_normal(variance),
            dtype=self.dtype,
            name=name,
        )


class HifiGan(nn.Module):
    """The generator. Fields as in `SpeechT5HifiGanConfig`, whose config.json a model folder holds.

    model_in_dim: mel bands; upsample_initial_channel: channels before the first upsampling, halved by each;
    upsample_rates, upsample_kernel_sizes: one entry an upsampling; resblock_kernel_sizes, resblock_dilation_sizes:
    the residual blocks after each upsampling, whose outputs are averaged; sampling_rate in Hz, for the record only.
    """

    model_in_dim: int
    upsample_initial_channel: int
    upsample_rates: Sequence[int]
    upsample_kernel_sizes: Sequence[int]
    resblock_kernel_sizes: Sequence[int]
    resblock_dilation_sizes: Sequence[Sequence[int]]
    leaky_relu_slope: float = 0.1
    sampling_rate: int = 16000
    normalize_before: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        """mel [batch, frames, bands] of `compressed_mel` → waveform [batch, frames * product of the rates], -1..1.

        Where kernel - rate is odd an upsampling makes one sample more than frames * rate (1024 frames become
        163,872 samples at 16 kHz); these take part up to the end, as in the twin, and are cut off there, as in
        diffusers.
        Raises ValueError for fields that contradict each other and for a mel with another number of bands.
        """
        self._check(mel)
        x = nn.Conv(
            self.upsample_initial_channel,
            (7,),
            padding=[(3, 3)],
            kernel_init=_normal(1 / _MEL_SCALE**2),
            dtype=jnp.float32,
            name="conv_pre",
        )(mel).astype(self.dtype)
        samples = mel.shape[1]
        blocks = list(zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes))
        for i, (rate, kernel_size) in enumerate(zip(self.upsample_rates, self.upsample_kernel_sizes)):
            channels = self.upsample_initial_channel // 2 ** (i + 1)
            x = nn.leaky_relu(x, self.leaky_relu_slope)
            x = TransposedConv(channels, kernel_size, rate, self.dtype, name=f"upsampler_{i}")(x)
            x = sum(
                ResBlock(
                    channels,
                    size,
                    dilations,
                    self.leaky_relu_slope,
                    self.dtype,
                    name=f"resblocks_{i * len(blocks) + j}",
                )(x)
                for j, (size, dilations) in enumerate(blocks)
            ) / len(blocks)
            samples *= rate
        x = nn.leaky_relu(x, _LAST_SLOPE)
        conv_post = nn.Conv(1, (7,), padding=[(3, 3)], kernel_init=_normal(0.1), dtype=jnp.float32, name="conv_post")
        return jnp.tanh(conv_post(x))[:, :samples, 0]

    def _check(self, mel: jax.Array) -> None:
        if mel.ndim != 3 or mel.shape[-1] != self.model_in_dim:
            raise ValueError(f"The vocoder wants a mel [batch, frames, {self.model_in_dim}], not {list(mel.shape)}.")
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError(
                f"upsample_rates {tuple(self.upsample_rates)} and upsample_kernel_sizes "
                f"{tuple(self.upsample_kernel_sizes)} must be equally many."
            )
        if any(kernel < rate for kernel, rate in zip(self.upsample_kernel_sizes, self.upsample_rates)):
            raise ValueError(
                f"Each of upsample_kernel_sizes {tuple(self.upsample_kernel_sizes)} must be at least its "
                f"rate in upsample_rates {tuple(self.upsample_rates)}, or samples stay empty."
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError(
                f"resblock_kernel_sizes {tuple(self.resblock_kernel_sizes)} and resblock_dilation_sizes "
                f"{tuple(map(tuple, self.resblock_dilation_sizes))} must be equally many."
            )
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"upsample_initial_channel {self.upsample_initial_channel} cannot be halved for each of the "
                f"{len(self.upsample_rates)} upsample_rates: take a multiple of {2 ** len(self.upsample_rates)}."
            )
        if self.normalize_before:
            raise ValueError(
                "normalize_before is true, but the vocoders of AudioLDM 2 take the raw log-mel and carry no "
                "statistics to normalise it with: set it to false."
            )
