"""Latent diffusion: the UNet learns to denoise a clip's latents, given its language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.conditioning.conditions import Conditions
from audioldm2_jax.conditioning.loa import audiomae_loa
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.diffusion.objective import denoising_loss, encode
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.unet import UNet
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages.base import Objective, Stage, module_fields

TEXT = ("clap_ids", "clap_mask", "t5_ids", "t5_mask")


class DiffusionStage(Stage):
    """The UNet alone on the true LOA of all audio, captioned or not [arXiv 2308.05734, section 3.3].

    λ of the LOA is drawn from `loa.training_poolings` each step, alike on all hosts: one executable a λ.
    """

    name = "diffusion"

    @classmethod
    def needs(cls, config):
        return ("audiomae", "vae") + (("text_encoder_2",) if reads_text(config) else ())

    @classmethod
    def makes(cls, config):
        return ("unet",)

    def setup(self):
        self.ends = front_ends(self.config)
        self.module = UNet(**module_fields(self.config, "unet"), remat=self.config.remat)
        self.schedule = NoiseSchedule.from_config(self.config.scheduler.to_dict())
        self.scale = self.components["vae"].config["scaling_factor"]
        self.batch_fields = ("waveform", "t5_ids", "t5_mask") if reads_text(self.config) else ("waveform",)

    def init(self, key):
        return {"unet": init_unet(self.module, key)}, {}

    def initial(self):
        return self.given("unet", "unet")

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
        unet = Network(self.module, {"params": params["unet"]})
        latents = encode(self.network("vae", frozen), self.ends.log_mel(batch["waveform"]), self.scale, rngs)
        given = Conditions(loa, states, mask)
        return denoising_loss(unet, self.schedule, latents, given, rngs, self.hparams)

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
        clips = loa.shape[0]
        given = Conditions(loa, *self._text(frozen, batch, jnp.zeros(clips, bool)))
        uncond = Conditions(jnp.zeros_like(loa), *self._text(frozen, batch, jnp.ones(clips, bool)))
        return sample_mels(self, Network(self.module, {"params": params["unet"]}), frozen, batch, given, uncond, key)

    def results(self, params, state, frozen, batch):
        return {"unet": unet_component(self.config, self.module, params["unet"], self.components["vae"])}


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
    return jnp.zeros((batch, 1, config.models.t5.d_model)), jnp.ones((batch, 1), jnp.int32)


def init_unet(module: UNet, key: jax.Array):
    """Returns new parameters of the UNet; their shapes do not depend on the size of the latents."""
    side = 2 ** (len(module.block_out_channels) - 1)
    dims = jax.tree.leaves(module.cross_attention_dim)  # the LOA's comes first, the text's last
    latents = jnp.zeros((1, side, side, module.in_channels))
    one = jnp.zeros((1,), jnp.int32)
    return module.init(key, latents, one, jnp.zeros((1, 1, dims[0])), jnp.zeros((1, 1, dims[-1])))["params"]


def sample_mels(stage: Stage, unet: Network, frozen, batch, given, uncond, key) -> dict[str, jax.Array]:
    """Returns the mels of the batch's clips and of what the UNet makes from their conditions."""
    vae, hparams = stage.network("vae", frozen), stage.config.samples
    mel = stage.ends.log_mel(batch["waveform"])
    mean, _ = jax.eval_shape(lambda: vae(mel[..., None], method="encode"))
    latents = sampling.initial_latents(jax.random.split(key, mel.shape[0]), mean.shape[1:])
    latents = sampling.denoise(unet, stage.schedule, latents, given, uncond, hparams.guidance_scale, hparams.steps)
    made = vae(latents / stage.scale, method="decode")[..., 0]
    return {"real_mel": mel, "generated_mel": made}


def unet_component(config, module: UNet, params, vae: Component) -> Component:
    """Returns the UNet as a component; `sample_size` lets diffusers find the clip's length: latent frames."""
    frames = round(config.audio.seconds * config.audio.sampling_rate) // config.audio.mel.hop_length
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    fields = config.models.unet.to_dict() | {"sample_size": frames // factor}
    return Component(module, {"params": params}, fields, {})
