"""Solvers: from what the network predicts at one timestep to the sample at the next, as pure functions.

A solver is a triple of functions, so that one `lax.scan` runs any of them:

    table = solver.plan(schedule, num_steps, eta, first)    # NumPy; one row per call of the network
    state = solver.init(latents)                     # what a solver remembers between steps (history)
    state, latents = solver.step(row, state, latents, output, noise)

A table is a dictionary of arrays with the leading axis [calls]. It always has `timestep` (what the network is told),
`level` (the share of signal power in the latents that it sees), `level_after` (the same at the next call; 1 at the
end), `rescale` (what noise is multiplied by to start with) and `to_noise` (how much of `noise` the step adds). The
coefficients are computed in double precision, so a step is a few multiply-adds whatever the network predicts.

`first` leaves out so many of the steps at the noisy end, for latents that are a clip with the noise of `level[0]` and
not noise alone.

Latents are those of a variance-preserving process at every step: signal and noise of `NoiseSchedule`. diffusers' Euler
schedulers keep them divided by the signal's share; it is the same process in another unit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.diffusion.schedule import NoiseSchedule

Table = dict[str, np.ndarray]
Row = dict[str, jax.Array]


class Solver(NamedTuple):
    """See the head of this file. `noise` in `step` is standard normal of the latents' shape, or None."""

    plan: Callable[[NoiseSchedule, int, float, int], Table]
    init: Callable[[jax.Array], Any]
    step: Callable[[Row, Any, jax.Array, jax.Array, jax.Array | None], tuple[Any, jax.Array]]


def prediction_table(schedule: NoiseSchedule, level: np.ndarray, clipped: bool = True) -> Table:
    """Coefficients that turn a noisy sample and the network's output into the clean sample and the noise.

    `x0 = x0_noisy * noisy + x0_output * output` and `eps = eps_noisy * noisy + eps_output * output`, one row
    per level (share of signal power) [calls], for each of the three prediction types (`NoiseSchedule.predicted` has
    the formulas). `clipped`: whether the solver heeds the schedule's `clip_sample`.
    """
    signal, sigma = np.sqrt(level), np.sqrt(1 - level)
    zeros, ones = np.zeros_like(signal), np.ones_like(signal)
    if schedule.prediction_type == "epsilon":
        if not signal.all():
            raise ValueError(
                "The schedule has a level of pure noise (rescale_betas_zero_snr), from which a predicted "
                "noise cannot recover a sample; it needs prediction_type='v_prediction' or 'sample'."
            )
        columns = (1 / signal, -sigma / signal, zeros, ones)
    elif schedule.prediction_type == "sample":
        columns = (zeros, ones, 1 / sigma, -signal / sigma)
    else:
        columns = (signal, -sigma, sigma, signal)
    limit = schedule.clip_sample_range if schedule.clip_sample and clipped else np.inf
    names = ("x0_noisy", "x0_output", "eps_noisy", "eps_output")
    return {**dict(zip(names, columns, strict=True)), "x0_limit": np.full_like(signal, limit)}


