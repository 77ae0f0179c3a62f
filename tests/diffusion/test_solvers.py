"""Each solver against diffusers' scheduler of the same name, on the same model outputs and the same noise.

Tolerance 5e-5 relative, at every call of the network: diffusers multiplies 1000 float32 factors and steps in float32;
we round double-precision coefficients once.
"""

import importlib
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVER_OF_CLASS, SOLVERS

TOLERANCE = 5e-5
SHAPE = (3, 4, 4)
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def network(x, timestep, numpy):
    """A stand-in for the UNet that depends on all it is given."""
    return numpy.tanh(x) * 0.8 + numpy.cos(x * 3 + timestep / 300) * 0.3


def ours(name, config, num_steps, start, noise):
    """What the network is shown in each call [calls, ...], the timesteps, and the last sample."""
    schedule, solver = NoiseSchedule.from_config(config), SOLVERS[SOLVER_OF_CLASS[name]]
    table = solver.plan(schedule, num_steps, 0.0)
    random = bool(table["to_noise"].any())

    def step(carry, inputs):
        (state, x), (row, extra) = carry, inputs
        x = x * row["rescale"]
        output = network(x, row["timestep"], jnp)
        return solver.step(row, state, x, output, extra if random else None), x

    (_, last), shown = jax.jit(lambda *inputs: jax.lax.scan(step, (solver.init(start), start), inputs))(
        table, noise[: len(table["timestep"])]
    )
    return np.asarray(shown), table["timestep"], np.asarray(last)


def theirs(name, config, num_steps, start, noise, monkeypatch):
    cls = getattr(diffusers, name)
    draws = iter(noise)
    module = importlib.import_module(cls.__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.tensor(next(draws)))
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(num_steps)
    x, shown = torch.tensor(start) * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep)
        shown.append(seen.numpy())
        x = scheduler.step(network(seen, timestep, torch), timestep, x).prev_sample
    return np.stack(shown), np.asarray(scheduler.timesteps), x.numpy()


def agree(name, config, num_steps, monkeypatch):
    rng = np.random.default_rng(0)
    start, noise = rng.standard_normal(SHAPE, np.float32), rng.standard_normal((num_steps + 1, *SHAPE), np.float32)
    made = ours(name, config, num_steps, start, noise)
    wanted = theirs(name, config, num_steps, start, noise, monkeypatch)
    np.testing.assert_allclose(made[1], wanted[1], atol=1e-3)
    for mine, other in ((made[0], wanted[0]), (made[2], wanted[2])):
        assert mine.shape == other.shape and np.isfinite(mine).all()
        assert np.linalg.norm(mine - other) <= TOLERANCE * np.linalg.norm(other)


@pytest.mark.parametrize("name", sorted(set(SOLVER_OF_CLASS) - {"DDIMScheduler"}))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_is_diffusers(name, prediction_type, spacing, num_steps, monkeypatch):
    config = CONFIG | {"prediction_type": prediction_type, "timestep_spacing": spacing, "clip_sample": False}
    agree(name, config | {"_class_name": name, "skip_prk_steps": True}, num_steps, monkeypatch)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("num_steps", [3, 20])
def test_karras_spacing(name, spacing, num_steps, monkeypatch):
    config = CONFIG | {"_class_name": name, "timestep_spacing": spacing, "use_karras_sigmas": True}
    agree(name, config, num_steps, monkeypatch)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_predicted_samples(name, monkeypatch):
    config = CONFIG | {"_class_name": name, "prediction_type": "sample", "clip_sample": False}
    agree(name, config, 5, monkeypatch)


def test_ddpm_clips(monkeypatch):
    agree("DDPMScheduler", CONFIG | {"clip_sample": True, "clip_sample_range": 0.7}, 5, monkeypatch)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_from_pure_noise(name, monkeypatch):
    config = {
        "_class_name": name,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    agree(name, CONFIG | config, 5, monkeypatch)


@pytest.mark.parametrize("to_one", [False, True])
def test_plms_ends_where_the_folder_says(to_one, monkeypatch):
    agree("PNDMScheduler", CONFIG | {"set_alpha_to_one": to_one, "skip_prk_steps": True}, 5, monkeypatch)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("DDPMScheduler", {"variance_type": "learned"}),
    ],
)
def test_what_is_not_followed_is_refused(name, change):
    (key,) = change
    with pytest.raises(ValueError, match=f"sets {key}="):
        NoiseSchedule.from_config(CONFIG | {"_class_name": name} | change)
    # The same key of a scheduler that does not heed it is no matter.
    if key not in ("use_beta_sigmas",):
        NoiseSchedule.from_config(CONFIG | {"_class_name": "DDIMScheduler"} | change)


