"""The blocks of the UNet: ResNet blocks, each with the transformers after it, at one resolution.

What a block takes beside the latents comes prepared, so that it is computed once for many calls:
`timestep_projections`, which are added in the ResNet blocks, and `cross_attention_kv`, the keys and values of the
contexts.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.layers import (
    Attention,
    Dense,
    Downsample,
    GroupNorm,
    LayerNorm,
    ResnetBlock,
    Upsample,
    conv1x1,
    gelu,
)

# What a transformer attends to: states [batch, tokens, dim] and bias [batch, tokens]; None: the latents themselves.
Context = tuple[Array, Array | None] | None
# The same as an attention takes it: keys and values [batch, tokens, heads, dim], and the bias.
CrossAttentionKV = tuple[tuple[Array, Array], Array | None] | None

# The authors' UNet starts the last layer of every residual branch, and of the network, at zero (A2:
# latent_diffusion/modules/diffusionmodules/openaimodel.py, zero_module).
_zeros = nn.initializers.zeros

#: The collection of what the transformers that attend to the LOA attend to, where it is asked for (`mutable`): of each
#: of their blocks [batch, time, frequency, tokens].
LOA_ATTENTION = "loa_attention"


class GEGLU(nn.Module):
    """value · GELU(gate) of one projection (Shazeer 2020): [..., in] → [..., dim]."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        value, gate = Dense(2 * self.dim, self.dtype, name="proj").products(x, 2)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide, and back: [batch, n, channels] → the same shape."""

    channels: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.net_0 = GEGLU(4 * self.channels, self.dtype)
        # diffusers' net.1 is a dropout of rate 0.
        self.net_2 = Dense(self.channels, self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.net_2(self.net_0(x))


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context (or to itself again), feed-forward: [batch, n, channels] → same."""

    channels: int
    num_heads: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.norm1, self.norm2, self.norm3 = (LayerNorm(1e-5, self.dtype) for _ in range(3))
        self.attn1 = Attention(self.channels, self.num_heads, use_bias=False, dtype=self.dtype)
        self.attn2 = Attention(self.channels, self.num_heads, use_bias=False, dtype=self.dtype)
        self.ff = FeedForward(self.channels, self.dtype)

    def cross_attention_kv(self, context: Context) -> CrossAttentionKV:
        return context and (self.attn2.keys_values(context[0]), context[1])

    def attention(self, x: Array, cross_attention_kv: CrossAttentionKV) -> Array:
        """What the places of x attend to in `__call__`, of a context: [batch, n, tokens]."""
        (keys, _), bias = cross_attention_kv
        x = x + self.attn1(self.norm1(x))
        return self.attn2.weights(self.norm2(x), keys, bias)

    def __call__(self, x: Array, cross_attention_kv: CrossAttentionKV) -> Array:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), *(cross_attention_kv or ()))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over all positions, added to their input: [batch, time, frequency, channels] → same."""

    channels: int
    num_heads: int
    num_layers: int
    norm_num_groups: int
    dtype: jnp.dtype
    attends_to_loa: bool = False

    def setup(self) -> None:
        self.norm = GroupNorm(self.norm_num_groups, 1e-6, self.dtype)
        self.proj_in = conv1x1(self.channels, self.dtype)
        self.transformer_blocks = [
            TransformerBlock(self.channels, self.num_heads, self.dtype) for _ in range(self.num_layers)
        ]
        self.proj_out = conv1x1(self.channels, self.dtype, kernel_init=_zeros)

    def cross_attention_kv(self, context: Context) -> list[CrossAttentionKV]:
        return [block.cross_attention_kv(context) for block in self.transformer_blocks]

    def __call__(self, x: Array, cross_attention_kv: list[CrossAttentionKV]) -> Array:
        b, t, f, c = x.shape
        h = self.proj_in(self.norm(x).reshape(b, t * f, c))
        for block, given in zip(self.transformer_blocks, cross_attention_kv):
            if self.attends_to_loa and self.is_mutable_collection(LOA_ATTENTION) and not self.is_initializing():
                self.sow(LOA_ATTENTION, "weights", block.attention(h, given).reshape(b, t, f, -1))
            h = block(h, given)
        return x + self.proj_out(h).reshape(x.shape)


def is_loa(entry: int) -> bool:
    """Whether the context of an entry of cross_attention_dim is the LOA, not the text, where there is one."""
    return entry <= 1


class Level(nn.Module):
    """The fields of a block at one resolution, and a ResNet block with the transformers after it.

    context_dims is empty where the block has no attention. remat recomputes each ResNet block and each transformer
    in the backward pass, keeping their inputs alone.
    """

    channels: int
    num_layers: int
    num_heads: int
    context_dims: tuple[int | None, ...]
    transformer_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    remat: bool

    def make_resnets(self, count: int) -> list[ResnetBlock]:
        cls = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        return [
            cls(self.channels, self.norm_num_groups, self.norm_eps, self.dtype, last_init=_zeros) for _ in range(count)
        ]

    def make_attentions(self, count: int) -> list[Transformer]:
        cls = nn.remat(Transformer) if self.remat else Transformer
        sizes = (self.channels, self.num_heads, self.transformer_layers, self.norm_num_groups, self.dtype)
        to_loa = [dim is not None and is_loa(i) for i, dim in enumerate(self.context_dims)]
        return [cls(*sizes, attends_to_loa=one) for one in to_loa * count]

    def timestep_projections(self, time: Array) -> list[Array]:
        """What the time embedding adds in each ResNet block."""
        return [resnet.timestep_projection(time) for resnet in self.resnets]

    def cross_attention_kv(self, loa: Context, text: Context) -> list[list[CrossAttentionKV]]:
        """What each transformer attends to."""
        contexts = [None if dim is None else loa if is_loa(i) else text for i, dim in enumerate(self.context_dims)]
        return [
            attention.cross_attention_kv(contexts[i % len(contexts)]) for i, attention in enumerate(self.attentions)
        ]

    def attend(self, index: int, x: Array, cross_attention_kv: list[list[CrossAttentionKV]]) -> Array:
        """Applies the transformers behind ResNet block `index`, one a context."""
        count = len(self.context_dims)
        for i in range(index * count, (index + 1) * count):
            x = self.attentions[i](x, cross_attention_kv[i])
        return x


class DownBlock(Level):
    """num_layers × (ResNet block, transformers), then half the resolution where `resample`."""

    resample: bool

    def setup(self) -> None:
        self.resnets = self.make_resnets(self.num_layers)
        self.attentions = self.make_attentions(self.num_layers)
        self.downsamplers = [Downsample(self.channels, self.dtype)] if self.resample else []

    def __call__(
        self, x: Array, timestep_projections: list[Array], cross_attention_kv: list
    ) -> tuple[Array, list[Array]]:
        """Returns the output and everything that the way up takes from here."""
        skips = []
        for i, (resnet, timestep_projection) in enumerate(zip(self.resnets, timestep_projections)):
            x = self.attend(i, resnet(x, timestep_projection), cross_attention_kv)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(Level):
    """ResNet block, transformers, ResNet block (num_layers = 1)."""

    def setup(self) -> None:
        self.resnets = self.make_resnets(self.num_layers + 1)
        self.attentions = self.make_attentions(self.num_layers)

    def __call__(self, x: Array, timestep_projections: list[Array], cross_attention_kv: list) -> Array:
        x = self.resnets[0](x, timestep_projections[0])
        for i, (resnet, timestep_projection) in enumerate(zip(self.resnets[1:], timestep_projections[1:])):
            x = resnet(self.attend(i, x, cross_attention_kv), timestep_projection)
        return x


class UpBlock(Level):
    """num_layers × (skip, ResNet block, transformers), then twice the resolution where `resample`."""

    resample: bool

    def setup(self) -> None:
        self.resnets = self.make_resnets(self.num_layers)
        self.attentions = self.make_attentions(self.num_layers)
        self.upsamplers = [Upsample(self.channels, self.dtype)] if self.resample else []

    def __call__(
        self, x: Array, skips: list[Array], timestep_projections: list[Array], cross_attention_kv: list
    ) -> Array:
        """Takes num_layers of the skips from their end, and the resolution to go to from the next one."""
        for i, (resnet, timestep_projection) in enumerate(zip(self.resnets, timestep_projections)):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.attend(i, resnet(x, timestep_projection), cross_attention_kv)
        for upsampler in self.upsamplers:
            # An odd length was rounded up on the way down.
            x = upsampler(x, skips[-1].shape[1:3])
        return x
