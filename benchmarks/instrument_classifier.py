"""Which instrument plays: a small classifier fitted on real clips of the embedded corpus.

It is the measure of `benchmarks` for generated clips, so it never sees one: it learns from the training split of the
corpus alone, made harder by smearing, colouring and noise, and is tested on the held-out split.

    python benchmarks/instrument_classifier.py    # prints its accuracy on held-out real clips
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits  # comes with librosa, through scikit-learn

from audioldm2_jax.data.builtin.instruments import EVALUATED
from audioldm2_jax.data.builtin.music import MusicCorpus

RATE, SECONDS = 16000, 2.56
_FFT, _HOP, _BANDS = 1024, 256, 40
_RANGE = 40.0  # dB below the loudest band and frame


@dataclass(frozen=True)
class Classifier:
    """A two-layer perceptron over statistics of the log-mel spectrogram."""

    labels: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weights: tuple[np.ndarray, ...]

    def probabilities(self, waveforms: np.ndarray) -> np.ndarray:
        """[clips, samples] at 16 kHz -> [clips, labels]."""
        return _softmax(_forward(self.weights, (features(waveforms) - self.mean) / self.scale)[-1])

    def predict(self, waveforms: np.ndarray) -> list[str]:
        """[clips, samples] at 16 kHz -> the instrument of each."""
        return [self.labels[i] for i in self.probabilities(waveforms).argmax(-1)]

    def accuracy(self, waveforms: np.ndarray, instruments: Sequence[str]) -> float:
        """Share of clips whose instrument is recognised."""
        return float(np.mean([a == b for a, b in zip(self.predict(waveforms), instruments, strict=True)]))


def real_clips(n: int, seed: int, split: str, labels: Sequence[str] = EVALUATED) -> tuple[np.ndarray, list[str]]:
    """`n` solo clips of `labels` from one split: [n, samples] and the instrument of each."""
    corpus = MusicCorpus(RATE, SECONDS, seed, split, examples=n, mixture={"evaluated": 1.0})
    examples = [corpus[i] for i in range(n)]
    return np.stack([e.waveform for e in examples]), [e.labels["instruments"][0] for e in examples]


def fit(seed: int = 0, clips: int = 1600, labels: Sequence[str] = EVALUATED) -> Classifier:
    """Fits on `clips` real clips of the training split; some ten seconds."""
    return fit_clips(*real_clips(clips, 1000 + seed, "train", labels), labels, seed)


@threadpool_limits.wrap(limits=1)  # the products are so small that threads would only wait for each other
def fit_clips(waveforms: np.ndarray, names: Sequence[str], labels: Sequence[str], seed: int = 0) -> Classifier:
    """Fits on clips [clips, samples] at 16 kHz and three disturbed copies of each; `names` are their labels."""
    rng = np.random.default_rng(seed)
    mels = [_log_mel(waveform) for waveform in waveforms]
    copies = [mels, *([_disturbed(mel, rng) for mel in mels] for _ in range(3))]
    x = np.stack([_statistics(mel) for copy in copies for mel in copy])
    y = np.tile([labels.index(name) for name in names], len(copies))
    mean, scale = x.mean(0), x.std(0) + 1e-3
    return Classifier(tuple(labels), mean, scale, _train((x - mean) / scale, y, len(labels), rng))


@threadpool_limits.wrap(limits=1)
def features(waveforms: np.ndarray) -> np.ndarray:
    """[clips, samples] -> [clips, features], independent of level."""
    return np.stack([_statistics(_log_mel(waveform)) for waveform in np.asarray(waveforms, np.float32)])


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    """[samples] -> [frames, bands] dB."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, _FFT)[::_HOP] * _WINDOW
    return 10.0 * np.log10(np.square(np.abs(np.fft.rfft(frames, axis=-1))).astype(np.float32) @ _FILTERS + 1e-9)


