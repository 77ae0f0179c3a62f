"""What a network of the authors' files is, from the names and shapes of its tensors alone.

What shapes do not tell is in tables here, with its source: haoheliu/AudioLDM2, utils.py (configs of every variant) and
utilities/model.py (vocoders).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.tensors import precision
from audioldm2_jax.models.audiomae import positions_2d

Tensors = Mapping[str, np.ndarray]

_CHANNELS_A_HEAD = 32  # of the UNet: num_head_channels
_GROUPS = 32  # of every GroupNorm
_MEL_FRAMES = 1024  # of 10.24 s
_CLAP_SPECTROGRAM = 256  # side of the square into which HTSAT folds a mel
_TEXT_HEAD = 64  # width of a head of RoBERTa, GPT-2 and ViT
_FBANK_BANDS = 128
#: Kernels of the vocoder's upsampling → its rates and the sampling rate.
_VOCODERS = {
    (16, 16, 8, 4, 4): ((5, 4, 2, 2, 2), 16000),
    (12, 10, 8, 4, 4): ((6, 5, 4, 2, 2), 48000),
}
_DILATIONS = (1, 3, 5)
LOA_TOKENS, SPEECH_TOKENS = 8, 512
"""What the language model writes: sequence_gen_length of the variants without and with phonemes."""


def count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number in the place of the pattern's group; 0 where nothing fits."""
    found = (re.match(pattern, key) for key in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _shape(tensors: Tensors, key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise FolderError(f"missing: {key}")
    return tensors[key].shape


def _unet(tensors: Tensors) -> dict[str, Any]:
    levels = 1 + sum(bool(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key)) for key in tensors)
    blocks = count(tensors, r"input_blocks\.(\d+)\.")
    layers = blocks // levels - 1
    if layers < 1 or blocks != levels * (layers + 1):
        raise FolderError(f"{blocks} input_blocks do not make {levels} levels.")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = [_shape(tensors, f"input_blocks.{first}.0.out_layers.3.weight")[0] for first in firsts]
    transformers = [count(tensors, rf"input_blocks\.{first}\.([1-9]\d*)\.proj_in\.") - 1 for first in firsts]
    attending = [level for level in range(levels) if transformers[level] > 0]
    if not attending:
        raise FolderError("No level of the UNet has a transformer.")
    contexts = []
    for place in range(1, 1 + transformers[attending[0]]):
        widths = [
            _shape(tensors, f"input_blocks.{firsts[level]}.{place}.transformer_blocks.0.attn2.to_k.weight")[1]
            for level in attending
        ]
        # Attention to itself has the width of the level, to a context the same everywhere.
        contexts.append(None if widths == [channels[level] for level in attending] else widths[0])
    config = {
        "_class_name": "AudioLDM2UNet2DConditionModel",
        "in_channels": _shape(tensors, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(tensors, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": [contexts] * levels,
        "attention_head_dim": [max(1, width // _CHANNELS_A_HEAD) for width in channels],
        "transformer_layers_per_block": count(
            tensors, rf"input_blocks\.{firsts[attending[0]]}\.1\.transformer_blocks\.(\d+)\."
        ),
        "down_block_types": ["CrossAttnDownBlock2D" if n > 0 else "DownBlock2D" for n in transformers],
        "up_block_types": ["CrossAttnUpBlock2D" if n > 0 else "UpBlock2D" for n in reversed(transformers)],
        "norm_num_groups": _GROUPS,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if "film_emb.weight" in tensors:
        config |= {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": _shape(tensors, "film_emb.weight")[1],
            "class_embeddings_concat": True,
        }
    return config


def _vae(tensors: Tensors) -> dict[str, Any]:
    levels = count(tensors, r"encoder\.down\.(\d+)\.")
    return {
        "in_channels": _shape(tensors, "encoder.conv_in.weight")[1],
        "out_channels": _shape(tensors, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(tensors, "post_quant_conv.weight")[1],
        "block_out_channels": [
            _shape(tensors, f"encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels)
        ],
        "layers_per_block": count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": _GROUPS,
        "sample_size": _MEL_FRAMES,
    }


def _vocoder(tensors: Tensors) -> dict[str, Any]:
    ups = count(tensors, r"ups\.(\d+)\.")
    kernels = tuple(_shape(tensors, f"ups.{i}.weight")[2] for i in range(ups))
    if kernels not in _VOCODERS:
        known = ", ".join(str(list(known)) for known in _VOCODERS)
        raise FolderError(f"The vocoder's upsampling has kernels {list(kernels)}; known are {known}.")
    rates, sampling_rate = _VOCODERS[kernels]
    blocks, rest = divmod(count(tensors, r"resblocks\.(\d+)\."), ups)
    dilations = count(tensors, r"resblocks\.0\.convs1\.(\d+)\.")
    if rest or not blocks or dilations != len(_DILATIONS):
        raise FolderError(f"The vocoder's residual blocks are not {ups} times as many, of {len(_DILATIONS)} layers.")
    channels, bands, _ = _shape(tensors, "conv_pre.weight")
    return {
        "model_in_dim": bands,
        "sampling_rate": sampling_rate,
        "upsample_initial_channel": channels,
        "upsample_rates": list(rates),
        "upsample_kernel_sizes": list(kernels),
        "resblock_kernel_sizes": [_shape(tensors, f"resblocks.{i}.convs1.0.weight")[2] for i in range(blocks)],
        "resblock_dilation_sizes": [list(_DILATIONS)] * blocks,
        "leaky_relu_slope": 0.1,
        "normalize_before": False,
    }


def _clap(tensors: Tensors) -> dict[str, Any]:
    words, width = _shape(tensors, "text_branch.embeddings.word_embeddings.weight")
    stages = count(tensors, r"audio_branch\.layers\.(\d+)\.")
    tables = [
        _shape(tensors, f"audio_branch.layers.{i}.blocks.0.attn.relative_position_bias_table") for i in range(stages)
    ]
    patches = _shape(tensors, "audio_branch.patch_embed.proj.weight")
    projected = _shape(tensors, "text_projection.0.weight")[0]
    return {
        "projection_dim": projected,
        "logit_scale_init_value": 1 / 0.07,
        "text_config": {
            "projection_dim": projected,  # for diffusers' AudioLDM 1, which reads the text tower alone
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": count(tensors, r"text_branch\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, width // _TEXT_HEAD),
            "intermediate_size": _shape(tensors, "text_branch.encoder.layer.0.intermediate.dense.weight")[0],
            "max_position_embeddings": _shape(tensors, "text_branch.embeddings.position_embeddings.weight")[0],
            "type_vocab_size": _shape(tensors, "text_branch.embeddings.token_type_embeddings.weight")[0],
            "layer_norm_eps": 1e-5,
        },
        "audio_config": {
            "spec_size": _CLAP_SPECTROGRAM,
            "num_mel_bins": _shape(tensors, "audio_branch.bn0.weight")[0],
            "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
            "patch_size": patches[2],
            "patch_stride": [patches[2], patches[3]],
            "patch_embeds_hidden_size": patches[0],
            "hidden_size": _shape(tensors, "audio_branch.norm.weight")[0],
            "depths": [count(tensors, rf"audio_branch\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
            "num_attention_heads": [heads for _, heads in tables],
        },
    }


def _t5(tensors: Tensors) -> dict[str, Any]:
    first = "encoder.block.0.layer"
    words, width = _shape(tensors, "shared.weight")
    buckets, heads = _shape(tensors, f"{first}.0.SelfAttention.relative_attention_bias.weight")
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": _shape(tensors, f"{first}.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": _shape(tensors, f"{first}.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": count(tensors, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
    }


def _language_model(tensors: Tensors) -> dict[str, Any]:
    positions, width = _shape(tensors, "wpe.weight")
    return {
        "n_positions": positions,
        "n_embd": width,
        "n_layer": count(tensors, r"h\.(\d+)\."),
        "n_head": max(1, width // _TEXT_HEAD),
        "layer_norm_epsilon": 1e-5,
        "max_new_tokens": LOA_TOKENS,
    }


def _projection_model(tensors: Tensors) -> dict[str, Any]:
    width, first = _shape(tensors, "input_sequence_embed_linear.0.weight")
    config = {
        "text_encoder_dim": first,
        "text_encoder_1_dim": _shape(tensors, "input_sequence_embed_linear.1.weight")[1],
        "langauge_model_dim": width,
    }
    if "learnable_positional_embedding" in tensors:
        positions = _shape(tensors, "learnable_positional_embedding")[2]
        config |= {"use_learned_position_embedding": True, "max_seq_length": positions}
    return config


def _phonemes(tensors: Tensors) -> dict[str, Any]:
    words, width = _shape(tensors, "text_encoder.emb.weight")
    relative = _shape(tensors, "text_encoder.encoder.attn_layers.0.emb_rel_k")
    filters, _, kernel = _shape(tensors, "text_encoder.encoder.ffn_layers.0.conv_1.weight")
    return {
        "model_type": "vits",
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": count(tensors, r"text_encoder\.encoder\.attn_layers\.(\d+)\."),
        "num_attention_heads": width // relative[2],
        "window_size": relative[1] // 2,
        "use_bias": True,
        "ffn_dim": filters,
        "ffn_kernel_size": kernel,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
    }


def _audiomae(tensors: Tensors) -> dict[str, Any]:
    _, tokens, width = _shape(tensors, "pos_embed")
    patch = _shape(tensors, "patch_embed.proj.weight")[2]
    if (tokens - 1) % (_FBANK_BANDS // patch):
        raise FolderError(f"{tokens - 1} patches of {patch} do not make a spectrogram of {_FBANK_BANDS} bands.")
    bands = _FBANK_BANDS // patch
    # Files of the authors count bands before frames; one written from a folder trained here has the patches' order.
    grids = ((bands, (tokens - 1) // bands), ((tokens - 1) // bands, bands))
    table = tensors["pos_embed"][0, 1:]
    near = max(1e-5, precision(table))  # of numbers up to one, in whichever precision they were stored
    positions = next((grid for grid in grids if np.allclose(table, positions_2d(width, grid), atol=near)), None)
    if positions is None:
        raise FolderError("pos_embed is not of fixed sines and cosines, which are the only positions that are played.")
    swin = "decoder_blocks.0.attn.tau" in tensors
    return {
        "img_size": [(tokens - 1) // bands * patch, _FBANK_BANDS],
        "patch_size": patch,
        "embed_dim": width,
        "depth": count(tensors, r"blocks\.(\d+)\."),
        "num_heads": max(1, width // _TEXT_HEAD),
        "decoder_embed_dim": _shape(tensors, "mask_token")[2],
        "decoder_depth": count(tensors, r"decoder_blocks\.(\d+)\.") if swin else 0,
        "decoder_num_heads": _shape(tensors, "decoder_blocks.0.attn.tau")[0] if swin else 16,
        "positions": list(positions),
    }


CONFIGS: dict[str, Callable[[Tensors], dict[str, Any]]] = {
    "unet": _unet,
    "vae": _vae,
    "vocoder": _vocoder,
    "text_encoder": _clap,
    "t5": _t5,
    "phonemes": _phonemes,
    "language_model": _language_model,
    "projection_model": _projection_model,
    "audiomae": _audiomae,
}
"""Tensors of a network, opened (`parameter_names.Original.from_upstream`) and by the authors' names → its config.json.

Each raises FolderError for a network that is none of the authors'."""
