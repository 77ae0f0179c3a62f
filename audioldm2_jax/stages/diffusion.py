"""Latent diffusion: the UNet learns to denoise a clip's latents, given its language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.conditioning.conditions import Conditions, drop_captions, text_encoders, text_width
from audioldm2_jax.conditioning.loa import loa_grid
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.diffusion.objective import denoising_loss, draw_latents
from audioldm2_jax.diffusion.sampling import sample_beside
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.recipe_components import latent_frames
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Objective, Stage


class DiffusionStage(Stage):
    """The UNet alone on the true LOA of all audio, captioned or not [arXiv 2308.05734, section 3.3].

    λ of the LOA is drawn from `loa.training_poolings` each step, alike on all hosts: one executable a λ.
    """

    name = "diffusion"
    reads = ("audio.mel", "audio.fbank", "loa.training_poolings", "scheduler", "models.text_encoder_2")
    reads_to_evaluate = ("loa.pooling", "samples")

    @classmethod
    def needs(cls, config):
        return ("audiomae", "vae") + (("text_encoder_2",) if reads_text(config) else ())

    @classmethod
    def makes(cls, config):
        return ("unet",)

    @classmethod
    def reads_fields(cls, config):
        return ("waveform", "t5_ids", "t5_mask") if reads_text(config) else ("waveform",)

    @classmethod
    def reads_features(cls, config):
        poolings = dict.fromkeys(config.loa.training_poolings)
        return ("latents", *(f"loa_{pooling}" for pooling in poolings), *(("t5",) if reads_text(config) else ()))

    @property
    def heldout_variant(self):
        return self.config.loa.pooling

    def setup(self):
        self.schedule = NoiseSchedule.from_config(self.config.scheduler.to_dict())
        self.scale = self.components["vae"].config["scaling_factor"]

    def variant(self, step):
        poolings = self.config.loa.training_poolings
        return Draw(self.config.seed, "pooling", step).pick(poolings)

    def objectives(self, variant):
        def loss(params, outputs, state, frozen, batch, rngs):
            return self._loss(params, frozen, batch, rngs, variant), ({}, state)

        return (Objective("denoising", ("unet",), loss),)

    def _loss(self, params, frozen, batch, rngs: Rngs, pooling):
        (loa,) = self.made(f"loa_{pooling}", frozen, batch)
        conditions = self._conditions(loa, frozen, batch, rngs.uniform("guidance dropout"))
        latents = draw_latents(*self.made("latents", frozen, batch), self.scale, rngs, self.hparams.posterior)
        unet, grid = self.network("unet", frozen, params), loa_grid(pooling, *self.components["audiomae"].module.grid)
        return denoising_loss(unet, self.schedule, latents, conditions, rngs, self.hparams, grid)

    def _conditions(self, loa, frozen, batch, uniforms):
        """Returns the LOA and T5's states, dropped where a draw is below the rate of guidance dropout.

        Without T5 there is one zero vector in the place of the text, of which a UNet without text has no use.
        """
        text, dropped = drop_captions(batch, uniforms, self.hparams.guidance_dropout, self.empty_text or {})
        loa = jnp.where(dropped[:, None, None], 0.0, loa)
        if not reads_text(self.config):
            return Conditions(loa, *no_text(self.config, dropped.shape[0]))
        (states,) = self.made("t5", frozen, text)
        return Conditions(loa, states, text["t5_mask"])

    def sample(self, params, state, frozen, batch, key):
        (loa,) = self.made(f"loa_{self.config.loa.pooling}", frozen, batch)
        clips, hparams = loa.shape[0], self.config.samples
        return sample_beside(
            self.network("vae", frozen),
            self.network("unet", frozen, params),
            self.schedule,
            self.ends.compressed_mel(batch["waveform"]),
            self._conditions(loa, frozen, batch, jnp.ones(clips)),
            self._conditions(loa, frozen, batch, jnp.full(clips, -1.0)),
            self.scale,
            hparams.guidance_scale,
            hparams.steps,
            key,
        )

    def results(self, params, state, frozen, batch):
        frames = latent_frames(self.config, self.components["vae"].config)
        return {"unet": self.component("unet", params, state, sample_size=frames)}


def reads_text(config) -> bool:
    """Returns whether the UNet sees T5's states before the joint stage.

    Raises:
        ValueError: `train.diffusion.text` is neither captions nor none, or captions in a model of speech.
    """
    text = config.train.diffusion.text
    if text not in ("captions", "none"):
        raise ValueError(f"train.diffusion.text={text!r}: choose captions or none")
    if text == "captions" and text_encoders(config)["text_encoder_2"] != "t5":
        raise ValueError("train.diffusion.text=captions: the UNet of a model of speech sees no text; choose none")
    return text == "captions"


def no_text(config, batch: int) -> tuple[jax.Array, jax.Array]:
    """Returns the text context of a UNet that reads no text: one zero vector, [batch, 1, d], and its mask."""
    return jnp.zeros((batch, 1, text_width(config, "text_encoder_2"))), jnp.ones((batch, 1), jnp.int32)
