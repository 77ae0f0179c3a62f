"""The front ends: the spectrograms that the networks take of a waveform. Pure JAX, run inside the jitted training step.

All of them compute in float32 whatever the precision of the networks: the logarithm of a quiet band keeps
nothing of a bfloat16 spectrum. Filterbanks, windows and Fourier bases are computed once in float64 by NumPy
and enter the compiled step as constants.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.audio.framing import frame

# Mean and standard deviation of AudioSet's fbank, with which AudioMAE was trained (facebookresearch/AudioMAE; and
# haoheliu/AudioLDM2, audioldm2/pipeline.py, `extract_kaldi_fbank_feature`).
FBANK_MEAN = -4.2677393
FBANK_STD = 4.5689974

_LOG_MEL_FLOOR = 1e-5  # magnitude; haoheliu/AudioLDM-training-finetuning, `spectral_normalize_torch`
_CLAP_FLOOR = 1e-10  # power; transformers, audio_utils.py, `power_to_db`
_KALDI_FLOOR = float(np.finfo(np.float32).eps)  # power; Kaldi, feature-fbank.cc
_KALDI_PREEMPHASIS = 0.97
_KALDI_LOWEST_HZ = 20.0


@dataclasses.dataclass(frozen=True)
class MelSettings:
    """The mel spectrogram of the VAE and the vocoder.

    16 kHz: (16000, 1024, 160, 64, 0.0, 8000.0); 48 kHz: (48000, 2048, 480, 256, 20.0, 24000.0).
    """

    sampling_rate: int  # Hz
    n_fft: int  # samples, of the window and of the transform
    hop_length: int  # samples
    n_mels: int
    fmin: float  # Hz
    fmax: float  # Hz, at most sampling_rate / 2
    compression: float = 0.0  # exponent of the magnitudes that VAE and vocoder take; 0: their natural logarithm

    def __post_init__(self) -> None:
        _check_band(self.fmin, self.fmax, self.sampling_rate)
        if not 0 <= self.compression <= 1:
            raise ValueError(
                f"the mel's compression must be 0 (logarithm) or an exponent up to 1, got {self.compression}"
            )
        if self.n_fft < self.hop_length or (self.n_fft - self.hop_length) % 2:
            raise ValueError(
                f"n_fft - hop_length must be even and not negative, got {self.n_fft} - {self.hop_length}: "
                "half of it is padded on each side"
            )

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples` samples: one a full hop."""
        return samples // self.hop_length

    @property
    def centres(self) -> np.ndarray:
        """Where the bands peak, Hz: float64 [n_mels]."""
        return _slaney_edges(self)[1:-1]


