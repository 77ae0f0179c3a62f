"""From the states of two or three text encoders to the input of the language model.

Names as in diffusers' `AudioLDM2ProjectionModel`, the spelling of `langauge_model_dim` included.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from audioldm2_jax.models.layers import Dense


class ProjectionModel(nn.Module):
    """Projects each sequence to the language model's width, wraps it in its SOS and EOS and joins them.

    Where the last sequence is one of phonemes, a learned table is added to it: use_learned_position_embedding, of
    max_seq_length positions. In the speech variant that is the second; a unified model, which diffusers does not have,
    reads phonemes as a third one of width text_encoder_2_dim.
    """

    text_encoder_dim: int
    text_encoder_1_dim: int
    langauge_model_dim: int
    use_learned_position_embedding: bool | None = None
    max_seq_length: int | None = None
    text_encoder_2_dim: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden_states: Array,
        hidden_states_1: Array,
        attention_mask: Array | None = None,
        attention_mask_1: Array | None = None,
        hidden_states_2: Array | None = None,
        attention_mask_2: Array | None = None,
    ) -> tuple[Array, Array]:
        """hidden_states [batch, n, text_encoder_dim], hidden_states_1 [batch, m, text_encoder_1_dim] and, of a unified
        model, hidden_states_2 [batch, k, text_encoder_2_dim].

        A mask is [batch, n], [batch, m] or [batch, k] of 0 and 1; none means that every token is real. Returns the
        states [batch, n + 2 + m + 2 (+ k + 2), langauge_model_dim] and their mask, as long, int32: the first n + m + 4
        of them do not depend on a third sequence.
        Raises ValueError where a width is not the configured one, the sequence of phonemes is too long, or there is
        one sequence more or less than configured.
        """
        given = [
            ("text_encoder_dim", self.text_encoder_dim, hidden_states, attention_mask),
            ("text_encoder_1_dim", self.text_encoder_1_dim, hidden_states_1, attention_mask_1),
        ]
        if (self.text_encoder_2_dim is None) != (hidden_states_2 is None):
            raise ValueError(f"text_encoder_2_dim is {self.text_encoder_2_dim}: give as many sequences as there are")
        if hidden_states_2 is not None:
            given.append(("text_encoder_2_dim", self.text_encoder_2_dim, hidden_states_2, attention_mask_2))
        wrapped = []
        for index, (key, width, states, mask) in enumerate(given):
            self._check_width(key, width, states)
            if self.use_learned_position_embedding and index == len(given) - 1:
                states = states + self._positions(*states.shape[1:])
            wrapped.append(self._wrap(states, mask, f"_{index}" if index else ""))
        states, masks = zip(*wrapped)
        return jnp.concatenate(states, axis=1), jnp.concatenate(masks, axis=1)

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

    def _positions(self, n: int, width: int) -> Array:
        if n > self.max_seq_length:
            raise ValueError(f"{n} tokens are more than the {self.max_seq_length} positions of max_seq_length")
        shape = (1, width, self.max_seq_length)
        table = self.param("learnable_positional_embedding", nn.initializers.zeros, shape)
        return table[:, :, :n].swapaxes(1, 2)

    def _check_width(self, key: str, width: int, states: Array) -> None:
        if states.shape[-1] != width:
            raise ValueError(f"the text states are {states.shape[-1]} wide and {key} is {width}; make them agree")
