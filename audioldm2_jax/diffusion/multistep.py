"""Solvers that remember earlier predictions: DPM-Solver++, UniPC and PLMS, in the form that solvers.py describes."""

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.tables import (
    Row,
    Table,
    alpha_bar_at,
    deterministic,
    karras,
    left,
    make_table,
    predicted,
    prediction_table,
)


def dpm_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, alg. 2), the last step of first order.

    The next sample is `to_present * latents + to_clean * x0 + to_former * (the x0 before)`. Timesteps are those of
    diffusers' DPMSolverMultistepScheduler: spaced as if there were one step more.

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    deterministic("dpmsolver++", eta)
    timesteps, sigmas = _visited("dpmsolver++", schedule, num_steps, first)
    return make_table(timesteps, 1 / (1 + sigmas[:-1] ** 2), **_second_order(schedule, sigmas))


def _visited(name: str, schedule: NoiseSchedule, num_steps: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps int32 [calls], and sigmas (noise over signal) float64 [calls + 1], the last 0."""
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
            f"{num_steps} denoising steps are too many for {name}, which would visit one twice; ask for fewer."
        )
    return left(timesteps, first), np.append(left(chosen, first), 0.0)


def _second_order(schedule: NoiseSchedule, sigmas: np.ndarray) -> Table:
    """Columns of the multistep method of second order in x0; the first and the last step are of first order."""
    signal = 1 / np.sqrt(1 + sigmas**2)
    noise = sigmas * signal
    # exp(-h) and h of the paper: h is the step of log(signal / noise), infinite in the last.
    shrink = sigmas[1:] / sigmas[:-1]
    step = -np.log(np.maximum(shrink, 1e-30))
    gain = signal[1:] * (1 - shrink)
    former = np.zeros_like(gain)
    former[1:-1] = 0.5 * gain[1:-1] * step[1:-1] / step[:-2]
    return {
        **prediction_table(schedule, signal[:-1] ** 2, clipped=False),
        "to_present": noise[1:] / noise[:-1],
        "to_clean": gain + former,
        "to_former": -former,
    }


def dpm_step(
    row: Row, state: jax.Array, latents: jax.Array, output: jax.Array, noise: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """One step with a row of `dpm_plan`; `state` is the clean sample that the step before predicted."""
    del noise
    clean, _ = predicted(row, latents, output)
    return clean, row["to_present"] * latents + row["to_clean"] * clean + row["to_former"] * state


def unipc_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867, alg. 1 and 2).

    Its predictor is DPM-Solver++ 2M. Once the network has seen where a step led, the corrector makes that step again
    with the x0 predicted there, so that the network is called no more often. The corrected sample is

        corrector_latents * latents + corrector_sample * (the corrected sample before)
        + corrector_x0 * x0 + corrector_x0_1 * (the x0 before) + corrector_x0_2 * (the x0 before that)

    Timesteps are those of diffusers' UniPCMultistepScheduler, the same as of `dpm_plan`.

    Raises:
      ValueError: for an eta, or a number of steps that the schedule does not have.
    """
    deterministic("unipc", eta)
    timesteps, sigmas = _visited("unipc", schedule, num_steps, first)
    alpha_bar = 1 / (1 + sigmas[:-1] ** 2)
    shrink = sigmas[1:-1] / sigmas[:-2]  # exp(-h) of the steps that are corrected: all but the last
    step, gain = -np.log(shrink), np.sqrt(alpha_bar[1:]) * (1 - shrink)
    # The paper's R rho = b / B(h) with two unknowns: the shares of x0's change over the step (`near`) and of its change
    # over the step before, drawn out to the length of this one (`far`). The first step has half of the former
    # alone, as in diffusers.
    phi = (1 - shrink) / step - 1
    mean, slope = -phi / (1 - shrink), (2 * phi / step + 1) / (1 - shrink)
    ratio = step[:-1] / step[1:]
    near, far = np.full_like(step, 0.5), np.zeros_like(step)
    rho = (mean - slope)[1:] / (1 + ratio)
    near[1:], far[1:] = mean[1:] - rho, rho / ratio
    corrector = {
        "corrector_sample": np.sqrt(alpha_bar[1:] / alpha_bar[:-1]) * shrink,
        "corrector_x0": gain * near,
        "corrector_x0_1": gain * (1 - near + far),
        "corrector_x0_2": -gain * far,
    }
    # Nothing led to the first call.
    corrector = {name: np.append(0.0, column) for name, column in corrector.items()}
    corrector["corrector_latents"] = np.where(np.arange(len(timesteps)) == 0, 1.0, 0.0)
    return make_table(timesteps, alpha_bar, **_second_order(schedule, sigmas), **corrector)


def unipc_init(latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The corrected sample before, and the clean samples of the two calls before, newest first."""
    return (jnp.zeros_like(latents),) * 3


def unipc_step(
    row: Row,
    state: tuple[jax.Array, jax.Array, jax.Array],
    latents: jax.Array,
    output: jax.Array,
    noise: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """One call with a row of `unipc_plan`: corrects the step that led here, and makes the next."""
    del noise
    began, former, earlier = state
    clean, _ = predicted(row, latents, output)
    corrected = row["corrector_latents"] * latents + row["corrector_sample"] * began + row["corrector_x0"] * clean
    corrected += row["corrector_x0_1"] * former + row["corrector_x0_2"] * earlier
    after = row["to_present"] * corrected + row["to_clean"] * clean + row["to_former"] * former
    return (corrected, clean, former), after


def plms_plan(schedule: NoiseSchedule, num_steps: int, eta: float, first: int = 0) -> Table:
    """Coefficients of PLMS (Liu et al. 2022, arXiv 2202.09778, eq. 9 and 12), as diffusers' PNDMScheduler runs it.

    That is without Runge-Kutta steps: the second timestep is called twice, first to improve the first step (from the
    sample where it began, with the mean of both outputs), so there is one call more than steps. The linear multistep
    method is of the network's outputs, whatever they predict.

    Raises:
      ValueError: for an eta, fewer than two steps or more than the schedule has, or a network that predicts samples.
    """
    deterministic("plms", eta)
    if schedule.prediction_type == "sample":
        raise ValueError("plms has no formula for prediction_type='sample'; use another solver.")
    visited = left(schedule.timesteps(num_steps), first)
    if len(visited) < 2:
        raise ValueError(f"{len(visited)} denoising step is to be made; plms takes 2 or more.")
    stride = schedule.num_train_timesteps // num_steps
    timesteps = np.insert(visited, 1, visited[1])
    source, target = timesteps.copy(), timesteps - stride
    source[1], target[1] = timesteps[1] + stride, timesteps[1]
    alpha_bar, after = schedule.alphas_cumprod[source], alpha_bar_at(schedule, target)
    keep = np.sqrt(after / alpha_bar)
    push = (after - alpha_bar) / (alpha_bar * np.sqrt(1 - after) + np.sqrt(alpha_bar * (1 - alpha_bar) * after))
    if schedule.prediction_type == "v_prediction":  # its noise is signal * output + sigma * sample
        keep, push = keep - push * np.sqrt(1 - alpha_bar), push * np.sqrt(alpha_bar)
    calls = len(timesteps)
    weights = np.zeros((calls, 4))  # of the present output and the three before
    weights[:] = np.array([55, -59, 37, -9]) / 24
    for call, first in enumerate(([1], [1 / 2, 1 / 2], [3 / 2, -1 / 2], np.array([23, -16, 5]) / 12)):
        if call < calls:
            weights[call] = np.pad(first, (0, 4 - len(first)))
    repeated = np.arange(calls) == 1
    seen = schedule.alphas_cumprod[timesteps]
    return make_table(timesteps, seen, to_present=keep, to_output=-push, weights=weights, repeated=repeated)


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
