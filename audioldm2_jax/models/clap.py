"""CLAP: a RoBERTa text tower and an HTSAT audio tower that embed captions and clips in one space.

Wu et al. 2023 (arXiv 2211.06687). Names and initial values are those of transformers' `ClapModel` without fusion.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.attention import mask_bias
from audioldm2_jax.models.clap_layers import Attention, Dense, LayerConfig, Output, check_gelu, normal
from audioldm2_jax.models.htsat import ClapAudioTower
from audioldm2_jax.models.layers import gelu


class Clap(nn.Module):
    """Both towers, their projections and the two temperatures (as logarithms of their inverses).

    text_config and audio_config are the mappings of those names in config.json: the fields of `ClapTextTower` and
    `ClapAudioTower`; keys that describe other things (token ids, `architectures`) are passed over. The statistics
    of the audio tower's BatchNorm are in the collection `batch_stats`.
    """

    text_config: Mapping[str, Any]
    audio_config: Mapping[str, Any]
    projection_dim: int
    logit_scale_init_value: float
    projection_hidden_act: str = "relu"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.projection_hidden_act != "relu":
            raise ValueError(f"projection_hidden_act is {self.projection_hidden_act!r}; only 'relu' is supported")
        text, audio = (
            {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
            for config in (self.text_config, self.audio_config)
        )
        self.text_model = ClapTextTower(**_fields_of(ClapTextTower, text), dtype=self.dtype)
        self.audio_model = ClapAudioTower(**_fields_of(ClapAudioTower, audio), dtype=self.dtype)
        layers = text["num_hidden_layers"] + len(audio["depths"])
        style = LayerConfig((2 * layers * text["hidden_size"]) ** -0.5, dtype=self.dtype)
        self.text_projection = _Projection(style, self.projection_dim)
        self.audio_projection = _Projection(style, self.projection_dim)
        log_scale = nn.initializers.constant(math.log(self.logit_scale_init_value))
        self.logit_scale_a = self.param("logit_scale_a", log_scale, ())
        self.logit_scale_t = self.param("logit_scale_t", log_scale, ())

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        mel: Array,
        *,
        deterministic: bool = True,
        use_running_average: bool = True,
    ) -> tuple[Array, Array]:
        """(text_features(...), audio_features(...))."""
        audio = self.audio_features(mel, deterministic=deterministic, use_running_average=use_running_average)
        return self.text_features(input_ids, attention_mask, deterministic=deterministic), audio

    def text_features(self, input_ids: Array, attention_mask: Array, *, deterministic: bool = True) -> Array:
        """input_ids, attention_mask [batch, tokens] int32 → [batch, projection_dim] float32 of length one."""
        states = self.text_model(input_ids, attention_mask, deterministic=deterministic)
        return _unit(self.text_projection(states))

    def audio_features(self, mel: Array, *, deterministic: bool = True, use_running_average: bool = True) -> Array:
        """mel [batch, frames, num_mel_bins] in dB → [batch, projection_dim] float32 of length one.

        use_running_average=False takes the batch's statistics and needs mutable=["batch_stats"].
        """
        states = self.audio_model(mel, deterministic=deterministic, use_running_average=use_running_average)
        return _unit(self.audio_projection(states))


class ClapTextTower(nn.Module):
    """RoBERTa (Liu et al. 2019, arXiv 1907.11692) with BERT's pooler over the first token."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, input_ids: Array, attention_mask: Array, *, deterministic: bool = True) -> Array:
        """input_ids, attention_mask [batch, tokens] int32 (1: a real token) → [batch, hidden_size] float32.

        Raises ValueError where max_position_embeddings has no room for the tokens.
        """
        check_gelu(self.hidden_act)
        room = self.max_position_embeddings - self.pad_token_id - 1
        if input_ids.shape[1] > room:
            raise ValueError(f"{input_ids.shape[1]} tokens; max_position_embeddings leaves room for {room}: cut them")
        style = LayerConfig(
            (2 * self.num_hidden_layers * self.hidden_size) ** -0.5,
            self.hidden_dropout_prob,
            self.attention_probs_dropout_prob,
            self.layer_norm_eps,
            self.dtype,
        )
        tables = self.vocab_size, self.max_position_embeddings, self.type_vocab_size
        embeddings = _TextEmbeddings(style, *tables, self.hidden_size, self.pad_token_id, name="embeddings")
        x = embeddings(input_ids, deterministic)
        bias = mask_bias(attention_mask[:, None, None, :] > 0)
        sizes = self.num_hidden_layers, self.num_attention_heads, self.intermediate_size
        x = _TextEncoder(style, *sizes, name="encoder")(x, bias, deterministic)
        return jnp.tanh(Dense(style.in_float32(), self.hidden_size, name="pooler")(x[:, 0]))


