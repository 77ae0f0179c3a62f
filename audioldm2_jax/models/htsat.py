"""HTSAT, CLAP's audio tower: a Swin transformer over a log-mel spectrogram folded into a square.

Chen et al. 2022 (arXiv 2202.00874); Swin: Liu et al. 2021 (arXiv 2103.14030). Names and initial values are those
of transformers' `ClapAudioModel`. Features are [batch, rows, columns, channels], in a layer's attention
[batch, windows, tokens of a window, channels].
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.clap_layers import Attention, Dense, LayerConfig, Output, check_gelu, normal
from audioldm2_jax.models.layers import gelu


class _HTSAT(nn.Module):
    """HTSAT without its classification head; the fields are the keys of audio_config."""

    num_mel_bins: int
    spec_size: int
    patch_size: int | tuple[int, int]
    patch_stride: int | tuple[int, int]
    patch_embeds_hidden_size: int
    hidden_size: int
    window_size: int
    depths: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    enable_fusion: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: Array, *, deterministic: bool = True, use_running_average: bool = True) -> Array:
        """mel [batch, frames, num_mel_bins] in dB → [batch, hidden_size] float32.

        Any number of frames up to spec_size² / num_mel_bins; fewer are stretched to that many. Raises ValueError
        for more, for another number of bands, and for sizes that do not fit each other.
        """
        self._check_sizes()
        norm = nn.BatchNorm(use_running_average, momentum=0.9, dtype=jnp.float32, name="batch_norm")
        image = mel_to_image(norm(mel), self.spec_size, self.num_mel_bins)[..., None]
        style = LayerConfig(
            (2 * len(self.depths) * self.hidden_size) ** -0.5,
            self.hidden_dropout_prob,
            self.attention_probs_dropout_prob,
            self.layer_norm_eps,
            self.dtype,
        )
        patch, stride = _pair(self.patch_size), _pair(self.patch_stride)
        x = _PatchEmbed(style, self.patch_embeds_hidden_size, patch, stride, name="patch_embed")(image)
        drop_path = np.split(np.linspace(0, self.drop_path_rate, sum(self.depths)), np.cumsum(self.depths)[:-1])
        for index, heads in enumerate(self.num_attention_heads):
            stage = _Stage(
                style,
                drop_path=tuple(map(float, drop_path[index])),
                num_heads=heads,
                window=self.window_size,
                mlp_ratio=self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                last=index == len(self.depths) - 1,
                name=f"layers_{index}",
            )
            x = stage(x, deterministic)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x).mean((1, 2))

    def _check_sizes(self) -> None:
        stages = len(self.depths)
        check_gelu(self.hidden_act)
        if self.enable_fusion:
            raise ValueError("enable_fusion is set; only CLAP without fusion is supported, e.g. clap-htsat-unfused")
        if self.hidden_size != self.patch_embeds_hidden_size * 2 ** (stages - 1):
            raise ValueError(
                f"hidden_size={self.hidden_size} should be patch_embeds_hidden_size · 2^(stages − 1) = "
                f"{self.patch_embeds_hidden_size * 2 ** (stages - 1)}"
            )
        for side in _pair(self.patch_stride):
            if self.spec_size % (side * self.window_size * 2 ** (stages - 1)):
                raise ValueError(
                    f"spec_size={self.spec_size} should be a multiple of patch_stride · window_size · 2^(stages − 1)"
                    f" = {side * self.window_size * 2 ** (stages - 1)}"
                )


class ClapAudioTower(_HTSAT):
    """HTSAT under the name that transformers gives it within its audio model: `audio_encoder`."""

    @nn.compact
    def __call__(self, mel: Array, *, deterministic: bool = True, use_running_average: bool = True) -> Array:
        """See `_HTSAT`: mel [batch, frames, num_mel_bins] in dB → [batch, hidden_size]."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(_HTSAT)}
        encoder = _HTSAT(**fields | {"parent": self, "name": "audio_encoder"})
        return encoder(mel, deterministic=deterministic, use_running_average=use_running_average)


