"""AudioMAE: reconstruct masked patches of the spectrogram; its encoder then makes the language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.models.audiomae import unused_tensors
from audioldm2_jax.rngs import Rngs, dropout_arguments
from audioldm2_jax.stages.base import Objective, Stage


class AudioMAEStage(Stage):
    """Masked autoencoding [arXiv 2207.06405; facebookresearch/AudioMAE models_mae.py, dataset.py]."""

    name = "audiomae"
    reads = ("audio.fbank",)

    @classmethod
    def makes(cls, config):
        return ("audiomae",)

    def setup(self):
        self.module = self.modules["audiomae"]

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
        part = self.component("audiomae", params, state)
        return {"audiomae": part._replace(unused=unused_tensors(self.module))}


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
