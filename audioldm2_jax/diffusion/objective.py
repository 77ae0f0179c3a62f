"""What diffusion training minimises: noising, timesteps, the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from audioldm2_jax.conditioning.conditions import Conditions, repeat
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.rngs import Rngs


def draw_latents(mean: jax.Array, logvar: jax.Array, scale: float, rngs: Rngs) -> jax.Array:
    """Returns sampled, scaled latents of their mean and log-variance, all [batch, time, frequency, channels]."""
    return (mean + jnp.exp(0.5 * logvar) * rngs.normal("latents", mean.shape[1:])) * scale


def denoising_loss(
    unet: Network,
    schedule: NoiseSchedule,
    latents: jax.Array,
    conditions: Conditions,
    rngs: Rngs,
    hparams: ConfigDict,
) -> jax.Array:
    """Returns the mean squared error of the UNet's prediction at random timesteps [arXiv 2308.05734, eq. 10].

    Args:
        latents: clean and scaled, [batch, time, frequency, channels].
        rngs: the step's random streams.
        hparams: the stage's; `noise_draws` timesteps and noises a clip, for which the frozen networks that made latents
            and conditions ran once, and `timestep_logits` (see `draw_timesteps`).
    """
    draws = hparams.noise_draws
    latents, conditions = repeat((latents, conditions), draws)
    timesteps = draw_timesteps(rngs.examples("timestep"), draws, schedule.num_train_timesteps, hparams.timestep_logits)
    noise = rngs.normal("noise", (draws, *latents.shape[1:])).reshape(latents.shape)
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
