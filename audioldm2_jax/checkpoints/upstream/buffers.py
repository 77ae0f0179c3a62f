"""What the authors' classes hold beside the weights that our networks use, so that they load a file strictly.

Tables that they compute when they are made are computed here, in double precision; what nobody calls when sound is
made is zero. All by the authors' names. Sources: haoheliu/AudioLDM2 (latent_diffusion/models/ddpm.py,
clap/open_clip/htsat.py and model.py, encoders/modules.py, audiomae/models_mae.py), and what these call: torchlibrosa
(stft.py), librosa (filters.mel), torchaudio (functional.melscale_fbanks), transformers 4.30.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from audioldm2_jax.audio.mel import ClapMelSettings, slaney_filters, triangles
from audioldm2_jax.checkpoints import buffers
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.checkpoints.upstream.parameter_names import ORIGINALS, Tensors
from audioldm2_jax.checkpoints.upstream.reader import shapes_of
from audioldm2_jax.models.audiomae import AudioMAE, unused_tensors
from audioldm2_jax.models.clap import Clap
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.htsat import shift_mask
from audioldm2_jax.models.phonemes import VitsTextEncoder

CLAP_MEL = ClapMelSettings(48000, 1024, 480, 64, 50.0, 14000.0, samples=480000)
"""CLAP's front end, in all variants (haoheliu/AudioLDM2: clap/open_clip/model_configs/HTSAT-base.json)."""

# The sizes that the authors' classes have whatever the file holds, for networks that a folder lacks.
_HTSAT_BASE = {
    "depths": [2, 2, 12, 2],
    "num_attention_heads": [4, 8, 16, 32],
    "patch_embeds_hidden_size": 128,
    "hidden_size": 1024,
}
_AUDIOMAE = {
    "img_size": [1024, 128],
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "decoder_embed_dim": 512,
    "decoder_depth": 0,
    "decoder_num_heads": 16,
    "positions": [8, 64],
}
_DECODER_BLOCKS = 8  # of AudioMAE's decoder of plain blocks
_GPT2_WORDS = 50257


def schedule_tables(betas: np.ndarray) -> Tensors:
    """The tables of a diffusion model that predicts noise, float32 [timesteps] (Ho et al. 2020, eq. 4, 6 and 7)."""
    alphas = 1 - betas
    level = np.cumprod(alphas)
    before = np.append(1.0, level[:-1])
    variance = betas * (1 - before) / (1 - level)
    tables = {
        "betas": betas,
        "alphas_cumprod": level,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(level),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - level),
        "log_one_minus_alphas_cumprod": np.log(1 - level),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / level),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / level - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),  # the first is zero
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - level),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - level),
        "logvar": np.zeros_like(betas),
    }
    return {key: table.astype(np.float32) for key, table in tables.items()}


