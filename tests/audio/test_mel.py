"""The front ends against librosa, kaldi-native-fbank and transformers' ClapFeatureExtractor."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import kaldi_native_fbank
import librosa
import numpy as np
import pytest
from transformers import ClapFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from audioldm2_jax.audio import mel

MEL_16K = mel.MelSettings(16000, 1024, 160, 64, 0.0, 8000.0)
MEL_48K = mel.MelSettings(48000, 2048, 480, 256, 20.0, 24000.0)
FBANK = mel.FbankSettings(16000, 128, 1024)
FBANK_80 = mel.FbankSettings(16000, 80, 1024)
FBANK_TINY = mel.FbankSettings(16000, 128, 256)
CLAP = mel.ClapMelSettings(48000, 1024, 480, 64, 50.0, 14000.0, 480000)
CLAP_TINY = mel.ClapMelSettings(48000, 1024, 480, 64, 50.0, 14000.0, 96000)


def music(samples: int, sampling_rate: int, seed: int = 0) -> np.ndarray:
    """Decaying notes over a little noise, with a silent stretch: [samples] float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / sampling_rate
    sound = 1e-3 * rng.standard_normal(samples)
    for _ in range(5):
        start, hertz = rng.uniform(0, time[-1]), rng.uniform(60, 0.4 * sampling_rate)
        sound += 0.2 * (time > start) * np.exp(-4 * (time - start).clip(0)) * np.sin(2 * np.pi * hertz * time)
    sound[: samples // 8] = 0
    return sound.astype(np.float32)


def relative(got: jax.Array, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("settings, samples", [(MEL_16K, 163840), (MEL_16K, 40960), (MEL_48K, 122880)])
def test_log_mel_is_librosas(settings, samples):
    waveform = music(samples, settings.sampling_rate)
    padding = (settings.n_fft - settings.hop_length) // 2
    magnitude = np.abs(
        librosa.stft(
            np.pad(waveform.astype(np.float64), padding, mode="reflect"),
            n_fft=settings.n_fft,
            hop_length=settings.hop_length,
            center=False,
        )
    )
    filters = librosa.filters.mel(
        sr=settings.sampling_rate,
        n_fft=settings.n_fft,
        n_mels=settings.n_mels,
        fmin=settings.fmin,
        fmax=settings.fmax,
    )
    want = np.log(np.maximum(filters @ magnitude, 1e-5)).T
    got = mel.log_mel(waveform[None], settings)
    assert got.dtype == jnp.float32
    assert got.shape == (1, samples // settings.hop_length, settings.n_mels)
    # Float32 spectra against float64 ones; measured 1e-7 and 2e-5.
    assert relative(got[0], want) < 1e-5
    assert np.abs(got[0] - want).max() < 1e-3
    assert (mel.compressed_mel(waveform[None], settings) == got).all()
    power = dataclasses.replace(settings, compression=0.5)
    root = np.asarray(mel.compressed_mel(waveform[None], power)[0])
    assert relative(root, np.sqrt(np.maximum(filters @ magnitude, 1e-5)).T) < 1e-5
    for compressed, front_end in ((np.asarray(got[0]), settings), (root, power)):
        assert relative(mel.magnitudes(compressed, front_end), np.maximum(filters @ magnitude, 1e-5).T) < 1e-5


@pytest.mark.parametrize(
    "settings, samples, whole", [(FBANK_80, 163840, 1022), (FBANK_80, 40960, 254), (FBANK_80, 170001, 1024)]
)
def test_fbank_is_kaldis(settings, samples, whole):
    """With 80 bands: Kaldi refuses 128 of them at 16 kHz, since some fall between the bins."""
    waveform = music(samples, 16000) + np.float32(0.01)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = settings.n_mels
    options.htk_compat = True
    options.use_energy = False
    kaldi = kaldi_native_fbank.OnlineFbank(options)
    kaldi.accept_waveform(16000, (waveform - waveform.mean()).tolist())
    kaldi.input_finished()
    want = np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)])[: settings.frames]
    assert len(want) == whole
    want = np.pad(want, ((0, settings.frames - whole), (0, 0)))
    want = (want + 4.2677393) / (2 * 4.5689974)
    got = mel.kaldi_fbank(waveform[None], settings)
    assert got.shape == (1, settings.frames, settings.n_mels)
    # Kaldi computes in float32 as well: in bands that are ten million times quieter than the frame's loudest, both
    # are off. 1e-4 is what two float32 computations agree to.
    assert relative(got[0], want) < 1e-4
    assert np.abs(got[0] - want).max() < 2e-2


