"""The language model: GPT-2 learns to write the language of audio of a clip from its caption, or from what is said."""

from __future__ import annotations

import functools

import jax

from audioldm2_jax.conditioning.alignment import phonemes_away
from audioldm2_jax.conditioning.conditions import (
    TEXT_ENCODERS,
    caption_weight,
    drop_captions,
    has_words,
    text_encoders,
    text_fields,
    words_fields,
)
from audioldm2_jax.conditioning.loa import (
    attended_loa,
    generate_loa,
    hide_tokens,
    loa_distance,
    loa_grid,
    teacher_forced_loa,
)
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
    wrote itself [arXiv 1506.03099, section 2.4, linear; a whole sequence at a time], from a quarter of the steps on; at
    half of them its share is reached. `guided_attention` has GPT-2 look at the phonemes of the moment
    (conditioning/alignment.py). None of them is AudioLDM 2's.
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
        of_texts = features.of_texts(config, texts.trained(config, cls.name))
        span = ("span",) if config.train[cls.name].guided_attention else ()
        return (f"loa_{config.loa.pooling}", *span, *of_texts)

    def setup(self):
        if self.hparams.guided_attention and "phoneme" not in text_encoders(self.config).values():
            raise ValueError(
                "train.language_model.guided_attention is for phonemes, and this model reads none: set it to 0"
            )

    def weigh(self, batch):
        return {**batch, "caption_weight": caption_weight(has_words(self.config, batch))}

    @property
    def heldout_variant(self):
        return OWN_TOKENS if self.hparams.scheduled_sampling else None

    def variant(self, step):
        share = self.hparams.scheduled_sampling * min(max(4 * step / self.hparams.steps - 1, 0.0), 1.0)
        return OWN_TOKENS if Draw(self.config.seed, "scheduled sampling", step).chance(share) else None

    def objectives(self, variant):
        return (Objective("loa", tuple(self.modules), functools.partial(self._loss, variant == OWN_TOKENS)),)

    def _loss(self, own_tokens, params, outputs, state, frozen, batch, rngs: Rngs):
        text, _ = drop_captions(batch, rngs.uniform("guidance dropout"), self.hparams.guidance_dropout, self.empty_text)
        prefix, _, _ = texts.encode(self, params, frozen, text, rngs)
        (loa,) = self.made(f"loa_{self.config.loa.pooling}", frozen, batch)
        weight, guided = batch["caption_weight"], self.hparams.guided_attention
        gpt2 = self.network("language_model", frozen, params)
        if own_tokens:
            read = jax.lax.stop_gradient(generate_loa(gpt2, prefix, loa.shape[1]))
        else:
            read = hide_tokens(loa, rngs, self.hparams.token_dropout)
        key = self.dropout("language_model", params, rngs)
        if not guided:
            made = teacher_forced_loa(gpt2, prefix, read, dropout_key=key)
            return loa_distance(made, loa, self.hparams.loss, weight), ({}, state)
        made, attention = attended_loa(gpt2, prefix, read, text["phoneme_mask"].shape[1], dropout_key=key)
        (span,) = self.made("span", frozen, batch)
        grid = loa_grid(self.config.loa.pooling, *self.components["audiomae"].module.grid)
        away = (phonemes_away(attention, text["phoneme_mask"], span, grid) * weight).mean()
        distance = loa_distance(made, loa, self.hparams.loss, weight)
        return distance + guided * away, ({"loa": distance, "away": away}, state)

    def results(self, params, state, frozen, batch):
        return {name: self.component(name, params, state) for name in self.modules}
