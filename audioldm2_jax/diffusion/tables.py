"""The coefficients that all solvers have: a table is a dictionary of NumPy arrays, one row per call of the network."""

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.diffusion.schedule import NoiseSchedule

Table = dict[str, np.ndarray]
Row = dict[str, jax.Array]


def prediction_table(schedule: NoiseSchedule, alpha_bar: np.ndarray, clipped: bool = True) -> Table:
    """Coefficients that turn a noisy sample and the network's output into the clean sample and the noise.

    `x0 = x0_noisy * noisy + x0_output * output` and `eps = eps_noisy * noisy + eps_output * output`, one row
    per alpha_bar (share of signal power) [calls], for each of the three prediction types (`NoiseSchedule.predicted` has
    the formulas). `clipped`: whether the solver heeds the schedule's `clip_sample`.
    """
    signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
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


def make_table(timesteps: np.ndarray, alpha_bar: np.ndarray, **columns: np.ndarray) -> Table:
    """A table of float32 columns; without a column of its own, `rescale` is 1 and `to_noise` 0."""
    calls = len(timesteps)
    columns = {
        "alpha_bar": alpha_bar,
        "alpha_bar_after": np.append(alpha_bar[1:], 1.0),
        "rescale": np.ones(calls),
        "to_noise": np.zeros(calls),
        **columns,
    }
    return {"timestep": timesteps, **{name: np.asarray(column, np.float32) for name, column in columns.items()}}


def left(steps: np.ndarray, first: int) -> np.ndarray:
    """The steps without the first ones; at least one has to remain."""
    if not 0 <= first < len(steps):
        raise ValueError(f"{first} of {len(steps)} denoising steps are to be left out; at least one has to remain.")
    return steps[first:]


def deterministic(name: str, eta: float) -> None:
    if eta:
        raise ValueError(f"eta is {eta}, but {name} has none; it belongs to ddim.")


def karras(sigmas: np.ndarray, largest: float, smallest: float, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps (fractional) and sigmas, both [num_steps], evenly spaced in sigma^(1/7) (arXiv 2206.00364, eq. 5).

    `sigmas` [timesteps] are those of the schedule; between two of them, log sigma is linear.
    """
    ramp = np.linspace(0, 1, num_steps)
    chosen = (largest ** (1 / 7) + ramp * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    return np.interp(np.log(chosen), np.log(sigmas), np.arange(len(sigmas))), chosen


def alpha_bar_at(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
    """The share of signal power at timesteps [n]; below 0 that after the last step."""
    return np.where(timesteps >= 0, schedule.alphas_cumprod[np.maximum(timesteps, 0)], schedule.final_alpha_cumprod)
