"""A given clip as the networks of a model have it: its latents, and its language of audio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax.audio import files
from audioldm2_jax.audio.mel import FbankSettings, MelSettings, compressed_mel, kaldi_fbank
from audioldm2_jax.audio.resample import resample
from audioldm2_jax.checkpoints.model_folder import Component, FolderError
from audioldm2_jax.conditioning.loa import audiomae_loa, pooling_of
from audioldm2_jax.invocation import command_line
from audioldm2_jax.models.network import Network
from audioldm2_jax.runtime import hosts

# n_fft, fmin and fmax of the mel where the vocoder's config.json has none: those of the authors' models, by rate.
_AUTHORS_MEL = {16000: (1024, 0.0, 8000.0), 48000: (2048, 20.0, 24000.0)}


class ClipEncoder:
    """Encodes a clip: the VAE's encoder, and AudioMAE."""

    def __init__(self, components: Mapping[str, Component], vae: Network):
        """Args:
        components: those of a model folder.
        vae: the VAE, on the devices.
        """
        self.components, self.vae = components, vae
        self.sampling_rate: int = components["vocoder"].config["sampling_rate"]

    @property
    def mel(self) -> MelSettings:
        """The mel that VAE and vocoder were trained on; raises as `mel_settings`."""
        return mel_settings(self.components["vocoder"].config)

    @property
    def factor(self) -> int:
        """Mel frames, and bands, to a latent."""
        return 2 ** (len(self.components["vae"].config["block_out_channels"]) - 1)

    @property
    def window(self) -> float:
        """Seconds that AudioMAE takes of a clip; 0 without it."""
        if "audiomae" not in self.components:
            return 0.0
        return self._fbank.frames * self._fbank.hop_length / self._fbank.sampling_rate

    @property
    def _fbank(self) -> FbankSettings:
        frames, bands = self.components["audiomae"].config["img_size"]
        return FbankSettings(sampling_rate=16000, n_mels=bands, frames=frames)

    def latents(self, waveform: np.ndarray, frames: int) -> np.ndarray:
        """Scaled latents [1, frames, frequencies, channels] of a clip [samples]: their mean, without noise.

        The clip is cut or padded to the length and normalised, as those of the training were.
        """
        scale = np.float32(self.components["vae"].config["scaling_factor"])
        whole = _clip(waveform, frames * self.factor * self.mel.hop_length)
        return hosts.to_host(_latents(self.vae, whole[None], scale, mel=self.mel))

    def places(self, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """The middle of each of so many latent frames in seconds, and of each latent frequency in Hz."""
        seconds = (np.arange(frames) + 0.5) * self.factor * self.mel.hop_length / self.sampling_rate
        return seconds, self.mel.centres.reshape(-1, self.factor).mean(1)

    def loa(self, waveform: np.ndarray, tokens: int, seconds: float = math.inf) -> np.ndarray | None:
        """The LOA of a clip [samples], pooled to so many tokens; those of them that lie within so many seconds.

        Returns:
          [1, tokens or fewer, d]; None where not even one token lies within.

        Raises:
          ValueError: for a model without a LOA, or without AudioMAE; for a number of tokens that no pooling gives.
        """
        if "language_model" not in self.components:
            raise ValueError("This model has no language of audio: variation and continuation need one.")
        if "audiomae" not in self.components:
            raise ValueError(
                "The model folder has no audiomae/, which makes a clip's language of audio: convert AudioMAE's "
                f"checkpoint, or the authors' file of this model, with {command_line('convert')}."
            )
        audiomae = self.components["audiomae"]
        settings, window = self._fbank, self.window
        patch = audiomae.module.patch_size
        pooling = pooling_of(tokens, settings.frames // patch, settings.n_mels // patch)
        whole = _clip(waveform, round(window * self.sampling_rate))
        network = jax.device_put(audiomae.network)
        loa = _loa(network, whole[None], sampling_rate=self.sampling_rate, settings=settings, pooling=pooling)
        steps = settings.frames // patch // pooling
        within = min(steps, int(min(seconds, window) / window * steps + 1e-6))
        return np.asarray(loa[:, : within * (loa.shape[1] // steps)]) if within else None


def mel_settings(vocoder: Mapping[str, Any]) -> MelSettings:
    """The mel that a vocoder plays, from its config.json.

    Raises:
      FolderError: where neither that nor the sampling rate says which, or what it says is no mel.
    """
    rate = vocoder["sampling_rate"]
    known = _AUTHORS_MEL.get(rate)
    if not known and not {"n_fft", "fmin", "fmax"} <= set(vocoder):
        raise FolderError(
            f"No mel is known for {rate} Hz: write n_fft (samples), fmin and fmax (Hz) of the one that the VAE was "
            "trained on into vocoder/config.json."
        )
    n_fft, fmin, fmax = (vocoder.get(key, known and known[i]) for i, key in enumerate(("n_fft", "fmin", "fmax")))
    hop, compression = math.prod(vocoder["upsample_rates"]), vocoder.get("compression", 0.0)
    try:
        return MelSettings(rate, n_fft, hop, vocoder["model_in_dim"], fmin, fmax, compression)
    except (TypeError, ValueError) as error:
        raise FolderError(f"vocoder/config.json describes no mel: {error}") from error


def _clip(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The beginning of a sound [...] as a clip of training: cut, normalised and then padded, [samples]."""
    return files.segment(files.normalise(waveform[:samples]), samples)


@partial(jax.jit, static_argnames="mel")
def _latents(vae: Network, waveform: jax.Array, scale: jax.Array, *, mel: MelSettings) -> jax.Array:
    return vae(compressed_mel(waveform, mel)[..., None], method="encode")[0] * scale


@partial(jax.jit, static_argnames=("sampling_rate", "settings", "pooling"))
def _loa(audiomae: Network, waveform, *, sampling_rate: int, settings: FbankSettings, pooling: int) -> jax.Array:
    fbank = kaldi_fbank(resample(jnp.asarray(waveform), sampling_rate, settings.sampling_rate), settings)
    return audiomae_loa(audiomae, fbank, pooling)
