"""Solvers: from what the network predicts at one timestep to the sample at the next, as pure functions.

A solver is a triple of functions, so that one `lax.scan` runs any of them:

    table = solver.plan(schedule, num_steps, eta)    # NumPy, before tracing; one row per call of the network
    state = solver.init(latents)                     # what a solver remembers between steps (history)
    state, latents = solver.step(row, state, latents, output, noise)

A table is a dictionary of arrays with the leading axis [calls]. It always has `timestep` (int32, what the
network is told) and `input_scale` (what the latents are multiplied by before the network sees them). The
coefficients are computed in double precision, so a step is a few multiply-adds whatever the network predicts.
"""

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

    plan: Callable[[NoiseSchedule, int, float], Table]
    init: Callable[[jax.Array], Any]
    step: Callable[[Row, Any, jax.Array, jax.Array, jax.Array | None], tuple[Any, jax.Array]]


def prediction_table(schedule: NoiseSchedule, timesteps: np.ndarray) -> Table:
    """Coefficients that turn a noisy sample and the network's output into the clean sample and the noise.

    `x0 = x0_noisy * noisy + x0_output * output` and `eps = eps_noisy * noisy + eps_output * output`, one row
    per timestep, for each of the three prediction types (`NoiseSchedule.predicted` has the formulas).
    """
    signal = np.sqrt(schedule.alphas_cumprod[timesteps])
    sigma = np.sqrt(1 - schedule.alphas_cumprod[timesteps])
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
    limit = schedule.clip_sample_range if schedule.clip_sample else np.inf
    names = ("x0_noisy", "x0_output", "eps_noisy", "eps_output")
    return {**dict(zip(names, columns, strict=True)), "x0_limit": np.full_like(signal, limit)}


def predicted(row: Row, noisy: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The (clipped) clean sample and the noise, by a row of `prediction_table`. Shapes as `noisy`."""
    clean = row["x0_noisy"] * noisy + row["x0_output"] * output
    noise = row["eps_noisy"] * noisy + row["eps_output"] * output
    return jnp.clip(clean, -row["x0_limit"], row["x0_limit"]), noise


def ddim_plan(schedule: NoiseSchedule, num_steps: int, eta: float) -> Table:
    """Coefficients of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    The next sample is `to_clean * x0 + to_direction * eps + to_noise * noise`. `eta` = 0 is deterministic, 1
    has the variance of DDPM. The next timestep is `num_train_timesteps // num_steps` below this one, whatever
    the spacing, as in diffusers' DDIMScheduler.step.

    Raises:
      ValueError: for an eta below 0 or above 1, or a number of steps that the schedule does not have.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; DDIM takes values from 0 (deterministic) to 1 (as DDPM).")
    timesteps = schedule.timesteps(num_steps)
    previous = timesteps - schedule.num_train_timesteps // num_steps
    level = schedule.alphas_cumprod[timesteps]
    next_level = np.where(previous >= 0, schedule.alphas_cumprod[np.maximum(previous, 0)], schedule.final_alpha_cumprod)
    sigma = eta * np.sqrt((1 - next_level) / (1 - level) * (1 - level / next_level))
    table = {
        **prediction_table(schedule, timesteps),
        "to_clean": np.sqrt(next_level),
        # Rounding must not make a root of what is 0 in exact arithmetic.
        "to_direction": np.sqrt(np.maximum(1 - next_level - sigma**2, 0)),
        "to_noise": sigma,
        "input_scale": np.ones(num_steps),
    }
    return {"timestep": timesteps, **{name: column.astype(np.float32) for name, column in table.items()}}


def ddim_init(latents: jax.Array) -> tuple[()]:
    """DDIM looks only at the present sample."""
    del latents
    return ()


def ddim_step(
    row: Row, state: tuple[()], latents: jax.Array, output: jax.Array, noise: jax.Array | None
) -> tuple[tuple[()], jax.Array]:
    """One DDIM step with a row of `ddim_plan`; all arrays have the shape of `latents`.

    `noise` None leaves the random part out, which is exact for eta 0.
    """
    clean, direction = predicted(row, latents, output)
    latents = row["to_clean"] * clean + row["to_direction"] * direction
    return state, latents if noise is None else latents + row["to_noise"] * noise


SOLVERS: dict[str, Solver] = {"ddim": Solver(ddim_plan, ddim_init, ddim_step)}

# Which solver plays the scheduler class that a model folder names.
SOLVER_OF_CLASS: dict[str, str] = {"DDIMScheduler": "ddim"}
