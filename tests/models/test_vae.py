"""The mel autoencoder against diffusers' AutoencoderKL on random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as Twin
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.vae import AutoencoderKL

# float32 through some twenty layers; only the order of summation differs.
TOLERANCE = 1e-4
# bfloat16 rounds each of those layers to 8 bits, half a percent at most each time.
BFLOAT16_TOLERANCE = 0.05

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def mel(frames: int, bands: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, frames, bands, 1), np.float32)


def pair(config: dict) -> tuple[AutoencoderKL, Any, Twin]:
    """Our network and its twin, with one set of weights."""
    torch.manual_seed(0)
    levels = len(config["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    reference, model = randomise(Twin(**config, **types)), AutoencoderKL(**config)
    return model, carry_over(reference, shapes(model, mel(8, 8)), NAMES["vae"]), reference


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("changes", "frames", "bands"),
    [({"block_out_channels": (8, 16, 24)}, 15, 10), ({"layers_per_block": 2}, 6, 4)],
    ids=["odd lengths", "two layers"],
)
def test_equals_diffusers(changes: dict, frames: int, bands: int) -> None:
    model, variables, reference = pair(TINY | changes)
    x = mel(frames, bands)
    with torch.no_grad():
        posterior = reference.encode(channels_first(x)).latent_dist
        decoded = reference.decode(posterior.mean).sample.permute(0, 2, 3, 1)
    mean, log_variance = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, x)
    assert relative_error(mean, posterior.mean.permute(0, 2, 3, 1)) < TOLERANCE
    assert relative_error(log_variance, posterior.logvar.permute(0, 2, 3, 1)) < TOLERANCE

    def decode(variables: Any, latents: jax.Array) -> jax.Array:
        return model.apply(variables, latents, method="decode")

    # From the twin's latents, so that each half is judged alone.
    latents = posterior.mean.permute(0, 2, 3, 1).numpy()
    assert relative_error(jax.jit(decode)(variables, latents), decoded) < TOLERANCE


def test_decode_is_the_last_convolution_of_its_features() -> None:
    model, variables, _ = pair(TINY)
    latents = np.random.default_rng(1).standard_normal((1, 4, 2, 3), np.float32)
    features = model.apply(variables, latents, method="decode_features")
    assert features.shape == (1, 8, 4, 8)
    last = {"params": {"decoder": {"conv_out": variables["params"]["decoder"]["conv_out"]}}}
    got = model.apply(last, features, method="decode_output")
    assert np.array_equal(got, model.apply(variables, latents, method="decode"))


def test_log_variance_is_bounded() -> None:
    model, variables, _ = pair(TINY)
    variables["params"]["quant_conv"]["bias"] = jnp.array([0.0, 0, 0, 1e3, -1e3, 0])
    log_variance = model.apply(variables, mel(8, 8), method="encode")[1]
    assert np.all(log_variance[..., 0] == 20) and np.all(log_variance[..., 1] == -30)


def test_bfloat16_stays_close_and_returns_float32() -> None:
    model, variables, _ = pair(TINY)
    half = AutoencoderKL(**TINY, dtype=jnp.bfloat16)
    x = mel(8, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, x))} == {jnp.dtype("float32")}
    got = jax.jit(half.apply)(variables, x)
    assert got.dtype == jnp.float32
    assert relative_error(got, jax.jit(model.apply)(variables, x)) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize(
    ("channels", "latent_channels", "parameters"),
    [((128, 256, 512), 8, 55_376_873), ((128, 256, 512, 1024), 16, 223_535_569)],
    ids=["16 kHz", "48 kHz"],
)
def test_published_sizes(channels: tuple[int, ...], latent_channels: int, parameters: int) -> None:
    model = AutoencoderKL(1, 1, latent_channels, channels, layers_per_block=2, norm_num_groups=32)
    assert count(shapes(model, np.zeros((1, 16, 16, 1)))) == parameters


def test_a_mel_without_its_channel_is_named() -> None:
    with pytest.raises(ValueError, match=r"the mel has shape \(2, 8, 8\); give \[batch, frames, bands, 1\]"):
        shapes(AutoencoderKL(**TINY), mel(8, 8)[..., 0])
