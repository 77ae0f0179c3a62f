"""The language model: GPT-2 learns to write the language of audio of a clip from its caption, or from what is said."""

from __future__ import annotations

from audioldm2_jax.conditioning.conditions import (
    TEXT_ENCODERS,
    caption_weight,
    drop_captions,
    has_words,
    text_fields,
    words_fields,
)
from audioldm2_jax.conditioning.loa import loa_distance, teacher_forced_loa
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import features, texts
from audioldm2_jax.stages.base import Objective, Stage


class LanguageModelStage(Stage):
    """Regression of the true LOA, token after token, teacher-forced [arXiv 2308.05734, section 3.2].

    Text encoders beside CLAP's that do not come pretrained (`train_text_encoder_2`, `_3`) are trained along.
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

    def objectives(self, variant):
        return (Objective("loa", tuple(self.modules), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        text, _ = drop_captions(batch, rngs.uniform("guidance dropout"), self.hparams.guidance_dropout, self.empty_text)
        prefix, _, _ = texts.encode(self, params, frozen, text, rngs)
        (loa,) = self.made(f"loa_{self.config.loa.pooling}", frozen, batch)
        made = teacher_forced_loa(
            self.network("language_model", frozen, params),
            prefix,
            loa,
            dropout_key=self.dropout("language_model", params, rngs),
        )
        return loa_distance(made, loa, self.hparams.loss, batch["caption_weight"]), ({}, state)

    def results(self, params, state, frozen, batch):
        return {name: self.component(name, params, state) for name in self.modules}
