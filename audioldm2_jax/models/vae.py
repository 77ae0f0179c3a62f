"""The mel autoencoder (paper section 2.4; Rombach et al. 2022): mel ↔ latents a few times smaller.

Twin: diffusers AutoencoderKL (models/autoencoders/autoencoder_kl.py and vae.py), names and results.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.layers import (
    Attention,
    Downsample,
    GroupNorm,
    MelConv,
    ResnetBlock,
    Upsample,
    conv1x1,
    conv3x3,
)

_EPSILON = 1e-6
# Padded at the end only: a downsampling takes n to floor(n / 2).
_PAD_END = ((0, 1), (0, 1))


class SpatialAttention(Attention):
    """One head over all positions, added to its input: [batch, time, frequency, channels] → the same shape."""

    norm_num_groups: int

    def setup(self) -> None:
        super().setup()
        self.group_norm = GroupNorm(self.norm_num_groups, _EPSILON, self.dtype)

    def __call__(self, x: Array) -> Array:
        b, t, f, c = x.shape
        h = super().__call__(self.group_norm(x).reshape(b, t * f, c))
        return x + h.reshape(x.shape)


class MidBlock(nn.Module):
    """ResNet block, attention, ResNet block."""

    channels: int
    norm_num_groups: int
    dtype: jnp.dtype

    def setup(self) -> None:
        c, groups, dtype = self.channels, self.norm_num_groups, self.dtype
        self.resnets = [ResnetBlock(c, groups, _EPSILON, dtype) for _ in range(2)]
        self.attentions = [SpatialAttention(c, num_heads=1, use_bias=True, dtype=dtype, norm_num_groups=groups)]

    def __call__(self, x: Array) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nn.Module):
    """ResNet blocks at one resolution, then half of it (the last block keeps it)."""

    channels: int
    num_layers: int
    norm_num_groups: int
    downsample: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        c, dtype = self.channels, self.dtype
        self.resnets = [ResnetBlock(c, self.norm_num_groups, _EPSILON, dtype) for _ in range(self.num_layers)]
        self.downsamplers = [Downsample(c, dtype, _PAD_END)] if self.downsample else []

    def __call__(self, x: Array) -> Array:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """ResNet blocks at one resolution, then twice of it (the last block keeps it)."""

    channels: int
    num_layers: int
    norm_num_groups: int
    upsample: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        c, dtype = self.channels, self.dtype
        self.resnets = [ResnetBlock(c, self.norm_num_groups, _EPSILON, dtype) for _ in range(self.num_layers)]
        self.upsamplers = [Upsample(c, dtype)] if self.upsample else []

    def __call__(self, x: Array) -> Array:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """[batch, frames, bands, in] → [batch, frames / 2ⁿ, bands / 2ⁿ, out], n = levels - 1."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    dtype: jnp.dtype

    def setup(self) -> None:
        channels, groups, dtype = self.block_out_channels, self.norm_num_groups, self.dtype
        self.conv_in = MelConv(channels[0], (3, 3), dtype)
        self.down_blocks = [
            DownBlock(c, self.layers_per_block, groups, downsample=level < len(channels), dtype=dtype)
            for level, c in enumerate(channels, start=1)
        ]
        self.mid_block = MidBlock(channels[-1], groups, dtype)
        self.conv_norm_out = GroupNorm(groups, _EPSILON, dtype)
        self.conv_out = conv3x3(self.out_channels, jnp.float32)

    def __call__(self, x: Array) -> Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """[batch, time, frequency, latent] → [batch, time · 2ⁿ, frequency · 2ⁿ, out], n = levels - 1."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    dtype: jnp.dtype

    def setup(self) -> None:
        channels, groups, dtype = self.block_out_channels[::-1], self.norm_num_groups, self.dtype
        self.conv_in = conv3x3(channels[0], dtype)
        self.mid_block = MidBlock(channels[0], groups, dtype)
        self.up_blocks = [
            UpBlock(c, self.layers_per_block + 1, groups, upsample=level < len(channels), dtype=dtype)
            for level, c in enumerate(channels, start=1)
        ]
        self.conv_norm_out = GroupNorm(groups, _EPSILON, dtype)
        self.conv_out = conv3x3(self.out_channels, jnp.float32, bias_init=nn.initializers.constant(MelConv.MEAN))

    def features(self, x: Array) -> Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return nn.silu(self.conv_norm_out(x))


class AutoencoderKL(nn.Module):
    """Mel to a diagonal Gaussian over latents, and latents to mel.

    block_out_channels has one entry a level, each but the last followed by a halving of both axes;
    layers_per_block counts the ResNet blocks of an encoder level (the decoder has one more). `dtype` is the
    precision of the computation; parameters and results are float32, and so are the layers that make the results.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        sizes = (tuple(self.block_out_channels), self.layers_per_block, self.norm_num_groups, self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, *sizes)
        self.decoder = Decoder(self.out_channels, *sizes)
        self.quant_conv = conv1x1(2 * self.latent_channels, jnp.float32)
        self.post_quant_conv = conv1x1(self.latent_channels, self.dtype)

    def encode(self, mel: Array) -> tuple[Array, Array]:
        """Natural-log mel [batch, frames, bands, 1] → (mean, log variance), each [batch, time, frequency, latent].

        The log variance is kept within -30..20 (diffusers vae.py, DiagonalGaussianDistribution). Latents are as
        the encoder gives them, not yet scaled. Raises ValueError on an input of another shape.
        """
        if mel.ndim != 4 or mel.shape[-1] != self.in_channels:
            raise ValueError(
                f"the mel has shape {mel.shape}; give [batch, frames, bands, {self.in_channels}] (mel[..., None])"
            )
        moments = self.quant_conv(self.encoder(mel))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """Unscaled latents [batch, time, frequency, latent] → natural-log mel [batch, frames, bands, 1]."""
        return self.decode_output(self.decode_features(latents))

    def decode_features(self, latents: Array) -> Array:
        """All of `decode` but its last convolution: → [batch, frames, bands, block_out_channels[0]].

        A loss whose weight comes from gradients at the last layer (Esser et al. 2021, equation 7) starts here.
        """
        return self.decoder.features(self.post_quant_conv(latents))

    def decode_output(self, features: Array) -> Array:
        """The last convolution, decoder.conv_out: features of `decode_features` → natural-log mel."""
        return self.decoder.conv_out(features)

    def __call__(self, mel: Array) -> Array:
        """The mel, encoded and decoded from the mean: [batch, frames, bands, 1] → [batch, frames', bands', 1].

        A frame or band count that the downsampling does not divide comes back cut to the next lower multiple.
        """
        return self.decode(self.encode(mel)[0])
