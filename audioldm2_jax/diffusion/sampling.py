"""Guided denoising of given conditions, and decoding; shared by the training stages and the pipeline.

    denoise             the whole of it as one function, to be jitted
    denoise_by_steps    the same from Python, a jitted call at a time, which tells of its progress

Both are `prepare`, `begin`, and `step` for each row of the solver's table; these are pure and may be jitted. Whatever
is random comes from one key a clip, so a clip is the same in every batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.conditioning.conditions import Conditions
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS
from audioldm2_jax.models.network import Network


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
    table = SOLVERS[solver].plan(schedule, num_steps, eta, 0)
    if not table["to_noise"].any():
        keys = None
    elif keys is None:
        raise ValueError(f"{solver} with eta {eta} adds noise at each step: give a key for each clip.")
    unet = cast_kernels(unet)
    task = prepare(unet, table, latents, conditions, uncond, guidance_scale, keys)

    def one(carry, index):
        return step(unet, task, carry, index, solver=solver), None

    return jax.lax.scan(one, begin(task, solver=solver), jnp.arange(len(table["timestep"])))[0][1]


def denoise_by_steps(
    unet: Network,
    table: Mapping[str, np.ndarray],
    noise: jax.Array,
    conditions: Conditions,
    uncond: Conditions | None,
    guidance_scale: float,
    keys: jax.Array | None,
    *,
    solver: str,
    clip: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> jax.Array:
    """Denoises as `denoise` does, one compiled call of the UNet after the other.

    Another number of steps compiles nothing anew: the table is filled up to a multiple of 64 rows.

    Args:
      unet: with its kernels cast (`cast_kernels`).
      table: the solver's plan.
      noise, conditions, uncond, guidance_scale, keys, clip, keep: as in `Denoising`.
      solver: a name in `diffusion.solvers.SOLVERS`.
      progress: called after each call, with how many are done and how many there are.

    Returns:
      clean latents [b, t, f, c].
    """
    calls = len(table["timestep"])
    rows = -(-calls // _ROWS) * _ROWS
    table = {name: np.pad(x, [(0, rows - calls)] + [(0, 0)] * (x.ndim - 1), "edge") for name, x in table.items()}
    scale = np.float32(guidance_scale)  # one type, whatever the caller has
    task = _prepare(unet, table, noise, conditions, uncond, scale, keys, clip, keep)
    carry = _begin(task, solver=solver)
    for call in range(calls):
        carry = _step(unet, task, carry, np.int32(call), solver=solver)
        if progress:
            jax.block_until_ready(carry)
            progress(call + 1, calls)
    return carry[1]


class Denoising(NamedTuple):
    """One task of denoising: all that stays the same from step to step.

    Attributes:
      noise: what the latents are made of at first [b, t, f, c].
      cross_attention_kv, timestep_projections: what the UNet's `predict` takes beside latents, the latter with the
        leading axis [calls].
      table: the solver's, as arrays [calls].
      guidance_scale: None for no guidance.
      keys: [b], where the solver adds noise.
      clip: a given clip's clean latents [1, t, f, c], with whose noisy form the first step begins (`begin`).
      keep: [1, t, f, 1], 1 where the given clip stays; 0 where it is denoised.
    """

    noise: jax.Array
    cross_attention_kv: Any
    timestep_projections: Any
    table: dict[str, jax.Array]
    guidance_scale: jax.Array | None
    keys: jax.Array | None
    clip: jax.Array | None = None
    keep: jax.Array | None = None


Carry = tuple[Any, jax.Array]
"""What goes from step to step: the solver's memory, and the latents [b, t, f, c]."""


def prepare(
    unet: Network,
    table: Mapping[str, np.ndarray | jax.Array],
    noise: jax.Array,
    conditions: Conditions,
    uncond: Conditions | None,
    guidance_scale: float | jax.Array,
    keys: jax.Array | None,
    clip: jax.Array | None = None,
    keep: jax.Array | None = None,
) -> Denoising:
    """Computes once what is the same at all steps, or known of each before the first; arguments as in `Denoising`.

    `table` may have more rows than are used, so that another number of steps has the same shapes.
    """
    # A clip and what it steers away from stand side by side, so that a batch over several devices stays where it is.
    both = conditions if uncond is None else jax.tree.map(_interleave, uncond, conditions)
    masks = {"loa_mask": both.loa_mask, "text_mask": both.text_mask}
    cross_attention_kv = unet(both.loa, both.text_states, **masks, method="cross_attention_kv")
    table = {name: jnp.asarray(column) for name, column in table.items()}
    timestep_projections = jax.vmap(partial(_timestep_projections, unet, both.clap_embedding))(table["timestep"])
    scale = None if uncond is None else jnp.asarray(guidance_scale, jnp.float32)
    return Denoising(noise, cross_attention_kv, timestep_projections, table, scale, keys, clip, keep)


