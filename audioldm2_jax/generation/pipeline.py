"""Prompts to waveforms: tokenise, condition, denoise, decode.

`AudioLDM2` is called as diffusers' AudioLDM2Pipeline is, with a seed in the place of the generator. A clip is a
function of the seed, its prompt and its number among the clips of that prompt, whatever else is in the batch. Several
clips of a prompt come in the order of their CLAP similarity to the prompt.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from audioldm2_jax.audio.mel import ClapMelSettings, clap_mel
from audioldm2_jax.audio.resample import resample
from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.checkpoints.model_folder import Component, FolderError
from audioldm2_jax.conditioning.conditions import Conditions, repeat
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.generation.clip_encoder import ClipEncoder
from audioldm2_jax.generation.editing import Edit, join
from audioldm2_jax.generation.prompt_encoder import PromptEncoder, prompt_limits
from audioldm2_jax.generation.prompts import Prompts
from audioldm2_jax.generation.sampling_options import check_scheduler, clip_keys, given_latents, plan_sampling
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.models.network import Network
from audioldm2_jax.runtime import hosts, sharding
from audioldm2_jax.runtime.start import use_compilation_cache

# Lengths come in multiples of this part of the model's own, so that another length seldom does.
_LENGTHS = 16


class Output(NamedTuple):
    """What a call returns; all float32.

    Attributes:
      audios: [clips, samples], -1 to 1, or as loud as a given clip; the clips of a prompt stand together, in the order
        of the prompts, and the one that CLAP finds nearest to the prompt stands first.
      sampling_rate: Hz.
      mels: natural-log mel spectrograms [clips, frames, bands] of the VAE, also where a recording took their place.
      latents: scaled latents [clips, channels, time, frequency], channels first as diffusers has them; of the whole of
        what was made, also where its beginning is not given back (`editing.SpeechPrompt`).
    """

    audios: np.ndarray
    sampling_rate: int
    mels: np.ndarray
    latents: np.ndarray


class _SourceClip(NamedTuple):
    """What of a given clip goes into new ones: `clip` and `keep` of `sampling.Denoising`, and LOA [1, tokens, d]."""

    latents: np.ndarray | None = None
    keep: np.ndarray | None = None
    loa: np.ndarray | None = None


class AudioLDM2:
    """A whole AudioLDM 2: the networks of a model folder, its scheduler and its tokenizers."""

    def __init__(
        self,
        components: Mapping[str, Component],
        schedule: NoiseSchedule,
        prompts: Prompts,
        clap_mel: ClapMelSettings | None,
        *,
        scheduler_class: str = "DDIMScheduler",
        source: str | os.PathLike | None = None,
        mesh: Mesh | None = None,
    ):
        """Args:
        components: by their names in the model folder; `audiomae` may be missing.
        schedule: the noise schedule.
        prompts: the tokenizers.
        clap_mel: CLAP's front end; None for a text-only CLAP, with which the clips of a prompt are not sorted.
        scheduler_class: the diffusers scheduler that the solver is to equal.
        source: the model folder with the parts that are copied by `save_pretrained` as they are.
        mesh: the devices, by default all of all hosts. Clips are shared out among them; weights are whole on each, or
            over the axis `fsdp` where the mesh has one. On several hosts all make the pipeline and call it alike.

        Raises:
          FolderError: where the scheduler is one that we have no solver for.
        """
        check_scheduler(scheduler_class)
        self.components = dict(components)
        self.schedule, self.prompts, self.clap_mel, self.source = schedule, prompts, clap_mel, source
        self.scheduler_class = scheduler_class
        self._mesh = sharding.all_devices() if mesh is None else mesh
        self.networks: dict[str, Network] = {}
        for name, part in components.items():
            if name == "audiomae":
                continue
            network = sampling.cast_kernels(part.network)
            self.networks[name] = sharding.place(network, sharding.state_sharding(network, self._mesh))
            if part.module.dtype == jnp.float32:  # the same numbers: one copy is enough
                self.components[name] = part._replace(variables=self.networks[name].variables)
        vocoder = self.components["vocoder"].config
        self.sampling_rate: int = vocoder["sampling_rate"]
        self._hop = math.prod(vocoder["upsample_rates"])
        self._bands: int = vocoder["model_in_dim"]
        self.prompt_encoder = PromptEncoder(prompts, self.components, self.networks)
        self.clip_encoder = ClipEncoder(self.components, self.networks["vae"])

    @property
    def own_length(self) -> float | None:
        """Seconds of the clips that the model was trained on; None where the UNet's config.json has no sample_size."""
        frames = self.components["unet"].config.get("sample_size")
        # diffusers' plain UNet has one number for each axis.
        frames = frames[0] if isinstance(frames, Sequence) else frames
        return frames * self.clip_encoder.factor * self._hop / self.sampling_rate if frames else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        dtype: Any = jnp.float32,
        *,
        variant: str | None = None,
        mesh: Mesh | None = None,
    ) -> AudioLDM2:
        """Reads a model folder in the diffusers layout.

        Where JAX has no compilation cache yet, it gets one (`runtime.start.use_compilation_cache`), so that a later
        process does not compile again.

        Args:
          source: its path, or a hub id, which is fetched into the hub's cache; offline, what is there has to do.
          dtype: of the computation; parameters are float32, however they are stored.
          variant: which of several files of the same weights to read, "fp16", say, as in diffusers; by default those
            without a variant, or else the only one there is.
          mesh: the devices, as in `AudioLDM2`.

        Raises:
          FolderError: where it is none, or damaged; names the file and what to do.
        """
        path = model_folder.locate_model(source, variant)
        if jax.config.jax_compilation_cache_dir is None:
            use_compilation_cache()
        dtype = jnp.dtype(dtype)
        schedule, scheduler_class = model_folder.read_scheduler(path)
        check_scheduler(scheduler_class)
        components = {name: model_folder.read_component(path, name, dtype, variant) for name in model_index.parts(path)}
        prompts = Prompts.from_folder(path, **prompt_limits(components))
        prompts.check_tables(path, {name: part.config for name, part in components.items()})
        takes_audio = isinstance(components["text_encoder"].module, Clap)
        front_end = model_folder.read_feature_extractor(path) if takes_audio else None
        return cls(components, schedule, prompts, front_end, scheduler_class=scheduler_class, source=path, mesh=mesh)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes the model folder; diffusers' AudioLDM2Pipeline reads it, but for that of a unified model, and so does
        `from_pretrained`.

        On several hosts all call it, and the first one writes.

        Weights are written as float32, one safetensors file a component, bit by bit as they are here; those that were
        read from half precision are its numbers in float32.

        Raises:
          FolderError: where it cannot be written, or the tokenizers' source is gone.
        """
        if self.source is None:
            raise FolderError("The model was not read from a folder, so there are no tokenizers to write beside it.")
        source, index = Path(self.source), model_index.read(self.source)
        # AudioLDMPipeline has no feature extractor, but a CLAP that takes audio needs one.
        others = [name for name in model_index.COPIED if (index.get(name) or [None])[0] or (source / name).is_dir()]
        missing = [name for name in others if not (source / name).is_dir()]
        if missing:
            raise FolderError(f"{source} no longer has {', '.join(missing)}, so {path} cannot be written.")
        for name, part in self.components.items():
            write = partial(model_folder.write_component, path, name, part.config, unused=part.unused)
            hosts.give_first(part.variables, write)
        if not hosts.is_first():
            return
        model_folder.write_scheduler(path, self.schedule, self.scheduler_class)
        if source.resolve() != Path(path).resolve():
            for name in others:
                model_folder.copy_part(source / name, path, name)
        model_index.write(path)

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
        transcription: str | Sequence[str | None] | None = None,
        max_new_tokens: int | None = None,
        *,
        edit: Edit | None = None,
        solver: str | None = None,
        uncond: str = "language_model",
        use_loa: bool = True,
        use_text_states: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Output:
        """Generates clips.

        Args:
          prompt: what to generate, one or several; for speech, who is speaking.
          negative_prompt: what to steer away from, one for all prompts or one each; "" by default.
          num_inference_steps: denoising steps.
          guidance_scale: how strongly to follow the prompt; up to 1 is no guidance, as in diffusers.
          audio_length_in_s: length of a clip in seconds; by default that which the model was trained on.
          num_waveforms_per_prompt: clips a prompt, sorted by CLAP where it takes audio; to have the best of three, take
            the first.
          eta: randomness of the sampler: 0 as diffusers' default, 1 as the authors' tool.
          seed: the same seed gives the same sound.
          latents: the noise to start from, [clips, channels, time, frequency]; by default drawn from the seed.
          transcription: what is said, one for all prompts or one each: models of speech need it, unified ones take it,
            also for some of the prompts alone (None for the others).
          max_new_tokens: length of the LOA; by default that of the language model's config.json.
          edit: what of a given clip is kept (`audioldm2_jax.generation.editing`).
          solver: ddim, ddpm, plms, euler, euler_ancestral, dpmsolver++ or unipc; by default that of the folder's
            scheduler.
          uncond: the LOA of the negative prompt: as the `language_model` writes it (diffusers), or `zeros` (the
            authors' tool).
          use_loa: False zeroes the LOA, for what the text states do alone.
          use_text_states: False gives the UNet T5's states of the empty text, for what the LOA does alone.
          progress: called after each call of the UNet, with how many are done and how many there are.

        Returns:
          an `Output`.

        Raises:
          ValueError: for bad input; the message names it and says what to do.
        """
        said = edit.transcribe(transcription) if edit else transcription
        texts = self.prompt_encoder.tokenize(prompt, negative_prompt, said, emptied=not use_text_states)
        self._check(num_waveforms_per_prompt, seed, max_new_tokens)
        first = edit.first_step(num_inference_steps) if edit else 0
        scheduler = self.schedule, self.scheduler_class
        solver, table = plan_sampling(*scheduler, num_inference_steps, guidance_scale, eta, solver, first)
        if edit and audio_length_in_s is None:
            audio_length_in_s = edit.length(self.own_length)
        shape, samples = self.latent_shape(audio_length_in_s, exact=latents is not None)
        spoken = [said] if isinstance(said, str) else said or ()
        for remark in edit.remarks(samples / self.sampling_rate, spoken) if edit else ():
            logging.warning("%s", remark)
        tokens = self.prompt_encoder.loa_tokens if max_new_tokens is None else max_new_tokens
        source = self._source_clip(edit, shape[0], samples, tokens) if edit else _SourceClip()
        cond, of_negative, text_embedding = self.prompt_encoder.encode(
            texts, tokens, uncond, use_loa, use_text_states, source.loa
        )
        keys = clip_keys(seed, texts.prompts, num_waveforms_per_prompt)
        noise = sampling.initial_latents(keys, shape) if latents is None else given_latents(latents, len(keys), shape)
        rows = repeat((cond, of_negative if guidance_scale > 1 else None), num_waveforms_per_prompt)
        final = self._denoise(noise, *rows, guidance_scale, keys, table, solver, source, progress)
        mels, audios = self.decode(final)
        audios, mels = audios[:, :samples], mels[:, : -(-samples // self._hop)]
        if edit:
            cut = round(edit.cut_seconds * self.sampling_rate)
            audios = join(edit, audios, self.sampling_rate)[:, cut:]
            mels = mels[:, cut // self._hop :]
        made = Output(audios, self.sampling_rate, mels, final.transpose(0, 3, 1, 2))
        if num_waveforms_per_prompt == 1 or self.clap_mel is None:
            return made
        best = self._best_first(made.audios, text_embedding)
        return made._replace(audios=made.audios[best], mels=made.mels[best], latents=made.latents[best])

    def encode(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        uncond: str = "language_model",
        use_loa: bool = True,
        use_text_states: bool = True,
        transcription: str | Sequence[str | None] | None = None,
    ) -> tuple[Conditions, Conditions]:
        """The conditions of prompts and of their negative prompts, each of [prompts, ...]; see `__call__`."""
        texts = self.prompt_encoder.tokenize(prompts, negatives, transcription, emptied=not use_text_states)
        tokens = self.prompt_encoder.loa_tokens
        return self.prompt_encoder.encode(texts, tokens, uncond, use_loa, use_text_states)[:2]

    def _source_clip(self, edit: Edit, frames: int, samples: int, tokens: int) -> _SourceClip:
        """What of the given clip goes into so many latent frames, of which so many samples stay, and LOA tokens."""
        latents = keep = loa = None
        waveform = edit.waveform(self.sampling_rate)
        if edit.starts_from_latents:
            latents = self.clip_encoder.latents(waveform[:samples], frames)
            keep = edit.kept(*self.clip_encoder.places(frames))
        if keep is not None:
            if keep.all():
                raise ValueError("All of the given clip would be kept: make more of it anew, or ask for a longer one.")
            keep = keep[None, :, :, None].astype(np.float32)
        if edit.encoded_seconds:
            loa = self.clip_encoder.loa(waveform, tokens, edit.encoded_seconds)
        return _SourceClip(latents, keep, loa)

    def _denoise(self, noise, conditions, uncond, guidance_scale, keys, table, solver, source, progress) -> np.ndarray:
        """Clean latents [clips, ...], computed on all devices."""
        keys = keys if table["to_noise"].any() else None
        start, conditions, uncond, keys = sharding.spread((noise, conditions, uncond, keys), self._mesh)
        clip = {"clip": source.latents, "keep": source.keep}
        how = {"solver": solver, "progress": progress}
        latents = sampling.denoise_by_steps(
            self.networks["unet"], table, start, conditions, uncond, guidance_scale, keys, **clip, **how
        )
        return hosts.to_host(latents)[: len(noise)]

    def _best_first(self, audios: np.ndarray, text_embedding: jax.Array) -> np.ndarray:
        """The order of clips [prompts * n, samples] that sorts those of each prompt by CLAP's cosine with it.

        diffusers (`score_waveforms`) ranks in a batch of prompts over all clips; here each prompt keeps its own.
        """
        clips = len(audios) // len(text_embedding)
        # Cut, or repeated and padded, as CLAP would have it: so clips of any length have the same shape.
        samples = -(-self.clap_mel.samples * self.sampling_rate // self.clap_mel.sampling_rate)
        audios = np.tile(audios[:, :samples], (1, max(1, samples // audios.shape[1])))
        audios = np.pad(audios, ((0, 0), (0, samples - audios.shape[1])))
        scores = _similarity(
            self.networks["text_encoder"],
            audios,
            jnp.repeat(text_embedding, clips, axis=0),
            sampling_rate=self.sampling_rate,
            front_end=self.clap_mel,
        )
        order = np.argsort(-hosts.to_host(scores).reshape(-1, clips), axis=1, kind="stable")
        return (order + np.arange(len(order))[:, None] * clips).ravel()

    def decode(self, latents: jax.Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled latents [b, t, f, c] to mels [b, frames, bands] and waveforms [b, samples]."""
        scale = np.float32(self.components["vae"].config["scaling_factor"])
        made = _decode(self.networks["vae"], self.networks["vocoder"], sharding.spread(latents, self._mesh), scale)
        mels, audios = hosts.to_host(made)
        return mels[: len(latents)], audios[: len(latents)]

    def latent_shape(self, seconds: float | None, *, exact: bool = False) -> tuple[tuple[int, int, int], int]:
        """The latents' (time, frequency, channels) for a length, and how many samples to keep of what they give.

        Args:
          seconds: None for the model's own length.
          exact: as many latent frames as diffusers has; else up to a sixteenth of the model's own length more, so that
            few lengths have a shape of their own.

        Raises:
          ValueError: for a length below one latent frame, or no number; or none where the model names none.
        """
        factor, own = self.clip_encoder.factor, self.own_length
        seconds = own if seconds is None else seconds
        if seconds is None:
            raise ValueError("The model names no length of its own (sample_size): give audio_length_in_s.")
        shortest = factor * self._hop / self.sampling_rate
        if not (math.isfinite(seconds) and seconds >= shortest):
            raise ValueError(f"audio_length_in_s is {seconds}; it has to be at least {shortest} s.")
        samples = int(seconds * self.sampling_rate + 1e-6)  # seconds of so many samples may be a rounding error less
        # diffusers leaves out the samples of a last mel frame that is not full.
        frames = int(seconds / (self._hop / self.sampling_rate)) if exact else -(-samples // self._hop)
        time = -(-frames // factor)
        if own and not exact:
            bucket = max(1, round(own / shortest) // _LENGTHS)
            time = -(-time // bucket) * bucket
        channels = self.components["unet"].config["in_channels"]
        return (time, self._bands // factor, channels), samples

    def _check(self, clips, seed, tokens) -> None:
        if clips < 1:
            raise ValueError(f"num_waveforms_per_prompt is {clips}; it has to be at least 1.")
        if not isinstance(seed, int | np.integer):
            raise ValueError(f"seed is {seed!r}; it has to be a whole number.")
        if tokens is not None and (tokens < 1 or not self.prompt_encoder.writes_loa):
            raise ValueError(f"max_new_tokens is {tokens}; it has to be at least 1, and the model to have a LOA.")


@partial(jax.jit, static_argnames=("sampling_rate", "front_end"))
def _similarity(
    clap: Network, audios, text_embedding: jax.Array, *, sampling_rate: int, front_end: ClapMelSettings
) -> jax.Array:
    """Cosines [clips] of clips [clips, samples] and embeddings of texts [clips, d]."""
    mel = clap_mel(resample(audios, sampling_rate, front_end.sampling_rate), front_end)
    return (clap(mel, method="audio_features") * text_embedding).sum(-1)


_decode = jax.jit(sampling.decode)
