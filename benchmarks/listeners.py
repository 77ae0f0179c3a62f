"""Listeners that never heard our corpus: an AudioSet tagger, CREPE's pitch, and measures of tempo and distortion.

None of them is fitted on anything of ours, and each is sensitive to fidelity: what sounds like mush is not recognised.
All take waveforms [clips, samples] float32.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import librosa
import numpy as np
import soxr

#: AudioSet classes (of YAMNet's class map: tensorflow/models, research/audioset/yamnet/yamnet_class_map.csv) for what
#: captions call an instrument; of several the highest counts.
AUDIOSET = {
    "piano": (148,),
    "violin": (186,),
    "flute": (191,),
    "trumpet": (182,),
    "acoustic guitar": (135, 138),
    "church organ": (150, 151),
    "marimba": (175,),
    "harpsichord": (155,),
}
_KEY_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
_RATE = 16000  # Hz, of the tagger and of CREPE
#: Periodicity above which a frame counts as voiced.
VOICED = 0.5


class Tagger:
    """YAMNet as an ONNX file whose input is a log-mel patch [1, 1, 96, 64], float or quantised to 8 bits.

    Its front end is YAMNet's [research/audioset/yamnet/params.py and features.py]: 25 ms Hann windows every 10 ms,
    magnitudes of a 512-point FFT, 64 mel bands (HTK) from 125 to 7500 Hz, log(x + 0.001); patches of 0.96 s every 0.48.
    """

    def __init__(self, path: str | Path):
        """Args:
        path: the .onnx file, or a .zip that holds one.

        Raises:
            SystemExit: onnxruntime is not installed.
        """
        try:
            import onnxruntime
        except ImportError:
            sys.exit("error: the tagger needs onnxruntime: pip install onnxruntime")
        self._unpacked = tempfile.TemporaryDirectory()
        if zipfile.is_zipfile(path):
            zipfile.ZipFile(path).extractall(self._unpacked.name)
            path = next(Path(self._unpacked.name).rglob("*.onnx"))
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._scales = _quantisation(path, self._input.name, self._output.name) if "int8" in self._input.type else None
        self._filters = librosa.filters.mel(sr=_RATE, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None)

    def scores(self, waveforms: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Returns [clips, 521], the mean over the patches of each clip."""
        return np.stack(
            [np.mean([self._score(p) for p in self._patches(w)], axis=0) for w in at_16_khz(waveforms, sampling_rate)]
        )

    def choose(self, waveforms: np.ndarray, sampling_rate: int, names: Sequence[str] = tuple(AUDIOSET)) -> np.ndarray:
        """Returns for each clip which of `names` has the highest class, whatever else the tagger hears."""
        scores = self.scores(waveforms, sampling_rate)
        return np.array(names)[np.stack([scores[:, AUDIOSET[name]].max(1) for name in names]).argmax(0)]

    def _patches(self, waveform: np.ndarray) -> np.ndarray:
        waveform = np.pad(waveform, (0, max(0, 15600 - len(waveform))))
        frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160] * np.hanning(401)[:-1]
        mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ self._filters.T + 0.001).astype(np.float32)
        return np.stack([mel[start : start + 96] for start in range(0, len(mel) - 95, 48)])

    def _score(self, patch: np.ndarray) -> np.ndarray:
        given = patch[None, None]
        if self._scales:
            (scale, zero), (out_scale, out_zero) = self._scales
            given = np.clip(np.round(given / scale + zero), 0, 255).astype(np.uint8)
        found = self._session.run(None, {self._input.name: given})[0].astype(np.float32).ravel()
        return out_scale * (found - out_zero) if self._scales else found


def has_pitch() -> bool:
    """Whether CREPE is installed; its package wants torchaudio, which not every PyTorch has."""
    return importlib.util.find_spec("torchcrepe") is not None