def begin(task: Denoising, *, solver: str) -> Carry:
    """What the first step starts from: noise, or the given clip with as much noise as that step expects.

    Where a part of the clip is kept, the rest starts from noise alone: nothing of what was there, be it the silence
    behind its end, goes into what is made in its place.
    """
    latents = task.noise * task.table["rescale"][0]
    if task.clip is not None:
        keep = 1 if task.keep is None else task.keep
        latents = keep * _noisy(task, task.table["alpha_bar"][0]) + (1 - keep) * latents
    return SOLVERS[solver].init(latents), latents


def step(unet: Network, task: Denoising, carry: Carry, index: jax.Array, *, solver: str) -> Carry:
    """Call `index` of the UNet and what the solver makes of it.

    Where a part of a given clip is kept, it takes its place after each step with the noise of that level, and at the
    end without noise (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, with the same noise at all steps).
    """
    state, latents = carry
    row, timestep_projections = jax.tree.map(lambda x: x[index], (task.table, task.timestep_projections))
    guided = task.guidance_scale is not None
    doubled = _interleave(latents, latents) if guided else latents
    output = unet(doubled, timestep_projections, task.cross_attention_kv, method="predict").astype(jnp.float32)
    if guided:
        uncond, cond = jnp.moveaxis(output.reshape(len(latents), 2, *latents.shape[1:]), 1, 0)
        output = uncond + task.guidance_scale * (cond - uncond)
    noise = None if task.keys is None else _step_noise(task.keys, row["timestep"], latents.shape[1:])
    state, latents = SOLVERS[solver].step(row, state, latents, output, noise)
    if task.keep is not None:
        latents = task.keep * _noisy(task, row["alpha_bar_after"]) + (1 - task.keep) * latents
    return state, latents


_ROWS = 64
_prepare = jax.jit(prepare)
_begin = jax.jit(begin, static_argnames="solver")
_step = jax.jit(step, static_argnames="solver", donate_argnums=2)


def cast_kernels(network: Network) -> Network:
    """The network with its kernels in the precision to which its layers would cast them at each call."""

    kept = getattr(network.module, "float32_layers", ())  # only the UNet names some

    def cast(path, leaf):  # path: collection, layer, ..., name
        if path[-1].key != "kernel" or path[1].key in kept:
            return leaf
        return leaf.astype(network.module.dtype)

    return network.replace(variables=jax.tree_util.tree_map_with_path(cast, network.variables))


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Twice [b, ...] to [2 b, ...], the two of an example side by side."""
    return jnp.stack([first, second], 1).reshape(2 * len(first), *first.shape[1:])


def _noisy(task: Denoising, alpha_bar: jax.Array) -> jax.Array:
    """The given clip with noise, at a share of signal power."""
    return jnp.sqrt(alpha_bar) * task.clip + jnp.sqrt(1 - alpha_bar) * task.noise


def _timestep_projections(unet: Network, labels: jax.Array | None, timestep: jax.Array) -> list[list[jax.Array]]:
    """Those of the UNet at one timestep: of each example where there are labels [b, d], else one for all."""
    return unet(jnp.broadcast_to(timestep, 1 if labels is None else len(labels)), labels, method="timestep_projections")


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


def sample_beside(
    vae: Network,
    unet: Network,
    schedule: NoiseSchedule,
    mel: jax.Array,
    conditions: Conditions,
    uncond: Conditions,
    scaling_factor: float | jax.Array,
    guidance_scale: float,
    num_steps: int,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """The mels of clips [b, frames, bands] beside those that the UNet makes of their conditions, of the same shape.

    Args:
      mel: of the clips.
      key: one for all; each clip has its own noise.
      others: as of `denoise` and `decode`.
    """
    mean, _ = jax.eval_shape(lambda: vae(mel[..., None], method="encode"))
    noise = initial_latents(jax.random.split(key, mel.shape[0]), mean.shape[1:])
    latents = denoise(unet, schedule, noise, conditions, uncond, guidance_scale, num_steps)
    made = vae(latents / scaling_factor, method="decode")[..., 0]
    return {"real_mel": mel, "generated_mel": made}
