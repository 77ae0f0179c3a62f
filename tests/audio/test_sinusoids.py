"""Partials on the grid of the frames: what a vocoder, which is the same for every frame, can make of a clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audioldm2_jax.audio.sinusoids import frame_locked

RATE, HOP = 16000, 640  # multiples of 25 Hz
FRAME_LOCKED = jax.jit(lambda waveform: frame_locked(waveform, HOP))


def tone(*partials, samples=16000):
    """[1, samples] of (Hz, amplitude) pairs."""
    time = np.arange(samples) / RATE
    return jnp.asarray(sum(a * np.sin(2 * np.pi * f * time + f) for f, a in partials), jnp.float32)[None]


@pytest.mark.parametrize("hertz, moved", [(520.0, 525), (440.0, 450), (1000.0, 1000), (3521.0, 3525)])
def test_a_partial_goes_to_the_nearest_multiple_and_keeps_its_level(hertz, moved):
    made = np.asarray(FRAME_LOCKED(tone((hertz, 0.3), (2 * hertz, 0.1))))[0, 3200:12800]
    spectrum = np.abs(np.fft.rfft(made)) * 2 / len(made)  # 9600 samples: bins of 1 2/3 Hz
    bins = {f: spectrum[round(f * len(made) / RATE)] for f in (moved, 2 * moved)}
    second = round(2 * hertz / 25) * 25
    assert bins[moved] == pytest.approx(0.3, rel=0.03)
    assert spectrum[round(second * len(made) / RATE)] == pytest.approx(0.1, rel=0.05)
    others = np.delete(spectrum, [round(f * len(made) / RATE) for f in (moved, second)])
    assert others.max() < 0.01


def test_what_stands_still_repeats_itself_from_hop_to_hop():
    made = np.asarray(FRAME_LOCKED(tone((523.25, 0.3), (1046.5, 0.2))))[0, 3200:12800].reshape(-1, HOP)
    assert np.abs(made - made[0]).max() < 0.01 and np.abs(made).max() > 0.2


def test_a_clip_from_another_frame_on_is_the_same_clip():
    clip = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (2, 16000)), jnp.float32)
    whole, part = FRAME_LOCKED(clip), FRAME_LOCKED(clip[:, 3 * HOP :])
    # Windows at the beginning of the part see zeros instead of the clip.
    np.testing.assert_allclose(part[:, 512:], whole[:, 3 * HOP + 512 :], atol=1e-5)
    assert not np.asarray(FRAME_LOCKED(jnp.zeros((1, 16000)))).any()


def test_attacks_stay_where_they_are():
    clip = tone((600.0, 0.4)).at[:, :8000].set(0)
    made = np.asarray(FRAME_LOCKED(clip))[0]
    energy = np.convolve(made**2, np.ones(160) / 160, "same")
    assert energy[:7600].max() < 1e-4 * energy.max() and energy[8600:15000].min() > 0.5 * energy[10000]
