"""What a call of `AudioLDM2` asks of the sampler: solver and steps, the random keys of its clips, given noise."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVER_OF_CLASS, SOLVERS
from audioldm2_jax.diffusion.tables import Table


def plan_sampling(
    schedule: NoiseSchedule,
    scheduler_class: str,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float,
    solver: str | None,
    first: int = 0,
) -> tuple[str, Table]:
    """Returns the solver and its table of a call of `AudioLDM2`, for which no weights are needed.

    Args:
      schedule, scheduler_class: as in the model's folder.
      num_inference_steps, guidance_scale, eta, solver: of the call.
      first: the step to begin with.

    Raises:
      ValueError: for one of them that there is not.
      FolderError: for a class of scheduler that is not known.
    """
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale is {guidance_scale}; it has to be 0 or more (3.5 is usual).")
    check_scheduler(scheduler_class)
    solver = solver or SOLVER_OF_CLASS[scheduler_class]
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; choose among {', '.join(SOLVERS)}.")
    return solver, SOLVERS[solver].plan(schedule, num_inference_steps, eta, first)


def clip_keys(seed: int, prompts: Sequence[str], clips: int) -> jax.Array:
    """One key a clip, [prompts * clips]: a function of the seed, the prompt, and the clip's number of that prompt.

    A prompt that is listed again goes on counting, so it does not give the same clips.
    """
    base, seen, keys = jax.random.key(int(seed) % 2**32), Counter(), []
    for prompt in prompts:
        own = jax.random.fold_in(base, zlib.crc32(prompt.encode()))
        keys += [jax.random.fold_in(own, seen[prompt] + number) for number in range(clips)]
        seen[prompt] += clips
    return jnp.stack(keys)


def check_scheduler(name: str) -> None:
    """Raises FolderError for a class of scheduler that there is no solver for."""
    if name not in SOLVER_OF_CLASS:
        raise FolderError(
            f"The scheduler is a {name}; supported are {', '.join(SOLVER_OF_CLASS)}. Change _class_name in "
            "scheduler/scheduler_config.json to one of these."
        )


def given_latents(latents: np.ndarray, clips: int, shape: tuple[int, int, int]) -> jax.Array:
    """Returns given noise [clips, channels, time, frequency] with the channels last.

    Args:
      shape: (time, frequency, channels) that it has to have.

    Raises:
      ValueError: for another shape, or values that are no numbers.
    """
    time, frequency, channels = shape
    if np.shape(latents) != (clips, channels, time, frequency):
        raise ValueError(
            f"latents have the shape {np.shape(latents)}; needed is {(clips, channels, time, frequency)}: "
            "clips, channels, time, frequency."
        )
    if not np.isfinite(latents).all():
        raise ValueError("latents have values that are NaN or infinite.")
    return jnp.asarray(latents, jnp.float32).transpose(0, 2, 3, 1)
