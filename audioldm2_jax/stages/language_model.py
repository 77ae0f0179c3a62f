"""The language model: GPT-2 learns to write the language of audio of a clip from its caption, or from what is said."""

from __future__ import annotations

import functools

import jax

from audioldm2_jax.conditioning.conditions import (
    TEXT_ENCODERS,
    caption_weight,
    drop_captions,
    has_words,
    text_fields,
    words_fields,
)
from audioldm2_jax.conditioning.loa import generate_loa, hide_tokens, loa_distance, teacher_forced_loa
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import features, texts
from audioldm2_jax.stages.base import Objective, Stage

OWN_TOKENS = "own tokens"
"""The variant of a step in which GPT-2 reads what it wrote itself."""


class LanguageModelStage(Stage):
    """Regression of the true LOA, token after token, teacher-forced [arXiv 2308.05734, section 3.2].

    Text encoders beside CLAP's that do not come pretrained (`train_text_encoder_2`, `_3`) are trained along.

    Where a LOA has many tokens, each is predicted from those before it, with little use of the prompt, and what is
    written freely drifts away. Against that `token_dropout` hides tokens that GPT-2 reads [word dropout,
    arXiv 1511.06349, section 3.1], and `scheduled_sampling` lets it read, in more and more of the steps, those that it
    wrote itself [arXiv 1506.03099, section 2.4, linear; a whole sequence at a time]. Neither is AudioLDM 2's.
    """

    name = "language_model"
    reads = (
        "audio.fbank",
        "loa.pooling",
        "models.audiomae",
        "models.text_encoder.projection_dim",
        *(f"models.{name}" for name in TEXT_ENCODERS),
        "text.phoneme_length",
    )

    @classmethod
    def reads_fields(cls, config):
        return ("waveform", *text_fields(config), *words_fields(config))

    @classmethod
    def learns_from(cls, config):
        return words_fields(config)

    @classmethod
    def needs(cls, config):
        return ("audiomae", "text_encoder", *texts.frozen(config, cls.name))

    @classmethod
    def makes(cls, config):
        return ("language_model", "projection_model", *texts.trained(config, cls.name))

    @classmethod
    def reads_features(cls, config):
        return (f"loa_{config.loa.pooling}", *features.of_texts(config, texts.trained(config, cls.name)))

    def weigh(self, batch):
        return {**batch, "caption_weight": caption_weight(has_words(self.config, batch))}

    @property
    def heldout_variant(self):
        return OWN_TOKENS if self.hparams.scheduled_sampling else None

    def variant(self, step):
        share = self.hparams.scheduled_sampling * step / self.hparams.steps
        return OWN_TOKENS if Draw(self.config.seed, "scheduled sampling", step).chance(share) else None

    def objectives(self, variant):
        return (Objective("loa", tuple(self.modules), functools.partial(self._loss, variant == OWN_TOKENS)),)

    def _loss(self, own_tokens, params, outputs, state, frozen, batch, rngs: Rngs):
        text, _ = drop_captions(batch, rngs.uniform("guidance dropout"), self.hparams.guidance_dropout, self.empty_text)
        prefix, _, _ = texts.encode(self, params, frozen, text, rngs)
        (loa,) = self.made(f"loa_{self.config.loa.pooling}", frozen, batch)
        gpt2 = self.network("language_model", frozen, params)
        if own_tokens:
            read = jax.lax.stop_gradient(generate_loa(gpt2, prefix, loa.shape[1]))
        else:
            read = hide_tokens(loa, rngs, self.hparams.token_dropout)
        made = teacher_forced_loa(gpt2, prefix, read, dropout_key=self.dropout("language_model", params, rngs))
        return loa_distance(made, loa, self.hparams.loss, batch["caption_weight"]), ({}, state)

    def results(self, params, state, frozen, batch):
        return {name: self.component(name, params, state) for name in self.modules}
