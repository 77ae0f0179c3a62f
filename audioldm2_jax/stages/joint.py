"""Joint fine-tuning: the UNet learns to live with the LOA that GPT-2 writes, and GPT-2 what the UNet needs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.conditioning.conditions import (
    TEXT_ENCODERS,
    Conditions,
    caption_weight,
    drop_captions,
    has_words,
    text_fields,
    words_fields,
)
from audioldm2_jax.conditioning.loa import generate_loa, loa_distance, loa_grid, teacher_forced_loa
from audioldm2_jax.diffusion.objective import denoising_loss, draw_latents
from audioldm2_jax.diffusion.sampling import sample_beside
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.recipe_components import latent_frames
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import features, texts
from audioldm2_jax.stages.base import Objective, Stage


class JointStage(Stage):
    """One loss over both halves [arXiv 2308.05734, section 4.3; TF latent_diffusion/ddpm.py].

    The UNet sees the true LOA of a share of the examples and the generated LOA of the others, whose gradient reaches
    GPT-2; GPT-2 goes on regressing the true LOA, from the true tokens or from those that it wrote itself
    (`scheduled_sampling`, as in the language model's stage). What it predicts having read these is what it wrote, so of
    such examples the gradient goes back through that one reading instead of the writing, token by token.

    A dropped caption is the empty caption for T5, CLAP and so GPT-2, as in diffusers; with `unconditional=zeros` the
    UNet then sees zeros for the LOA, as in the authors' code.
    """

    name = "joint"
    reads = (
        "audio.mel",
        "audio.fbank",
        "loa.pooling",
        "scheduler",
        "models.audiomae",
        "models.text_encoder.projection_dim",
        *(f"models.{name}" for name in TEXT_ENCODERS),
        "text.phoneme_length",
    )
    reads_to_evaluate = ("samples",)

    @classmethod
    def reads_fields(cls, config):
        return ("waveform", *text_fields(config), *words_fields(config))

    @classmethod
    def needs(cls, config):
        return ("audiomae", "text_encoder", "vae", *texts.frozen(config, cls.name))

    @classmethod
    def continues(cls, config):
        return cls.makes(config)

    @classmethod
    def makes(cls, config):
        return ("unet", "language_model", "projection_model", *texts.trained(config, cls.name))

    @classmethod
    def reads_features(cls, config):
        of_texts = features.of_texts(config, texts.trained(config, cls.name))
        return ("latents", f"loa_{config.loa.pooling}", *of_texts)

    def setup(self):
        if self.hparams.unconditional not in ("language_model", "zeros"):
            raise ValueError(
                f"train.joint.unconditional={self.hparams.unconditional!r}: choose language_model or zeros"
            )
        self.schedule = NoiseSchedule.from_config(self.config.scheduler.to_dict())
        self.scale = self.components["vae"].config["scaling_factor"]

    def weigh(self, batch):
        return {**batch, "caption_weight": caption_weight(has_words(self.config, batch))}

    def objectives(self, variant):
        return (Objective("joint", tuple(self.modules), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        uniform = rngs.uniform("guidance dropout")
        text, dropped = drop_captions(batch, uniform, self.hparams.guidance_dropout, self.empty_text)
        prefix, states, mask = texts.encode(self, params, frozen, text, rngs)
        (loa,) = self._true_loa(frozen, batch)
        gpt2 = self.network("language_model", frozen, params)
        first, second = (self.dropout("language_model", params, rngs, use) for use in ("generation", "teacher forcing"))
        made = generate_loa(gpt2, prefix, loa.shape[1], dropout_key=first)
        # With a share of 1 dropped examples alone see it, and nothing goes back through its tokens.
        if self.hparams.true_loa_share >= 1 or self.hparams.scheduled_sampling >= 1:
            made = jax.lax.stop_gradient(made)
        read = loa
        if self.hparams.scheduled_sampling:
            own = (rngs.uniform("scheduled sampling") < self.hparams.scheduled_sampling)[:, None, None]
            read = jnp.where(own, jax.lax.stop_gradient(made), read)
        predicted = teacher_forced_loa(gpt2, prefix, read, dropout_key=second)
        if self.hparams.scheduled_sampling and self.hparams.true_loa_share < 1:
            made = jnp.where(own, predicted, made)
        language = loa_distance(predicted, loa, self.hparams.loss, batch["caption_weight"])

        # A clip without a caption has nothing to generate from; a dropped one must not see the clip's own LOA.
        true = rngs.uniform("true loa") < self.hparams.true_loa_share
        true = (true | ~has_words(self.config, batch)) & ~dropped
        seen = jnp.where(true[:, None, None], loa, made)
        if self.hparams.unconditional == "zeros":
            seen = jnp.where(dropped[:, None, None], 0.0, seen)
        latents = draw_latents(*self.made("latents", frozen, batch), self.scale, rngs, self.hparams.posterior)
        conditions = Conditions(seen, states, mask)
        unet = self.network("unet", frozen, params)
        grid = loa_grid(self.config.loa.pooling, *self.components["audiomae"].module.grid)
        denoising = denoising_loss(unet, self.schedule, latents, conditions, rngs, self.hparams, grid)
        loss = denoising + self.hparams.language_weight * language
        return loss, ({"denoising": denoising, "loa": language}, state)

    def _true_loa(self, frozen, batch):
        return self.made(f"loa_{self.config.loa.pooling}", frozen, batch)

    def sample(self, params, state, frozen, batch, key):
        clips, hparams = batch["waveform"].shape[0], self.config.samples
        tokens = jax.eval_shape(lambda: self._true_loa(frozen, batch))[0].shape[1]

        def conditions(uniform):
            text, _ = drop_captions(batch, uniform, 0.5, self.empty_text)
            prefix, states, mask = texts.encode(self, params, frozen, text)
            return Conditions(
                generate_loa(self.network("language_model", frozen, params), prefix, tokens), states, mask
            )

        with_captions, uncond = conditions(jnp.ones(clips)), conditions(jnp.zeros(clips))
        if self.hparams.unconditional == "zeros":
            uncond = uncond._replace(loa=jnp.zeros_like(uncond.loa))
        return sample_beside(
            self.network("vae", frozen),
            self.network("unet", frozen, params),
            self.schedule,
            self.ends.compressed_mel(batch["waveform"]),
            with_captions,
            uncond,
            self.scale,
            hparams.guidance_scale,
            hparams.steps,
            key,
        )

    def results(self, params, state, frozen, batch):
        frames = {"sample_size": latent_frames(self.config, self.components["vae"].config)}
        return {name: self.component(name, params, state, **frames if name == "unet" else {}) for name in self.modules}
