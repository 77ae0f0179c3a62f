"""HiFi-GAN: waveforms from mels, against multi-period and multi-scale discriminators."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from audioldm2_jax.audio.front_ends import crop
from audioldm2_jax.audio.mel import log_mel
from audioldm2_jax.audio.sinusoids import frame_locked
from audioldm2_jax.models.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator
from audioldm2_jax.rngs import named
from audioldm2_jax.stages.base import Objective, Stage, module_fields

_PARTIALS_FFT = 512  # samples: short windows keep attacks sharp


class VocoderStage(Stage):
    """Mel L1, feature matching and least-squares GAN [arXiv 2010.05646; jik876/hifi-gan train.py, models.py].

    If the recipe says so, also the distance to the clip's partials with phases that a vocoder can know: it learns from
    each sample what the spectra alone teach it in many times the steps.
    """

    name = "vocoder"
    reads = ("audio.mel", "models.period_discriminator", "models.scale_discriminator")
    forward_groups = ("vocoder",)

    @classmethod
    def makes(cls, config):
        return ("vocoder",)

    @property
    def heldout_variant(self):
        return "plain"  # without discriminators, whose loss says little of a generator

    def setup(self):
        self.module = self.modules["vocoder"]
        self.discriminators = {
            "periods": MultiPeriodDiscriminator(**module_fields(self.config, "period_discriminator")),
            "scales": MultiScaleDiscriminator(**module_fields(self.config, "scale_discriminator")),
        }
        hop = self.ends.mel.hop_length
        if self.hparams.segment_samples % hop:
            raise ValueError(
                f"train.vocoder.segment_samples={self.hparams.segment_samples} is no multiple of the hop of "
                f"{hop} samples"
            )
        if self.hparams.partials_weight and self.hparams.segment_samples <= 2 * _PARTIALS_FFT:
            raise ValueError(
                f"train.vocoder.segment_samples={self.hparams.segment_samples} is too short for partials_weight: "
                f"within {_PARTIALS_FFT} samples of the ends nothing counts"
            )
        self.frames = self.hparams.segment_samples // hop
        self.scales = [
            dataclasses.replace(self.ends.mel, n_fft=n_fft, hop_length=n_fft // 4, n_mels=n_mels)
            for n_fft, n_mels in self.hparams.mel_scales
        ]

    def init(self, key):
        params, state = super().init(key)
        waveform = jnp.zeros((1, self.hparams.segment_samples))
        for name, discriminator in self.discriminators.items():
            variables = dict(discriminator.init(named(key, name), waveform))
            params[name] = variables.pop("params")
            state[name] = variables
        return params, state

    def variant(self, step):
        return "adversarial" if step >= self.hparams.discriminator_start else "plain"

    def forward(self, params, state, frozen, batch, rngs, variant):
        real, mel = crop(batch["waveform"], self.ends, self.frames, self.hparams.crops, rngs.examples("crop"))
        fake = self.module.apply({"params": params["vocoder"]}, mel)
        return {"real": real, "fake": fake.astype(jnp.float32)}

    def objectives(self, variant):
        if variant == "plain":
            return (Objective("generator", ("vocoder",), self._plain),)
        return (
            Objective("discriminator", ("periods", "scales"), self._discriminator),
            Objective("generator", ("vocoder",), self._generator),
        )

    def _mel_loss(self, outputs):
        """Returns the weighted L1 of the log-mels [HG], with those in other windows [arXiv 2306.06546, 3.3].

        Beside it, if the recipe says so, the spectral convergence [arXiv 1910.11480, eq. 5] of the mels: their
        distance as a share of the real one, clip by clip, which strong partials decide.
        """

        def mels(settings):
            return log_mel(outputs["fake"], settings), log_mel(outputs["real"], settings)

        def distance(fake, real):
            return jnp.abs(fake - real).mean()

        fake, real = mels(self.ends.mel)
        mel = distance(fake, real)
        loss, metrics = mel + sum(distance(*mels(scale)) for scale in self.scales), {"mel": mel}
        if self.hparams.convergence_weight:
            fake, real = jnp.exp(fake), jnp.exp(real)
            # Safe: where silence meets silence the gradient is 0, not 0 / 0.
            apart = optax.safe_norm(fake - real, 1e-9, axis=(1, 2))
            metrics["convergence"] = (apart / jnp.linalg.norm(real, axis=(1, 2))).mean()
            loss += self.hparams.convergence_weight * metrics["convergence"]
        return self.hparams.mel_weight * loss, metrics

    def _reconstruction_loss(self, outputs):
        """Returns the loss of the mels, and of the partials if the recipe weighs them."""
        loss, metrics = self._mel_loss(outputs)
        if self.hparams.partials_weight:
            metrics["partials"] = self._partials_loss(outputs)
            loss += self.hparams.partials_weight * metrics["partials"]
        return loss, metrics

    def _partials_loss(self, outputs):
        """Returns the distance from what `frame_locked` makes, as a share of that: as it is, and pre-emphasised.

        The windows at the ends of a crop saw zeros instead of the clip; there nothing counts.
        """
        edge = _PARTIALS_FFT
        wanted = frame_locked(outputs["real"], self.ends.mel.hop_length, _PARTIALS_FFT)[:, edge:-edge]
        made = outputs["fake"][:, edge:-edge]

        def distance(made, wanted):
            apart = optax.safe_norm(made - wanted, 1e-6, axis=1)
            return (apart / jnp.maximum(jnp.linalg.norm(wanted, axis=1), 0.1)).mean()

        def emphasise(waveform):
            return waveform[:, 1:] - 0.95 * waveform[:, :-1]

        return distance(made, wanted) + distance(emphasise(made), emphasise(wanted))

    def _plain(self, params, outputs, state, frozen, batch, rngs):
        loss, metrics = self._reconstruction_loss(outputs)
        return loss, (metrics, state)

    def _discriminate(self, name, params, state, waveform, mutable=False):
        """Returns the logits, features and, where asked for, the new state of one family of discriminators."""
        discriminator, variables = self.discriminators[name], {"params": params[name], **state[name]}
        if mutable and state[name]:
            (logits, features), after = discriminator.apply(
                variables, waveform, update_stats=True, mutable=list(state[name])
            )
            return logits, features, {**state, name: after}
        logits, features = discriminator.apply(variables, waveform)
        return logits, features, state

    def _discriminator(self, params, outputs, state, frozen, batch, rngs):
        """Least squares: 1 for real, 0 for made [HG discriminator_loss]."""
        loss, fake = jnp.zeros(()), jax.lax.stop_gradient(outputs["fake"])
        for name in self.discriminators:
            real_logits, _, state = self._discriminate(name, params, state, outputs["real"], mutable=True)
            fake_logits, _, state = self._discriminate(name, params, state, fake, mutable=True)
            loss += sum(((1 - r) ** 2).mean() + (f**2).mean() for r, f in zip(real_logits, fake_logits))
        return loss, ({}, state)

    def _generator(self, params, outputs, state, frozen, batch, rngs):
        """45 mel + 2 feature matching + adversarial [HG train.py, feature_loss, generator_loss]."""
        (mel, metrics), match, adversary = self._reconstruction_loss(outputs), jnp.zeros(()), jnp.zeros(())
        for name in self.discriminators:
            _, real, _ = self._discriminate(name, params, state, outputs["real"])
            logits, fake, _ = self._discriminate(name, params, state, outputs["fake"])
            real = jax.lax.stop_gradient(real)
            match += sum(jax.tree.leaves(jax.tree.map(_feature_distance, real, fake)))
            adversary += sum(((1 - score) ** 2).mean() for score in logits)
        metrics |= {"feature_matching": match, "adversarial": adversary}
        return mel + self.hparams.feature_weight * match + adversary, (metrics, state)

    def sample(self, params, state, frozen, batch, key):
        made = self.module.apply({"params": params["vocoder"]}, self.ends.compressed_mel(batch["waveform"]))
        return {"real_waveform": batch["waveform"], "vocoded_waveform": made[:, : batch["waveform"].shape[1]]}

    def results(self, params, state, frozen, batch):
        mel = self.ends.mel
        # No keys of diffusers'; from these, and the hop, a clip's mel can be made again.
        front_end = {"n_fft": mel.n_fft, "fmin": mel.fmin, "fmax": mel.fmax, "compression": mel.compression}
        part = self.component("vocoder", params, state, **front_end)
        return {"vocoder": part}


def _feature_distance(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the mean absolute difference of two layers' activations, in float32 whatever they are in."""
    return jnp.abs(real.astype(jnp.float32) - fake.astype(jnp.float32)).mean()
