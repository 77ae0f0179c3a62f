"""Sinusoidal analysis and synthesis: the partials of a clip, put where a vocoder can put them. Pure JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.audio.framing import frame

_FLOOR = 1e-3  # of the loudest bin of its frame: what is below is no partial
_PADDING = 4  # times n_fft: the transform is that long, so that peaks lie closely


def frame_locked(waveform: jax.Array, hop: int, n_fft: int = 512) -> jax.Array:
    """Makes each clip anew of its partials, at multiples of the mel's frame rate and with phases of their own.

    A vocoder is one function for all frames of a mel, which says nothing of phases. While the mel stands still, what
    it makes repeats itself from hop to hop: it holds multiples of the frame rate alone, with
    phases that it has chosen once. So this is the nearest to the clip that it can make, and one waveform for one mel:
    a target to which it can be fitted sample by sample. The partials are the peaks of short spectra [McAulay and
    Quatieri 1986, IEEE Trans. ASSP 34(4)], each moved to its nearest multiple; noise between
    them is left out.

    Args:
        waveform: [batch, samples], from the beginning of a mel frame on.
        hop: samples from mel frame to mel frame.
        n_fft: samples of the Hann windows, a multiple of 4; they overlap by three quarters.

    Returns:
        [batch, samples].
    """
    step, samples = n_fft // 4, waveform.shape[1]
    frames = -(-samples // step) + 3  # all windows that touch the clip
    window = np.hanning(n_fft + 1)[:-1]
    cut = frame(jnp.pad(waveform, ((0, 0), (n_fft - step, n_fft))), n_fft, step, frames)
    spectrum = jnp.abs(jnp.fft.rfft(cut * jnp.asarray(window, jnp.float32), _PADDING * n_fft))

    reach = round(1.25 * _PADDING)  # bins, a little more than those of a plain transform are apart
    near = jax.lax.reduce_window(spectrum, -jnp.inf, jax.lax.max, (1, 1, 2 * reach + 1), (1, 1, 1), "SAME")
    loud = spectrum > _FLOOR * spectrum.max(axis=-1, keepdims=True)
    peaks = jnp.where((spectrum == near) & loud, spectrum * (2 / window.sum()), 0.0)

    lines = np.arange(hop // 2 + 1)
    nearest = np.round(np.arange(spectrum.shape[-1]) / (_PADDING * n_fft) * hop)
    amplitudes = peaks @ jnp.asarray((nearest[:, None] == lines) & (lines > 0), jnp.float32)

    # Line k is cos(2 pi k t / hop + phase k), t from the beginning of the clip: turned to where each window begins.
    begin = np.arange(frames) * step - (n_fft - step)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, len(lines)) + 2 * np.pi * np.outer(begin, lines) / hop
    turns = 2 * np.pi * np.outer(lines, np.arange(n_fft)) / hop
    cosines, sines = (jnp.asarray(wave(turns) * window / 2, jnp.float32) for wave in (np.cos, np.sin))
    along, across = (jnp.asarray(wave(phases), jnp.float32) * amplitudes for wave in (np.cos, np.sin))
    parts = (along @ cosines - across @ sines).reshape(len(waveform), frames, 4, step)
    blocks = sum(jnp.pad(parts[:, :, i], ((0, 0), (i, 3 - i), (0, 0))) for i in range(4))
    return blocks.reshape(len(waveform), -1)[:, n_fft - step :][:, :samples]
