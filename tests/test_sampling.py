"""Guided denoising with a stand-in network against diffusers' loop, and what a clip's key promises.

Tolerance 2e-5 relative, as for the solver (tests/diffusion).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from audioldm2_jax import sampling
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.sampling import Conditions

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "v_prediction", steps_offset=1, set_alpha_to_one=False)
RNG = np.random.default_rng(0)


def network(latents, timesteps, loa, text_states, text_mask):
    """Any function of all its inputs, each example for itself."""
    text = (text_states.mean(-1) * text_mask).sum(1)
    pushed = loa.mean((1, 2)) + text + timesteps / 1000
    return jnp.tanh(latents + pushed[:, None, None, None])


def conditions(clips):
    loa, text = RNG.standard_normal((clips, 4, 3), np.float32), RNG.standard_normal((clips, 2, 5), np.float32)
    return Conditions(jnp.asarray(loa), jnp.asarray(text), jnp.ones((clips, 2), jnp.int32))


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_against_diffusers_loop(guidance):
    latents = RNG.standard_normal((2, 4, 3, 2), np.float32)
    given, uncond = conditions(2), conditions(2)
    ours = sampling.denoise(network, SCHEDULE, latents, given, uncond if guidance > 1 else None, guidance, 6)
    theirs = DDIMScheduler(**{k: v for k, v in SCHEDULE.to_config().items() if k != "_class_name"})
    theirs.set_timesteps(6)
    x = torch.tensor(latents)
    for t in theirs.timesteps:
        steps = jnp.full((2,), int(t))
        within, without = (torch.tensor(np.asarray(network(x.numpy(), steps, *c))) for c in (given, uncond))
        x = theirs.step(without + guidance * (within - without), t, x).prev_sample
    assert np.linalg.norm(ours - x.numpy()) <= 2e-5 * np.linalg.norm(x)


def test_a_clip_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 3)
    given, uncond = conditions(3), conditions(3)

    @jax.jit
    def generate(keys, given, uncond):
        latents = sampling.initial_latents(keys, (4, 3, 2))
        return sampling.denoise(network, SCHEDULE, latents, given, uncond, 2.0, 5, eta=1.0, keys=keys)

    together = generate(keys, given, uncond)
    alone = generate(keys[1:2], *jax.tree.map(lambda x: x[1:2], (given, uncond)))
    # 1e-6: the same sums, vectorised otherwise.
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6, rtol=1e-6)
    assert not np.allclose(together[0], together[1])


def test_eta_adds_new_noise_each_step():
    """With a network that predicts no noise and eta 1, the steps' noises add up to the variance they should have."""
    schedule = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
    keys = jax.random.split(jax.random.key(0), 64)
    silent = lambda latents, *rest, **masks: jnp.zeros_like(latents)  # noqa: E731
    start = jnp.zeros((64, 4, 4, 4))
    end = sampling.denoise(silent, schedule, start, conditions(64), None, 1.0, 10, eta=1.0, keys=keys)
    table = sampling.SOLVERS["ddim"].plan(schedule, 10, 1.0)
    variance = 0.0
    for row in range(10):
        shrink = table["to_clean"][row] * table["x0_noisy"][row]
        variance = shrink**2 * variance + table["to_noise"][row] ** 2
    # 4096 draws know their variance to 2.2 % (one standard deviation).
    np.testing.assert_allclose(end.var(), variance, rtol=0.1)


def test_eta_without_keys():
    with pytest.raises(ValueError, match="a key for each clip"):
        sampling.denoise(network, SCHEDULE, jnp.zeros((1, 4, 3, 2)), conditions(1), None, 1.0, 5, eta=0.5)


def test_repeat_keeps_candidates_together():
    given = conditions(2)
    repeated = sampling.repeat(given, 3)
    np.testing.assert_array_equal(repeated.loa[:3], jnp.broadcast_to(given.loa[:1], (3, 4, 3)))


def test_decode_unscales():
    vae = lambda z, method: jnp.repeat(z, 2, 1)[..., :1] if method == "decode" else None  # noqa: E731
    vocoder = lambda mel: mel.sum(-1)  # noqa: E731
    mel, waveform = sampling.decode(vae, vocoder, jnp.full((1, 3, 4, 2), 5.0), 2.5)
    assert mel.shape == (1, 6, 4) and waveform.shape == (1, 6)
    np.testing.assert_allclose(mel, 2.0)