class _PatchEmbed(nn.Module):
    style: LayerConfig
    features: int
    patch: tuple[int, int]
    stride: tuple[int, int]

    @nn.compact
    def __call__(self, image: Array) -> Array:
        padding = [((patch - stride) // 2,) * 2 for patch, stride in zip(self.patch, self.stride)]
        kernel_init = normal(self.style.stddev)
        conv = nn.Conv(
            self.features,
            self.patch,
            self.stride,
            padding,
            kernel_init=kernel_init,
            dtype=self.style.dtype,
            name="proj",
        )
        return nn.LayerNorm(epsilon=1e-5, dtype=self.style.dtype, name="norm")(conv(image))


class _Stage(nn.Module):
    """Swin layers, every second one with shifted windows; then, except in the last stage, half the resolution."""

    style: LayerConfig
    drop_path: tuple[float, ...]
    num_heads: int
    window: int
    mlp_ratio: float
    qkv_bias: bool
    last: bool

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        # One window that covers the whole map has nothing to shift.
        shift = self.window // 2 if min(x.shape[1:3]) > self.window else 0
        for index, rate in enumerate(self.drop_path):
            layer = _SwinLayer(
                self.style,
                self.num_heads,
                self.window,
                shift if index % 2 else 0,
                self.mlp_ratio,
                self.qkv_bias,
                rate,
                name=f"blocks_{index}",
            )
            x = layer(x, deterministic)
        return x if self.last else _PatchMerging(self.style, name="downsample")(x)


class _SwinLayer(nn.Module):
    style: LayerConfig
    num_heads: int
    window: int
    shift: int
    mlp_ratio: float
    qkv_bias: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        b, h, w, c = x.shape
        mask = shift_mask(h, w, self.window, self.shift)[:, None] if self.shift else None
        tokens = self.style.norm("layernorm_before")(x)
        tokens = windows(jnp.roll(tokens, (-self.shift, -self.shift), (1, 2)) if self.shift else tokens, self.window)
        attention = Attention(self.style, self.num_heads, window=self.window, qkv_bias=self.qkv_bias, name="attention")
        mixed = attention(tokens, mask, deterministic)
        grid = mixed.reshape(b, h // self.window, w // self.window, self.window, self.window, c)
        mixed = grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        mixed = jnp.roll(mixed, (self.shift, self.shift), (1, 2)) if self.shift else mixed
        x = x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(mixed, deterministic=deterministic)
        widened = Dense(self.style, int(self.mlp_ratio * c), name="intermediate")(self.style.norm("layernorm_after")(x))
        widened = gelu(widened)
        return x + Output(self.style, post_norm=False, name="output")(widened, x, deterministic)


class _PatchMerging(nn.Module):
    """Four neighbours become one of twice the channels: [batch, h, w, c] → [batch, h / 2, w / 2, 2c]."""

    style: LayerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.style.dtype, name="norm")(x)
        return self.style.dense(2 * c, "reduction", use_bias=False)(x)


def mel_to_image(mel: Array, spec_size: int, num_mel_bins: int) -> Array:
    """Stretches a mel and folds it into a square: [batch, frames, bands] → [batch, spec_size, spec_size].

    Time is cut into spec_size / num_mel_bins pieces, stacked along frequency, so rows are bands of piece after piece
    and columns time (transformers modeling_clap.py, `reshape_mel2img`). Raises ValueError if the mel is too long.
    """
    pieces = spec_size // num_mel_bins
    frames, bands = spec_size * pieces, spec_size // pieces
    if mel.shape[1] > frames or mel.shape[2] != num_mel_bins:
        raise ValueError(
            f"a mel of {mel.shape[1]} frames × {mel.shape[2]} bands does not fit spec_size={spec_size}: "
            f"at most {frames} frames of {num_mel_bins} bands; crop the clip or raise spec_size"
        )
    if mel.shape[1] < frames:
        mel = jnp.einsum("ot,btf->bof", bicubic(mel.shape[1], frames), mel)
    if mel.shape[2] < bands:
        mel = jnp.einsum("of,btf->bto", bicubic(mel.shape[2], bands), mel)
    b = mel.shape[0]
    return mel.reshape(b, pieces, spec_size, bands).transpose(0, 1, 3, 2).reshape(b, spec_size, spec_size)


def bicubic(length: int, size: int) -> np.ndarray:
    """The matrix [size, length] of cubic convolution with aligned corners and repeated edges.

    Keys 1981, equation 15 of the kernel with a = −0.75: what torch.nn.functional.interpolate computes.
    """
    a = -0.75
    at = np.arange(size) * (length - 1) / max(size - 1, 1)
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    s = np.abs(at[:, None] - taps)
    near = (a + 2) * s**3 - (a + 3) * s**2 + 1
    far = a * (s**3 - 5 * s**2 + 8 * s - 4)
    matrix = np.zeros((size, length), np.float32)
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(taps, 0, length - 1)), np.where(s <= 1, near, far))
    return matrix


def windows(x: Array | np.ndarray, window: int) -> Array | np.ndarray:
    """[batch, h, w, c] → [batch, number of windows, window², c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, window * window, c)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """−100 between tokens that a cyclic shift brought from opposite edges into one window, else 0.

    [number of windows, window², window²] (Swin, figure 4).
    """
    rows, columns = (
        (np.arange(side) >= side - window).astype(np.float32) + (np.arange(side) >= side - shift)
        for side in (height, width)
    )
    region = windows((3 * rows[:, None] + columns[None, :])[None, :, :, None], window)[0, :, :, 0]
    return np.where(region[:, :, None] == region[:, None, :], 0.0, -100.0).astype(np.float32)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
