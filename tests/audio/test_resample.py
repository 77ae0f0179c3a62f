"""Resampling in the step against soxr, which loaders use, and against sounds known at any instant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from audioldm2_jax.audio.resample import resample


def band_limited(time: np.ndarray, seconds: float, highest: float, seed: int = 0) -> np.ndarray:
    """Sines up to `highest` Hz that fade in and out within `seconds`, at the instants `time`: [samples] float64."""
    rng = np.random.default_rng(seed)
    hertz = rng.uniform(20, highest, size=(24, 1))
    sound = np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6, size=(24, 1))).mean(axis=0)
    return sound * np.where(time < seconds, 0.5 - 0.5 * np.cos(2 * np.pi * time / seconds), 0)


@pytest.mark.parametrize(
    "from_rate, to_rate, samples",
    [
        (16000, 48000, 8000),
        (48000, 16000, 24001),
        (44100, 16000, 22050),
        (16000, 44100, 5001),
        (22050, 48000, 7000),
    ],
)
def test_agrees_with_soxr(from_rate, to_rate, samples):
    highest, seconds = 0.88 * min(from_rate, to_rate) / 2, samples / from_rate
    waveform = band_limited(np.arange(samples) / from_rate, seconds, highest).astype(np.float32)
    got = np.asarray(resample(waveform, from_rate, to_rate))
    assert got.shape == (-(-samples * to_rate // from_rate),)
    exact = band_limited(np.arange(len(got)) / to_rate, seconds, highest)
    # Float32 rounding; measured 2e-7 to 4e-7.
    assert relative(got, exact) < 1e-6
    # soxr itself is 3e-8 off for whole ratios, 1e-4 for others (a shift of its clock).
    soxrs = soxr.resample(waveform, from_rate, to_rate, quality="VHQ")
    shared = min(len(got), len(soxrs))
    assert relative(got[:shared], soxrs[:shared]) < 2e-4


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_above_half_the_lower_rate_nothing_is_left():
    time = np.arange(24000) / 48000
    tone = (np.sin(2 * np.pi * 8100 * time) * np.hanning(24000)).astype(np.float32)
    # 120 dB, less a margin for float32: 110 dB.
    assert np.abs(resample(tone, 48000, 16000)).max() < 10 ** (-110 / 20)


def test_there_and_back():
    waveform = band_limited(np.arange(4000) / 16000, 0.25, 7000)
    back = resample(resample(waveform, 16000, 48000), 48000, 16000)
    assert relative(back, waveform) < 2e-6  # float32, twice


def test_shapes_batches_and_types():
    batch = np.stack([band_limited(np.arange(999) / 48000, 0.02, 7000, seed) for seed in range(6)]).reshape(2, 3, 999)
    together = resample(batch, 48000, 16000)
    assert together.shape == (2, 3, 333)
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together[1, 2], resample(batch[1, 2], 48000, 16000), atol=1e-6)
    assert resample(jnp.ones((1, 1)), 16000, 48000).shape == (1, 3)
    same = jnp.ones((2, 5))
    np.testing.assert_array_equal(resample(same, 16000, 16000), same)
    # Exactly a clip: 10.24 s and 2.56 s.
    for seconds in (10.24, 2.56):
        shape = jax.eval_shape(
            functools.partial(resample, from_rate=16000, to_rate=48000), jnp.zeros((1, int(seconds * 16000)))
        )
        assert shape.shape == (1, int(seconds * 48000))


def test_gradient_is_the_transpose():
    # For a linear map A: <A x, y> = <x, Aᵀ y>; float32 sums agree to 1e-5 of their terms.
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 480)).astype(np.float32), rng.standard_normal((2, 160)).astype(np.float32)
    down = jax.jit(functools.partial(resample, from_rate=48000, to_rate=16000))
    output, transpose = jax.vjp(down, x)
    assert float((output * y).sum()) == pytest.approx(float((x * transpose(y)[0]).sum()), abs=1e-3)


def test_bad_rates_say_what_to_do():
    with pytest.raises(ValueError, match=r"16000 to 15999 Hz.*audio\.files\.read"):
        resample(jnp.zeros(100), 16000, 15999)
    with pytest.raises(ValueError, match="positive, got 0 and 16000"):
        resample(jnp.zeros(100), 0, 16000)