def predicted(row: Row, noisy: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The (clipped) clean sample and the noise, by a row of `prediction_table`. Shapes as `noisy`."""
    clean = row["x0_noisy"] * noisy + row["x0_output"] * output
    noise = row["eps_noisy"] * noisy + row["eps_output"] * output
    return jnp.clip(clean, -row["x0_limit"], row["x0_limit"]), noise


def _nothing(latents: jax.Array) -> tuple[()]:
    """The memory of solvers that look only at the present sample."""
    del latents
    return ()


def _rows(timesteps: np.ndarray, level: np.ndarray, **columns: np.ndarray) -> Table:
    """A table of float32 columns; without a column of its own, `rescale` is 1 and `to_noise` 0."""
    calls = len(timesteps)
    columns = {
        "level": level,
        "level_after": np.append(level[1:], 1.0),
        "rescale": np.ones(calls),
        "to_noise": np.zeros(calls),
        **columns,
    }
    return {"timestep": timesteps, **{name: np.asarray(column, np.float32) for name, column in columns.items()}}


def _left(steps: np.ndarray, first: int) -> np.ndarray:
    """The steps without the first ones; at least one has to remain."""
    if not 0 <= first < len(steps):
        raise ValueError(f"{first} of {len(steps)} denoising steps are to be left out; at least one has to remain.")
    return steps[first:]


def _deterministic(name: str, eta: float) -> None:
    if eta:
        raise ValueError(f"eta is {eta}, but {name} has none; it belongs to ddim.")


def _combine(
    row: Row, state: tuple[()], latents: jax.Array, output: jax.Array, noise: jax.Array | None
) -> tuple[tuple[()], jax.Array]:
    """The step of every solver without memory: the next sample from the clean one, the predicted noise and the present.

    `to_clean * x0 + to_direction * eps + to_present * latents + to_noise * noise`, all of the shape of `latents`.
    `noise` None leaves the random part out.
    """
    clean, direction = predicted(row, latents, output)
    latents = row["to_clean"] * clean + row["to_direction"] * direction + row["to_present"] * latents
    return state, latents if noise is None else latents + row["to_noise"] * noise


def ddim_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    `eta` = 0 is deterministic, 1 has the variance of DDPM. The next timestep is `num_train_timesteps // num_steps`
    below this one, whatever the spacing, as in diffusers' DDIMScheduler.step.

    Raises:
      ValueError: for an eta below 0 or above 1, or a number of steps that the schedule does not have.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; DDIM takes values from 0 (deterministic) to 1 (as DDPM).")
    timesteps = _left(schedule.timesteps(num_steps), first)
    level = schedule.alphas_cumprod[timesteps]
    after = _level_at(schedule, timesteps - schedule.num_train_timesteps // num_steps)
    sigma = eta * np.sqrt((1 - after) / (1 - level) * (1 - level / after))
    return _rows(
        timesteps,
        level,
        **prediction_table(schedule, level),
        to_clean=np.sqrt(after),
        # Rounding must not make a root of what is 0 in exact arithmetic.
        to_direction=np.sqrt(np.maximum(1 - after - sigma**2, 0)),
        to_present=np.zeros_like(level),
        to_noise=sigma,
    )


def ddpm_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of DDPM with the small variance (Ho et al. 2020, arXiv 2006.11239, eq. 7), over skipped timesteps.

    The last step goes to a noise-free sample, as in diffusers' DDPMScheduler.

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    _deterministic("ddpm", eta)
    timesteps = _left(schedule.timesteps(num_steps), first)
    level = schedule.alphas_cumprod[timesteps]
    after = np.append(level[1:], 1.0)
    beta = 1 - level / after
    return _rows(
        timesteps,
        level,
        **prediction_table(schedule, level),
        to_clean=np.sqrt(after) * beta / (1 - level),
        to_direction=np.zeros_like(level),
        to_present=np.sqrt(level / after) * (1 - after) / (1 - level),
        to_noise=np.sqrt((1 - after) / (1 - level) * beta),
    )


def _sigma_timesteps(schedule: NoiseSchedule, num_steps: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigmas of diffusers' Euler schedulers, float64 [calls] and [calls + 1], the last 0.

    Sigma is noise over signal. The `linspace` spacing visits fractional timesteps; between levels sigma is linear.
    """
    sigmas = schedule.sigmas
    if schedule.timestep_spacing == "linspace":
        schedule.timesteps(num_steps)  # refuses what there is not
        timesteps = np.linspace(0, schedule.num_train_timesteps - 1, num_steps)[::-1]
    else:
        timesteps = schedule.timesteps(num_steps).astype(np.float64)
    chosen = np.interp(timesteps, np.arange(len(sigmas)), sigmas)
    if schedule.use_karras_sigmas:
        timesteps, chosen = karras(sigmas, chosen[0], chosen[-1], num_steps)
    return _left(timesteps, first), np.append(_left(chosen, first), 0.0)


def karras(sigmas: np.ndarray, largest: float, smallest: float, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps (fractional) and sigmas, both [num_steps], evenly spaced in sigma^(1/7) (arXiv 2206.00364, eq. 5).

    `sigmas` [timesteps] are those of the schedule; between two of them, log sigma is linear.
    """
    ramp = np.linspace(0, 1, num_steps)
    chosen = (largest ** (1 / 7) + ramp * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    return np.interp(np.log(chosen), np.log(sigmas), np.arange(len(sigmas))), chosen


def _euler_rescale(schedule: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """Scales the noise at the start: Euler schedulers take its share alone, unless the spacing is `leading`."""
    rescale = np.ones(len(sigmas) - 1)
    if schedule.timestep_spacing != "leading":
        rescale[0] = sigmas[0] / np.sqrt(sigmas[0] ** 2 + 1)
    return rescale


def euler_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of Euler's method on the probability flow (Karras et al. 2022, arXiv 2206.00364, alg. 2, no churn).

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    _deterministic("euler", eta)
    timesteps, sigmas = _sigma_timesteps(schedule, num_steps, first)
    level, after = 1 / (1 + sigmas[:-1] ** 2), 1 / (1 + sigmas[1:] ** 2)
    return _rows(
        timesteps.astype(np.float32),
        level,
        **prediction_table(schedule, level, clipped=False),
        to_clean=np.sqrt(after),
        to_direction=np.sqrt(1 - after),
        to_present=np.zeros_like(level),
        rescale=_euler_rescale(schedule, sigmas),
    )


def euler_ancestral_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of ancestral sampling by Euler steps (k-diffusion, sampling.py, `sample_euler_ancestral`).

    Each step goes down to a sigma below the next one and adds noise up to it.

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    _deterministic("euler_ancestral", eta)
    timesteps, sigmas = _sigma_timesteps(dataclasses.replace(schedule, use_karras_sigmas=False), num_steps, first)
    here, there = sigmas[:-1], sigmas[1:]
    up = np.sqrt(there**2 * (here**2 - there**2) / here**2)
    share = 1 / np.sqrt(1 + there**2)  # of the signal after the step
    level = 1 / (1 + here**2)
    return _rows(
        timesteps.astype(np.float32),
        level,
        **prediction_table(schedule, level, clipped=False),
        to_clean=share,
        to_direction=np.sqrt(np.maximum(there**2 - up**2, 0)) * share,
        to_present=np.zeros_like(level),
        to_noise=up * share,
        rescale=_euler_rescale(schedule, sigmas),
    )


def dpm_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, alg. 2), the last step of first order.

    The next sample is `to_present * latents + to_clean * x0 + to_former * (the x0 before)`. Timesteps are those of
    diffusers' DPMSolverMultistepScheduler: spaced as if there were one step more.

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    _deterministic("dpmsolver++", eta)
    schedule.timesteps(num_steps)  # refuses what there is not
    total, sigmas = schedule.num_train_timesteps, schedule.sigmas
    if schedule.timestep_spacing == "linspace":
        timesteps = np.linspace(0, total - 1, num_steps + 1).round()[:0:-1]
    elif schedule.timestep_spacing == "leading":
        timesteps = (np.arange(1, num_steps + 1) * (total // (num_steps + 1)))[::-1] + schedule.steps_offset
    else:
        timesteps = np.arange(total, 0, -total / num_steps).round()[:num_steps] - 1
    timesteps = timesteps.astype(np.int32)
    chosen = sigmas[timesteps]
    if schedule.use_karras_sigmas:
        timesteps, chosen = karras(sigmas, sigmas[-1], sigmas[0], num_steps)
        timesteps = timesteps.round().astype(np.int32)
    if (np.diff(chosen) >= 0).any():
        raise ValueError(
            f"{num_steps} denoising steps are too many for dpmsolver++, which would visit one twice; ask for fewer."
        )
    timesteps, chosen = _left(timesteps, first), np.append(_left(chosen, first), 0.0)
    signal = 1 / np.sqrt(1 + chosen**2)
    noise = chosen * signal
    # exp(-h) and h of the paper: h is the step of log(signal / noise), infinite in the last.
    shrink = chosen[1:] / chosen[:-1]
    step = -np.log(np.maximum(shrink, 1e-30))
    gain = signal[1:] * (1 - shrink)
    former = np.zeros(len(timesteps))
    former[1:-1] = 0.5 * gain[1:-1] * step[1:-1] / step[:-2]
    return _rows(
        timesteps,
        signal[:-1] ** 2,
        **prediction_table(schedule, signal[:-1] ** 2, clipped=False),
        to_present=noise[1:] / noise[:-1],
        to_clean=gain + former,
        to_former=-former,
    )


def dpm_step(
    row: Row, state: jax.Array, latents: jax.Array, output: jax.Array, noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """One step with a row of `dpm_plan`; `state` is the clean sample that the step before predicted."""
    del noise
    clean, _ = predicted(row, latents, output)
    return clean, row["to_present"] * latents + row["to_clean"] * clean + row["to_former"] * state


def plms_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of PLMS (Liu et al. 2022, arXiv 2202.09778, eq. 9 and 12), as diffusers' PNDMScheduler runs it.

    That is without Runge-Kutta steps: the second timestep is called twice, first to improve the first step (from the
    sample where it began, with the mean of both outputs), so there is one call more than steps. The linear multistep
    method is of the network's outputs, whatever they predict.

    Raises:
      ValueError: for an eta, fewer than two steps or more than the schedule has, or a network that predicts samples.
    """
    _deterministic("plms", eta)
    if schedule.prediction_type == "sample":
        raise ValueError("plms has no formula for prediction_type='sample'; use another solver.")
    visited = _left(schedule.timesteps(num_steps), first)
    if len(visited) < 2:
        raise ValueError(f"{len(visited)} denoising step is to be made; plms takes 2 or more.")
    stride = schedule.num_train_timesteps // num_steps
    timesteps = np.insert(visited, 1, visited[1])
    source, target = timesteps.copy(), timesteps - stride
    source[1], target[1] = timesteps[1] + stride, timesteps[1]
    level, after = schedule.alphas_cumprod[source], _level_at(schedule, target)
    keep = np.sqrt(after / level)
    push = (after - level) / (level * np.sqrt(1 - after) + np.sqrt(level * (1 - level) * after))
    if schedule.prediction_type == "v_prediction":  # its noise is signal * output + sigma * sample
        keep, push = keep - push * np.sqrt(1 - level), push * np.sqrt(level)
    calls = len(timesteps)
    weights = np.zeros((calls, 4))  # of the present output and the three before
    weights[:] = np.array([55, -59, 37, -9]) / 24
    for call, first in enumerate(([1], [1 / 2, 1 / 2], [3 / 2, -1 / 2], np.array([23, -16, 5]) / 12)):
        if call < calls:
            weights[call] = np.pad(first, (0, 4 - len(first)))
    repeated = np.arange(calls) == 1
    seen = schedule.alphas_cumprod[timesteps]
    return _rows(timesteps, seen, to_present=keep, to_output=-push, weights=weights, repeated=repeated)


def plms_init(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The three outputs before, newest first, [3, ...], and the sample where the first step began."""
    return jnp.zeros((3, *latents.shape), latents.dtype), latents


def plms_step(
    row: Row, state: tuple[jax.Array, jax.Array], latents: jax.Array, output: jax.Array, noise: jax.Array | None
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One call with a row of `plms_plan`."""
    del noise
    before, began = state
    outputs = jnp.concatenate([output[None], before])
    mixed = jnp.tensordot(row["weights"], outputs, 1)
    again = row["repeated"] > 0
    after = row["to_present"] * jnp.where(again, began, latents) + row["to_output"] * mixed
    return (jnp.where(again, before, outputs[:3]), began), after


def _level_at(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
    """The share of signal power at timesteps [n]; below 0 that after the last step."""
    return np.where(timesteps >= 0, schedule.alphas_cumprod[np.maximum(timesteps, 0)], schedule.final_alpha_cumprod)


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(ddim_plan, _nothing, _combine),
    "ddpm": Solver(ddpm_plan, _nothing, _combine),
    "plms": Solver(plms_plan, plms_init, plms_step),
    "euler": Solver(euler_plan, _nothing, _combine),
    "euler_ancestral": Solver(euler_ancestral_plan, _nothing, _combine),
    "dpmsolver++": Solver(dpm_plan, jnp.zeros_like, dpm_step),
}

# Which solver plays the scheduler class that a model folder names.
SOLVER_OF_CLASS: dict[str, str] = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}
