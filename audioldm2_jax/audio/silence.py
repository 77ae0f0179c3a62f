"""Where a recording sounds: frames of 10 ms of which the RMS is within 40 dB of the loudest one's.

As `librosa.effects.trim` has it, whose frames are longer and overlap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LEAD = 0.1
"""Seconds of silence that `trim_silence` leaves, or puts, before the first sound."""
_FRAME = 0.01  # seconds
_QUIET = 40.0  # dB below the loudest frame


def trim_silence(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Cuts the silence at both ends, but for `LEAD` before the first sound.

    Args:
        waveform: [samples]; of nothing but silence it is returned as it is.
        sampling_rate: Hz.
    """
    frame, lead = round(_FRAME * sampling_rate), round(LEAD * sampling_rate)
    (loud,) = np.nonzero(_loud(waveform, frame))
    if not len(loud):
        return waveform
    last = len(waveform) // frame - 1  # what is behind the last whole frame goes with it
    begin, end = loud[0] * frame, len(waveform) if loud[-1] == last else (loud[-1] + 1) * frame
    before = waveform[max(begin - lead, 0) : begin]
    return np.concatenate([np.zeros(lead - len(before), waveform.dtype), before, waveform[begin:end]])


def sounding_span(waveform: jax.Array, sampling_rate: int) -> jax.Array:
    """Returns from when to when a recording sounds: [batch, samples] → [batch, 2], shares of its length.

    Of nothing but silence that is 0 to 0.
    """
    frame = round(_FRAME * sampling_rate)
    loud = _loud(waveform, frame)
    frames, any_loud = loud.shape[-1], loud.any(-1)
    begin, end = jnp.argmax(loud, -1), frames - jnp.argmax(loud[..., ::-1], -1)
    shares = jnp.stack([begin, end], -1) * (frame / waveform.shape[-1])
    return jnp.where(any_loud[..., None], shares, 0.0).astype(jnp.float32)


def _loud(waveform, frame: int):
    """[..., samples] → [..., frames], of an array of NumPy or JAX; what is behind the last whole frame is left out."""
    frames = waveform.shape[-1] // frame
    if not frames:
        return np.zeros((*waveform.shape[:-1], 0), bool)
    power = (waveform[..., : frames * frame].reshape(*waveform.shape[:-1], frames, frame) ** 2).mean(-1)
    return power > power.max(-1, keepdims=True) * 10 ** (-_QUIET / 10)
