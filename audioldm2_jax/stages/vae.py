"""The mel VAE: L1 and KL, then a PatchGAN with an adaptive weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import crop
from audioldm2_jax.models.discriminators import PatchGAN
from audioldm2_jax.rngs import named
from audioldm2_jax.stages.base import Objective, Stage, module_fields


class VAEStage(Stage):
    """The KL autoencoder of mels [TF latent_encoder/autoencoder.py and modules/losses/contperceptual.py].

    The paper's losses without the code's LPIPS, which needs ImageNet weights. Norms of the released code: the L1 is
    summed over elements and averaged over examples; the KL is a mean over elements, times `kl_weight`.
    """

    name = "vae"
    reads = ("audio.mel", "models.patch_discriminator")
    forward_groups = ("vae",)

    @classmethod
    def makes(cls, config):
        return ("vae",)

    @property
    def heldout_variant(self):
        return "plain"  # without discriminators, whose loss says little of a generator

    def setup(self):
        self.module = self.modules["vae"]
        self.discriminator = PatchGAN(**module_fields(self.config, "patch_discriminator"))

    def init(self, key):
        params, state = super().init(key)
        if self.ends.mel.compression:  # no logarithms, in whose middle the biases begin: powers lie near zero
            for part, layer in (("encoder", "conv_in"), ("decoder", "conv_out")):
                params["vae"][part][layer]["bias"] = jnp.zeros_like(params["vae"][part][layer]["bias"])
        mel = jnp.zeros((1, self.hparams.crop_frames, self.ends.mel.n_mels, 1))
        discriminator = self.discriminator.init(named(key, "discriminator"), mel)
        params["discriminator"] = discriminator["params"]
        return params, state | {"discriminator": {"batch_stats": discriminator["batch_stats"]}}

    def indivisible(self):
        start = self.hparams.discriminator_start
        if start >= self.hparams.steps:
            return ""
        return (
            f"from step {start} (discriminator_start) the discriminator's BatchNorm and its weight in the loss are "
            "those of a whole batch"
        )

    def variant(self, step):
        return "adversarial" if step >= self.hparams.discriminator_start else "plain"

    def forward(self, params, state, frozen, batch, rngs, variant):
        frames, crops = self.hparams.crop_frames, self.hparams.crops
        _, mels = crop(batch["waveform"], self.ends, frames, crops, rngs.examples("crop"))
        mel = mels[..., None]
        variables = {"params": params["vae"]}
        mean, logvar = self.module.apply(variables, mel, method="encode")
        crops = mean.shape[0] // batch["waveform"].shape[0]  # one where a crop is the whole clip
        noise = rngs.normal("latents", (crops, *mean.shape[1:])).reshape(mean.shape)
        latents = mean + jnp.exp(0.5 * logvar) * noise
        features = self.module.apply(variables, latents, method="decode_features")
        output = self.module.apply(variables, features, method="decode_output")
        return {"mel": mel, "output": output, "features": features, "mean": mean, "logvar": logvar}

    def objectives(self, variant):
        plain = Objective("autoencoder", ("vae",), self._plain)
        if variant == "plain":
            return (plain,)
        adversarial = Objective("autoencoder", ("vae",), self._adversarial)
        return (Objective("discriminator", ("discriminator",), self._discriminator), adversarial)

    def _reconstruction(self, outputs):
        """Returns the summed L1 an example, and the weighted KL."""
        distance = jnp.abs(outputs["mel"] - outputs["output"])
        mean, logvar = outputs["mean"], outputs["logvar"]
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar)
        metrics = {"l1": distance.mean(), "kl": kl.mean()}
        return distance.sum() / distance.shape[0], self.hparams.kl_weight * kl.mean(), metrics

    def _plain(self, params, outputs, state, frozen, batch, rngs):
        nll, kl, metrics = self._reconstruction(outputs)
        return nll + kl, (metrics, state)

    def _adversarial(self, params, outputs, state, frozen, batch, rngs):
        nll, kl, metrics = self._reconstruction(outputs)
        discriminator = {"params": params["discriminator"], **state["discriminator"]}

        def adversarial(output):
            (logits, *_), _ = self.discriminator.apply(
                discriminator, output, use_running_average=False, mutable=["batch_stats"]
            )
            return -sum(score.mean() for score in logits) / len(logits)

        # Weight: the norms of both gradients at the decoder's last layer [contperceptual.py calculate_adaptive_weight].
        features, last = jax.lax.stop_gradient((outputs["features"], params["vae"]["decoder"]["conv_out"]))

        def at_last_layer(loss):
            def through(kernel):
                decoder = {**params["vae"]["decoder"], "conv_out": {**last, "kernel": kernel}}
                variables = {
                    "params": jax.lax.stop_gradient({**params["vae"], "decoder": decoder}) | {"decoder": decoder}
                }
                return loss(self.module.apply(variables, features, method="decode_output"))

            return jnp.linalg.norm(jax.grad(through)(last["kernel"]))

        size = outputs["mel"].shape[0]
        norm_nll = at_last_layer(lambda output: jnp.abs(outputs["mel"] - output).sum() / size)
        weight = jnp.clip(norm_nll / (at_last_layer(adversarial) + 1e-4), 0.0, 1e4)
        weight = jax.lax.stop_gradient(weight) * self.hparams.discriminator_weight
        adversary = adversarial(outputs["output"])
        metrics |= {"adversarial": adversary, "adaptive_weight": weight}
        return nll + kl + weight * adversary, (metrics, state)

    def _discriminator(self, params, outputs, state, frozen, batch, rngs):
        """Hinge loss on real and reconstructed mels."""
        variables = {"params": params["discriminator"], **state["discriminator"]}
        discriminator = lambda mel, stats: self.discriminator.apply(  # noqa: E731
            {**variables, **stats}, mel, use_running_average=False, mutable=["batch_stats"]
        )
        (real, *_), stats = discriminator(outputs["mel"], {})
        (fake, *_), stats = discriminator(jax.lax.stop_gradient(outputs["output"]), stats)
        loss = sum(0.5 * (jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + f).mean()) for r, f in zip(real, fake)) / len(
            real
        )
        metrics = {"real": real[0].mean(), "fake": fake[0].mean()}
        return loss, (metrics, {**state, "discriminator": stats})

    def sample(self, params, state, frozen, batch, key):
        mel = self.ends.compressed_mel(batch["waveform"])
        mean, _ = self.module.apply({"params": params["vae"]}, mel[..., None], method="encode")
        output = self.module.apply({"params": params["vae"]}, mean, method="decode")
        return {"real_mel": mel, "reconstructed_mel": output[..., 0]}

    def results(self, params, state, frozen, batch):
        # 1 / std of one batch's latents [TF ddpm.py, scale_by_std], stored with the weights.
        deviation = jax.jit(self._latent_deviation)(params["vae"], batch["waveform"])
        return {"vae": self.component("vae", params, state, scaling_factor=float(1 / deviation))}

    def _latent_deviation(self, params, waveform):
        mel = self.ends.compressed_mel(waveform)[..., None]
        mean, logvar = self.module.apply({"params": params}, mel, method="encode")
        return jnp.sqrt(jnp.mean(jnp.exp(logvar)) + jnp.var(mean))
