"""Prompts → what conditions the UNet: token ids, then text encoders and language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.components import LOA_TOKENS
from audioldm2_jax.conditioning.conditions import KINDS, TEXT_ENCODERS, Conditions, Text
from audioldm2_jax.conditioning.loa import encode_prompt, generate_loa
from audioldm2_jax.generation.prompts import Prompts, one_each, prompt_list
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.models.network import Network

UNCONDITIONAL = ("language_model", "zeros")
_NETWORKS = ("text_encoder", *TEXT_ENCODERS, "projection_model", "language_model")


class Texts(NamedTuple):
    """Prompts, and their token ids with those of the negative prompts (`Prompts.encode`)."""

    prompts: list[str]
    ids: dict[str, np.ndarray]


class PromptEncoder:
    """The tokenizers, text encoders and language model of a model folder.

    What conditions the UNet follows from the networks that there are: with a language model the LOA, with T5 beside it
    the text states, with a phoneme encoder a transcription, with T5 and a phoneme encoder all of that; without a
    language model T5's states or, without those, CLAP's embedding.
    """

    def __init__(self, prompts: Prompts, components: Mapping[str, Component], networks: Mapping[str, Network]):
        """Args:
        prompts: the tokenizers.
        components: of the model folder.
        networks: the same, placed on the mesh.
        """
        self.prompts = prompts
        self._networks = {name: networks[name] for name in _NETWORKS if name in networks}
        self.loa_tokens = loa_tokens(components)

    @property
    def writes_loa(self) -> bool:
        """Whether there is a language model."""
        return "language_model" in self._networks

    def tokenize(
        self,
        prompt: str | Sequence[str],
        negative: str | Sequence[str] | None,
        transcription: str | Sequence[str | None] | None = None,
        *,
        emptied: bool = False,
    ) -> Texts:
        """Returns prompts, negative prompts and transcriptions as token ids; with `emptied` the empty text, too.

        Raises:
            ValueError: they are no texts, or not as many as prompts; or the model takes no transcription, or needs one.
        """
        prompts = prompt_list(prompt)
        negatives = one_each("" if negative is None else negative, len(prompts), "negative prompts")
        if self.prompts.needs_transcription and transcription is None:
            raise ValueError("This is a model of speech: give a transcription, what is to be said.")
        if not self.prompts.takes_transcription and transcription is not None:
            raise ValueError("This is not a model of speech: transcription is for those; leave it out.")
        optional = {"may_lack": not self.prompts.needs_transcription}
        spoken = None if transcription is None else one_each(transcription, len(prompts), "transcriptions", **optional)
        return Texts(prompts, self.prompts.encode(prompts, negatives, spoken, emptied=emptied))

    def encode(
        self,
        texts: Texts,
        tokens: int,
        uncond: str = "language_model",
        use_loa: bool = True,
        use_text_states: bool = True,
        loa: np.ndarray | None = None,
    ) -> tuple[Conditions, Conditions, jax.Array]:
        """Returns the conditions of prompts and of negative prompts, and CLAP's embeddings [prompts, d] of the prompts.

        Args:
            texts: with the empty text where `use_text_states` is False.
            tokens: length of the LOA.
            uncond, use_loa, use_text_states: see `AudioLDM2.__call__`.
            loa: what the LOA of the prompts begins with, [1, up to tokens, d].

        Raises:
            ValueError: `uncond` is neither choice, or the model has no LOA to choose for.
        """
        if uncond not in UNCONDITIONAL:
            raise ValueError(f"uncond is {uncond!r}; use one of {', '.join(UNCONDITIONAL)}.")
        usual = uncond == UNCONDITIONAL[0] and use_loa and use_text_states
        if not self.writes_loa and not usual:
            raise ValueError("This model has no language of audio: leave out uncond, use_loa and use_text_states.")
        count = len(texts.prompts)
        every, text_embedding = _encode(self._networks, texts.ids, loa, count=count, num_tokens=tokens)
        cond, negative, emptied = (
            jax.tree.map(lambda x, first=first: x[first : first + count], every) for first in (0, count, 2 * count)
        )
        if not use_text_states:
            cond = emptied._replace(loa=cond.loa)
        if not use_loa:
            cond = cond._replace(loa=jnp.zeros_like(cond.loa))
        if uncond == "zeros" or not use_loa:
            negative = negative._replace(loa=jnp.zeros_like(negative.loa))
        return cond, negative, text_embedding[:count]


def loa_tokens(components: Mapping[str, Component]) -> int:
    """Returns the length of the LOA that the language model writes, 0 without one."""
    gpt2 = components.get("language_model")
    return (gpt2.config.get("max_new_tokens") or LOA_TOKENS) if gpt2 else 0


def prompt_limits(components: Mapping[str, Component]) -> dict[str, int]:
    """How many tokens the networks can take, whatever the tokenizers' files say."""
    clap, gpt2 = components["text_encoder"].module, components.get("language_model")
    text = clap.text_config if isinstance(clap, Clap) else vars(clap)
    # RoBERTa counts positions from the padding id on. GPT-2 reads five places beside T5's, of unified models phonemes
    # with two more, and all of the LOA but its last token.
    limits = {"clap_limit": text["max_position_embeddings"] - text["pad_token_id"] - 1}
    if gpt2:
        projection = components["projection_model"].module
        third = projection.max_seq_length + 2 if projection.text_encoder_2_dim else 0
        limits["t5_limit"] = gpt2.module.n_positions - loa_tokens(components) - 4 - third
    return limits


@partial(jax.jit, static_argnames=("count", "num_tokens"))
def _encode(
    networks: dict[str, Network], text: Text, loa: jax.Array | None, *, count: int, num_tokens: int
) -> tuple[Conditions, jax.Array]:
    """Conditions of all texts, and CLAP's embeddings of them; the first `count` may begin with given LOA tokens."""
    clap, second = networks["text_encoder"], networks.get("text_encoder_2")
    text_embedding = clap(text["clap_ids"], text["clap_mask"], method="text_features")
    if second is None:
        return Conditions(clap_embedding=text_embedding), text_embedding
    if "language_model" not in networks:
        return Conditions(loa=second(text["t5_ids"], text["t5_mask"]), loa_mask=text["t5_mask"]), text_embedding
    gpt2 = networks["language_model"]
    # As many of them as there are encoders, T5 first.
    kinds = [kind for kind in KINDS.values() if f"{kind}_ids" in text]
    encoders = dict(zip(kinds, (networks[name] for name in TEXT_ENCODERS if name in networks)))
    prefix, states, mask = encode_prompt(clap, encoders, networks["projection_model"], text)
    if loa is None:
        written = generate_loa(gpt2, prefix, num_tokens)
    else:
        first, rest = (
            jax.tree.map(lambda x, part=part: x[part], prefix) for part in (slice(count), slice(count, None))
        )
        loa = jnp.repeat(loa, count, 0)
        if loa.shape[1] < num_tokens:
            loa = generate_loa(gpt2, first, num_tokens, given=loa)
        written = jnp.concatenate([loa, generate_loa(gpt2, rest, num_tokens)])
    return Conditions(written, states, mask), text_embedding
