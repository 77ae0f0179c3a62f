"""The recipe's three spectrograms, and training crops of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from audioldm2_jax.audio import mel, silence
from audioldm2_jax.audio.resample import resample


class FrontEnds:
    """The recipe's three spectrograms, of waveforms [batch, samples] at the recipe's sampling rate.

    Each is read of the recipe when it is first used, so that who uses one needs the settings of that one alone.
    """

    def __init__(self, audio: ConfigDict):
        """Args:
        audio: that section of the recipe.
        """
        self._audio = audio

    @functools.cached_property
    def mel(self) -> mel.MelSettings:
        """Settings of the mel of VAE and vocoder."""
        return mel.MelSettings(sampling_rate=self._audio.sampling_rate, **self._audio.mel)

    @functools.cached_property
    def fbank(self) -> mel.FbankSettings:
        """Settings of AudioMAE's input."""
        return mel.FbankSettings(sampling_rate=16000, **self._audio.fbank)

    @functools.cached_property
    def clap(self) -> mel.ClapMelSettings:
        """Settings of CLAP's input."""
        settings = self._audio.clap.to_dict()
        return mel.ClapMelSettings(samples=round(settings.pop("seconds") * settings["sampling_rate"]), **settings)

    def compressed_mel(self, waveform: jax.Array) -> jax.Array:
        """Returns the VAE's and the vocoder's mel [batch, frames, bands]."""
        return mel.compressed_mel(waveform, self.mel)

    def kaldi_fbank(self, waveform: jax.Array) -> jax.Array:
        """Returns AudioMAE's input [batch, frames, bands]."""
        return mel.kaldi_fbank(resample(waveform, self._audio.sampling_rate, self.fbank.sampling_rate), self.fbank)

    def clap_mel(self, waveform: jax.Array) -> jax.Array:
        """Returns CLAP's input [batch, frames, bands]."""
        return mel.clap_mel(resample(waveform, self._audio.sampling_rate, self.clap.sampling_rate), self.clap)

    def sounding_span(self, waveform: jax.Array) -> jax.Array:
        """Returns from when to when something is heard, [batch, 2] shares of the clip; of silence 0 to 0."""
        rate = self._audio.sampling_rate
        loud = silence.loud(waveform, rate)
        ends = jnp.stack([jnp.argmax(loud, -1), loud.shape[-1] - jnp.argmax(loud[..., ::-1], -1)], -1)
        shares = ends * (silence.frame_length(rate) / waveform.shape[-1])
        return jnp.where(loud.any(-1, keepdims=True), shares, 0.0).astype(jnp.float32)


def crop(waveform: jax.Array, ends: FrontEnds, frames: int, crops: int, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cuts `crops` random pieces of `frames` mel frames out of each clip.

    The mel is taken of the whole clip, so that a piece looks as it does inside a clip.

    Args:
        waveform: [batch, samples].
        keys: [batch], one random key an example.

    Returns:
        waveforms [batch * crops, frames * hop] and their mels [batch * crops, frames, bands].
    """
    hop, spectrum = ends.mel.hop_length, ends.compressed_mel(waveform)
    if frames >= spectrum.shape[1]:
        return waveform, spectrum

    def one(clip, picture, key):
        start = jax.random.randint(key, (), 0, picture.shape[0] - frames + 1)
        return (
            jax.lax.dynamic_slice_in_dim(clip, start * hop, frames * hop),
            jax.lax.dynamic_slice_in_dim(picture, start, frames),
        )

    keys = jax.vmap(lambda key: jax.random.split(key, crops))(keys).reshape(-1)
    return jax.vmap(one)(jnp.repeat(waveform, crops, 0), jnp.repeat(spectrum, crops, 0), keys)
