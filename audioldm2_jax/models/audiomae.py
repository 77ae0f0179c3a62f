"""AudioMAE: a masked autoencoder of spectrograms, whose encoder speaks the language of audio.

The network of "Masked Autoencoders that Listen" (Huang et al. 2022, arXiv 2207.06405, section 3) as released in
facebookresearch/AudioMAE (models_mae.py with decoder_mode 1; timm_patch/swin_transformer.py), with its parameter
names. The encoder is a ViT that sees the unmasked patches alone; the decoder is a Swin v2 (arXiv 2111.09883) over the
whole grid, which only pretraining needs. Positions are fixed sines and cosines, computed here; those
of a file are unused tensors.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.models.layers import Dense, LayerNorm, attend, gelu

_EPSILON = 1e-6  # of all LayerNorms
_WINDOW = (4, 4)  # of the decoder, patches in time and frequency
_SHIFT = 2  # of the windows of every other decoder block, along time only
_META_WIDTH = 384  # hidden units of the network that turns distances into attention biases
_META_DROPOUT = 0.1
_LOA_BLOCKS = 3  # the last blocks, averaged: 9, 10 and 11 of the published twelve
_xavier = nn.initializers.xavier_uniform()


class AudioMAE(nn.Module):
    """Encoder and decoder. img_size: (frames, bands) of the fbank; patch_size: side of a patch; depth: encoder blocks.

    positions: the grid whose positions the patches take, one after the other; () is their own, (frames, bands).
    Published: (1024, 128), 16, 768, 12, 12, a decoder of 512, 16, 16 and positions (8, 64): the tables there count
    bands before frames, the patches frames before bands (facebookresearch/AudioMAE, util/patch_embed.py, `patch_hw`).
    """

    img_size: Sequence[int]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    positions: Sequence[int] = ()
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if any(size % self.patch_size for size in self.img_size):
            raise ValueError(
                f"img_size {tuple(self.img_size)} must be a multiple of patch_size {self.patch_size} "
                "both in frames and in bands."
            )
        grid = self.grid
        self.patch_embed = PatchEmbed(self.patch_size, self.embed_dim, self.dtype)
        self.cls_token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.embed_dim))
        self.blocks = [Block(self.embed_dim, self.num_heads, self.dtype) for _ in range(self.depth)]
        self.norm = _layer_norm(jnp.float32)
        self.decoder_embed = Dense(self.decoder_embed_dim, self.dtype, kernel_init=_xavier)
        self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.decoder_embed_dim))
        self.decoder_blocks = [
            SwinBlock(self.decoder_embed_dim, self.decoder_num_heads, grid, _SHIFT * (i % 2), self.dtype)
            for i in range(self.decoder_depth)
        ]
        self.decoder_norm = _layer_norm(jnp.float32)
        self.decoder_pred = Dense(self.patch_size**2, jnp.float32, kernel_init=_xavier)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along time and along frequency."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def table(self, dim: int) -> np.ndarray:
        """The positions of the patches, [patches, dim] float32."""
        return positions_2d(dim, tuple(self.positions or self.grid))

    def __call__(
        self, fbank: jax.Array, mask_ratio: float, keys: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Masks patches at random, alike in time and frequency, and predicts them.

        Args:
          fbank: [batch, *img_size], normalised (`audio.mel.kaldi_fbank`).
          mask_ratio: share of the patches that are hidden; int(patches * (1 - mask_ratio)) are kept.
          keys: [batch], the keys that draw the masks.
          deterministic: without the dropout of the decoder's position biases; else with the rng "dropout".

        Returns:
          loss, the mean squared error over the masked patches, each target normalised by its own mean and unbiased
          variance (arXiv 2207.06405, section 3.2; models_mae.py forward_loss); prediction [batch, patches,
          patch_size²]; mask [batch, patches], 1 where hidden. Patches run time-major.

        Raises:
          ValueError: for an fbank of another size, or a ratio that hides no patch or leaves none.
        """
        patches = self._patchify(fbank)
        count = patches.shape[1]
        kept = int(count * (1 - mask_ratio))
        if not 0 < kept < count:
            raise ValueError(
                f"mask_ratio {mask_ratio} keeps {kept} of {count} patches; at least one has to be kept and one hidden."
            )
        order = jnp.argsort(jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys), axis=1)
        rank = jnp.argsort(order, axis=1)  # of each patch; the first `kept` are seen
        mask = (rank >= kept).astype(jnp.float32)

        seen = order[:, :kept]
        positions = jnp.asarray(self.table(self.embed_dim))[seen]
        tokens = self._blocks(jnp.take_along_axis(patches, seen[..., None], axis=1), positions)[-1][:, 1:]
        prediction = self._decode(tokens, rank, mask, deterministic)

        patches = patches.astype(jnp.float32)
        mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, ddof=1, keepdims=True)
        error = jnp.square(prediction - (patches - mean) / jnp.sqrt(variance + 1e-6)).mean(-1)
        return (error * mask).sum() / mask.sum(), prediction, mask

    def encode_features(self, fbank: jax.Array) -> jax.Array:
        """What the language of audio is pooled from (arXiv 2308.05734, section 3.1): nothing is masked.

        fbank [batch, *img_size], normalised → [batch, time, frequency, embed_dim] on the grid of patches: the mean of
        the normed outputs of the last three blocks, without the class token. Raises ValueError for another size.
        """
        positions = jnp.asarray(self.table(self.embed_dim))
        outputs = self._blocks(self._patchify(fbank), positions, last=_LOA_BLOCKS)
        return (sum(outputs) / len(outputs))[:, 1:].reshape(-1, *self.grid, self.embed_dim)

    def _patchify(self, fbank: jax.Array) -> jax.Array:
        """[batch, *img_size] → [batch, patches, patch_size²], each patch time-major too."""
        if fbank.ndim != 3 or fbank.shape[1:] != tuple(self.img_size):
            raise ValueError(
                f"AudioMAE wants an fbank [batch, {self.img_size[0]}, {self.img_size[1]}] (its img_size), not "
                f"{list(fbank.shape)}."
            )
        (time, frequency), p = self.grid, self.patch_size
        patches = fbank.reshape(-1, time, p, frequency, p).transpose(0, 1, 3, 2, 4)
        return patches.reshape(-1, time * frequency, p * p)

    def _blocks(self, patches: jax.Array, positions: jax.Array, last: int = 1) -> list[jax.Array]:
        """The normed outputs of the last blocks, each [batch, 1 + patches, embed_dim]; the class token comes first."""
        x = self.patch_embed(patches) + positions.astype(self.dtype)
        # The class token's position is zero.
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2])), x], axis=1)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= self.depth - last:
                outputs.append(self.norm(x))
        return outputs

    def _decode(self, tokens: jax.Array, rank: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        x = self.decoder_embed(tokens)
        # Each token back to its place, as a product: the gradient of a gather is a scatter, slow on accelerators.
        x = jax.nn.one_hot(rank, x.shape[1], dtype=x.dtype) @ x + mask[..., None].astype(x.dtype) * self.mask_token
        x = x.astype(self.dtype) + jnp.asarray(self.table(self.decoder_embed_dim), self.dtype)
        for block in self.decoder_blocks:
            x = block(x, deterministic=deterministic)
        return self.decoder_pred(self.decoder_norm(x))


class PatchEmbed(nn.Module):
    """[batch, patches, patch_size²] → [batch, patches, features]: the published strided convolution as a product."""

    patch_size: int
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.proj = PatchProjection(self.patch_size, self.features, self.dtype)

    def __call__(self, patches: jax.Array) -> jax.Array:
        return self.proj(patches)


class PatchProjection(nn.Module):
    """The product of a flattened patch with a convolution's kernel [patch_size, patch_size, 1, features]."""

    patch_size: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        p, size = self.patch_size, self.patch_size**2

        def flat_xavier(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return _xavier(key, (size, self.features)).reshape(shape)  # as for a linear layer (models_mae.py)

        def torch_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-1 / p, maxval=1 / p)

        kernel = self.param("kernel", flat_xavier, (p, p, 1, self.features)).reshape(size, self.features)
        bias = self.param("bias", torch_bias, (self.features,))
        return patches.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class Mlp(nn.Module):
    """Two linear layers, [..., features] → [..., out]; dropout after each as in Swin v2's position network."""

    hidden: int
    out: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        x = drop(self.activation(Dense(self.hidden, self.dtype, kernel_init=_xavier, name="fc1")(x)))
        return drop(Dense(self.out, self.dtype, kernel_init=_xavier, name="fc2")(x))


class Attention(nn.Module):
    """Self-attention of the ViT: [batch, tokens, features] → the same shape."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        qkv = Dense(3 * d, self.dtype, kernel_init=_xavier, name="qkv")(x).reshape(b, n, 3, self.num_heads, -1)
        mixed = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return Dense(d, self.dtype, kernel_init=_xavier, name="proj")(mixed.reshape(b, n, d))


class Block(nn.Module):
    """A ViT block, norm first (arXiv 2010.11929, eq. 2 and 3): [batch, tokens, features] → the same shape."""

    features: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.num_heads, self.dtype, name="attn")(_layer_norm(self.dtype, "norm1")(x))
        mlp = Mlp(4 * self.features, self.features, gelu, self.dtype, name="mlp")
        return x + mlp(_layer_norm(self.dtype, "norm2")(x))


class SwinBlock(nn.Module):
    """A block of Swin v2, norm last (arXiv 2111.09883, section 3.2), with its windows shifted along time.

    grid: patches in time and frequency; shift: patches by which the windows are moved. A side no longer than the
    window is one window, unshifted. Raises ValueError where windows do not fill the grid.
    """

    features: int
    num_heads: int
    grid: tuple[int, int]
    shift: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """x [batch, patches, features] → the same shape."""
        (time, frequency), (b, n, d) = self.grid, x.shape
        window = min(_WINDOW[0], time), min(_WINDOW[1], frequency)
        if time % window[0] or frequency % window[1]:
            raise ValueError(
                f"The decoder's windows of {window[0]} × {window[1]} patches do not fill a grid of {time} × "
                f"{frequency}: choose an img_size of a multiple of {_WINDOW[0]} patches in frames and {_WINDOW[1]} "
                "in bands."
            )
        shift = self.shift if time > window[0] else 0
        cut = (b, time // window[0], window[0], frequency // window[1], window[1], d)
        windows = jnp.roll(x.reshape(b, time, frequency, d), -shift, axis=1).reshape(cut).transpose(0, 1, 3, 2, 4, 5)
        attention = WindowAttention(self.num_heads, window, self.dtype, name="attn")
        mixed = attention(
            windows.reshape(b, -1, window[0] * window[1], d),
            jnp.asarray(_across_the_end(self.grid, window, shift)),
            deterministic=deterministic,
        )
        mixed = mixed.reshape(windows.shape).transpose(0, 1, 3, 2, 4, 5).reshape(b, time, frequency, d)
        mixed = jnp.roll(mixed, shift, axis=1).reshape(b, n, d)
        x = x + _layer_norm(self.dtype, "norm1")(mixed)
        mlp = Mlp(4 * self.features, self.features, gelu, self.dtype, name="mlp")
        return x + _layer_norm(self.dtype, "norm2")(mlp(x))


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows, biased by log-spaced distances (arXiv 2111.09883, eq. 2 and 4)."""

    num_heads: int
    window: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """x [batch, windows, tokens, features], bias [windows, tokens, tokens] → the shape of x."""
        b, w, n, d = x.shape
        qkv = Dense(3 * d, self.dtype, kernel_init=_xavier, name="qkv")(x)
        qkv = qkv.reshape(b * w, n, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, b * w * self.num_heads, n, -1)
        scores = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32)
        squares = (jnp.square(part.astype(jnp.float32)).sum(-1) for part in (query, key))
        lengths = jnp.einsum("bq,bk->bqk", *squares)
        # max before the root: the cosine's bound of 1e-6 on the lengths, with a gradient where a vector vanishes.
        scores = scores * jax.lax.rsqrt(jnp.maximum(lengths, 1e-12))
        tau = self.param("tau", nn.initializers.ones, (self.num_heads,))
        scores = scores.reshape(b, w, self.num_heads, n, n) / jnp.maximum(tau, 0.01)[:, None, None]

        meta = Mlp(_META_WIDTH, self.num_heads, nn.relu, jnp.float32, _META_DROPOUT, name="meta_mlp")
        near = meta(jnp.asarray(_log_distances(self.window)), deterministic=deterministic)
        scores = scores + near.T.reshape(self.num_heads, n, n) + bias[:, None]
        weights = jax.nn.softmax(scores).astype(value.dtype).reshape(-1, n, n)
        mixed = jnp.einsum("bqk,bkd->bqd", weights, value).reshape(b * w, self.num_heads, n, -1)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(b, w, n, d)
        return Dense(d, self.dtype, kernel_init=_xavier, name="proj")(mixed)