@pytest.mark.parametrize("name", sorted(SOLVER_OF_CLASS))
@pytest.mark.parametrize("karras", [False, True])
def test_round_trip_through_diffusers(name, karras):
    """What we write is read by diffusers' class as what we play, and what that writes is read as the same schedule."""
    schedule = NoiseSchedule.from_config(CONFIG | {"_class_name": name, "use_karras_sigmas": karras})
    scheduler = getattr(diffusers, name).from_config(schedule.to_config(name))
    assert scheduler.config.get("skip_prk_steps", True)
    if "use_karras_sigmas" in scheduler.config:
        assert scheduler.config.use_karras_sigmas == karras
    again = NoiseSchedule.from_config({**scheduler.config, "_class_name": name})
    np.testing.assert_array_equal(*(each.alphas_cumprod for each in (schedule, again)))
    assert again.timestep_spacing == schedule.timestep_spacing


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"ddim"}))
def test_eta_is_ddims(name):
    with pytest.raises(ValueError, match=r"eta is 0.5.*belongs to ddim"):
        SOLVERS[name].plan(NoiseSchedule.from_config(CONFIG), 5, 0.5)


def test_plms_wants_two_steps_and_no_samples():
    with pytest.raises(ValueError, match=r"1 denoising step.*2 or more"):
        SOLVERS["plms"].plan(NoiseSchedule.from_config(CONFIG), 1, 0.0)
    with pytest.raises(ValueError, match="no formula for prediction_type='sample'"):
        SOLVERS["plms"].plan(NoiseSchedule.from_config(CONFIG | {"prediction_type": "sample"}), 5, 0.0)


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_absurd_steps(name, spacing, num_steps):
    with pytest.raises(ValueError, match=f"{num_steps} denoising steps?"):
        SOLVERS[name].plan(NoiseSchedule.from_config(CONFIG | {"timestep_spacing": spacing}), num_steps, 0.0)


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_no_timestep_twice(name, spacing):
    """There its step would be of length 0, and the next one divided by it."""
    schedule = NoiseSchedule.from_config(CONFIG | {"timestep_spacing": spacing, "steps_offset": 0})
    with pytest.raises(ValueError, match=f"1000 denoising steps are too many for {re.escape(name)}"):
        SOLVERS[name].plan(schedule, 1000, 0.0)
    table = SOLVERS[name].plan(schedule, 499, 0.0)
    assert all(np.isfinite(column).all() for key, column in table.items() if key != "x0_limit")


@pytest.mark.parametrize("name", sorted(set(SOLVER_OF_CLASS) - {"PNDMScheduler"}))
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_from_a_noisy_clip_on(name, spacing, monkeypatch):
    """As diffusers' image-to-image pipelines begin: at the noise of a later step, and without a history."""
    steps, first = 10, 4
    rng = np.random.default_rng(0)
    clip, noise = rng.standard_normal((2, *SHAPE), np.float32)
    extra = rng.standard_normal((steps, *SHAPE), np.float32)
    config = CONFIG | {"_class_name": name, "timestep_spacing": spacing, "clip_sample": False}
    schedule, solver = NoiseSchedule.from_config(config), SOLVERS[SOLVER_OF_CLASS[name]]
    table = solver.plan(schedule, steps, 0.0, first)
    assert len(table["timestep"]) == steps - first
    x = np.sqrt(table["alpha_bar"][0]) * clip + np.sqrt(1 - table["alpha_bar"][0]) * noise
    state = solver.init(x)
    for call, added in zip(range(steps - first), extra, strict=False):
        row = {key: column[call] for key, column in table.items()}
        state, x = solver.step(row, state, x, network(x, row["timestep"], jnp), added if row["to_noise"] else None)

    cls = getattr(diffusers, name)
    module, draws = importlib.import_module(cls.__module__), iter(extra)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.tensor(next(draws)))
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    y = scheduler.add_noise(torch.tensor(clip)[None], torch.tensor(noise)[None], visited[:1])[0]
    for timestep in visited:
        seen = scheduler.scale_model_input(y, timestep)
        y = scheduler.step(network(seen, timestep, torch), timestep, y).prev_sample
    assert np.linalg.norm(x - y.numpy()) <= TOLERANCE * np.linalg.norm(y)


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("first", [0, 3])
def test_levels_are_those_of_the_latents(name, first):
    """With the true noise for a prediction, what the network sees is the clip with the noise of `level`."""
    schedule, solver = NoiseSchedule.from_config(CONFIG | {"clip_sample": False}), SOLVERS[name]
    table = solver.plan(schedule, 8, 0.0, first)
    clip, noise = np.random.default_rng(0).standard_normal((2, *SHAPE))
    x = np.sqrt(table["alpha_bar"][0]) * clip + np.sqrt(1 - table["alpha_bar"][0]) * noise
    state = solver.init(x)
    for call, alpha_bar in enumerate(table["alpha_bar"]):
        row = {key: column[call] for key, column in table.items()}
        here = (x - np.sqrt(alpha_bar) * clip) / np.sqrt(1 - alpha_bar)  # the noise that is in it now
        if not table["to_noise"].any():
            assert np.linalg.norm(here - noise) <= 1e-3 * np.linalg.norm(noise)  # float32 coefficients
        state, x = solver.step(row, state, jnp.asarray(x), here, None)
    # The last step ends at the level of timestep 0 (0.9985), or without noise.
    np.testing.assert_allclose(x, clip, atol=0.3)


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("first", [-1, 5])
def test_one_step_has_to_remain(name, first):
    with pytest.raises(ValueError, match=f"{first} of 5 denoising steps are to be left out"):
        SOLVERS[name].plan(NoiseSchedule.from_config(CONFIG), 5, 0.0, first)
