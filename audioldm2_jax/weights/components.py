"""The components of a model folder: which network each one is, and what its config.json has to say.

Under one name there may be networks of several classes: `kind_of` tells by config.json which one a folder holds. A
network's fields carry the names of the keys of config.json, so most of a config goes over as it is. Here is what
remains: the keys by which PyTorch's classes are found and told to compute what our networks compute, what an older
folder may leave out, and the buffers that PyTorch keeps beside the weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from audioldm2_jax.models.audiomae import AudioMAE
from audioldm2_jax.models.clap import Clap, ClapText
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.hifigan import HifiGan
from audioldm2_jax.models.phonemes import VitsTextEncoder
from audioldm2_jax.models.projection import ProjectionModel
from audioldm2_jax.models.t5 import T5Encoder
from audioldm2_jax.models.unet import UNet, contexts_per_level
from audioldm2_jax.models.vae import AutoencoderKL
from audioldm2_jax.weights import vits
from audioldm2_jax.weights.names import NAMES, Names
from audioldm2_jax.weights.store import FolderError

Config = Mapping[str, Any]
Tensors = dict[str, np.ndarray]

# GPT-2's word table is required by diffusers and used by nobody: where none is carried, a small one is
# written.
_WORD_TABLE = "transformer.wte.weight"
_EMPTY_VOCABULARY = 8
LOA_TOKENS = 8
"""How many tokens the language model writes where its config.json has no `max_new_tokens` (diffusers'
default)."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of component.

    Attributes:
      network: the module's class.
      library: whose class it is in model_index.json; None for what diffusers does not know.
      class_name: that class.
      inputs: arguments with which the module's `__call__` makes all its parameters; shapes only matter.
      names: how its tensors are called.
      model_type: what config.json calls it, in transformers.
      reads: the module's fields from config.json, where a key means something else there.
      says: further keys of config.json, from the others and the passengers, so that PyTorch's class agrees.
      fixed: keys with the only value that our network plays; written, and checked on reading where present.
      absent: keys of the module's fields that older folders leave out, with the value they had then.
      buffers: what PyTorch stores beside the weights, from the config and the weights' tensors.
      foreign: patterns of passengers that came from files of another class and that this class does not have.
    """

    network: type[nn.Module]
    library: str | None
    class_name: str
    inputs: Callable[[Any], tuple]
    names: Names
    model_type: str | None = None
    reads: Callable[[Config], Config] = lambda config: config
    says: Callable[[Config, Tensors], dict] = lambda config, passengers: {}
    fixed: Config = dataclasses.field(default_factory=dict)
    absent: Config = dataclasses.field(default_factory=dict)
    buffers: Callable[[Config, Tensors], Tensors] = lambda config, tensors: {}
    foreign: tuple[str, ...] = ()

    @property
    def weights_file(self) -> str:
        """The name of the safetensors file."""
        return "model.safetensors" if self.library == "transformers" else "diffusion_pytorch_model.safetensors"


def _ids() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)


def _unet_inputs(unet: UNet) -> tuple:
    side = 2 ** len(unet.block_out_channels)  # enough places for every level
    contexts = contexts_per_level(unet.cross_attention_dim, len(unet.block_out_channels))[-1]
    dims = [dim for dim in contexts if dim is not None] or [1]
    latents = jnp.zeros((1, side, side, unet.in_channels))
    loa, text = (jnp.zeros((1, 1, dim)) for dim in (dims[0], dims[-1]))
    labels = None if unet.class_embed_type is None else jnp.zeros((1, unet.projection_class_embeddings_input_dim))
    return latents, jnp.zeros((1,), jnp.int32), loa, text, None, None, labels


def _film_reads(config: Config) -> Config:
    """diffusers' plain UNet, given no states, attends to the latents twice; its contexts have their width then."""
    contexts = contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))
    if contexts == tuple((channels,) for channels in config["block_out_channels"]):
        return {**config, "cross_attention_dim": (None,)}
    return config


def _film_says(config: Config, passengers: Tensors) -> dict:
    contexts = contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))
    if any(len(level) != 1 for level in contexts):
        raise FolderError(
            f"A UNet2DConditionModel has one context a level, not cross_attention_dim={config['cross_attention_dim']}."
        )
    widths = zip(contexts, config["block_out_channels"])
    return {"cross_attention_dim": [channels if dim is None else dim for (dim,), channels in widths]}


def _clap_inputs(clap: Clap) -> tuple:
    audio = clap.audio_config
    frames = audio["spec_size"] * audio["spec_size"] // audio["num_mel_bins"]
    return (*_ids(), jnp.zeros((1, frames, audio["num_mel_bins"])))


def _clap_text_buffers(config: Config, tensors: Tensors) -> Tensors:
    """RoBERTa's position and type ids."""
    positions = config["max_position_embeddings"]
    return {
        "text_model.embeddings.position_ids": np.arange(positions)[None],
        "text_model.embeddings.token_type_ids": np.zeros((1, positions), np.int64),
    }


