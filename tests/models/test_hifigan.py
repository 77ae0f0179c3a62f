"""HiFi-GAN against transformers' SpeechT5HifiGan, with random weights carried over by the generic renamer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from audioldm2_jax.checkpoints.parameter_names import NAMES, to_flax, to_torch
from audioldm2_jax.models.hifigan import HifiGan

# Odd kernel - rate in the first upsampling (one sample too many), even in the second.
SMALL = dict(
    model_in_dim=5,
    upsample_initial_channel=16,
    upsample_rates=(5, 2),
    upsample_kernel_sizes=(16, 4),
    resblock_kernel_sizes=(3, 7),
    resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)),
    leaky_relu_slope=0.1,
    sampling_rate=16000,
    normalize_before=False,
)
TINY = SMALL | dict(
    model_in_dim=64,
    upsample_initial_channel=128,
    upsample_rates=(5, 4, 4, 2),
    upsample_kernel_sizes=(11, 8, 8, 4),
)
BASE = TINY | dict(
    upsample_initial_channel=1024,
    upsample_rates=(5, 4, 2, 2, 2),
    upsample_kernel_sizes=(16, 16, 8, 4, 4),
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5),) * 3,
)
BASE_48K = BASE | dict(
    model_in_dim=256,
    upsample_initial_channel=1536,
    upsample_rates=(6, 5, 4, 2, 2),
    upsample_kernel_sizes=(12, 10, 8, 4, 4),
    resblock_kernel_sizes=(3, 7, 11, 15),
    resblock_dilation_sizes=((1, 3, 5),) * 4,
    sampling_rate=48000,
)


def shapes(sizes: dict, frames: int = 8):
    model = HifiGan(**sizes)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, frames, sizes["model_in_dim"])))


def twin(sizes: dict) -> SpeechT5HifiGan:
    torch.manual_seed(0)
    model = SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # its own initialisation is too quiet to compare anything
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.mark.parametrize("frames", [1, 13])
def test_equals_the_twin_after_trimming(frames):
    model = twin(SMALL)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    variables, unused = to_flax(state, shapes(SMALL), NAMES["vocoder"])
    mel = np.random.default_rng(0).normal(-4, 2, (2, frames, 5)).astype(np.float32)
    with torch.no_grad():
        whole = model(torch.from_numpy(mel)).numpy()
    assert whole.shape == (2, frames * 10 + 2)
    ours = jax.jit(HifiGan(**SMALL).apply)(variables, mel)
    assert ours.shape == (2, frames * 10) and ours.dtype == jnp.float32
    # The project's bound for equal networks in float32, whose sums run in another order.
    np.testing.assert_allclose(ours, whole[:, : frames * 10], rtol=0, atol=1e-4 * np.abs(whole).max())

    back = to_torch(variables, NAMES["vocoder"], unused)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("sizes, parameters", [(BASE, 55_264_897), (BASE_48K, 190_281_889)])
def test_published_sizes(sizes, parameters):
    buffers = 2 * sizes["model_in_dim"]  # the twin's mean and scale, which are no parameters
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(sizes)))
    assert count in (parameters, parameters - buffers)
    with torch.device("meta"):
        assert count == SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes)).num_parameters()


def test_starts_neither_silent_nor_saturated():
    model = HifiGan(**TINY)
    mel = jax.random.uniform(jax.random.key(1), (1, 16, 64), minval=-11.5, maxval=1.0)
    waveform, _ = jax.jit(model.init_with_output)(jax.random.key(0, impl="rbg"), mel)  # compiles fast
    loudness = float(jnp.sqrt(jnp.mean(waveform**2)))
    # Normalised music has an RMS of about 0.1; a factor of five to either side is learnt within a few steps.
    assert 0.02 < loudness < 0.5


def test_bfloat16_stays_near_float32():
    mel = jax.random.normal(jax.random.key(1), (1, 9, 5))
    exact, variables = jax.jit(HifiGan(**SMALL).init_with_output)(jax.random.key(0, impl="rbg"), mel)
    rough = jax.jit(HifiGan(**SMALL, dtype=jnp.bfloat16).apply)(variables, mel)
    assert rough.dtype == jnp.float32
    # bfloat16 rounds to 1 part in 256; some twenty layers in sequence.
    assert float(jnp.abs(rough - exact).max()) < 0.1 * float(jnp.abs(exact).max())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_in_dim=6), "wants a mel"),
        (dict(upsample_rates=(5, 2, 2)), "equally many"),
        (dict(upsample_kernel_sizes=(4, 4)), "at least its"),
        (dict(resblock_kernel_sizes=(3,)), "equally many"),
        (dict(upsample_initial_channel=18), "cannot be halved"),
        (dict(normalize_before=True), "set it to false"),
    ],
)
def test_contradictions_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(HifiGan(**(SMALL | change)).init, jax.random.key(0), jnp.zeros((1, 8, 5)))
