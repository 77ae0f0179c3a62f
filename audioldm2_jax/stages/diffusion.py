"""Latent diffusion: the UNet learns to denoise a clip's latents, given its language of audio."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from audioldm2_jax import conditioning, sampling
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.unet import UNet
from audioldm2_jax.stages.base import Keys, Objective, Stage, front_ends, module_fields
from audioldm2_jax.weights.folder import Component

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
        self.keys = ("waveform", "t5_ids", "t5_mask") if reads_text(self.config) else ("waveform",)

    def init(self, key):
        return {"unet": init_unet(self.module, key)}, {}

    def initial(self):
        return self.given("unet", "unet")

    def variant(self, step):
        poolings = self.config.loa.training_poolings
        return Draw(self.config.seed, "pooling", step).pick(poolings)

    def objectives(self, variant):
        def loss(params, outputs, state, frozen, batch, keys):
            return self._loss(params, frozen, batch, keys, variant), ({}, state)

        return (Objective("denoising", ("unet",), loss),)

    def _loss(self, params, frozen, batch, keys: Keys, pooling):
        loa = conditioning.audiomae_loa(
            self.network("audiomae", frozen), self.ends.kaldi_fbank(batch["waveform"]), pooling
        )
        dropped = jax.vmap(jax.random.uniform)(fold(keys.examples, 1)) < self.knobs.guidance_dropout
        loa = jnp.where(dropped[:, None, None], 0.0, loa)
        states, mask = self._text(frozen, batch, dropped)
        unet = Network(self.module, {"params": params["unet"]})
        latents = encode(self.network("vae", frozen), self.ends.log_mel(batch["waveform"]), self.scale, keys)
        given = sampling.Conditions(loa, states, mask)
        return denoising_loss(unet, self.schedule, latents, given, keys.examples, self.knobs)

    def _text(self, frozen, batch, dropped):
        """Returns T5's states and mask; without T5, one zero vector in the place of the text."""
        if not reads_text(self.config):
            return no_text(self.config, dropped.shape[0])
        empty = self.empty_text
        ids, mask = (jnp.where(dropped[:, None], empty[key], batch[key]) for key in ("t5_ids", "t5_mask"))
        return self.network("text_encoder_2", frozen)(ids, mask), mask

    def listen(self, params, state, frozen, batch, key):
        loa = conditioning.audiomae_loa(
            self.network("audiomae", frozen),
            self.ends.kaldi_fbank(batch["waveform"]),
            self.config.loa.pooling,
        )
        clips = loa.shape[0]
        given = sampling.Conditions(loa, *self._text(frozen, batch, jnp.zeros(clips, bool)))
        uncond = sampling.Conditions(jnp.zeros_like(loa), *self._text(frozen, batch, jnp.ones(clips, bool)))
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


def fold(keys: jax.Array, number: int) -> jax.Array:
    """Returns [batch] keys of a use of their own."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def encode(vae: Network, mel: jax.Array, scale: float, keys: Keys) -> jax.Array:
    """Returns sampled, scaled latents [batch, time, frequency, channels] of log-mels [batch, frames, bands]."""
    mean, logvar = vae(mel[..., None], method="encode")
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(fold(keys.examples, 2))
    return (mean + jnp.exp(0.5 * logvar) * noise) * scale


def denoising_loss(
    unet: Network,
    schedule: NoiseSchedule,
    latents: jax.Array,
    conditions: sampling.Conditions,
    keys: jax.Array,
    knobs: ConfigDict,
) -> jax.Array:
    """Returns the mean squared error of the UNet's prediction at random timesteps [arXiv 2308.05734, eq. 10].

    Args:
        latents: clean and scaled, [batch, time, frequency, channels].
        keys: [batch], one random key an example.
        knobs: the stage's; `noise_draws` timesteps and noises a clip, for which the frozen networks that made latents
            and conditions ran once, and `timestep_logits` (see `draw_timesteps`).
    """
    draws = knobs.noise_draws
    latents, conditions = sampling.repeat((latents, conditions), draws)
    timesteps = draw_timesteps(fold(keys, 4), draws, schedule.num_train_timesteps, knobs.timestep_logits)
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 3), draws))(keys).reshape(-1)
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.target(latents, noise, timesteps)
    output = unet(noisy, timesteps, conditions.loa, conditions.text_states, text_mask=conditions.text_mask)
    return jnp.mean((output.astype(jnp.float32) - target) ** 2)


def draw_timesteps(keys: jax.Array, draws: int, total: int, logits: tuple[float, ...]) -> jax.Array:
    """Returns random timesteps in 0..total-1, [batch * draws], those of a clip in a row.

    The draws of a clip share out the distribution evenly between them, so that their mean varies less
    [arXiv 2107.00630, appendix I.1].

    Args:
        keys: [batch], one random key a clip.
        logits: () for the uniform distribution, or mean and standard deviation of the normal distribution of
            log(t / (1 - t)), t from 0 to 1 [arXiv 2403.03206, section 3.1].

    Raises:
        ValueError: `logits` is neither.
    """
    if len(logits) not in (0, 2) or (logits and logits[1] <= 0):
        raise ValueError(
            f"timestep_logits={logits}: give mean and standard deviation (> 0), or () for uniform timesteps"
        )
    first = jax.vmap(jax.random.uniform)(keys)[:, None]
    share = ((first + jnp.arange(draws) / draws) % 1.0).reshape(-1)
    if logits:
        mean, deviation = logits
        share = jax.nn.sigmoid(mean + deviation * jax.scipy.special.ndtri(share))
    return jnp.minimum((share * total).astype(jnp.int32), total - 1)


def sample_mels(stage: Stage, unet: Network, frozen, batch, given, uncond, key) -> dict[str, jax.Array]:
    """Returns the mels of the batch's clips and of what the UNet makes from their conditions."""
    vae, knobs = stage.network("vae", frozen), stage.config.samples
    mel = stage.ends.log_mel(batch["waveform"])
    mean, _ = jax.eval_shape(lambda: vae(mel[..., None], method="encode"))
    latents = sampling.initial_latents(jax.random.split(key, mel.shape[0]), mean.shape[1:])
    latents = sampling.denoise(unet, stage.schedule, latents, given, uncond, knobs.guidance_scale, knobs.steps)
    made = vae(latents / stage.scale, method="decode")[..., 0]
    return {"real_mel": mel, "generated_mel": made}


def unet_component(config, module: UNet, params, vae: Component) -> Component:
    """Returns the UNet as a component; `sample_size` lets diffusers find the clip's length: latent frames."""
    frames = round(config.audio.seconds * config.audio.sampling_rate) // config.audio.mel.hop_length
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    fields = config.models.unet.to_dict() | {"sample_size": frames // factor}
    return Component(module, {"params": params}, fields, {})
