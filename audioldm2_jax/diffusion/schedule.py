"""The noise schedule: how much noise there is at each timestep, and what a network is asked to predict.

A clean latent x0 becomes `x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise`, where `a_t` is the cumulative product of
`1 - beta` (Ho et al. 2020, eq. 4; arXiv 2006.11239). AudioLDM 2 has 1000 timesteps whose betas are linear in
their square root from 0.0015 to 0.0195 (diffusers: `scaled_linear`).

A schedule is read from, and written as, the scheduler_config.json of a model folder, so the field names are
those of diffusers' schedulers.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")

# What diffusers takes when a key is absent from scheduler_config.json (DDIMScheduler.__init__).
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "use_karras_sigmas": False,
}
# Where other scheduler classes take something else.
_DEFAULTS_OF = {
    "PNDMScheduler": {"set_alpha_to_one": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
    "UniPCMultistepScheduler": {"timestep_spacing": "linspace"},
}
# Keys that change the result and that we do not follow.
_UNSUPPORTED = (
    "thresholding",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
)
# Values that we follow, of keys that matter to one scheduler class alone.
_FOLLOWED = {
    "DDPMScheduler": {"variance_type": ("fixed_small", "fixed_small_log")},
    "PNDMScheduler": {"skip_prk_steps": (True,)},
    "EulerDiscreteScheduler": {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero",),
    },
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint",),
        "solver_order": (2,),
        "final_sigmas_type": ("zero",),
        "variance_type": (None,),
    },
    "UniPCMultistepScheduler": {
        "predict_x0": (True,),
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # diffusers takes the others' names for bh2
        "solver_order": (2,),
        "lower_order_final": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
        "final_sigmas_type": ("zero",),
    },
}


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """A discrete noise schedule; hashable, so that it can be a static argument of a jitted function.

    Attributes:
      num_train_timesteps: number of noise levels.
      beta_start, beta_end: first and last beta.
      beta_schedule: `linear`, `scaled_linear` (linear in the square root) or `squaredcos_cap_v2`.
      prediction_type: what the network predicts: the noise (`epsilon`), `v_prediction` (Salimans and Ho 2022,
        arXiv 2202.00512, appendix D) or the clean `sample`.
      timestep_spacing: which timesteps a sampler visits (Lin et al. 2023, arXiv 2305.08891, table 2).
      steps_offset: added to the timesteps of the `leading` spacing.
      set_alpha_to_one: whether the last step goes to a noise-free sample (a = 1) or to timestep 0's level.
      clip_sample, clip_sample_range: whether the predicted clean sample is clipped, and to what magnitude.
      rescale_betas_zero_snr: whether the last level is made pure noise (arXiv 2305.08891, alg. 1).
      trained_betas: betas that replace the formula.
      use_karras_sigmas: whether Euler, DPM-Solver++ and UniPC space their steps as arXiv 2206.00364, eq. 5, does.
    """

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    prediction_type: str
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = False
    trained_betas: tuple[float, ...] | None = None
    use_karras_sigmas: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", TIMESTEP_SPACINGS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; use one of {', '.join(allowed)}.")
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}; it has to be positive.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Reads a diffusers scheduler_config.json; keys of no consequence for the noise levels are ignored.

        Raises:
          ValueError: where the config asks for something that is not supported, by its key.
        """
        for key in _UNSUPPORTED:
            if config.get(key):
                raise ValueError(f"The scheduler config sets {key}={config[key]!r}, which is not supported here.")
        for key, followed in _FOLLOWED.get(config.get("_class_name", ""), {}).items():
            if key in config and config[key] not in followed:
                values = " or ".join(map(repr, followed))
                raise ValueError(f"The scheduler config sets {key}={config[key]!r}; supported is {values}.")
        defaults = _DEFAULTS | _DEFAULTS_OF.get(config.get("_class_name", ""), {})
        values = {key: config.get(key, default) for key, default in defaults.items()}
        if values["trained_betas"] is not None:
            values["trained_betas"] = tuple(float(beta) for beta in values["trained_betas"])
        return cls(**values)

    def to_config(self, class_name: str = "DDIMScheduler") -> dict[str, Any]:
        """The content of scheduler_config.json with which diffusers rebuilds this schedule."""
        values = dataclasses.asdict(self)
        if values["trained_betas"] is not None:
            values["trained_betas"] = list(values["trained_betas"])
        if not values["use_karras_sigmas"]:
            del values["use_karras_sigmas"]  # a key that most schedulers do not know
        followed = {key: values[0] for key, values in _FOLLOWED.get(class_name, {}).items()}
        return {"_class_name": class_name, **values, **followed}

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """Float64 [num_train_timesteps]."""
        steps = self.num_train_timesteps
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        elif self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, steps)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
        else:  # Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17, betas capped at 0.999.
            alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        return _zero_terminal_snr(betas) if self.rescale_betas_zero_snr else betas

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """The share of signal power at each timestep, float64 [num_train_timesteps].

        Computed in double precision; what the device sees is its rounding to float32.
        """
        return np.cumprod(1 - self.betas)

    @property
    def sigmas(self) -> np.ndarray:
        """Noise over signal at each timestep, float64 [num_train_timesteps], growing; a level of pure noise counts as
        a signal power of 2^-24, as in diffusers' schedulers."""
        alpha_bar = np.maximum(self.alphas_cumprod, 2.0**-24)
        return np.sqrt((1 - alpha_bar) / alpha_bar)

    @property
    def final_alpha_cumprod(self) -> float:
        """The share of signal power after the last sampling step."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The timesteps that a sampler of `num_steps` steps visits, from noisy to clean, int32 [num_steps].

        As diffusers' DDIMScheduler.set_timesteps.

        Raises:
          ValueError: for a number of steps below 1 or above what the schedule has.
        """
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise ValueError(f"{num_steps} denoising steps were asked for; choose between 1 and {total}.")
        if self.timestep_spacing == "linspace":
            steps = np.linspace(0, total - 1, num_steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            steps = (np.arange(num_steps) * (total // num_steps))[::-1] + self.steps_offset
        else:
            steps = np.arange(total, 0, -total / num_steps).round()[:num_steps] - 1
        if steps[0] >= total:
            raise ValueError(
                f"{num_steps} denoising steps with steps_offset={self.steps_offset} start at timestep "
                f"{int(steps[0])}, but the schedule ends at {total - 1}; ask for fewer steps."
            )
        return steps.astype(np.int32)

    def signal_and_noise(self, timesteps: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
        """`(sqrt(a_t), sqrt(1 - a_t))` of timesteps [b], float32 [b, 1, ...] with `ndim` axes."""
        shape = (-1,) + (1,) * (ndim - 1)
        signal = jnp.asarray(np.sqrt(self.alphas_cumprod), jnp.float32)[timesteps]
        noise = jnp.asarray(np.sqrt(1 - self.alphas_cumprod), jnp.float32)[timesteps]
        return signal.reshape(shape), noise.reshape(shape)

    def add_noise(self, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """The noisy sample at timesteps [b]: arXiv 2006.11239, eq. 4. Shapes of sample and noise [b, ...]."""
        signal, sigma = self.signal_and_noise(timesteps, sample.ndim)
        return signal * sample + sigma * noise

    def velocity(self, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """`v = sqrt(a_t) noise - sqrt(1 - a_t) x0`: arXiv 2202.00512, appendix D. Shapes [b, ...]."""
        signal, sigma = self.signal_and_noise(timesteps, sample.ndim)
        return signal * noise - sigma * sample

    def target(self, sample: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """What the network has to predict for the clean `sample` and `noise` [b, ...] at timesteps [b]."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return sample
        return self.velocity(sample, noise, timesteps)

    def predicted(self, output: jax.Array, noisy: jax.Array, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The clean sample and the noise that a network's output [b, ...] for a noisy sample amounts to."""
        signal, sigma = self.signal_and_noise(timesteps, noisy.ndim)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal, output
        if self.prediction_type == "sample":
            return output, (noisy - signal * output) / sigma
        return signal * noisy - sigma * output, signal * output + sigma * noisy


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(a_t): its last value becomes 0, its first stays. arXiv 2305.08891, alg. 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
