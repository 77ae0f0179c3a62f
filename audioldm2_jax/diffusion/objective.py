"""What diffusion training minimises: noising, timesteps, the loss."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax.conditioning.conditions import Conditions, repeat
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.unet_blocks import LOA_ATTENTION
from audioldm2_jax.rngs import Rngs

POSTERIORS = ("sample", "mode")
_WIDTH = 0.7  # tokens, of the part of the LOA that a place is guided to


def draw_latents(mean: jax.Array, logvar: jax.Array, scale: float, rngs: Rngs, posterior: str = "sample") -> jax.Array:
    """Returns scaled latents of their mean and log-variance, all [batch, time, frequency, channels].

    Args:
        posterior: "sample" draws them, "mode" takes the mean (`sample` and `mode` of diffusers'
            DiagonalGaussianDistribution).

    Raises:
        ValueError: `posterior` is neither.
    """
    if posterior not in POSTERIORS:
        raise ValueError(f"posterior={posterior!r}: choose {' or '.join(POSTERIORS)}")
    if posterior == "mode":
        return mean * scale
    return (mean + jnp.exp(0.5 * logvar) * rngs.normal("latents", mean.shape[1:])) * scale


def denoising_loss(
    unet: Network,
    schedule: NoiseSchedule,
    latents: jax.Array,
    conditions: Conditions,
    rngs: Rngs,
    hparams: ConfigDict,
    loa_grid: tuple[int, int],
) -> jax.Array:
    """Returns the mean squared error of the UNet's prediction at random timesteps [arXiv 2308.05734, eq. 10].

    Where `hparams.guided_attention` is not 0, so much of `attention_away` of the LOA is added.

    Args:
        latents: clean and scaled, [batch, time, frequency, channels].
        rngs: the step's random streams.
        hparams: the stage's; `noise_draws` timesteps and noises a clip, for which the frozen networks that made latents
            and conditions ran once, and `timestep_logits` (see `draw_timesteps`).
        loa_grid: the LOA's tokens in time and in frequency.
    """
    draws = hparams.noise_draws
    latents, conditions = repeat((latents, conditions), draws)
    timesteps = draw_timesteps(rngs.examples("timestep"), draws, schedule.num_train_timesteps, hparams.timestep_logits)
    noise = rngs.normal("noise", (draws, *latents.shape[1:])).reshape(latents.shape)
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.target(latents, noise, timesteps)
    given = (noisy, timesteps, conditions.loa, conditions.text_states)
    if not hparams.guided_attention:
        output = unet(*given, text_mask=conditions.text_mask)
        return jnp.mean((output.astype(jnp.float32) - target) ** 2)
    output, kept = unet(*given, text_mask=conditions.text_mask, mutable=[LOA_ATTENTION])
    away = attention_away(jax.tree.leaves(kept.get(LOA_ATTENTION, {})), loa_grid)
    return jnp.mean((output.astype(jnp.float32) - target) ** 2) + hparams.guided_attention * away


def attention_away(weights: Sequence[jax.Array], loa_grid: tuple[int, int]) -> jax.Array:
    """Returns how much of the UNet's attention to the LOA goes elsewhere than to where it stands for, 0 to 1.

    A token of the LOA is of a time and a band, as a place of the latents is. Attention between the two costs
    1 − exp(−d² / 2 · 0.7²), d their distance in tokens: the guided attention of text to speech [Tachibana et al. 2018,
    arXiv 1710.08969, section 4], where the diagonal is known beforehand.

    Args:
        weights: of each transformer, [batch, time, frequency, tokens].
        loa_grid: the tokens in time and in frequency.

    Raises:
        ValueError: there are no weights, as of a UNet that does not see the LOA.
    """
    if not weights:
        raise ValueError("guided_attention is set, but the UNet attends to no LOA; set it to 0")
    return sum((one * _distances(one.shape[1:3], loa_grid)).sum(-1).mean() for one in weights) / len(weights)


def _distances(places: tuple[int, int], tokens: tuple[int, int]) -> np.ndarray:
    """[time, frequency, tokens], 0 where a token is of a place of the latents, and 1 far from there."""
    squares = [
        ((np.arange(p) + 0.5)[:, None] / p * t - (np.arange(t) + 0.5)) ** 2 for p, t in zip(places, tokens, strict=True)
    ]
    distance = squares[0][:, None, :, None] + squares[1][None, :, None, :]
    return (1 - np.exp(-distance / (2 * _WIDTH**2))).reshape(*places, -1).astype(np.float32)


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