def clap(module: Clap, ours: Tensors) -> Tensors:
    """Filters, masks and index tables of CLAP, its classifier of AudioSet and its second projections."""
    audio = module.audio_config
    mel = dataclasses.replace(CLAP_MEL, n_mels=audio["num_mel_bins"])
    turns = np.outer(np.arange(mel.n_fft // 2 + 1), np.arange(mel.n_fft)) % mel.n_fft / mel.n_fft
    made = {
        f"audio_branch.spectrogram_extractor.stft.conv_{part}.weight": (wave * _hann(mel.n_fft))[:, None]
        for part, wave in (("real", np.cos(2 * np.pi * turns)), ("imag", -np.sin(2 * np.pi * turns)))
    }
    made["audio_branch.logmel_extractor.melW"] = slaney_filters(mel)
    stages, window, classes = len(audio["depths"]), audio["window_size"], audio["num_classes"]
    sides = [audio["spec_size"] // audio["patch_stride"][0] // 2**stage for stage in range(stages)]
    for stage, (side, depth) in enumerate(zip(sides, audio["depths"])):
        if side > window:
            mask = shift_mask(side, side, window, window // 2)
            made |= {f"audio_branch.layers.{stage}.blocks.{block}.attn_mask": mask for block in range(1, depth, 2)}
    bands = sides[-1] // (audio["spec_size"] // audio["num_mel_bins"])
    made |= _layer("audio_branch.tscam_conv", classes, audio["hidden_size"], bands, 3)
    made |= _layer("audio_branch.head", classes, classes)
    for tower in ("text", "audio"):
        for place in (0, 3):
            made |= _layer(f"{tower}_transform.sequential.{place}", module.projection_dim, module.projection_dim)
    made = {key: value.astype(np.float32) for key, value in made.items()}
    indices = buffers.clap({"text_config": module.text_config}, ours)
    indices.pop("text_model.embeddings.token_type_ids")  # nowhere stored
    return made | {ORIGINALS["text_encoder"].name(key, {}): value for key, value in indices.items()}


def clap_filters() -> Tensors:
    """What stands beside CLAP in the authors' wrapper: window and filters on the HTK scale, of height one."""
    hz = 700 * np.expm1(np.linspace(*np.log1p([CLAP_MEL.fmin / 700, CLAP_MEL.fmax / 700]), CLAP_MEL.n_mels + 2))
    bins = np.linspace(0, CLAP_MEL.sampling_rate // 2, CLAP_MEL.n_fft // 2 + 1)
    made = {"spectrogram.window": _hann(CLAP_MEL.n_fft), "mel_scale.fb": triangles(bins, hz)}
    return {key: value.astype(np.float32) for key, value in made.items()}


def language_model(module: GPT2, ours: Tensors) -> Tensors:
    """GPT-2's words."""
    return {"wte.weight": np.zeros((_GPT2_WORDS, module.n_embd), np.float32)}


def phonemes(module: VitsTextEncoder, ours: Tensors) -> Tensors:
    """The projection to means and variances behind the encoder."""
    return _layer("text_encoder.proj", 2 * module.hidden_size, module.hidden_size, 1)


def audiomae(module: AudioMAE, ours: Tensors) -> Tensors:
    """The positions."""
    return unused_tensors(module)


def plain_decoder(width: int) -> Tensors:
    """The blocks of AudioMAE's decoder as the authors' pipelines have it."""
    made: Tensors = {}
    for block in (f"decoder_blocks.{number}" for number in range(_DECODER_BLOCKS)):
        for layer, out, features in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            made |= _layer(f"{block}.{layer}", out, features)
        for norm in ("norm1", "norm2"):
            made |= _layer(f"{block}.{norm}", width)
    return made


BESIDE = {"text_encoder": clap, "language_model": language_model, "phonemes": phonemes, "audiomae": audiomae}
"""Network → what its class holds, from the module and our tensors by their PyTorch names."""


def no_audiomae() -> Component:
    """An AudioMAE of zeros, of the published size."""
    return _zeros("audiomae", _AUDIOMAE)


def whole_clap(text: Component | None) -> Component:
    """A CLAP with a text tower (None: of zeros) and HTSAT-base of zeros."""
    config: dict[str, Any] = {"audio_config": _HTSAT_BASE}
    if text:
        config |= {"text_config": text.config, "projection_dim": text.module.projection_dim}
    empty = _zeros("text_encoder", config)
    if text is None:
        return empty
    params = {**empty.variables["params"], **text.variables["params"]}
    return empty._replace(variables={**empty.variables, "params": params})


def _zeros(network: str, config: dict[str, Any]) -> Component:
    module, shapes = shapes_of(network, config)
    return Component(module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), config)


def _layer(name: str, out: int, *weight: int) -> Tensors:
    """A layer of zeros; its weight has one axis where `weight` is empty."""
    return {f"{name}.weight": np.zeros((out, *weight), np.float32), f"{name}.bias": np.zeros(out, np.float32)}


def _hann(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