def pitch(waveforms: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns CREPE's fundamental in Hz and its periodicity, 0 to 1, [clips, frames] each, 100 frames a second."""
    import torch

    # torchcrepe imports torchaudio, of which it uses the reading of files alone.
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import torchcrepe

    found = [
        torchcrepe.predict(
            torch.from_numpy(np.ascontiguousarray(waveform[None])),
            _RATE,
            hop_length=160,
            fmin=60,
            fmax=2000,
            model="tiny",
            decoder=torchcrepe.decode.weighted_argmax,
            batch_size=512,
            return_periodicity=True,
        )
        for waveform in at_16_khz(waveforms, sampling_rate)
    ]
    return tuple(np.concatenate(several).astype(np.float32) for several in zip(*found))


def median_note(pitches: np.ndarray, periodicity: np.ndarray) -> np.ndarray:
    """Returns the median MIDI note of the voiced frames [clips]; NaN where there are none."""
    notes = np.where(periodicity > VOICED, 69 + 12 * np.log2(pitches / 440), np.nan)
    return np.array([np.nanmedian(one) if np.isfinite(one).any() else np.nan for one in notes])


def onset_rate(waveforms: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Returns onsets a second [clips], by librosa's spectral flux."""
    return np.array(
        [
            len(librosa.onset.onset_detect(y=one, sr=sampling_rate, hop_length=160)) / (len(one) / sampling_rate)
            for one in waveforms
        ]
    )


def mode(waveforms: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Returns "major" or "minor" [clips]: of the best key by its profile [Krumhansl and Kessler 1982].

    It wants clips long enough to settle a key: the notes of a few seconds belong to a major key and its relative minor.
    """
    found = []
    for one in waveforms:
        chroma = librosa.feature.chroma_cqt(y=one, sr=sampling_rate).mean(axis=1)
        nearest = {
            name: max(np.corrcoef(np.roll(profile, tonic), chroma)[0, 1] for tonic in range(12))
            for name, profile in _KEY_PROFILES.items()
        }
        found.append(max(nearest, key=nearest.get))
    return np.array(found)


def harmonic_to_noise(waveforms: np.ndarray, sampling_rate: int, f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Returns [clips], dB between the energy at the partials of `f0` and the energy between them; NaN without pitch.

    Args:
        f0, voiced: [clips, frames] at 100 frames a second, of the real clip: so that a wrong pitch counts as noise.
    """
    size, hop, found = 4096, sampling_rate // 100, []
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
    for one, pitches, sounding in zip(waveforms, f0, voiced):
        power = np.abs(librosa.stft(one, n_fft=size, hop_length=hop)) ** 2
        count = min(power.shape[1], len(pitches))
        at_partials = between = 0.0
        for frame in np.flatnonzero(sounding[:count]):
            # Distance to the nearest partial, in partials: below an eighth is on one, above a quarter between two.
            place = frequencies / pitches[frame]
            apart = np.abs(place - np.round(place))
            inside = (place > 0.5) & (place < 10.5) & (frequencies < 0.45 * sampling_rate)
            at_partials += power[inside & (apart < 0.125), frame].sum()
            between += power[inside & (apart > 0.25), frame].sum()
        found.append(10 * np.log10(at_partials / between) if between else np.nan)
    return np.array(found)


def share(right: np.ndarray) -> str:
    """Returns the share of what is true, with its 95 % interval [Wilson 1927]."""
    n, p, z = len(right), float(np.mean(right)), 1.96
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (
        f"{p:5.1%} ({max(middle - reach, 0) / (1 + z * z / n):.0%} to {min((middle + reach) / (1 + z * z / n), 1):.0%})"
    )


def mean(values: np.ndarray, unit: str = "") -> str:
    """Returns the mean of what is a number, with its 95 % interval by 2,000 bootstrap samples."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "none"
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{values.mean():6.2f}{unit} ({low:.2f} to {high:.2f})"


def at_16_khz(waveforms: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Returns the clips [clips, samples] at the rate of the tagger and of CREPE."""
    if sampling_rate == _RATE:
        return np.asarray(waveforms, np.float32)
    return np.stack([soxr.resample(one, sampling_rate, _RATE) for one in waveforms])


def _quantisation(path: str | Path, *names: str) -> list[tuple[float, float]]:
    """Scale and zero point of a quantised network's input and output, which are initialisers beside them."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        sys.exit("error: a tagger of 8 bits needs onnx: pip install onnx")
    found: Mapping[str, float] = {
        one.name: float(numpy_helper.to_array(one))
        for one in onnx.load(str(path)).graph.initializer
        if one.name.endswith(("_scale", "_zero_point")) and one.name.startswith(names)
    }
    return [(found[f"{name}_scale"], found[f"{name}_zero_point"]) for name in names]
