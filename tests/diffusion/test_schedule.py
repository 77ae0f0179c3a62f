"""The schedule and the DDIM solver against diffusers' DDIMScheduler on the same model outputs.

Tolerance 2e-5 relative: diffusers multiplies 1000 float32 factors, we round the float64 product once.
"""

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS

TOLERANCE = 2e-5
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


def close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_levels(beta_schedule, rescale):
    config = CONFIG | {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale}
    close(NoiseSchedule.from_config(config).alphas_cumprod, DDIMScheduler(**config).alphas_cumprod)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 7, 200, 999])
def test_timesteps(spacing, num_steps):
    config = CONFIG | {"timestep_spacing": spacing}
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(num_steps)
    np.testing.assert_array_equal(NoiseSchedule.from_config(config).timesteps(num_steps), theirs.timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets(prediction_type):
    schedule = NoiseSchedule.from_config(CONFIG | {"prediction_type": prediction_type})
    theirs = DDIMScheduler(**CONFIG)
    sample, noise = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 5), np.float32)
    steps = np.array([0, 10, 500, 999])
    tensors = [torch.tensor(x) for x in (sample, noise, steps)]
    noisy = schedule.add_noise(sample, noise, steps)
    close(noisy, theirs.add_noise(*tensors))
    close(schedule.velocity(sample, noise, steps), theirs.get_velocity(*tensors))
    # What is predicted from the exact target is the exact sample and noise (1e-3: at timestep 999 the sample,
    # at 0 the noise, is a small difference of large float32 numbers).
    clean, direction = schedule.predicted(schedule.target(sample, noise, steps), noisy, steps)
    np.testing.assert_allclose(clean, sample, atol=1e-3)
    np.testing.assert_allclose(direction, noise, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("eta", "to_one", "clip"), [(0.0, False, False), (1.0, True, False), (0.5, False, True)])
def test_ddim_in_a_scan(prediction_type, spacing, eta, to_one, clip):
    """Seven steps of a stand-in network, the noise given, in one compiled scan."""
    config = CONFIG | {
        "prediction_type": prediction_type,
        "timestep_spacing": spacing,
        "set_alpha_to_one": to_one,
        "clip_sample": clip,
        "clip_sample_range": 1.5,
    }
    schedule, theirs, solver = NoiseSchedule.from_config(config), DDIMScheduler(**config), SOLVERS["ddim"]
    rng = np.random.default_rng(0)
    start, weight = rng.standard_normal((2, 3, 4, 4), np.float32)
    noise = rng.standard_normal((7, 3, 4, 4), np.float32)

    def body(carry, inputs):
        state, x = carry
        row, extra = inputs
        return solver.step(row, state, x, np.tanh(1) * x * weight, extra if eta else None), None

    (_, ours), _ = jax.jit(lambda *xs: jax.lax.scan(body, xs[0], xs[1:]))(
        (solver.init(start), start), solver.plan(schedule, 7, eta), noise
    )
    theirs.set_timesteps(7)
    x = torch.tensor(start)
    for t, extra in zip(theirs.timesteps, noise, strict=True):
        output = float(np.tanh(1)) * x * torch.tensor(weight)
        x = theirs.step(output, t, x, eta=eta, variance_noise=torch.tensor(extra) if eta else None).prev_sample
    close(ours, x)


def test_config_round_trip():
    schedule = NoiseSchedule.from_config(CONFIG)
    theirs = DDIMScheduler.from_config(schedule.to_config())
    assert NoiseSchedule.from_config(theirs.config) == schedule
    assert hash(schedule) == hash(NoiseSchedule.from_config(dict(theirs.config)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type is 'noise'.*epsilon"),
        ({"beta_schedule": "cubic"}, "beta_schedule is 'cubic'"),
        ({"thresholding": True}, "thresholding"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config(CONFIG | change)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_absurd_steps(num_steps):
    with pytest.raises(ValueError, match=f"{num_steps} denoising steps.*between 1 and 1000"):
        NoiseSchedule.from_config(CONFIG).timesteps(num_steps)


def test_offset_beyond_the_end():
    with pytest.raises(ValueError, match="start at timestep 1000"):
        NoiseSchedule.from_config(CONFIG).timesteps(1000)


def test_bad_eta():
    with pytest.raises(ValueError, match="eta is 2"):
        SOLVERS["ddim"].plan(NoiseSchedule.from_config(CONFIG), 5, 2.0)


def test_pure_noise_needs_another_prediction():
    config = CONFIG | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="v_prediction"):
        SOLVERS["ddim"].plan(NoiseSchedule.from_config(config), 5, 0.0)
