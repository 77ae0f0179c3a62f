"""In bfloat16 no network rounds what it gives: samples, log-mels, latents, LOAs, embeddings, predictions, logits.

A bfloat16 number has 8 bits, so one random float32 in 2^16 happens to be one: of a few thousand numbers that were not
rounded at most one in a hundred is, of rounded ones all are. Tolerances against float32 are relative to the output as
a whole, 5 %: layers between round by 0.4 % each, some ten to thirty in sequence.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_folder import CONFIGS, random_variables
from twins import relative_error

from audioldm2_jax.models.audiomae import AudioMAE
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.models.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator, PatchGAN
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.hifigan import HifiGan
from audioldm2_jax.models.layers import GroupNorm, LayerNorm, MelConv, attend
from audioldm2_jax.models.unet import UNet
from audioldm2_jax.models.vae import AutoencoderKL

TOLERANCE = 0.05
# XLA may leave out roundings that the program asks for; what an accelerator does then is not for this test to hide.
jit = partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})


def draw(*shape, mean=0.0, deviation=1.0):
    return mean + deviation * np.random.default_rng(0).standard_normal(shape, np.float32)


def log_mel(*shape):
    """Natural-log mels lie around -5, where the steps of bfloat16 are 1/32 wide."""
    return draw(*shape, mean=-5.0, deviation=2.0)


def rounded(x) -> float:
    """The share of numbers that bfloat16 has, too; zeros do not count."""
    x = np.asarray(x)
    assert x.dtype == np.float32
    x = x[x != 0]
    return float(np.mean(x == np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)))


def sized(name: str, *dropped: str) -> dict:
    return {key: value for key, value in CONFIGS[name].items() if key not in dropped}


IDS, MASK = np.full((8, 12), 5, np.int32) + np.arange(96).reshape(8, 12), np.ones((8, 12), np.int32)

# Component, class, fields, method, arguments, what of the result is looked at.
NETWORKS = {
    "vocoder": ("vocoder", HifiGan, sized("vocoder"), None, (0.1 * log_mel(2, 16, 16),)),  # no saturation
    "decoded mel": (
        "vae",
        AutoencoderKL,
        sized("vae", "scaling_factor"),
        "decode",
        (draw(2, 16, 8, 4),),
    ),
    "latents": ("vae", AutoencoderKL, sized("vae", "scaling_factor"), "encode", (log_mel(2, 32, 16, 1),)),
    "unet": (
        "unet",
        UNet,
        sized("unet", "sample_size"),
        None,
        (draw(2, 16, 8, 4), np.array([3, 700]), draw(2, 8, 24), draw(2, 12, 16)),
    ),
    "loa": ("audiomae", AudioMAE, sized("audiomae"), "encode_features", (draw(4, 64, 32, deviation=0.5),)),
    "masked patches": (
        "audiomae",
        lambda **fields: Predicting(AudioMAE(**fields)),
        sized("audiomae"),
        None,
        (draw(4, 64, 32, deviation=0.5),),
    ),
    "language model": (
        "language_model",
        GPT2,
        sized("language_model", "max_new_tokens"),
        None,
        (draw(4, 10, 24), np.ones((4, 10), np.int32), np.tile(np.arange(10), (4, 1))),
    ),
    "captions": ("text_encoder", Clap, sized("text_encoder"), "text_features", (IDS, MASK)),
    "clips": ("text_encoder", Clap, sized("text_encoder"), "audio_features", (log_mel(8, 64, 16) * 10,)),
}


class Predicting:
    """AudioMAE's prediction alone."""

    def __init__(self, module):
        self.module = module

    def apply(self, variables, fbank, method=None):
        return self.module.apply(variables, fbank, 0.5, jax.random.split(jax.random.key(0), len(fbank)))[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_gives_is_not_rounded(name):
    component, make, fields, method, arguments = NETWORKS[name]
    variables = random_variables(component, CONFIGS[component], vocoder_gain=1.0)
    half, exact = (
        jit(lambda variables, *given, module=module: module.apply(variables, *given, method=method))(
            variables, *arguments
        )
        for module in (make(**fields, dtype=jnp.bfloat16), make(**fields, dtype=jnp.float32))
    )
    for got, wanted in zip(jax.tree.leaves(half), jax.tree.leaves(exact)):
        assert rounded(got) < 0.02
        assert relative_error(got, wanted) < TOLERANCE


DISCRIMINATORS = {
    "patches": (PatchGAN, {"widths": (8, 16)}, log_mel(4, 32, 16, 1)),
    "periods": (MultiPeriodDiscriminator, {"periods": (2, 3), "channels": (8, 8)}, draw(4, 960, deviation=0.1)),
    "scales": (MultiScaleDiscriminator, dict(scales=2, channels=(8, 8), groups=(1, 1)), draw(4, 960, deviation=0.1)),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_logits_are_not_rounded(name):
    make, fields, given = DISCRIMINATORS[name]
    exact, variables = jax.jit(make(**fields).init_with_output)(jax.random.key(0), given)
    half = jit(make(**fields, dtype=jnp.bfloat16).apply)(variables, given)
    for got, wanted in zip(half[0], exact[0]):
        assert rounded(got) < 0.02
        # Beside the spread of the logits, which may be narrow around a mean.
        assert np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max()


def test_small_differences_are_heard_and_seen():
    """A step of 0.02 in a log-mel, which has bfloat16 steps of 0.03 there, moves what the first layers give."""
    mel = log_mel(1, 32, 16, 1)
    for module in (MelConv(8, (3, 3), jnp.bfloat16), PatchGAN((8, 16), jnp.bfloat16)):
        variables = module.init(jax.random.key(0), mel)
        before, after = (jax.tree.leaves(module.apply(variables, x))[0] for x in (mel, mel + 0.02))
        moved = np.asarray(after, np.float32) - np.asarray(before, np.float32)
        exact = [jax.tree.leaves(module.clone(dtype=jnp.float32).apply(variables, x))[0] for x in (mel, mel + 0.02)]
        assert np.abs(moved.mean()) > 0.5 * np.abs(np.mean(exact[1] - exact[0]))


@pytest.mark.parametrize("norm", [GroupNorm(2, 1e-6, jnp.bfloat16), LayerNorm(1e-6, jnp.bfloat16)])
def test_moments_are_float32(norm):
    """The variance of 1 around a mean of 100, which bfloat16 moments would lose, to a rounding of the result."""
    x = jnp.asarray(draw(1, 4, 4, 8, mean=100.0), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    wanted = norm.clone(dtype=jnp.float32).apply(variables, x.astype(jnp.float32))
    assert relative_error(norm.apply(variables, x).astype(jnp.float32), wanted) < 2**-8


def test_softmax_is_float32():
    """Over 4096 equal scores: weights of 1/4096 each, whose sum in bfloat16 stops growing at 1/16."""
    query, key = jnp.zeros((1, 1, 1, 4), jnp.bfloat16), jnp.zeros((1, 4096, 1, 4), jnp.bfloat16)
    value = jnp.ones((1, 4096, 1, 4), jnp.bfloat16)
    assert np.allclose(np.asarray(attend(query, key, value), np.float32), 1.0, atol=2**-8)
