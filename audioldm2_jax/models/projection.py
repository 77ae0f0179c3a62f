"""From the states of two text encoders to the input of the language model.

Names as in diffusers' `AudioLDM2ProjectionModel`, the spelling of `langauge_model_dim` included.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.layers import Dense


class ProjectionModel(nn.Module):
    """Projects each sequence to the language model's width, wraps it in its SOS and EOS and joins the two.

    The speech variant adds a learned table to the second sequence (phonemes): use_learned_position_embedding,
    of max_seq_length positions.
    """

    text_encoder_dim: int
    text_encoder_1_dim: int
    langauge_model_dim: int
    use_learned_position_embedding: bool | None = None
    max_seq_length: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden_states: Array,
        hidden_states_1: Array,
        attention_mask: Array | None = None,
        attention_mask_1: Array | None = None,
    ) -> tuple[Array, Array]:
        """hidden_states [batch, n, text_encoder_dim], hidden_states_1 [batch, m, text_encoder_1_dim].

        A mask is [batch, n] or [batch, m] of 0 and 1; none means that every token is real. Returns the states
        [batch, 1 + n + 1 + 1 + m + 1, langauge_model_dim] and their mask [batch, n + m + 4] int32.
        Raises ValueError where a width is not the configured one or the second sequence is too long.
        """
        self._check_width("text_encoder_dim", self.text_encoder_dim, hidden_states)
        self._check_width("text_encoder_1_dim", self.text_encoder_1_dim, hidden_states_1)
        if self.use_learned_position_embedding:
            hidden_states_1 = hidden_states_1 + self._positions(hidden_states_1.shape[1])
        first, first_mask = self._wrap(hidden_states, attention_mask, "")
        second, second_mask = self._wrap(hidden_states_1, attention_mask_1, "_1")
        return jnp.concatenate([first, second], axis=1), jnp.concatenate([first_mask, second_mask], axis=1)

    def _wrap(self, states: Array, mask: Array | None, suffix: str) -> tuple[Array, Array]:
        batch, n, _ = states.shape
        width = self.langauge_model_dim
        states = Dense(width, self.dtype, name=f"projection{suffix}")(states)
        start, end = (
            jnp.broadcast_to(self.param(f"{end}_embed{suffix}", nn.initializers.ones, (width,)), (batch, 1, width))
            for end in ("sos", "eos")
        )
        states = jnp.concatenate([start.astype(self.dtype), states, end.astype(self.dtype)], axis=1)
        mask = jnp.ones((batch, n), jnp.int32) if mask is None else mask.astype(jnp.int32)
        return states, jnp.pad(mask, ((0, 0), (1, 1)), constant_values=1)

    def _positions(self, n: int) -> Array:
        if n > self.max_seq_length:
            raise ValueError(f"{n} tokens are more than the {self.max_seq_length} positions of max_seq_length")
        shape = (1, self.text_encoder_1_dim, self.max_seq_length)
        table = self.param("learnable_positional_embedding", nn.initializers.zeros, shape)
        return table[:, :, :n].swapaxes(1, 2)

    def _check_width(self, key: str, width: int, states: Array) -> None:
        if states.shape[-1] != width:
            raise ValueError(f"the text states are {states.shape[-1]} wide and {key} is {width}; make them agree")