class ClapText(ClapTextTower):
    """The text tower with its projection and nothing else, as AudioLDM 1 has it in diffusers.

    Twin: transformers' `ClapTextModelWithProjection`, whose projection_hidden_act is ReLU.
    """

    projection_dim: int = 512

    def setup(self) -> None:
        fields = {field.name for field in dataclasses.fields(ClapTextTower)} - {"parent", "name"}
        self.text_model = ClapTextTower(**{name: getattr(self, name) for name in fields})
        style = LayerConfig((2 * self.num_hidden_layers * self.hidden_size) ** -0.5, dtype=self.dtype)
        self.text_projection = _Projection(style, self.projection_dim)

    def __call__(self, input_ids: Array, attention_mask: Array, *, deterministic: bool = True) -> Array:
        """input_ids, attention_mask [batch, tokens] int32 → [batch, projection_dim] float32 of length one."""
        return _unit(self.text_projection(self.text_model(input_ids, attention_mask, deterministic=deterministic)))

    text_features = __call__


class _TextEmbeddings(nn.Module):
    style: LayerConfig
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_size: int
    pad_token_id: int

    @nn.compact
    def __call__(self, input_ids: Array, deterministic: bool) -> Array:
        # Positions count the real tokens and start behind the padding id; padding stays on it (fairseq).
        real = (input_ids != self.pad_token_id).astype(jnp.int32)
        positions = real.cumsum(1) * real + self.pad_token_id
        x = self._table(self.vocab_size, "word_embeddings")(input_ids)
        x = x + self._table(self.max_position_embeddings, "position_embeddings")(positions)
        x = x + self._table(self.type_vocab_size, "token_type_embeddings")(jnp.zeros((1, 1), jnp.int32))
        return self.style.dropout(self.style.norm("LayerNorm")(x), deterministic)

    def _table(self, rows: int, name: str) -> nn.Embed:
        return nn.Embed(rows, self.hidden_size, embedding_init=normal(0.02), dtype=self.style.dtype, name=name)


class _TextEncoder(nn.Module):
    style: LayerConfig
    num_layers: int
    num_heads: int
    intermediate_size: int

    @nn.compact
    def __call__(self, x: Array, bias: Array, deterministic: bool) -> Array:
        for index in range(self.num_layers):
            x = _TextLayer(self.style, self.num_heads, self.intermediate_size, name=f"layer_{index}")(
                x, bias, deterministic
            )
        return x


class _TextLayer(nn.Module):
    """Attention and MLP, each followed by the sum with its input and a norm."""

    style: LayerConfig
    num_heads: int
    intermediate_size: int

    @nn.compact
    def __call__(self, x: Array, bias: Array, deterministic: bool) -> Array:
        x = Attention(self.style, self.num_heads, post_norm=True, name="attention")(x, bias, deterministic)
        h = gelu(Dense(self.style, self.intermediate_size, name="intermediate")(x))
        return Output(self.style, post_norm=True, name="output")(h, x, deterministic)


class _Projection(nn.Module):
    style: LayerConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        style = self.style.in_float32()
        x = nn.relu(style.dense(self.features, "linear1")(x))
        return style.dense(self.features, "linear2")(x)


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def _fields_of(module: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(module)} - {"parent", "name", "dtype"}
    return {key: value for key, value in config.items() if key in names}
