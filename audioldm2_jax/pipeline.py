"""Prompts to waveforms: tokenise, condition, denoise, decode.

`AudioLDM2` is called as diffusers' AudioLDM2Pipeline is, with a seed in the place of the generator. A clip is a
function of the seed, its prompt and its number among the clips of that prompt, whatever else is in the batch. Several
clips of a prompt come in the order in which CLAP hears the prompt in them.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax import conditioning, sampling
from audioldm2_jax.audio.mel import ClapMelSettings, clap_mel
from audioldm2_jax.audio.resample import resample
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVER_OF_CLASS, SOLVERS
from audioldm2_jax.models.network import Network
from audioldm2_jax.prompts import Prompts
from audioldm2_jax.sampling import Conditions
from audioldm2_jax.weights import folder
from audioldm2_jax.weights.components import LOA_TOKENS
from audioldm2_jax.weights.folder import Component, FolderError

UNCONDITIONAL = ("language_model", "zeros")


class Output(NamedTuple):
    """What a call returns; all float32.

    Attributes:
      audios: [clips, samples], -1 to 1; the clips of a prompt stand together, in the order of the prompts, and the one
        that CLAP finds nearest to the prompt stands first.
      sampling_rate: Hz.
      mels: natural-log mel spectrograms [clips, frames, bands].
      latents: scaled latents [clips, channels, time, frequency], channels first as diffusers has them.
    """

    audios: np.ndarray
    sampling_rate: int
    mels: np.ndarray
    latents: np.ndarray


class AudioLDM2:
    """A whole AudioLDM 2: the networks of a model folder, its scheduler and its tokenizers."""

    def __init__(
        self,
        components: Mapping[str, Component],
        schedule: NoiseSchedule,
        prompts: Prompts,
        clap_mel: ClapMelSettings,
        *,
        scheduler_class: str = "DDIMScheduler",
        source: str | os.PathLike | None = None,
    ):
        """Args:
        components: by their names in the model folder; `audiomae` may be missing.
        schedule: the noise schedule.
        prompts: the tokenizers.
        clap_mel: what CLAP hears of a clip.
        scheduler_class: the diffusers scheduler that the solver is to equal.
        source: the model folder with the parts that are copied by `save_pretrained` as they are.

        Raises:
          FolderError: where the scheduler is one that we have no solver for.
        """
        if scheduler_class not in SOLVER_OF_CLASS:
            raise FolderError(
                f"The scheduler is a {scheduler_class}; supported are {', '.join(SOLVER_OF_CLASS)}. Change "
                "_class_name in scheduler/scheduler_config.json to one of these."
            )
        self.components = dict(components)
        self.schedule, self.prompts, self.clap_mel, self.source = schedule, prompts, clap_mel, source
        self.scheduler_class = scheduler_class
        self.networks: dict[str, Network] = {
            name: jax.device_put(part.network) for name, part in components.items() if name != "audiomae"
        }
        vocoder = self.components["vocoder"].config
        self.sampling_rate: int = vocoder["sampling_rate"]
        self._hop = math.prod(vocoder["upsample_rates"])
        self._bands: int = vocoder["model_in_dim"]
        self._vae_factor = 2 ** (len(self.components["vae"].config["block_out_channels"]) - 1)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, dtype: Any = jnp.float32, *, variant: str | None = None
    ) -> AudioLDM2:
        """Reads a model folder in the diffusers layout.

        Args:
          source: its path, or a hub id, which is fetched into the hub's cache; offline, what is there has to do.
          dtype: of the computation; parameters are float32, however they are stored.
          variant: which of several files of the same weights to read, "fp16", say, as in diffusers; by default those
            without a variant, or else the only one there is.

        Raises:
          FolderError: where it is none, or damaged; names the file and what to do.
        """
        path = folder.locate_model(source, variant)
        names = [name for name in folder.PARTS if name != "audiomae" or (path / name).is_dir()]
        components = {name: folder.read_component(path, name, dtype, variant) for name in names}
        schedule, scheduler_class = folder.read_scheduler(path)
        prompts = Prompts.from_folder(path, **_prompt_limits(components))
        heard = folder.read_feature_extractor(path)
        return cls(components, schedule, prompts, heard, scheduler_class=scheduler_class, source=path)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes the model folder; diffusers' AudioLDM2Pipeline reads it, and so does `from_pretrained`.

        Weights are written as float32, one safetensors file a component, bit by bit as they are here; those that were
        read from half precision are its numbers in float32.

        Raises:
          FolderError: where it cannot be written, or the tokenizers' source is gone.
        """
        for name, part in self.components.items():
            folder.write_component(path, name, part.config, part.variables, part.passengers)
        folder.write_scheduler(path, self.schedule, self.scheduler_class)
        if self.source is not None and Path(self.source).resolve() != Path(path).resolve():
            for name in ("tokenizer", "tokenizer_2", "feature_extractor"):
                folder.copy_part(Path(self.source) / name, path, name)
        folder.write_index(path)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 200,
        guidance_scale: float = 3.5,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        seed: int = 0,
        latents: np.ndarray | None = None,
        *,
        solver: str | None = None,
        uncond: str = "language_model",
        use_loa: bool = True,
        use_text_states: bool = True,
    ) -> Output:
        """Generates clips.

        Args:
          prompt: what to generate, one or several.
          negative_prompt: what to steer away from, one for all prompts or one each; "" by default.
          num_inference_steps: denoising steps.
          guidance_scale: how strongly to follow the prompt; up to 1 is no guidance, as in diffusers.
          audio_length_in_s: length of a clip in seconds; by default that which the model was trained on.
          num_waveforms_per_prompt: clips a prompt, sorted by CLAP; to have the best of three, take the first.
          eta: randomness of the sampler: 0 as diffusers' default, 1 as the authors' tool.
          seed: the same seed gives the same sound.
          latents: the noise to start from, [clips, channels, time, frequency]; by default drawn from the seed.
          solver: ddim, ddpm, plms, euler, euler_ancestral or dpmsolver++; by default that of the folder's scheduler.
          uncond: the LOA of the negative prompt: as the `language_model` writes it (diffusers), or `zeros` (the
            authors' tool).
          use_loa: False zeroes the LOA, to hear what the text states do alone.
          use_text_states: False gives the UNet T5's states of the empty text, to hear what the LOA does alone.

        Returns:
          an `Output`.

        Raises:
          ValueError: for bad input; the message names it and says what to do.
        """
        prompts = _prompt_list(prompt)
        negatives = _negative_list(negative_prompt, len(prompts))
        _check_numbers(guidance_scale, num_waveforms_per_prompt, seed, uncond)
        solver = solver or SOLVER_OF_CLASS[self.scheduler_class]
        if solver not in SOLVERS:
            raise ValueError(f"solver is {solver!r}; choose among {', '.join(SOLVERS)}.")
        SOLVERS[solver].plan(self.schedule, num_inference_steps, eta)  # raises on absurd numbers, before any work
        shape, samples = self.latent_shape(audio_length_in_s)
        guided = guidance_scale > 1
        given, without, meant = self._encode(prompts, negatives, uncond, use_loa, use_text_states)
        given, without = (sampling.repeat(part, num_waveforms_per_prompt) for part in (given, without))
        keys = clip_keys(seed, prompts, num_waveforms_per_prompt)
        start = sampling.initial_latents(keys, shape) if latents is None else _given_latents(latents, len(keys), shape)
        final = _denoise(
            self.networks["unet"],
            start,
            given,
            without if guided else None,
            jnp.float32(guidance_scale),
            keys,
            schedule=self.schedule,
            num_steps=num_inference_steps,
            eta=float(eta),
            solver=solver,
        )
        mels, audios = self.decode(final)
        made = Output(audios[:, :samples], self.sampling_rate, mels, np.asarray(final).transpose(0, 3, 1, 2))
        if num_waveforms_per_prompt == 1:
            return made
        best = self._best_first(made.audios, meant)
        return made._replace(audios=made.audios[best], mels=made.mels[best], latents=made.latents[best])

    def encode(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        uncond: str = "language_model",
        use_loa: bool = True,
        use_text_states: bool = True,
    ) -> tuple[Conditions, Conditions]:
        """The conditions of prompts and of their negative prompts, each of [prompts, ...]; see `__call__`."""
        return self._encode(prompts, negatives, uncond, use_loa, use_text_states)[:2]

    def _encode(
        self, prompts: Sequence[str], negatives: Sequence[str], uncond: str, use_loa: bool, use_text_states: bool
    ) -> tuple[Conditions, Conditions, jax.Array]:
        """`encode`, and CLAP's embeddings of the prompts [prompts, d]."""
        count = len(prompts)
        text = self.prompts.encode(prompts, negatives, emptied=not use_text_states)
        tokens = self.components["language_model"].config.get("max_new_tokens") or LOA_TOKENS
        names = ("text_encoder", "text_encoder_2", "projection_model", "language_model")
        every, meant = _encode({name: self.networks[name] for name in names}, text, num_tokens=tokens)
        parts = [Conditions(*(x[start : start + count] for x in every)) for start in range(0, len(every.loa), count)]
        given, without = parts[:2]
        if not use_text_states:
            given = parts[2]._replace(loa=given.loa)
        if not use_loa:
            given = given._replace(loa=jnp.zeros_like(given.loa))
        if uncond == "zeros" or not use_loa:
            without = without._replace(loa=jnp.zeros_like(without.loa))
        return given, without, meant[:count]

    def _best_first(self, audios: np.ndarray, meant: jax.Array) -> np.ndarray:
        """The order of clips [prompts * n, samples] that sorts those of each prompt by CLAP's cosine with it.

        diffusers (`score_waveforms`) ranks in a batch of prompts over all clips; here each prompt keeps its own.
        """
        clips = len(audios) // len(meant)
        scores = _similarity(
            self.networks["text_encoder"],
            audios,
            jnp.repeat(meant, clips, axis=0),
            sampling_rate=self.sampling_rate,
            heard=self.clap_mel,
        )
        order = np.argsort(-np.asarray(scores).reshape(-1, clips), axis=1, kind="stable")
        return (order + np.arange(len(order))[:, None] * clips).ravel()

    def decode(self, latents: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Scaled latents [b, t, f, c] to mels [b, frames, bands] and waveforms [b, samples]."""
        scale = jnp.float32(self.components["vae"].config["scaling_factor"])
        mels, audios = _decode(self.networks["vae"], self.networks["vocoder"], latents, scale)
        return np.asarray(mels), np.asarray(audios)

    def latent_shape(self, seconds: float | None) -> tuple[tuple[int, int, int], int]:
        """The latents' (time, frequency, channels) for a length, and how many samples to keep.

        Raises:
          ValueError: for a length below one latent frame, or no number; or none where the model names none.
        """
        unet, factor = self.components["unet"].config, self._vae_factor
        if seconds is None:
            if not unet.get("sample_size"):
                raise ValueError("The model names no length of its own (sample_size): give audio_length_in_s.")
            seconds = unet["sample_size"] * factor * self._hop / self.sampling_rate
        shortest = factor * self._hop / self.sampling_rate
        if not (math.isfinite(seconds) and seconds >= shortest):
            raise ValueError(f"audio_length_in_s is {seconds}; it has to be at least {shortest} s.")
        frames = int(seconds / (self._hop / self.sampling_rate))
        shape = (-(-frames // factor), self._bands // factor, unet["in_channels"])
        return shape, int(seconds * self.sampling_rate)


def clip_keys(seed: int, prompts: Sequence[str], clips: int) -> jax.Array:
    """One key a clip, [prompts * clips]: a function of the seed, the prompt, and the clip's number of that prompt.

    A prompt that is listed again goes on counting, so it does not give the same clips.
    """
    base, seen, keys = jax.random.key(seed % 2**32), Counter(), []
    for prompt in prompts:
        own = jax.random.fold_in(base, zlib.crc32(prompt.encode()))
        keys += [jax.random.fold_in(own, seen[prompt] + number) for number in range(clips)]
        seen[prompt] += clips
    return jnp.stack(keys)


@partial(jax.jit, static_argnames="num_tokens")
def _encode(networks: dict[str, Network], text: conditioning.Text, *, num_tokens: int) -> tuple[Conditions, jax.Array]:
    """Conditions of all texts, and CLAP's embeddings of them."""
    prefix, states, mask = conditioning.encode_prompt(
        networks["text_encoder"], networks["text_encoder_2"], networks["projection_model"], text
    )
    meant = networks["text_encoder"](text["clap_ids"], text["clap_mask"], method="text_features")
    return Conditions(conditioning.generate_loa(networks["language_model"], prefix, num_tokens), states, mask), meant


@partial(jax.jit, static_argnames=("sampling_rate", "heard"))
def _similarity(clap: Network, audios, meant: jax.Array, *, sampling_rate: int, heard: ClapMelSettings) -> jax.Array:
    """Cosines [clips] of clips [clips, samples] and embeddings of texts [clips, d]."""
    mel = clap_mel(resample(audios, sampling_rate, heard.sampling_rate), heard)
    return (clap(mel, method="audio_features") * meant).sum(-1)


@partial(jax.jit, static_argnames=("schedule", "num_steps", "eta", "solver"))
def _denoise(unet, latents, given, without, guidance_scale, keys, *, schedule, num_steps, eta, solver):
    return sampling.denoise(
        unet, schedule, latents, given, without, guidance_scale, num_steps, eta=eta, keys=keys, solver=solver
    )


_decode = jax.jit(sampling.decode)


def _prompt_limits(components: Mapping[str, Component]) -> dict[str, int]:
    """How many tokens the networks can take, whatever the tokenizers' files say."""
    text, gpt2 = components["text_encoder"].module.text_config, components["language_model"]
    tokens = gpt2.config.get("max_new_tokens") or LOA_TOKENS
    # RoBERTa counts positions from the padding id on; GPT-2 reads five places beside T5's and the LOA.
    return {
        "clap_limit": text["max_position_embeddings"] - text["pad_token_id"] - 1,
        "t5_limit": gpt2.module.n_positions - tokens - 4,
    }


def _prompt_list(prompt: str | Sequence[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("The list of prompts is empty: give at least one.")
    for number, text in enumerate(prompts, 1):
        if not isinstance(text, str):
            raise ValueError(f"Prompt {number} is a {type(text).__name__}, not a text.")
        if not text.strip():
            raise ValueError(f"Prompt {number} is empty: say what to generate.")
    return [_valid(text) for text in prompts]


def _negative_list(negative: str | Sequence[str] | None, count: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [_valid(negative or "")] * count
    if len(negative) != count:
        raise ValueError(f"{len(negative)} negative prompts for {count} prompts: give one for all, or one each.")
    return [_valid(text) for text in negative]


def _valid(text: str) -> str:
    """The text with "?" for halves of characters (lone surrogates), which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode()


def _check_numbers(guidance_scale: float, clips: int, seed: int, uncond: str) -> None:
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale is {guidance_scale}; it has to be 0 or more (3.5 is usual).")
    if clips < 1:
        raise ValueError(f"num_waveforms_per_prompt is {clips}; it has to be at least 1.")
    if uncond not in UNCONDITIONAL:
        raise ValueError(f"uncond is {uncond!r}; use one of {', '.join(UNCONDITIONAL)}.")
    if not isinstance(seed, int | np.integer):
        raise ValueError(f"seed is {seed!r}; it has to be a whole number.")


def _given_latents(latents: np.ndarray, clips: int, shape: tuple[int, int, int]) -> jax.Array:
    time, frequency, channels = shape
    if np.shape(latents) != (clips, channels, time, frequency):
        raise ValueError(
            f"latents have the shape {np.shape(latents)}; needed is {(clips, channels, time, frequency)}: "
            "clips, channels, time, frequency."
        )
    return jnp.asarray(latents, jnp.float32).transpose(0, 2, 3, 1)
