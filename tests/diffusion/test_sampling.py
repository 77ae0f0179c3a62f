"""Guided denoising with a stand-in network against diffusers' loop, and what a clip's key promises.

Tolerance 2e-5 relative, as for the solver (tests/diffusion).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from flax import linen as nn

from audioldm2_jax.conditioning.conditions import Conditions, repeat
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.unet import UNet

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "v_prediction", steps_offset=1, set_alpha_to_one=False)
RNG = np.random.default_rng(0)


class StandIn(nn.Module):
    """Any function of all its inputs, each example for itself, in the parts that a UNet has."""

    dtype = jnp.float32

    def cross_attention_kv(self, loa, text_states, text_mask, loa_mask=None):
        return loa.mean((1, 2)) + (text_states.mean(-1) * text_mask).sum(1)

    def timestep_projections(self, timesteps, class_labels):
        return timesteps / 1000

    def predict(self, latents, timestep_projections, cross_attention_kv):
        return jnp.tanh(latents + (cross_attention_kv + timestep_projections)[:, None, None, None])

    def __call__(self, latents, timesteps, loa, text_states, text_mask):
        return self.predict(
            latents, self.timestep_projections(timesteps, None), self.cross_attention_kv(loa, text_states, text_mask)
        )


class Silent(StandIn):
    def predict(self, latents, timestep_projections, cross_attention_kv):
        return jnp.zeros_like(latents)


NETWORK = Network(StandIn(), {})


def conditions(clips):
    loa, text = RNG.standard_normal((clips, 4, 3), np.float32), RNG.standard_normal((clips, 2, 5), np.float32)
    return Conditions(jnp.asarray(loa), jnp.asarray(text), jnp.ones((clips, 2), jnp.int32))


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_against_diffusers_loop(guidance):
    latents = RNG.standard_normal((2, 4, 3, 2), np.float32)
    given, uncond = conditions(2), conditions(2)
    ours = sampling.denoise(NETWORK, SCHEDULE, latents, given, uncond if guidance > 1 else None, guidance, 6)
    theirs = DDIMScheduler(**{k: v for k, v in SCHEDULE.to_config().items() if k != "_class_name"})
    theirs.set_timesteps(6)
    x = torch.tensor(latents)
    for t in theirs.timesteps:
        steps = jnp.full((2,), int(t))
        within, without = (torch.tensor(np.asarray(NETWORK(x.numpy(), steps, *c[:3]))) for c in (given, uncond))
        x = theirs.step(without + guidance * (within - without), t, x).prev_sample
    assert np.linalg.norm(ours - x.numpy()) <= 2e-5 * np.linalg.norm(x)


def test_from_a_clip_of_which_a_part_is_kept():
    """As diffusers' inpainting (strength 1) with a UNet that knows of none: kept latents get the noise of each level
    anew, and the others know nothing of the clip."""
    noise, clip = RNG.standard_normal((2, 2, 4, 3, 2), np.float32)
    keep = (RNG.random((1, 4, 3, 1)) < 0.5).astype(np.float32)
    given, steps = conditions(2), 10
    table = SOLVERS["ddim"].plan(SCHEDULE, steps, 0.0)
    task = sampling.prepare(NETWORK, table, noise, given, None, 1.0, None, clip[:1], keep)
    carry = sampling.begin(task, solver="ddim")
    for index in range(steps):
        carry = sampling.step(NETWORK, task, carry, index, solver="ddim")
    scheduler = DDIMScheduler(**{k: v for k, v in SCHEDULE.to_config().items() if k != "_class_name"})
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps
    start, n, mask = torch.tensor(clip[:1]), torch.tensor(noise), torch.tensor(keep)
    x = mask * scheduler.add_noise(start, n, visited[:1]) + (1 - mask) * n
    for i, t in enumerate(visited):
        output = NETWORK(x.numpy(), jnp.full((2,), int(t)), *given[:3])
        x = scheduler.step(torch.tensor(np.asarray(output)), t, x).prev_sample
        kept = scheduler.add_noise(start, n, visited[i + 1 : i + 2]) if i + 1 < len(visited) else start
        x = mask * kept + (1 - mask) * x
    assert np.linalg.norm(carry[1] - x.numpy()) <= 2e-5 * np.linalg.norm(x)
    np.testing.assert_array_equal(*(each[:, keep[0, :, :, 0] > 0] for each in (np.asarray(carry[1]), clip[[0, 0]])))


class Anew(Network):
    """A UNet that computes everything at each call."""

    def __call__(self, *given, method, **masks):
        if method != "predict":
            return given, masks
        latents, ((timesteps, labels), _), (contexts, masks) = given
        timesteps = jnp.broadcast_to(timesteps, len(latents))
        return super().__call__(latents, timesteps, *contexts, **masks, class_labels=labels)


# bfloat16: what XLA fuses it does not round between.
@pytest.mark.parametrize(("labels", "dtype", "tolerance"), [(False, jnp.float32, 1e-5), (True, jnp.bfloat16, 0.02)])
def test_what_is_computed_once_changes_nothing(labels, dtype, tolerance):
    unet = UNet(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=(None, 3, 5),
        attention_head_dim=2,
        transformer_layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        class_embed_type="simple_projection" if labels else None,
        projection_class_embeddings_input_dim=6,
        class_embeddings_concat=True,
        dtype=dtype,
    )
    latents, timesteps = RNG.standard_normal((2, 4, 4, 2), np.float32), np.zeros(2)
    given, uncond = conditions(2), conditions(2)
    if labels:
        given, uncond = (c._replace(clap_embedding=RNG.standard_normal((2, 6), np.float32)) for c in (given, uncond))
    every = latents, timesteps, given.loa, given.text_states, None, given.text_mask, given.clap_embedding
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *every)
    variables = jax.tree.map(lambda leaf: 0.3 * RNG.standard_normal(leaf.shape, np.float32), shapes)
    once, anew = (
        jax.jit(lambda *c: sampling.denoise(kind(unet, variables), SCHEDULE, latents, *c, 2.0, 3))(given, uncond)  # noqa: B023
        for kind in (Network, Anew)
    )
    assert np.linalg.norm(once - anew) <= tolerance * np.linalg.norm(anew)


def test_a_clip_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 3)
    given, uncond = conditions(3), conditions(3)

    @jax.jit
    def generate(keys, given, uncond):
        latents = sampling.initial_latents(keys, (4, 3, 2))
        return sampling.denoise(NETWORK, SCHEDULE, latents, given, uncond, 2.0, 5, eta=1.0, keys=keys)

    together = generate(keys, given, uncond)
    alone = generate(keys[1:2], *jax.tree.map(lambda x: x[1:2], (given, uncond)))
    # 1e-6: the same sums, vectorised otherwise.
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6, rtol=1e-6)
    assert not np.allclose(together[0], together[1])


def test_eta_adds_new_noise_each_step():
    """With a network that predicts no noise and eta 1, the steps' noises add up to the variance they should have."""
    schedule = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
    keys = jax.random.split(jax.random.key(0), 64)
    start = jnp.zeros((64, 4, 4, 4))
    end = sampling.denoise(Network(Silent(), {}), schedule, start, conditions(64), None, 1.0, 10, eta=1.0, keys=keys)
    table = sampling.SOLVERS["ddim"].plan(schedule, 10, 1.0)
    variance = 0.0
    for row in range(10):
        shrink = table["to_clean"][row] * table["x0_noisy"][row]
        variance = shrink**2 * variance + table["to_noise"][row] ** 2
    # 4096 draws know their variance to 2.2 % (one standard deviation).
    np.testing.assert_allclose(end.var(), variance, rtol=0.1)


def test_eta_without_keys():
    with pytest.raises(ValueError, match="a key for each clip"):
        sampling.denoise(NETWORK, SCHEDULE, jnp.zeros((1, 4, 3, 2)), conditions(1), None, 1.0, 5, eta=0.5)


def test_repeat_keeps_candidates_together():
    given = conditions(2)
    repeated = repeat(given, 3)
    np.testing.assert_array_equal(repeated.loa[:3], jnp.broadcast_to(given.loa[:1], (3, 4, 3)))


def test_decode_unscales():
    vae = lambda z, method: jnp.repeat(z, 2, 1)[..., :1] if method == "decode" else None  # noqa: E731
    vocoder = lambda mel: mel.sum(-1)  # noqa: E731
    mel, waveform = sampling.decode(vae, vocoder, jnp.full((1, 3, 4, 2), 5.0), 2.5)
    assert mel.shape == (1, 6, 4) and waveform.shape == (1, 6)
    np.testing.assert_allclose(mel, 2.0)