def _statistics(mel: np.ndarray) -> np.ndarray:
    """Spectral envelope and its spread, onsets and decays, of the upper 40 dB: what lies below, any vocoder spoils."""
    mel = np.maximum(mel - mel.max(), -_RANGE)
    level = 10.0 * np.log10((10.0 ** (mel / 10.0)).sum(-1))
    level -= level.max()
    heard = 10.0 ** (level / 10.0)  # loud frames say most about the timbre
    heard /= heard.sum()
    shape = mel - mel.mean(-1, keepdims=True)
    centre, cepstrum = heard @ shape, shape @ _COSINES
    mean = heard @ cepstrum
    steps = np.diff(mel, axis=0)
    parts = (
        centre,
        np.sqrt(heard @ np.square(shape - centre)),
        np.percentile(mel, 90, axis=0),
        np.maximum(steps, 0.0).mean(0),
        np.minimum(steps, 0.0).mean(0),
        np.percentile(np.diff(level), (2, 10, 25, 50, 75, 90, 98)),
        np.percentile(level, (5, 25, 50, 75)),
        mean,
        np.sqrt(heard @ np.square(cepstrum - mean)),
    )
    return np.concatenate(parts).astype(np.float32)


def _disturbed(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a vocoder may do to a clip: smear time and frequency, colour the spectrum, add noise and a noise floor."""
    frames, bands = mel.shape
    mel = _smear(frames, rng.uniform(0.05, 2.0)) @ (mel - mel.max()) @ _smear(bands, rng.uniform(0.05, 2.5)).T
    mel = mel + rng.uniform(-2.0, 2.0) * np.linspace(-2.0, 2.0, bands)
    mel = mel + rng.uniform(0.0, 2.0) * rng.standard_normal(bands)
    mel = mel + rng.uniform(0.0, 3.0) * rng.standard_normal(mel.shape)
    floor = mel.max() + rng.uniform(-60.0, -20.0)
    return 10.0 * np.log10(10.0 ** (mel / 10.0) + 10.0 ** (floor / 10.0))


def _smear(size: int, width: float) -> np.ndarray:
    """[size, size], a Gaussian of standard deviation `width` in every row."""
    kernel = np.exp(-0.5 * np.square(np.subtract.outer(np.arange(size), np.arange(size)) / width))
    return kernel / kernel.sum(1, keepdims=True)


def _train(x: np.ndarray, y: np.ndarray, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Adam on the cross-entropy of a perceptron with one hidden layer, with dropout on its input."""
    sizes = ((x.shape[1], 64), (64, classes))
    weights = [w for i, o in sizes for w in (rng.standard_normal((i, o)) * (2.0 / i) ** 0.5, np.zeros(o))]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, 1201):
        pick = rng.integers(0, len(x), 128)
        inputs = x[pick] * (rng.random((128, x.shape[1])) > 0.2) / 0.8
        hidden, logits = _forward(weights, inputs)
        error = (_softmax(logits) - np.eye(classes)[y[pick]]) / len(pick)
        back = (error @ weights[2].T) * (hidden > 0)
        gradients = (inputs.T @ back, back.sum(0), hidden.T @ error, error.sum(0))
        for i, gradient in enumerate(gradients):
            gradient = gradient + 1e-4 * weights[i]
            first[i] += 0.1 * (gradient - first[i])
            second[i] += 0.01 * (gradient**2 - second[i])
            corrected = (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.99**step)) + 1e-8)
            weights[i] -= 3e-3 * (1.0 - step / 1201) * corrected
    return tuple(weights)


def _forward(weights: Sequence[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ weights[0] + weights[1], 0.0)
    return hidden, hidden @ weights[2] + weights[3]


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def _filters() -> np.ndarray:
    """[bins, bands] triangles, evenly spaced on the mel scale 2595 log10(1 + f / 700) from 50 to 7,800 Hz."""
    edges = 700.0 * (
        10.0 ** (np.linspace(*(2595.0 * np.log10(1.0 + np.array([50.0, 7800.0]) / 700.0)), _BANDS + 2) / 2595.0) - 1.0
    )
    bins = np.fft.rfftfreq(_FFT, 1.0 / RATE)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(np.minimum(rising, falling), 0.0).astype(np.float32)


_WINDOW = np.hanning(_FFT).astype(np.float32)
_FILTERS = _filters()
_COSINES = np.cos(np.pi * np.outer(np.arange(_BANDS) + 0.5, np.arange(1, 20)) / _BANDS).astype(np.float32) / 20.0


def main() -> None:
    classifier = fit()
    waveforms, names = real_clips(800, 0, "heldout")
    print(f"held-out real clips recognised: {classifier.accuracy(waveforms, names):.1%} of {len(names)}")
    predicted = classifier.predict(waveforms)
    for name in EVALUATED:
        mine = [p for p, n in zip(predicted, names, strict=True) if n == name]
        print(f"  {name:16} {sum(p == name for p in mine) / len(mine):.1%} of {len(mine)}")


if __name__ == "__main__":
    main()
