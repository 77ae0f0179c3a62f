"""The denoising UNet (paper section 2.3 and appendix; Rombach et al. 2022) with several contexts a block.

After each ResNet block stands one transformer per entry of the level's `cross_attention_dim`: a `None` entry attends
to the latents twice, entries 0 and 1 of the list to the LOA, later ones to the T5 states.
Twin: diffusers AudioLDM2UNet2DConditionModel (pipelines/audioldm2/modeling_audioldm2.py), names and results.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.layers import Dense, GroupNorm, conv3x3
from audioldm2_jax.models.unet_blocks import Context, DownBlock, Level, MidBlock, UpBlock


def sinusoidal(timesteps: Array, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> Array:
    """Sines and cosines of timesteps [batch] at dim / 2 frequencies, 1 down to 1 / 10,000: float32 [batch, dim].

    Source: Ho et al. 2020, appendix B; flip_sin_to_cos puts the cosines first (diffusers models/embeddings.py).
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


class Embedding(nn.Module):
    """Two dense layers with a SiLU between: [batch, in] → [batch, dim]."""

    dim: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.linear_1 = Dense(self.dim, self.dtype)
        self.linear_2 = Dense(self.dim, self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(nn.silu(self.linear_1(x)))


def per_level(name: str, value: int | Sequence, levels: int) -> tuple:
    """One value for each level, from a single number for all or from a sequence of that many.

    Raises ValueError where the sequence has another length.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{name}={value} has {len(values)} entries; give one for each of the {levels} levels")
    return values


def contexts_per_level(dims: int | Sequence, levels: int) -> tuple[tuple[int | None, ...], ...]:
    """`cross_attention_dim` in all its spellings → the contexts of each level.

    (None, 768, 1024): these contexts at every level. ((None, 768), (None, 768), ...), (320, 640, ...): one entry a
    level, as in diffusers. 768: that one context at every level.
    """
    if isinstance(dims, Sequence) and None in dims:
        dims = (dims,) * levels
    dims = per_level("cross_attention_dim", dims, levels)
    return tuple(tuple(d) if isinstance(d, Sequence) else (d,) for d in dims)


class UNet(nn.Module):
    """Noisy latents, timesteps and contexts → what the model predicts (noise or velocity).

    block_out_channels has one entry a level, each but the last followed by a halving of both axes.
    attention_head_dim is diffusers' name for the NUMBER of heads, one for all levels or one each.
    cross_attention_dim: `contexts_per_level`. transformer_layers_per_block: blocks in each transformer, one number
    or one each. class_embed_type None, "simple_projection" (one dense layer) or "projection" (two) of a vector of
    projection_class_embeddings_input_dim; class_embeddings_concat joins it to the time embedding instead of adding.
    """

    in_channels: int
    out_channels: int
    block_out_channels: Sequence[int]
    layers_per_block: int | Sequence[int]
    cross_attention_dim: int | Sequence[int | Sequence[int | None] | None]
    attention_head_dim: int | Sequence[int]
    transformer_layers_per_block: int | Sequence[int]
    down_block_types: Sequence[str]
    up_block_types: Sequence[str]
    norm_num_groups: int
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    class_embed_type: str | None = None
    projection_class_embeddings_input_dim: int | None = None
    class_embeddings_concat: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    float32_layers = ("conv_out",)  # computed in float32 whatever the dtype: their kernels may not be cast

    def setup(self) -> None:
        channels = tuple(self.block_out_channels)
        self.time_embedding = Embedding(4 * channels[0], self.dtype)
        if self.class_embed_type is not None:
            self.class_embedding = self._make_class_embedding(4 * channels[0])
        self.conv_in = conv3x3(channels[0], self.dtype)
        levels, last = self._levels(), len(channels) - 1
        per_level("down_block_types", self.down_block_types, len(channels))
        per_level("up_block_types", self.up_block_types, len(channels))
        self.down_blocks = [
            DownBlock(**_block_fields(fields, kind, extra_layers=0), resample=i < last)
            for i, (fields, kind) in enumerate(zip(levels, self.down_block_types))
        ]
        self.mid_block = MidBlock(**{**levels[-1], "num_layers": 1})
        self.up_blocks = [
            UpBlock(**_block_fields(fields, kind, extra_layers=1), resample=i < last)
            for i, (fields, kind) in enumerate(zip(levels[::-1], self.up_block_types))
        ]
        self.conv_norm_out = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype)
        self.conv_out = conv3x3(self.out_channels, jnp.float32, kernel_init=nn.initializers.zeros)

    def __call__(
        self,
        latents: Array,
        timesteps: Array,
        loa: Array | None = None,
        text_states: Array | None = None,
        loa_mask: Array | None = None,
        text_mask: Array | None = None,
        class_labels: Array | None = None,
    ) -> Array:
        """Predicts from latents [batch, time, frequency, in_channels] at timesteps [batch] (0..999).

        loa [batch, n, dim] and text_states [batch, m, dim] are needed where cross_attention_dim has entries for
        them, class_labels [batch, dim] where class_embed_type is set; masks [batch, n], [batch, m] are 1 for tokens
        to look at, and None for all. Returns float32 [batch, time, frequency, out_channels].
        Raises ValueError for a condition that is missing or of another width than the fields say.
        """
        cross_attention_kv = self.cross_attention_kv(loa, text_states, loa_mask, text_mask)
        return self.predict(latents, self.timestep_projections(timesteps, class_labels), cross_attention_kv)

    def cross_attention_kv(
        self,
        loa: Array | None = None,
        text_states: Array | None = None,
        loa_mask: Array | None = None,
        text_mask: Array | None = None,
    ) -> list[list]:
        """The contexts as `predict` takes them, for each block: the same at all timesteps. Arguments: `__call__`."""
        loa_context = self._context("loa", loa, loa_mask, slice(0, 2))
        text_context = self._context("text_states", text_states, text_mask, slice(2, None))
        return [block.cross_attention_kv(loa_context, text_context) for block in self._blocks()]

    def timestep_projections(self, timesteps: Array, class_labels: Array | None = None) -> list[list[Array]]:
        """Timesteps and class labels as `predict` takes them, for each block: whatever the latents are.

        Arguments: `__call__`; timesteps [1] without class labels hold for a whole batch.
        """
        time = nn.silu(self._embed(timesteps, class_labels))
        return [block.timestep_projections(time) for block in self._blocks()]

    def predict(self, latents: Array, timestep_projections: list[list[Array]], cross_attention_kv: list[list]) -> Array:
        """`__call__` with what `timestep_projections` and `cross_attention_kv` made of the other arguments.

        These may serve many calls.
        """
        given = list(zip(timestep_projections, cross_attention_kv))
        depth = len(self.down_blocks)
        x = self.conv_in(latents)
        skips = [x]
        for block, own in zip(self.down_blocks, given[:depth]):
            x, more = block(x, *own)
            skips += more
        x = self.mid_block(x, *given[depth])
        for block, own in zip(self.up_blocks, given[depth + 1 :]):
            x = block(x, skips, *own)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))

    def _blocks(self) -> list[Level]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def _levels(self) -> list[dict[str, Any]]:
        """The fields of a block at each level, those of `Level`."""
        channels = tuple(self.block_out_channels)
        names = ("layers_per_block", "attention_head_dim", "transformer_layers_per_block")
        layers, heads, depths = (per_level(name, getattr(self, name), len(channels)) for name in names)
        contexts = contexts_per_level(self.cross_attention_dim, len(channels))
        common = {name: getattr(self, name) for name in ("norm_num_groups", "norm_eps", "dtype", "remat")}
        return [
            dict(channels=c, num_layers=n, num_heads=h, context_dims=dims, transformer_layers=depth, **common)
            for c, n, h, dims, depth in zip(channels, layers, heads, contexts, depths)
        ]

    def _make_class_embedding(self, dim: int) -> nn.Module:
        if self.class_embed_type == "projection":
            return Embedding(dim, self.dtype)
        if self.class_embed_type == "simple_projection":
            return Dense(dim, self.dtype)
        raise ValueError(
            f"class_embed_type={self.class_embed_type!r} is unknown; use 'projection', 'simple_projection' or None"
        )

    def _embed(self, timesteps: Array, class_labels: Array | None) -> Array:
        """Timesteps [batch] and class vectors [batch, dim] → what ResNet blocks project: [batch, 4 channels (· 2)]."""
        waves = sinusoidal(timesteps, self.block_out_channels[0], self.flip_sin_to_cos, self.freq_shift)
        time = self.time_embedding(waves)
        if self.class_embed_type is None:
            return time
        width = self.projection_class_embeddings_input_dim
        if class_labels is None or class_labels.shape[-1] != width:
            given = None if class_labels is None else class_labels.shape
            raise ValueError(f"class_labels are {given}; this UNet needs [batch, {width}]")
        label = self.class_embedding(class_labels)
        return jnp.concatenate([time, label], axis=-1) if self.class_embeddings_concat else time + label

    def _context(self, name: str, states: Array | None, mask: Array | None, entries: slice) -> Context:
        """Checks a context against its entries of cross_attention_dim; turns its mask into a bias on the scores."""
        contexts = contexts_per_level(self.cross_attention_dim, len(self.block_out_channels))
        for dim in {dim for dims in contexts for dim in dims[entries]} - {None}:
            if states is None or states.shape[-1] != dim:
                given = None if states is None else states.shape
                raise ValueError(f"{name} is {given}; cross_attention_dim={self.cross_attention_dim} needs width {dim}")
        # -10,000 and not minus infinity, as in diffusers: a row without any token stays finite.
        return states, None if mask is None else (1.0 - mask.astype(jnp.float32)) * -10000.0


def _block_fields(fields: dict[str, Any], kind: str, extra_layers: int) -> dict[str, Any]:
    """The fields of a level for one block type: a plain block has no contexts, a block on the way up one layer more."""
    plain, attending = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    if kind not in plain + attending:
        raise ValueError(f"block type {kind!r} is unknown; use one of {plain + attending}")
    dims = fields["context_dims"] if kind in attending else ()
    return {**fields, "num_layers": fields["num_layers"] + extra_layers, "context_dims": dims}
