"""How far sound that was made again is from the real one, on the host."""

from __future__ import annotations

import numpy as np

_SIZES = (256, 512, 1024, 2048, 4096)  # samples of the windows
_RANGE = 1e-3  # of the loudest bin: 60 dB


def spectral_distance(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Returns the multi-resolution log-spectral distance of each clip [clips], in dB; 0 where they are the same.

    The root mean square difference of the log magnitudes over all bins [Gray and Markel 1976, IEEE Trans. ASSP 24(5)],
    its mean over Hann windows of 256 to 4096 samples, three quarters of which overlap. What lies 60 dB below the real
    clip's loudest bin counts as lying there. Energy between the partials, which mel distances forgive, counts.

    Args:
        real, made: waveforms [clips, samples]; clips shorter than a window are zero-padded.

    Raises:
        ValueError: their shapes differ.
    """
    if real.shape != made.shape:
        raise ValueError(f"real clips have shape {real.shape}, those made {made.shape}; cut them to one length")
    found = []
    for size in _SIZES:
        first, second = (_magnitudes(waveforms, size) for waveforms in (real, made))
        floor = np.maximum(_RANGE * first.max(axis=(1, 2), keepdims=True), 1e-9)
        difference = 20 * np.log10(np.maximum(first, floor) / np.maximum(second, floor))
        found.append(np.sqrt((difference**2).mean(axis=(1, 2))))
    return np.mean(found, axis=0)


def _magnitudes(waveforms: np.ndarray, size: int) -> np.ndarray:
    """Returns [clips, frames, bins]."""
    padded = np.pad(np.asarray(waveforms, np.float32), ((0, 0), (size // 2, size // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, :: size // 4]
    return np.abs(np.fft.rfft(frames * np.hanning(size + 1)[:-1].astype(np.float32)))