@lru_cache
def positions_2d(dim: int, grid: tuple[int, int]) -> np.ndarray:
    """Fixed positions [patches, dim] float32, time-major: sines and cosines of frequency, then of time.

    The halves of MoCo v3's 2-D positions (arXiv 2104.02057; AudioMAE util/pos_embed.py) in the order of the latter.
    Raises ValueError for a dim that four does not divide.
    """
    if dim % 4:
        raise ValueError(f"Sine and cosine positions of two axes need a width that 4 divides, not {dim}.")
    rates = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    time, frequency = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in (frequency, time)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def unused_tensors(model: AudioMAE) -> dict[str, np.ndarray]:
    """The fixed position tables of a PyTorch file, [1, 1 + patches, dim] with zeros for the class token."""
    tables = {"pos_embed": model.embed_dim, "decoder_pos_embed": model.decoder_embed_dim}
    return {name: np.pad(model.table(dim), ((1, 0), (0, 0)))[None] for name, dim in tables.items()}


def _across_the_end(grid: tuple[int, int], window: tuple[int, int], shift: int) -> np.ndarray:
    """[windows, tokens, tokens]: -100 between patches that only rolling around the end of time made neighbours."""
    rolled = (np.arange(grid[0]) + shift >= grid[0])[:, None].repeat(grid[1], axis=1)
    cut = rolled.reshape(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    cut = cut.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return np.where(cut[:, :, None] != cut[:, None, :], np.float32(-100), np.float32(0))


def _log_distances(window: tuple[int, int]) -> np.ndarray:
    """[tokens², 2]: sign(Δ) log(1 + |Δ|) of time and frequency between the patches of a window (eq. 4)."""
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), axis=-1).reshape(-1, 2)
    apart = (places[:, None] - places[None]).reshape(-1, 2).astype(np.float32)
    return np.sign(apart) * np.log1p(np.abs(apart))


def _layer_norm(dtype: jnp.dtype, name: str | None = None) -> LayerNorm:
    return LayerNorm(_EPSILON, dtype, name=name)
