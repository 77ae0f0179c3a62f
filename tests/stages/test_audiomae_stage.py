"""AudioMAE's augmentation. Bounds on statistics are five standard errors."""

import jax
import numpy as np

from audioldm2_jax.stages.audiomae import augment

CLIPS, SAMPLES = 2000, 32


def test_augment_rolls_and_scales():
    clip = np.arange(1.0, SAMPLES + 1, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), CLIPS)
    made = np.asarray(jax.jit(augment)(np.tile(clip, (CLIPS, 1)), keys))
    gains = made.max(1) / SAMPLES
    shifts = (made.argmax(1) + 1) % SAMPLES
    for row, gain, shift in zip(made[:50], gains, shifts):
        np.testing.assert_allclose(row, np.roll(clip, shift) * gain, rtol=1e-5)
    # Beta(10, 10) + 0.5: mean 1, variance 1 / 84.
    assert abs(gains.mean() - 1) < 5 * (1 / 84 / CLIPS) ** 0.5
    assert abs(gains.var() * 84 - 1) < 5 * (2 / CLIPS) ** 0.5
    counts = np.bincount(shifts, minlength=SAMPLES)
    expected = CLIPS / SAMPLES
    assert ((counts - expected) ** 2 / expected).sum() < SAMPLES - 1 + 5 * (2 * (SAMPLES - 1)) ** 0.5
    assert abs(np.corrcoef(gains, shifts)[0, 1]) < 5 / CLIPS**0.5
