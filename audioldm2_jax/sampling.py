"""Guided denoising of given conditions, and decoding; shared by the training stages and the pipeline.

All functions are pure and may be jitted. Whatever is random comes from one key a clip, so a clip is the same
in every batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS
from audioldm2_jax.models.network import Network

Denoiser = Callable[..., jax.Array]


class Conditions(NamedTuple):
    """What the UNet attends to.

    Attributes:
      loa: [b, n, d_loa].
      text_states: T5's, [b, m, d_t5].
      text_mask: [b, m], 1 where there is text.
    """

    loa: jax.Array
    text_states: jax.Array
    text_mask: jax.Array


def repeat(conditions: Conditions, times: int) -> Conditions:
    """Each example `times` in a row: [b, ...] to [b * times, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), conditions)


def initial_latents(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal latents [b, *shape], example i from keys[i]; shape (time, frequency, channels)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def denoise(
    unet: Denoiser,
    schedule: NoiseSchedule,
    latents: jax.Array,
    conditions: Conditions,
    uncond: Conditions | None,
    guidance_scale: float | jax.Array,
    num_steps: int,
    *,
    eta: float = 0.0,
    keys: jax.Array | None = None,
    solver: str = "ddim",
) -> jax.Array:
    """Denoises latents with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), in one
    `lax.scan`.

    The network's output is `uncond + guidance_scale * (cond - uncond)`, both computed in one batch.

    Args:
      unet: `(latents [b, t, f, c], timesteps [b], loa, text_states, text_mask=...) -> [b, t, f, c]`, for
        instance a `Network`.
      schedule: the noise schedule; static.
      latents: noise [b, t, f, c]; scaled latents.
      conditions: what to generate.
      uncond: what to steer away from, of the same shapes; None for no guidance.
      guidance_scale: 1 is no guidance.
      num_steps: static.
      eta: static; 0 deterministic, 1 as DDPM, which then needs `keys`.
      keys: [b], one key a clip.
      solver: a name in `diffusion.solvers.SOLVERS`.

    Returns:
      clean latents [b, t, f, c].

    Raises:
      ValueError: for a number of steps or an eta that the schedule or the solver does not have, or missing
        keys.
    """
    table = SOLVERS[solver].plan(schedule, num_steps, eta)
    random = bool(table["to_noise"].any())
    if random and keys is None:
        raise ValueError(f"{solver} with eta {eta} adds noise at each step: give a key for each clip.")
    both = conditions if uncond is None else jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, conditions)

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        doubled = latents if uncond is None else jnp.concatenate([latents, latents])
        timesteps = jnp.broadcast_to(timestep, doubled.shape[:1])
        output = unet(doubled, timesteps, both.loa, both.text_states, text_mask=both.text_mask)
        output = output.astype(jnp.float32)
        if uncond is None:
            return output
        without, within = jnp.split(output, 2)
        return without + guidance_scale * (within - without)

    def step(carry, row):
        state, latents = carry
        latents = latents * row["rescale"]
        output = predict(latents, row["timestep"])
        noise = _step_noise(keys, row["timestep"], latents.shape[1:]) if random else None
        return SOLVERS[solver].step(row, state, latents, output, noise), None

    start = (SOLVERS[solver].init(latents), latents)
    (_, latents), _ = jax.lax.scan(step, start, jax.tree.map(jnp.asarray, table))
    return latents


def _step_noise(keys: jax.Array, timestep: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Folding in 0 is taken by the initial latents, and a timestep may be 0. Solvers that add noise visit none twice,
    # and no two within one.
    number = 1 + jnp.asarray(timestep, jnp.int32)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def decode(
    vae: Network, vocoder: Network, latents: jax.Array, scaling_factor: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Latents [b, t, f, c] to natural-log mels [b, frames, bands] and waveforms [b, samples], both float32.

    `scaling_factor` is what the VAE's latents were multiplied by for diffusion (config.json of the VAE).
    """
    mel = vae(latents / scaling_factor, method="decode")[..., 0].astype(jnp.float32)
    return mel, vocoder(mel).astype(jnp.float32)
