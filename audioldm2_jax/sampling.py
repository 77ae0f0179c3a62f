"""Guided denoising of given conditions, and decoding; shared by the training stages and the pipeline.

All functions are pure and may be jitted. Whatever is random comes from one key a clip, so a clip is the same
in every batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS
from audioldm2_jax.models.network import Network


class Conditions(NamedTuple):
    """What the UNet is told of the clips; None for what it has no use for.

    Attributes:
      loa: [b, n, d_loa].
      text_states: T5's, [b, m, d_t5].
      text_mask: [b, m], 1 where there is text.
      clap_embedding: [b, d_clap], for a UNet with a class embedding.
    """

    loa: jax.Array | None = None
    text_states: jax.Array | None = None
    text_mask: jax.Array | None = None
    clap_embedding: jax.Array | None = None


def repeat(conditions: Conditions, times: int) -> Conditions:
    """Each example `times` in a row: [b, ...] to [b * times, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), conditions)


def initial_latents(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal latents [b, *shape], example i from keys[i]; shape (time, frequency, channels)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def denoise(
    unet: Network,
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
      unet: a `models.unet.UNet`.
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
    # What is the same at all steps, or known of each before the first, is computed once.
    attended = unet(both.loa, both.text_states, text_mask=both.text_mask, method="attended")
    shifts = jax.vmap(partial(_shifts, unet, both.clap_embedding))(jnp.asarray(table["timestep"]))
    unet = _cast_kernels(unet)

    def predict(latents: jax.Array, shifts: list[list[jax.Array]]) -> jax.Array:
        doubled = latents if uncond is None else jnp.concatenate([latents, latents])
        output = unet(doubled, shifts, attended, method="predict").astype(jnp.float32)
        if uncond is None:
            return output
        without, within = jnp.split(output, 2)
        return without + guidance_scale * (within - without)

    def step(carry, given):
        state, latents = carry
        row, shifts = given
        latents = latents * row["rescale"]
        output = predict(latents, shifts)
        noise = _step_noise(keys, row["timestep"], latents.shape[1:]) if random else None
        return SOLVERS[solver].step(row, state, latents, output, noise), None

    start = (SOLVERS[solver].init(latents), latents)
    (_, latents), _ = jax.lax.scan(step, start, (jax.tree.map(jnp.asarray, table), shifts))
    return latents


def _shifts(unet: Network, labels: jax.Array | None, timestep: jax.Array) -> list[list[jax.Array]]:
    """The UNet's `shifts` at one timestep: of each example where there are labels [b, d], else one for all."""
    return unet(jnp.broadcast_to(timestep, 1 if labels is None else len(labels)), labels, method="shifts")


def _cast_kernels(network: Network) -> Network:
    """The network with its kernels in the precision to which its layers would cast them at each call."""
    cast = lambda path, leaf: leaf.astype(network.module.dtype) if path[-1].key == "kernel" else leaf  # noqa: E731
    return network.replace(variables=jax.tree_util.tree_map_with_path(cast, network.variables))


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
