"""Latent diffusion: the UNet learns to denoise a clip's latents, given its language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.components import latent_frames
from audioldm2_jax.conditioning.conditions import Conditions
from audioldm2_jax.conditioning.loa import audiomae_loa
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.diffusion.objective import denoising_loss, encode
from audioldm2_jax.diffusion.sampling import sample_beside
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Objective, Stage


class DiffusionStage(Stage):
    """The UNet alone on the true LOA of all audio, captioned or not [arXiv 2308.05734, section 3.3].

    λ of the LOA is drawn from `loa.training_poolings` each step, alike on all hosts: one executable a λ.
    """

    name = "diffusion"
    reads = ("audio.mel", "audio.fbank", "loa.training_poolings", "scheduler", "models.text_encoder_2.d_model")
    reads_to_evaluate = ("loa.pooling", "samples")

    @classmethod
    def needs(cls, config):
        return ("audiomae", "vae") + (("text_encoder_2",) if reads_text(config) else ())

    @classmethod
    def makes(cls, config):
        return ("unet",)

    @classmethod
    def text_kinds(cls, config):
        return ("t5",) if reads_text(config) else ()

    @property
    def heldout_variant(self):
        return self.config.loa.pooling

    def setup(self):
        self.ends = FrontEnds(self.config.audio)
        self.schedule = NoiseSchedule.from_config(self.config.scheduler.to_dict())
        self.scale = self.components["vae"].config["scaling_factor"]
        self.batch_fields = ("waveform", "t5_ids", "t5_mask") if reads_text(self.config) else ("waveform",)

    def variant(self, step):
        poolings = self.config.loa.training_poolings
        return Draw(self.config.seed, "pooling", step).pick(poolings)

    def objectives(self, variant):
        def loss(params, outputs, state, frozen, batch, rngs):
            return self._loss(params, frozen, batch, rngs, variant), ({}, state)

        return (Objective("denoising", ("unet",), loss),)

    def _loss(self, params, frozen, batch, rngs: Rngs, pooling):
        loa = audiomae_loa(self.network("audiomae", frozen), self.ends.kaldi_fbank(batch["waveform"]), pooling)
        dropped = rngs.uniform("guidance dropout") < self.hparams.guidance_dropout
        loa = jnp.where(dropped[:, None, None], 0.0, loa)
        states, mask = self._text(frozen, batch, dropped)
        unet = self.network("unet", frozen, params)
        latents = encode(self.network("vae", frozen), self.ends.log_mel(batch["waveform"]), self.scale, rngs)
        return denoising_loss(unet, self.schedule, latents, Conditions(loa, states, mask), rngs, self.hparams)

    def _text(self, frozen, batch, dropped):
        """Returns T5's states and mask; without T5, one zero vector in the place of the text."""
        if not reads_text(self.config):
            return no_text(self.config, dropped.shape[0])
        empty = self.empty_text
        ids, mask = (jnp.where(dropped[:, None], empty[key], batch[key]) for key in ("t5_ids", "t5_mask"))
        return self.network("text_encoder_2", frozen)(ids, mask), mask

    def sample(self, params, state, frozen, batch, key):
        loa = audiomae_loa(
            self.network("audiomae", frozen),
            self.ends.kaldi_fbank(batch["waveform"]),
            self.config.loa.pooling,
        )
        clips, hparams = loa.shape[0], self.config.samples
        return sample_beside(
            self.network("vae", frozen),
            self.network("unet", frozen, params),
            self.schedule,
            self.ends.log_mel(batch["waveform"]),
            Conditions(loa, *self._text(frozen, batch, jnp.zeros(clips, bool))),
            Conditions(jnp.zeros_like(loa), *self._text(frozen, batch, jnp.ones(clips, bool))),
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
        ValueError: `train.diffusion.text` is neither captions nor none.
    """
    if config.train.diffusion.text not in ("captions", "none"):
        raise ValueError(f"train.diffusion.text={config.train.diffusion.text!r}: choose captions or none")
    return config.train.diffusion.text == "captions"


def no_text(config, batch: int) -> tuple[jax.Array, jax.Array]:
    """Returns the text context of a UNet that reads no text: one zero vector, [batch, 1, d], and its mask."""
    return jnp.zeros((batch, 1, config.models.text_encoder_2.d_model)), jnp.ones((batch, 1), jnp.int32)