def _clap_buffers(config: Config, tensors: Tensors) -> Tensors:
    """Those of the text tower, and HTSAT's relative positions (Swin: arXiv 2103.14030, eq. 4)."""
    buffers = _clap_text_buffers(config["text_config"], tensors) | {
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


def _vocoder_buffers(config: Config, tensors: Tensors) -> Tensors:
    bands = config["model_in_dim"]
    return {"mean": np.zeros(bands, np.float32), "scale": np.ones(bands, np.float32)}


def _word_table(config: Config, tensors: Tensors) -> Tensors:
    return {_WORD_TABLE: np.zeros((config["vocab_size"], config["n_embd"]), np.float32)}


KINDS: dict[str, Kind] = {
    "unet": Kind(
        UNet,
        "audioldm2",
        "AudioLDM2UNet2DConditionModel",
        _unet_inputs,
        NAMES["unet"],
        # A list here is one entry a level to diffusers.
        says=lambda config, passengers: {
            "cross_attention_dim": [
                list(contexts)
                for contexts in contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))
            ]
        },
        fixed={
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "only_cross_attention": False,
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
            "act_fn": "silu",
            "use_linear_projection": False,
            "num_attention_heads": None,
            "num_class_embeds": None,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
            "time_embedding_dim": None,
            "time_embedding_act_fn": None,
            "timestep_post_act": None,
            "time_cond_proj_dim": None,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
        },
        absent={"attention_head_dim": 8, "transformer_layers_per_block": 1, "layers_per_block": 2},
    ),
    "vae": Kind(
        AutoencoderKL,
        "diffusers",
        "AutoencoderKL",
        lambda vae: (jnp.zeros((1, *[2 ** len(vae.block_out_channels)] * 2, vae.in_channels)),),
        NAMES["vae"],
        says=lambda config, passengers: {
            "down_block_types": ["DownEncoderBlock2D"] * len(config["block_out_channels"]),
            "up_block_types": ["UpDecoderBlock2D"] * len(config["block_out_channels"]),
        },
        fixed={
            "act_fn": "silu",
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
        },
        absent={"norm_num_groups": 32},
    ),
    "vocoder": Kind(
        HifiGan,
        "transformers",
        "SpeechT5HifiGan",
        lambda vocoder: (jnp.zeros((1, 8, vocoder.model_in_dim)),),
        NAMES["vocoder"],
        model_type="speecht5_hifigan",
        absent={"normalize_before": True},
        buffers=_vocoder_buffers,
    ),
    "language_model": Kind(
        GPT2,
        "transformers",
        "GPT2LMHeadModel",
        lambda gpt2: (jnp.zeros((1, 1, gpt2.n_embd)), *_ids()[::-1]),
        NAMES["language_model"],
        model_type="gpt2",
        says=lambda config, passengers: {
            "tie_word_embeddings": True,
            "vocab_size": len(passengers.get(_WORD_TABLE, range(_EMPTY_VOCABULARY))),
            "bos_token_id": None,
            "eos_token_id": None,
            "max_new_tokens": config.get("max_new_tokens", LOA_TOKENS),
        },
        fixed={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        absent={"layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1},
        buffers=_word_table,
        foreign=(r"\.attn\.(masked_)?bias$", r"^lm_head\."),  # tables of older versions, and a second name of wte
    ),
    "projection_model": Kind(
        ProjectionModel,
        "audioldm2",
        "AudioLDM2ProjectionModel",
        lambda model: (
            jnp.zeros((1, 1, model.text_encoder_dim)),
            jnp.zeros((1, 1, model.text_encoder_1_dim)),
            jnp.ones((1, 1), jnp.int32),
            jnp.ones((1, 1), jnp.int32),
        ),
        NAMES["projection_model"],
    ),
    "text_encoder": Kind(
        Clap,
        "transformers",
        "ClapModel",
        _clap_inputs,
        NAMES["text_encoder"],
        model_type="clap",
        fixed={
            "projection_hidden_act": "relu",
            "text_config": {"model_type": "clap_text_model", "hidden_act": "gelu"},
            "audio_config": {
                "model_type": "clap_audio_model",
                "hidden_act": "gelu",
                "enable_fusion": False,
                "enable_patch_layer_norm": True,
                "flatten_patch_embeds": True,
                "patch_embed_input_channels": 1,
            },
        },
        # transformers writes of a nested config only what differs from its class (ClapTextConfig,
        # ClapAudioConfig).
        absent={
            "projection_dim": 512,
            "logit_scale_init_value": 1 / 0.07,
            "text_config": {
                "vocab_size": 50265,
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "max_position_embeddings": 514,
                "type_vocab_size": 1,
                "layer_norm_eps": 1e-12,
                "pad_token_id": 1,
            },
            "audio_config": {
                "window_size": 8,
                "num_mel_bins": 64,
                "spec_size": 256,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "num_classes": 527,
                "hidden_size": 768,
                "depths": [2, 2, 6, 2],
                "num_attention_heads": [4, 8, 16, 32],
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.0,
                "drop_path_rate": 0.0,
                "patch_embeds_hidden_size": 96,
                "qkv_bias": True,
                "mlp_ratio": 4.0,
                "layer_norm_eps": 1e-5,
            },
        },
        buffers=_clap_buffers,
    ),
    "text_encoder_2": Kind(
        T5Encoder,
        "transformers",
        "T5EncoderModel",
        lambda t5: _ids(),
        NAMES["text_encoder_2"],
        model_type="t5",
        says=lambda config, passengers: {
            "is_encoder_decoder": False,
            "is_gated_act": True,
            "dense_act_fn": "gelu_new",
            "use_cache": False,
            "pad_token_id": config.get("pad_token_id", 0),
            "eos_token_id": config.get("eos_token_id", 1),
        },
        fixed={"feed_forward_proj": "gated-gelu"},
        foreign=(r"^decoder\.", r"^lm_head\."),
        absent={
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": 0.1,
            "layer_norm_epsilon": 1e-6,
        },
    ),
    "audiomae": Kind(
        AudioMAE,
        None,
        "AudioMAE",
        lambda model: (jnp.zeros((1, *model.img_size)), 0.5, jax.random.key(0)),
        NAMES["audiomae"],
    ),
}
"""What the component of each name is where its config.json does not say otherwise."""

OTHER_KINDS: dict[str, tuple[Kind, ...]] = {
    # AudioLDM 1, and the authors' 48 kHz model: no states to attend to, CLAP's embedding as class label.
    "unet": (
        dataclasses.replace(
            KINDS["unet"],
            library="diffusers",
            class_name="UNet2DConditionModel",
            reads=_film_reads,
            says=_film_says,
            fixed={
                **KINDS["unet"].fixed,
                "center_input_sample": False,
                "dropout": 0.0,
                "reverse_transformer_layers_per_block": None,
                "encoder_hid_dim": None,
                "encoder_hid_dim_type": None,
                "dual_cross_attention": False,
                "addition_embed_type": None,
                "addition_time_embed_dim": None,
                "upcast_attention": False,
                "resnet_skip_time_act": False,
                "resnet_out_scale_factor": 1.0,
                "attention_type": "default",
                "mid_block_only_cross_attention": None,
                "cross_attention_norm": None,
            },
        ),
    ),
    # AudioLDM 1 in diffusers, which does not rank its clips.
    "text_encoder": (
        Kind(
            ClapText,
            "transformers",
            "ClapTextModelWithProjection",
            lambda clap: _ids(),
            NAMES["text_encoder"],
            model_type="clap_text_model",
            fixed={"hidden_act": "gelu", "projection_hidden_act": "relu"},
            absent={"projection_dim": 512, **KINDS["text_encoder"].absent["text_config"]},
            buffers=_clap_text_buffers,
        ),
    ),
    # Speech: phonemes in the place of T5's tokens.
    "text_encoder_2": (
        Kind(
            VitsTextEncoder,
            "transformers",
            "VitsModel",
            lambda encoder: _ids(),
            NAMES["vits"],
            model_type="vits",
            says=vits.config_of_rest,
            fixed={"hidden_act": "relu"},
            absent={
                "vocab_size": 38,
                "hidden_size": 192,
                "num_hidden_layers": 6,
                "num_attention_heads": 2,
                "window_size": 4,
                "use_bias": True,
                "ffn_dim": 768,
                "ffn_kernel_size": 3,
                "hidden_dropout": 0.1,
                "attention_dropout": 0.1,
                "activation_dropout": 0.1,
                "layer_norm_eps": 1e-5,
            },
            buffers=vits.zeros_of_rest,
        ),
    ),
}
"""What else it may be."""


def kind_of(name: str, config: Config) -> Kind:
    """The kind of component `name` (a key of `KINDS`), as its config.json says by `_class_name` or `model_type`.

    Raises:
      FolderError: where it is of a class that none of our networks plays.
    """
    kinds = (KINDS[name], *OTHER_KINDS.get(name, ()))
    fitting = [kind for kind in kinds if _class_in(config, kind) in (None, kind.model_type or kind.class_name)]
    if not fitting:
        found, known = _class_in(config, kinds[0]), ", ".join(kind.model_type or kind.class_name for kind in kinds)
        raise FolderError(f"{name}/config.json is of a {found}; supported as {name}: {known}.")
    named = [kind for kind in fitting if kind.class_name in (config.get("architectures") or ())]
    return (named or fitting)[0]


def _class_in(config: Config, kind: Kind) -> str | None:
    return config.get("model_type" if kind.model_type else "_class_name")
