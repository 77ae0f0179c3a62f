"""AudioMAE: reconstruct masked patches of the spectrogram; its encoder then makes the language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.models.audiomae import AudioMAE, unused_tensors
from audioldm2_jax.rngs import Rngs, dropout_arguments
from audioldm2_jax.stages.base import Objective, Stage, module_fields


class AudioMAEStage(Stage):
    """Masked autoencoding [arXiv 2207.06405; facebookresearch/AudioMAE models_mae.py, dataset.py]."""

    name = "audiomae"
    reads = ("audio.fbank",)

    @classmethod
    def makes(cls, config):
        return ("audiomae",)

    def setup(self):
        self.ends = front_ends(self.config)
        self.module = AudioMAE(**module_fields(self.config, "audiomae"))

    def init(self, key):
        frames, bands = self.module.img_size
        fbank = jnp.zeros((1, frames, bands))
        variables = self.module.init(key, fbank, self.hparams.mask_ratio, key[None])
        return {"audiomae": variables["params"]}, {}

    def initial(self):
        return self.given("audiomae", "audiomae")

    def objectives(self, variant):
        return (Objective("reconstruction", ("audiomae",), self._loss),)

    def _loss(self, params, outputs, state, frozen, batch, rngs: Rngs):
        waveform = batch["waveform"]
        if self.hparams.augment and rngs.training:
            waveform = augment(waveform, rngs.examples("augmentation"))
        fbank = self.ends.kaldi_fbank(waveform)
        loss, _, _ = self.module.apply(
            {"params": params["audiomae"]},
            fbank,
            self.hparams.mask_ratio,
            rngs.examples("mask"),
            **dropout_arguments(rngs.step("dropout")),
        )
        return loss, ({}, state)

    def results(self, params, state, frozen, batch):
        fields = self.config.models.audiomae.to_dict()
        return {"audiomae": Component(self.module, {"params": params["audiomae"]}, fields, unused_tensors(self.module))}


def augment(waveform: jax.Array, keys: jax.Array) -> jax.Array:
    """Rolls each clip around by a random time and scales it by Beta(10, 10) + 0.5 [AudioMAE dataset.py].

    Args:
        waveform: [batch, samples].
        keys: [batch], one random key an example.
    """

    def one(clip, key):
        shift_key, gain_key = jax.random.split(key)
        shift = jax.random.randint(shift_key, (), 0, clip.shape[0])
        return jnp.roll(clip, shift) * (jax.random.beta(gain_key, 10.0, 10.0) + 0.5)

    return jax.vmap(one)(waveform, keys)
