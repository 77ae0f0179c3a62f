"""Change of sampling rate inside the jitted step, with gradients: a polyphase windowed sinc. Pure JAX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.audio.framing import frame

# As long as the "kaiser_best" filter of resampy: zero crossings of the sinc on each side.
_ZERO_CROSSINGS = 64
_STOP_BAND_DB = 120.0
_LARGEST_FACTOR = 2048  # the filters are a matrix of some 3 × 2048 × 2048 at most


def resample(waveform: jax.Array, from_rate: int, to_rate: int) -> jax.Array:
    """Resamples from one rate to another by a Kaiser-windowed sinc.

    Sample j of the output lies at the time of sample j × from_rate / to_rate of the input; outside of the
    clip there is silence. Up to 88 % of the lower rate's half passes unchanged, what lies above its half is
    120 dB down (window and length by Kaiser's formulas: Oppenheim and Schafer, Discrete-Time Signal
    Processing, section 7.5.3).

    Args:
        waveform: [..., samples]
        from_rate, to_rate: Hz, static under `jit`.

    Returns:
        [..., ceil(samples × to_rate / from_rate)] float32

    Raises:
        ValueError: a rate is not positive, or their ratio in lowest terms has a number over 2048.
    """
    up, down = reduced_ratio(from_rate, to_rate)
    if max(up, down) > _LARGEST_FACTOR:
        raise ValueError(
            f"cannot resample {from_rate} to {to_rate} Hz in the step: the ratio {up}/{down} needs too many "
            "filters. Use a common rate, or let audio.files.read resample"
        )
    waveform = jnp.asarray(waveform, jnp.float32)
    if up == down:
        return waveform
    *batch, samples = waveform.shape
    target = -(-samples * up // down)
    kernel, reach, repeats = _kernel(up, down)
    blocks = -(-target // (up * repeats))
    padded = jnp.pad(waveform.reshape(-1, samples), ((0, 0), (reach, 0)))
    windows = frame(padded, kernel.shape[0], down * repeats, blocks)
    # HIGHEST: the stop band is six digits below one, bfloat16 factors keep three.
    output = jnp.matmul(windows, kernel, precision=jax.lax.Precision.HIGHEST)
    return output.reshape(-1, blocks * up * repeats)[:, :target].reshape(*batch, target)


def reduced_ratio(from_rate: int, to_rate: int) -> tuple[int, int]:
    """to_rate / from_rate in lowest terms (up, down)."""
    if from_rate < 1 or to_rate < 1:
        raise ValueError(f"sampling rates must be positive, got {from_rate} and {to_rate} Hz")
    common = math.gcd(from_rate, to_rate)
    return to_rate // common, from_rate // common


@functools.lru_cache(maxsize=16)
def _kernel(up: int, down: int) -> tuple[np.ndarray, int, int]:
    """Filters of `repeats` periods as a matrix [2 × reach + repeats × down, repeats × up]; reach; repeats.

    A period of `down` input and `up` output samples can be as short as one sample; as many are taken at once
    as the filter is wide, so that frames overlap threefold at most and the product is a dense one.
    """
    # Kaiser's estimates: the transition that 120 dB and this length take, laid so that it ends at half the
    # lower rate, and the window's shape.
    transition = (_STOP_BAND_DB - 8) / (2.285 * np.pi * 2 * _ZERO_CROSSINGS)  # in units of the cut-off
    beta = 0.1102 * (_STOP_BAND_DB - 8.7)
    cutoff = min(1.0, up / down) / (1 + transition / 2)  # in units of half the input rate
    half_width = _ZERO_CROSSINGS / cutoff  # input samples
    reach = math.ceil(half_width)
    repeats = math.ceil(half_width / down)
    inputs = np.arange(-reach, reach + repeats * down)[:, None]
    outputs = np.arange(repeats * up)[None] * down / up
    time = inputs - outputs
    window = np.i0(beta * np.sqrt(np.maximum(0, 1 - (time / half_width) ** 2))) / np.i0(beta)
    kernel = np.where(np.abs(time) <= half_width, cutoff * np.sinc(cutoff * time) * window, 0)
    return kernel.astype(np.float32), reach, repeats
