"""Overlapping frames of a waveform, the first step of every spectrum and of resampling. Pure JAX."""

import jax
import jax.numpy as jnp


def frame(waveform: jax.Array, length: int, hop: int, frames: int) -> jax.Array:
    """Cuts a waveform into overlapping frames: row i is `waveform[:, i * hop : i * hop + length]`.

    The frames are put together from whole blocks of `hop` samples, so that the gradient is a sum of padded
    slices; that of an index gather is a scatter, which accelerators do one element at a time.

    Args:
        waveform: [batch, samples]. What the last frames need beyond the end counts as zeros.
        length: samples in a frame.
        hop: samples from the start of one frame to the start of the next.
        frames: how many frames to cut.

    Returns:
        [batch, frames, length]
    """
    batch, samples = waveform.shape
    blocks_per_frame = -(-length // hop)
    needed = (frames + blocks_per_frame - 1) * hop
    padded = jnp.pad(waveform, ((0, 0), (0, max(0, needed - samples))))[:, :needed]
    blocks = padded.reshape(batch, -1, hop)
    shifted = [blocks[:, i : i + frames] for i in range(blocks_per_frame)]
    return jnp.concatenate(shifted, axis=-1)[..., :length]
