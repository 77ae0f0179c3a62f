"""Where a recording sounds: frames of 10 ms of which the RMS is within 30 dB of the loudest one's.

As `librosa.effects.trim` has it, whose frames are longer and overlap.
"""

from __future__ import annotations

import numpy as np

LEAD = 0.1
"""Seconds of silence that `trim_silence` leaves, or puts, before the first sound."""
_FRAME = 0.01  # seconds
_QUIET = 30.0  # dB below the loudest frame


def trim_silence(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Cuts the silence at both ends, but for `LEAD` before the first sound.

    Args:
        waveform: [samples]; of nothing but silence it is returned as it is.
        sampling_rate: Hz.
    """
    frame, lead = frame_length(sampling_rate), round(LEAD * sampling_rate)
    (frames,) = np.nonzero(loud(waveform, sampling_rate))
    if not len(frames):
        return waveform
    last = len(waveform) // frame - 1  # what is behind the last whole frame goes with it
    begin, end = frames[0] * frame, len(waveform) if frames[-1] == last else (frames[-1] + 1) * frame
    before = waveform[max(begin - lead, 0) : begin]
    return np.concatenate([np.zeros(lead - len(before), waveform.dtype), before, waveform[begin:end]])


def loud(waveform, sampling_rate: int):
    """Returns which frames of 10 ms sound, [..., samples] → [..., frames] bool, of an array of NumPy or of JAX.

    What is behind the last whole frame is left out.
    """
    frame = frame_length(sampling_rate)
    frames = waveform.shape[-1] // frame
    if not frames:
        return np.zeros((*waveform.shape[:-1], 0), bool)
    power = (waveform[..., : frames * frame].reshape(*waveform.shape[:-1], frames, frame) ** 2).mean(-1)
    return power > power.max(-1, keepdims=True) * 10 ** (-_QUIET / 10)


def frame_length(sampling_rate: int) -> int:
    """Samples of a frame."""
    return round(_FRAME * sampling_rate)
