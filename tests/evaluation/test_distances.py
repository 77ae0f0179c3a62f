"""The spectral distance is librosa's spectra compared, hears what lies between partials, and is logged with samples."""

from types import SimpleNamespace

import jax
import librosa
import numpy as np
import pytest

from audioldm2_jax.evaluation.base import Snapshot
from audioldm2_jax.evaluation.distances import spectral_distance
from audioldm2_jax.evaluation.samples import Samples
from audioldm2_jax.runtime import sharding

RATE = 16000


def tones(clips=2, samples=9001):
    time = np.arange(samples) / RATE
    return np.stack([sum(np.sin(2 * np.pi * n * 220 * (1 + i) * time) / n for n in (1, 2, 3)) for i in range(clips)])


def test_it_is_that_of_librosas_spectra():
    real = tones()
    made = real + 0.05 * np.random.default_rng(0).standard_normal(real.shape)
    wanted = []
    for size in (256, 512, 1024, 2048, 4096):
        first, second = (
            abs(librosa.stft(x.astype(np.float32), n_fft=size, hop_length=size // 4)) for x in (real, made)
        )
        floor = 1e-3 * first.max(axis=(1, 2), keepdims=True)
        apart = 20 * np.log10(np.maximum(first, floor) / np.maximum(second, floor))
        wanted.append(np.sqrt((apart**2).mean(axis=(1, 2))))
    np.testing.assert_allclose(spectral_distance(real, made), np.mean(wanted, axis=0), rtol=1e-3)


def test_it_grows_with_noise_between_the_partials_and_is_zero_for_the_same():
    real, noise = tones(), np.random.default_rng(0).standard_normal((2, 9001))
    far = [spectral_distance(real, real + level * noise).mean() for level in (0, 0.003, 0.03, 0.3)]
    assert far[0] == 0 and far == sorted(far) and far[2] > 2
    # Twice as loud is 6 dB where both clips are above the floor, which most of a pure tone's bins are not.
    assert 0 < spectral_distance(real, 2 * real).max() < 6.03
    assert np.isfinite(spectral_distance(np.zeros((1, 100)), np.zeros((1, 100)))).all()
    with pytest.raises(ValueError, match=r"\(2, 9001\), those made \(2, 8000\)"):
        spectral_distance(real, real[:, :8000])


@pytest.mark.parametrize("remade", [True, False])
def test_samples_log_it_where_clips_are_made_again(tmp_path, remade):
    class Stage(SimpleNamespace):
        def sample(self, params, state, frozen, batch, key):
            made = {"vocoded_waveform": batch["waveform"] * params} if remade else {}
            return {"real_waveform": batch["waveform"], **made}

    config = SimpleNamespace(audio=SimpleNamespace(sampling_rate=RATE))
    stage = Stage(config=config, hparams=SimpleNamespace(sample_every=1))
    real = tones(8).astype(np.float32)
    samples = Samples(stage, lambda: iter([{"waveform": real}]), sharding.all_devices(), tmp_path, print)
    found = samples(Snapshot(1, jax.numpy.float32(0.5), jax.numpy.float32(0.5), {}, {}))
    wanted = {"samples/spectral_distance": spectral_distance(real, real / 2).mean()} if remade else {}
    assert found == pytest.approx(wanted)
    assert sorted(path.name for path in (tmp_path / "0000001").iterdir())[0] == "real-0.wav"
