"""What PyTorch's classes hold beside the weights that our networks use: buffers, and parts that nobody calls.

What came along with the weights is kept and written back. These functions make what did not, from the written
config.json and the weights' names and shapes, so that PyTorch misses nothing.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Tensors = dict[str, np.ndarray]

# GPT-2's word table is required by diffusers and used by nobody: where none is carried, a small one is written.
WORD_TABLE = "transformer.wte.weight"
EMPTY_VOCABULARY = 8
# A VitsModel with next to nothing behind its text encoder: no flows, one upsampling by one, no ResNet blocks,
# durations of one channel, a posterior of one spectrogram bin.
_NO_REST = {
    "prior_encoder_num_flows": 0,
    "posterior_encoder_num_wavenet_layers": 0,
    "spectrogram_bins": 1,
    "use_stochastic_duration_prediction": False,
    "duration_predictor_filter_channels": 1,
    "duration_predictor_kernel_size": 1,
    "upsample_initial_channel": 2,
    "upsample_rates": [1],
    "upsample_kernel_sizes": [1],
    "resblock_kernel_sizes": [],
    "resblock_dilation_sizes": [],
    "num_speakers": 1,
    "speaker_embedding_size": 0,
}
_REST_KEY = "decoder.conv_pre.weight"
_NOTHING = range(_NO_REST["upsample_initial_channel"])  # the channels of that weight where there is no rest
_STATISTICS = "text_encoder.project.bias"  # [2 · flow_size]: means and logarithms of variances


def clap_text(config: Config, tensors: Tensors) -> Tensors:
    """RoBERTa's position and type ids."""
    positions = config["max_position_embeddings"]
    return {
        "text_model.embeddings.position_ids": np.arange(positions)[None],
        "text_model.embeddings.token_type_ids": np.zeros((1, positions), np.int64),
    }


def clap(config: Config, tensors: Tensors) -> Tensors:
    """Those of the text tower, and HTSAT's relative positions (Swin: arXiv 2103.14030, eq. 4)."""
    buffers = clap_text(config["text_config"], tensors) | {
        "audio_model.audio_encoder.batch_norm.num_batches_tracked": np.array(0),
    }
    for key, table in tensors.items():
        if key.endswith("relative_position_bias_table"):
            window = (math.isqrt(table.shape[0]) + 1) // 2
            row, column = np.divmod(np.arange(window**2), window)
            rows, columns = (at[:, None] - at[None, :] + window - 1 for at in (row, column))
            name = re.sub("bias_table$", "index", key)
            buffers[name] = rows * (2 * window - 1) + columns
    return buffers


def vocoder(config: Config, tensors: Tensors) -> Tensors:
    """The statistics by which SpeechT5 normalises mels: none."""
    bands = config["model_in_dim"]
    return {"mean": np.zeros(bands, np.float32), "scale": np.ones(bands, np.float32)}


def word_table(config: Config, tensors: Tensors) -> Tensors:
    """GPT-2's words, of which there are none here."""
    return {WORD_TABLE: np.zeros((config["vocab_size"], config["n_embd"]), np.float32)}


def vits_config(config: Config, unused: Tensors) -> dict[str, Any]:
    """The keys of VitsConfig that make the rest nothing; none where the rest is among the unused tensors.

    diffusers loads a whole VitsModel and uses its text encoder alone. From the authors' files, or trained here, there
    is nothing behind the encoder, but maybe its projection to means and variances, whose width stays. A rest that is
    nothing may have come along from a folder that was written here; a recipe's config does not speak of it.
    """
    if len(unused.get(_REST_KEY, _NOTHING)) != len(_NOTHING):
        return {}
    width = len(unused[_STATISTICS]) // 2 if _STATISTICS in unused else 1
    return {**_NO_REST, "flow_size": width}


def vits(config: Config, tensors: Tensors) -> Tensors:
    """The tensors of a rest that is nothing, as config.json says; none where it is something."""
    if any(config.get(key) != value for key, value in _NO_REST.items()):
        return {}
    hidden, flow = config["hidden_size"], config["flow_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "text_encoder.project.weight": (2 * flow, hidden, 1),
        _STATISTICS: (2 * flow,),
        "posterior_encoder.conv_pre.weight": (hidden, 1, 1),
        "posterior_encoder.conv_pre.bias": (hidden,),
        "posterior_encoder.conv_proj.weight": (2 * flow, hidden, 1),
        "posterior_encoder.conv_proj.bias": (2 * flow,),
        _REST_KEY: (2, flow, 7),
        "decoder.conv_pre.bias": (2,),
        "decoder.upsampler.0.weight": (2, 1, 1),
        "decoder.upsampler.0.bias": (1,),
        "decoder.conv_post.weight": (1, 1, 7),
        "duration_predictor.conv_1.weight": (1, hidden, 1),
        "duration_predictor.conv_2.weight": (1, 1, 1),
        "duration_predictor.proj.weight": (1, 1, 1),
    }
    layers = ("conv_1.bias", "conv_2.bias", "proj.bias", "norm_1.weight", "norm_1.bias", "norm_2.weight", "norm_2.bias")
    shapes |= {f"duration_predictor.{layer}": (1,) for layer in layers}
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