@pytest.mark.parametrize("settings, samples", [(CLAP, 480000), (CLAP, 122880), (CLAP_TINY, 96000), (CLAP_TINY, 50001)])
def test_clap_mel_is_transformers(settings, samples):
    extractor = ClapFeatureExtractor(frequency_min=50, frequency_max=14000)
    waveform = music(samples, 48000)
    want = extractor(
        waveform,
        truncation="rand_trunc",
        padding="repeatpad",
        max_length=settings.samples,
        sampling_rate=48000,
        return_tensors="np",
    )["input_features"][0, 0]
    got = mel.clap_mel(waveform[None], settings)
    assert got.shape == (1, settings.frames, 64) == (1, 1 + settings.samples // 480, 64)
    # The extractor computes in float64.
    assert relative(got[0], want) < 1e-5
    assert np.abs(got[0] - want).max() < 1e-2  # dB


@pytest.mark.parametrize("settings, samples", [(FBANK, 163840), (FBANK_TINY, 40960)])
def test_fbank_of_128_bands_is_transformers(settings, samples):
    waveform = music(samples, 16000) + np.float32(0.01)
    filters = mel_filter_bank(
        257, 128, 20.0, 8000.0, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    want = spectrogram(
        waveform.astype(np.float64) - waveform.mean(dtype=np.float64),
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        center=False,
        power=2.0,
        preemphasis=0.97,
        remove_dc_offset=True,
        mel_filters=filters,
        mel_floor=1.1920929e-07,
        log_mel="log",
    ).T
    want = np.pad(want, ((0, settings.frames - len(want)), (0, 0)))
    got = mel.kaldi_fbank(waveform[None], settings)
    assert got.shape == (1, settings.frames, 128)
    assert relative(got[0], (want + 4.2677393) / (2 * 4.5689974)) < 1e-5  # the reference is float64


def test_clap_hears_the_beginning_of_a_long_clip():
    waveform = music(150000, 48000)[None]
    np.testing.assert_array_equal(mel.clap_mel(waveform, CLAP_TINY), mel.clap_mel(waveform[:, :96000], CLAP_TINY))
    assert CLAP.frames == 1001
    assert CLAP_TINY.frames == 201


@pytest.mark.parametrize("length, n_fft", [(400, 512), (1024, 1024), (2048, 2048)])
def test_accelerators_transform_is_the_fft(length, n_fft):
    windows = jnp.asarray(np.random.default_rng(0).standard_normal((3, length)), jnp.float32)
    # Spectra of noise are sqrt(n_fft) ≈ 40 large; the products' rounding is some 1e-5 of the largest.
    for got, want in zip(mel._spectrum_matmul(windows, n_fft), mel._spectrum_fft(windows, n_fft)):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("platform, transforms", [("tpu", False), ("cuda", False), ("cpu", True)])
def test_accelerators_get_products_which_split_over_devices(platform, transforms):
    step = jax.jit(jax.value_and_grad(lambda waveform: mel.log_mel(waveform, MEL_16K).mean()))
    compiled = jax.export.export(step, platforms=[platform])(jax.ShapeDtypeStruct((2, 3200), jnp.float32))
    assert ("stablehlo.fft" in compiled.mlir_module()) == transforms


@pytest.mark.parametrize(
    "front_end",
    [
        functools.partial(mel.log_mel, settings=MEL_16K),
        functools.partial(mel.compressed_mel, settings=dataclasses.replace(MEL_16K, compression=0.5)),
        functools.partial(mel.kaldi_fbank, settings=mel.FbankSettings(16000, 128, 16)),
        functools.partial(mel.clap_mel, settings=mel.ClapMelSettings(48000, 1024, 480, 64, 50.0, 14000.0, 4800)),
    ],
)
def test_gradient(front_end):
    loss = jax.jit(jax.grad(lambda waveform: jnp.abs(front_end(waveform) - 1).mean()))
    silent, loud = np.zeros((1, 3200), np.float32), music(3200, 16000)[None]
    half_silent = loud.copy()
    half_silent[:, 1600:] = 0
    for waveform in (silent, half_silent, loud, loud.astype(jnp.bfloat16)):
        gradient = loss(waveform)
        assert np.isfinite(gradient).all()
    # Along a direction the gradient is the slope; 1 % is what differences of float32 values leave.
    noise, direction = np.random.default_rng(0).standard_normal((2, 1, 3200)).astype(np.float32) * 0.1
    weights = np.random.default_rng(1).uniform(-1, 1, jax.eval_shape(front_end, noise).shape)
    value = jax.jit(lambda step: (weights * front_end(noise + step * direction)).sum())
    slope = (value(3e-3) - value(-3e-3)) / 6e-3
    assert float(jax.grad(value)(0.0)) == pytest.approx(float(slope), rel=0.01)


def test_rows_are_independent_and_half_precision_is_widened():
    waveform = np.stack([music(8000, 16000, seed) for seed in range(3)])
    together = mel.log_mel(waveform, MEL_16K)
    np.testing.assert_allclose(together[1:2], mel.log_mel(waveform[1:2], MEL_16K), atol=1e-4)
    assert mel.log_mel(jnp.asarray(waveform, jnp.bfloat16), MEL_16K).dtype == jnp.float32


def test_bad_settings_and_waveforms_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"9000"):
        mel.MelSettings(16000, 1024, 160, 64, 0.0, 9000.0)
    with pytest.raises(ValueError, match=r"exponent up to 1, got -0\.5"):
        mel.MelSettings(16000, 1024, 160, 64, 0.0, 8000.0, compression=-0.5)
    with pytest.raises(ValueError, match="1024 - 161"):
        mel.MelSettings(16000, 1024, 161, 64, 0.0, 8000.0)
    silence = np.array([0.0, -0.1], np.float32)  # a VAE may make less than nothing of it
    assert mel.magnitudes(silence, dataclasses.replace(MEL_16K, compression=0.5)) == pytest.approx([1e-5, 1e-5])
    with pytest.raises(ValueError, match=r"\[batch, samples\].*\(8000,\)"):
        mel.log_mel(jnp.zeros(8000), MEL_16K)
    with pytest.raises(ValueError, match="got 432"):
        mel.log_mel(jnp.zeros((1, 432)), MEL_16K)
    with pytest.raises(ValueError, match="at least 400 samples, got 399"):
        mel.kaldi_fbank(jnp.zeros((1, 399)), FBANK)
    with pytest.raises(ValueError, match="at least one sample"):
        mel.clap_mel(jnp.zeros((1, 0)), CLAP)