@dataclasses.dataclass(frozen=True)
class FbankSettings:
    """AudioMAE's input: Kaldi filterbank energies of 25 ms frames every 10 ms.

    The paper's: (16000, 128, 1024).
    """

    sampling_rate: int  # Hz
    n_mels: int
    frames: int  # frames AudioMAE takes: shorter clips are padded, longer ones cut

    @property
    def window_length(self) -> int:
        """Samples in a frame (25 ms)."""
        return self.sampling_rate * 25 // 1000

    @property
    def hop_length(self) -> int:
        """Samples from frame to frame (10 ms)."""
        return self.sampling_rate * 10 // 1000

    @property
    def n_fft(self) -> int:
        """Kaldi transforms the next power of two."""
        return 1 << (self.window_length - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class ClapMelSettings:
    """CLAP's input, as transformers' `ClapFeatureExtractor` makes it for an unfused CLAP.

    The paper's: (48000, 1024, 480, 64, 50.0, 14000.0, 480000).
    """

    sampling_rate: int  # Hz
    n_fft: int  # samples, of the window and of the transform
    hop_length: int  # samples
    n_mels: int
    fmin: float  # Hz
    fmax: float  # Hz, at most sampling_rate / 2
    samples: int  # length of the clip CLAP takes: shorter ones are repeated, longer ones cut

    def __post_init__(self) -> None:
        _check_band(self.fmin, self.fmax, self.sampling_rate)

    @property
    def frames(self) -> int:
        """Frames that `clap_mel` returns: centred frames, so one more than hops fit (1001 for 10 s)."""
        return 1 + self.samples // self.hop_length


def compressed_mel(waveform: jax.Array, settings: MelSettings) -> jax.Array:
    """The VAE's and the vocoder's mel: `log_mel`, or the power max(mel, 1e-5) ** compression.

    In the logarithm a clip that is louder is the same mel with something added, and a vocoder has to learn an
    exponential. With a power it is the same mel times something, which a network of leaky ReLUs passes on as it is;
    an exponent near 0.6 is also how loudness grows with pressure [Stevens 1955, J. Acoust. Soc. Am. 27(5)].

    Takes, returns and raises what `log_mel` does.
    """
    logarithm = log_mel(waveform, settings)
    return jnp.exp(settings.compression * logarithm) if settings.compression else logarithm


def magnitudes(mel: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Returns the magnitudes of which `compressed_mel` is made, of any shape; what is below 1e-5 is 1e-5."""
    if settings.compression:
        mel = np.log(np.maximum(mel, _LOG_MEL_FLOOR**settings.compression)) / settings.compression
    return np.maximum(np.exp(mel), _LOG_MEL_FLOOR)


def log_mel(waveform: jax.Array, settings: MelSettings) -> jax.Array:
    """The mel of the paper's VAE and vocoder: log(max(mel, 1e-5)) of Slaney-weighted Hann magnitudes.

    Reflect-padded by (n_fft - hop) / 2 on each side and not centred, so 163,840 samples at 16 kHz give
    exactly 1024 frames (haoheliu/AudioLDM-training-finetuning, audioldm_train/utilities/data/dataset.py,
    `mel_spectrogram_train`). Silence has gradient zero.

    Args:
        waveform: [batch, samples] in -1..1, at `settings.sampling_rate`.
        settings: static under `jit`.

    Returns:
        [batch, samples // hop_length, n_mels] float32

    Raises:
        ValueError: the waveform is not [batch, samples], or is too short to be reflected.
    """
    waveform = _float32(waveform)
    padding = (settings.n_fft - settings.hop_length) // 2
    frames = settings.frames(waveform.shape[1])
    if waveform.shape[1] <= padding or frames < 1:
        raise ValueError(
            f"a mel spectrogram needs more than {max(padding, settings.hop_length - 1)} samples, "
            f"got {waveform.shape[1]}: pad the clip"
        )
    padded = jnp.pad(waveform, ((0, 0), (padding, padding)), mode="reflect")
    windows = frame(padded, settings.n_fft, settings.hop_length, frames)
    magnitude = _safe_sqrt(_power(windows * _hann(settings.n_fft), settings.n_fft))
    mel = _project(magnitude, slaney_filters(settings))
    return jnp.log(jnp.maximum(mel, _LOG_MEL_FLOOR))


def kaldi_fbank(waveform: jax.Array, settings: FbankSettings) -> jax.Array:
    """AudioMAE's input: Kaldi log filterbank energies, normalised as (x + 4.2677393) / (2 × 4.5689974).

    torchaudio's `compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning", dither=0)`
    on the waveform in -1..1 with its mean removed: each frame loses its own mean, is pre-emphasised by 0.97,
    weighed by a symmetric Hann window and transformed; triangles equidistant on the HTK mel scale from 20 Hz
    to half the sampling rate weigh the power. Only whole frames count (10.24 s give 1022); zeros fill up to
    `settings.frames` before normalising (haoheliu/AudioLDM2, `extract_kaldi_fbank_feature`).

    Args:
        waveform: [batch, samples] in -1..1, at `settings.sampling_rate`.
        settings: static under `jit`.

    Returns:
        [batch, settings.frames, n_mels] float32

    Raises:
        ValueError: the waveform is not [batch, samples], or is shorter than one frame.
    """
    waveform = _float32(waveform)
    length, hop = settings.window_length, settings.hop_length
    if waveform.shape[1] < length:
        raise ValueError(f"the fbank needs at least {length} samples, got {waveform.shape[1]}: pad the clip")
    frames = min(settings.frames, 1 + (waveform.shape[1] - length) // hop)
    windows = frame(waveform - waveform.mean(axis=1, keepdims=True), length, hop, frames)
    windows -= windows.mean(axis=-1, keepdims=True)
    before = jnp.concatenate([windows[..., :1], windows[..., :-1]], axis=-1)
    windows = (windows - _KALDI_PREEMPHASIS * before) * _hann(length, symmetric=True)
    energy = _project(_power(windows, settings.n_fft), _kaldi_filters(settings))
    fbank = jnp.log(jnp.maximum(energy, _KALDI_FLOOR))
    fbank = jnp.pad(fbank, ((0, 0), (0, settings.frames - frames), (0, 0)))
    return (fbank - FBANK_MEAN) / (2 * FBANK_STD)


def clap_mel(waveform: jax.Array, settings: ClapMelSettings) -> jax.Array:
    """CLAP's input: Slaney-weighted Hann power in decibels, not below -100, of centred frames.

    transformers' `ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")`: a short clip is
    repeated as often as it fits whole and zeros fill the rest. A long one is cut to its beginning, where the
    extractor cuts anywhere at random: the same clip must score the same each time.

    Args:
        waveform: [batch, samples] in -1..1, at `settings.sampling_rate`.
        settings: static under `jit`.

    Returns:
        [batch, settings.frames, n_mels] float32, decibels

    Raises:
        ValueError: the waveform is not [batch, samples], or has no samples.
    """
    waveform = _float32(waveform)[:, : settings.samples]
    if waveform.shape[1] < 1:
        raise ValueError("CLAP needs at least one sample, got an empty waveform")
    waveform = jnp.tile(waveform, (1, settings.samples // waveform.shape[1]))
    waveform = jnp.pad(waveform, ((0, 0), (0, settings.samples - waveform.shape[1])))
    half = settings.n_fft // 2
    padded = jnp.pad(waveform, ((0, 0), (half, half)), mode="reflect")
    windows = frame(padded, settings.n_fft, settings.hop_length, settings.frames)
    mel = _project(_power(windows * _hann(settings.n_fft), settings.n_fft), slaney_filters(settings))
    return (10 / np.log(10)) * jnp.log(jnp.maximum(mel, _CLAP_FLOOR))


def _float32(waveform: jax.Array) -> jax.Array:
    if waveform.ndim != 2:
        raise ValueError(f"a waveform is [batch, samples], got the shape {waveform.shape}")
    return jnp.asarray(waveform, jnp.float32)


def _check_band(fmin: float, fmax: float, sampling_rate: int) -> None:
    if not 0 <= fmin < fmax <= sampling_rate / 2:
        raise ValueError(
            f"mel bands need 0 <= fmin < fmax <= half the sampling rate, got {fmin} to {fmax} Hz at {sampling_rate} Hz"
        )


# ---- Spectra


def _power(windows: jax.Array, n_fft: int) -> jax.Array:
    """Power spectrum of windowed frames: [..., length <= n_fft] → [..., n_fft // 2 + 1].

    Two transforms, the platform chooses. A CPU takes the fast Fourier transform: forward and backward of
    `log_mel` on [16, 40960] samples take 40 ms on one core, 129 ms as a matrix product, 478 ms as a strided
    convolution ([8, 7680]: 1.6, 9.8 and 36 ms). XLA does not split an FFT over devices, though: it would
    gather the frames of the whole mesh on every device. A matrix product splits with its batch, and for an
    accelerator it is well below 1 % of a training step. Only the linear part depends on the platform, so that
    neither keeps residuals for the other's gradient.
    """
    real, imaginary = jax.lax.platform_dependent(
        windows,
        cpu=functools.partial(_spectrum_fft, n_fft=n_fft),
        default=functools.partial(_spectrum_matmul, n_fft=n_fft),
    )
    return jnp.square(real) + jnp.square(imaginary)


def _spectrum_fft(windows: jax.Array, n_fft: int) -> tuple[jax.Array, jax.Array]:
    spectrum = jnp.fft.rfft(windows, n_fft)
    return spectrum.real, spectrum.imag


def _spectrum_matmul(windows: jax.Array, n_fft: int) -> tuple[jax.Array, jax.Array]:
    spectrum = _project(windows, _fourier_basis(windows.shape[-1], n_fft))
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    return real, imaginary


def _project(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    # HIGHEST: accelerators would round the factors to tf32 or bfloat16, which leaves three digits of the
    # loudest bin and nothing of the quiet ones.
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def _safe_sqrt(power: jax.Array) -> jax.Array:
    """Square root whose gradient at zero is zero instead of infinite."""
    positive = power > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1.0)), 0.0)


# ---- Constants


@functools.lru_cache(maxsize=16)
def _hann(length: int, symmetric: bool = False) -> np.ndarray:
    period = length - 1 if symmetric else length
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / period)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _fourier_basis(length: int, n_fft: int) -> np.ndarray:
    """Cosines, then negative sines, of the real Fourier transform: [length, 2 * (n_fft // 2 + 1)]."""
    steps = np.outer(np.arange(length), np.arange(n_fft // 2 + 1))
    phase = 2 * np.pi * (steps % n_fft) / n_fft  # whole turns taken off while they are integers
    return np.concatenate([np.cos(phase), -np.sin(phase)], axis=1).astype(np.float32)


@functools.lru_cache(maxsize=16)
def slaney_filters(settings: MelSettings | ClapMelSettings) -> np.ndarray:
    """Triangles of area one (in Hz) on Slaney's Auditory Toolbox mel scale: [n_fft // 2 + 1, n_mels].

    The defaults of `librosa.filters.mel`. The triangles are straight over Hz.
    """
    edges = _slaney_edges(settings)
    bins = np.linspace(0, settings.sampling_rate / 2, settings.n_fft // 2 + 1)
    filters = triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))
    return filters.astype(np.float32)


def _slaney_edges(settings: MelSettings | ClapMelSettings) -> np.ndarray:
    """Where the triangles begin, peak and end, Hz: [n_mels + 2]."""
    low, high = _hz_to_slaney(np.array([settings.fmin, settings.fmax]))
    return _slaney_to_hz(np.linspace(low, high, settings.n_mels + 2))


@functools.lru_cache(maxsize=16)
def _kaldi_filters(settings: FbankSettings) -> np.ndarray:
    """Triangles of height one on the HTK mel scale, straight over mel: [n_fft // 2 + 1, n_mels].

    Kaldi, feat/mel-computations.cc. A triangle narrower than the distance of two bins can miss all of them:
    Kaldi then refuses, torchaudio and we go on, and the band always reads the floor. AudioMAE's 128 bands have such.
    """
    nyquist = settings.sampling_rate / 2
    edges = np.linspace(_hz_to_htk(_KALDI_LOWEST_HZ), _hz_to_htk(nyquist), settings.n_mels + 2)
    bins = _hz_to_htk(np.linspace(0, nyquist, settings.n_fft // 2 + 1))
    filters = triangles(bins, edges)
    filters[-1] = 0  # Kaldi leaves out the bin at half the sampling rate
    return filters.astype(np.float32)


def triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Triangle m rises from edges[m] to one at edges[m + 1], falls to edges[m + 2]: [bins, triangles]."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = bins[:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


# Slaney's scale is linear up to 1 kHz (15 mel) and logarithmic above, 27 mel to a factor of 6.4.
_SLANEY_HZ_PER_MEL = 200 / 3
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27


def _hz_to_slaney(hz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return np.minimum(hz, _SLANEY_BREAK_HZ) / _SLANEY_HZ_PER_MEL + above


def _slaney_to_hz(mel: np.ndarray) -> np.ndarray:
    above = np.exp(_SLANEY_LOG_STEP * (np.maximum(mel, _SLANEY_BREAK_MEL) - _SLANEY_BREAK_MEL))
    return np.minimum(mel, _SLANEY_BREAK_MEL) * _SLANEY_HZ_PER_MEL * above


def _hz_to_htk(hz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)
