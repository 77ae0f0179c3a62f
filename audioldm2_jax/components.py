"""The components of a model folder: which network each one is, and what its config.json has to say.

Under one name there may be networks of several classes: `spec_of` tells by config.json which one a folder holds. A
network's fields carry the names of the keys of config.json, so most of a config goes over as it is. Here is what
remains: the keys by which PyTorch's classes are found and told to compute what our networks compute, what an older
folder may leave out, and the buffers that PyTorch keeps beside the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from audioldm2_jax.checkpoints import buffers, config_json
from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.buffers import Config, Tensors
from audioldm2_jax.checkpoints.parameter_names import NAMES, Names
from audioldm2_jax.models.audiomae import AudioMAE
from audioldm2_jax.models.clap import Clap, ClapText, ClapTextTower
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.hifigan import HifiGan
from audioldm2_jax.models.htsat import ClapAudioTower
from audioldm2_jax.models.phonemes import VitsTextEncoder
from audioldm2_jax.models.projection import ProjectionModel
from audioldm2_jax.models.t5 import T5Encoder
from audioldm2_jax.models.unet import UNet, contexts_per_level
from audioldm2_jax.models.vae import AutoencoderKL

NOT_IN_CONFIG = {"dtype", "remat", "parent", "name"}
"""Fields of modules that are ours to choose, not the folder's."""

LOA_TOKENS = 8
"""How many tokens the language model writes where its config.json has no `max_new_tokens` (diffusers'
default)."""


UNIFIED_PROJECTION = "AudioLDM2UnifiedProjectionModel"
"""The class in config.json of a projection model that joins three texts."""


@dataclasses.dataclass(frozen=True)
class ComponentSpec:
    """One kind of component.

    Attributes:
      network: the module's class.
      library: whose class it is in model_index.json; None for what diffusers does not know.
      class_name: that class.
      dummy_inputs: arguments with which the module's `__call__` makes all its parameters; shapes only matter.
      names: how its tensors are called.
      model_type: what config.json calls it, in transformers.
      from_config: the module's fields from config.json, where a key means something else there.
      to_config: further keys of config.json, from the others and the unused tensors, so that PyTorch's class agrees.
      required: keys with the only value that our network plays; written, and checked on reading where present.
      defaults: keys that are read and that older folders leave out, with the value they had then.
      nested: keys whose value is a config of its own, with the module whose fields it has.
      further: types of the keys that are read and are no fields of the module.
      buffers: what PyTorch stores beside the weights, from the config and the weights' tensors.
      dropped: patterns of unused tensors that came from files of another class and that this class does not have.
    """

    network: type[nn.Module]
    library: str | None
    class_name: str
    dummy_inputs: Callable[[Any], tuple]
    names: Names
    model_type: str | None = None
    from_config: Callable[[Config], Config] = lambda config: config
    to_config: Callable[[Config, Tensors], dict] = lambda config, unused: {}
    required: Config = dataclasses.field(default_factory=dict)
    defaults: Config = dataclasses.field(default_factory=dict)
    nested: Mapping[str, type[nn.Module]] = dataclasses.field(default_factory=dict)
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    buffers: Callable[[Config, Tensors], Tensors] = lambda config, tensors: {}
    dropped: tuple[str, ...] = ()

    @property
    def weights_file(self) -> str:
        """The name of the safetensors file."""
        return "model.safetensors" if self.library == "transformers" else "diffusion_pytorch_model.safetensors"

    @property
    def types(self) -> dict[str, Any]:
        """The types of the keys of config.json that are read (`config_json.mistyped`)."""
        known = _own_types(self.network) | {key: _own_types(network) for key, network in self.nested.items()}
        return known | self.further


def _own_types(network: type[nn.Module]) -> dict[str, Any]:
    return {key: kind for key, kind in config_json.types_of(network).items() if key not in NOT_IN_CONFIG}


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


def _film_says(config: Config, unused: Tensors) -> dict:
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


_VITS = ComponentSpec(
    VitsTextEncoder,
    "transformers",
    "VitsModel",
    lambda encoder: _ids(),
    NAMES["vits"],
    model_type="vits",
    to_config=buffers.vits_config,
    required={"hidden_act": "relu"},
    defaults={
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
    buffers=buffers.vits,
)

SPECS: dict[str, ComponentSpec] = {
    "unet": ComponentSpec(
        UNet,
        "audioldm2",
        "AudioLDM2UNet2DConditionModel",
        _unet_inputs,
        NAMES["unet"],
        # A list here is one entry a level to diffusers.
        to_config=lambda config, unused: {
            "cross_attention_dim": [
                list(contexts)
                for contexts in contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))
            ]
        },
        required={
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
        defaults={"attention_head_dim": 8, "transformer_layers_per_block": 1, "layers_per_block": 2},
        further={"sample_size": int | Sequence[int] | None},
    ),
    "vae": ComponentSpec(
        AutoencoderKL,
        "diffusers",
        "AutoencoderKL",
        lambda vae: (jnp.zeros((1, *[2 ** len(vae.block_out_channels)] * 2, vae.in_channels)),),
        NAMES["vae"],
        to_config=lambda config, unused: {
            "down_block_types": ["DownEncoderBlock2D"] * len(config["block_out_channels"]),
            "up_block_types": ["UpDecoderBlock2D"] * len(config["block_out_channels"]),
        },
        required={
            "act_fn": "silu",
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
        },
        defaults={"norm_num_groups": 32, "scaling_factor": 0.18215},
        further={"scaling_factor": config_json.Scale},
    ),
    "vocoder": ComponentSpec(
        HifiGan,
        "transformers",
        "SpeechT5HifiGan",
        lambda vocoder: (jnp.zeros((1, 8, vocoder.model_in_dim)),),
        NAMES["vocoder"],
        model_type="speecht5_hifigan",
        defaults={"normalize_before": True, "sampling_rate": 16000},
        further={"n_fft": int, "fmin": float, "fmax": float, "compression": float},
        buffers=buffers.vocoder,
    ),
    "language_model": ComponentSpec(
        GPT2,
        "transformers",
        "GPT2LMHeadModel",
        lambda gpt2: (jnp.zeros((1, 1, gpt2.n_embd)), *_ids()[::-1]),
        NAMES["language_model"],
        model_type="gpt2",
        to_config=lambda config, unused: {
            "tie_word_embeddings": True,
            "vocab_size": len(unused.get(buffers.WORD_TABLE, range(buffers.EMPTY_VOCABULARY))),
            "bos_token_id": None,
            "eos_token_id": None,
            "max_new_tokens": config.get("max_new_tokens", LOA_TOKENS),
        },
        required={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        defaults={"layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1},
        further={"max_new_tokens": int | None},
        buffers=buffers.word_table,
        dropped=(r"\.attn\.(masked_)?bias$", r"^lm_head\."),  # tables of older versions, and a second name of wte
    ),
    "projection_model": ComponentSpec(
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
    "text_encoder": ComponentSpec(
        Clap,
        "transformers",
        "ClapModel",
        _clap_inputs,
        NAMES["text_encoder"],
        model_type="clap",
        required={
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
        defaults={
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
        nested={"text_config": ClapTextTower, "audio_config": ClapAudioTower},
        buffers=buffers.clap,
    ),
    "text_encoder_2": ComponentSpec(
        T5Encoder,
        "transformers",
        "T5EncoderModel",
        lambda t5: _ids(),
        NAMES["text_encoder_2"],
        model_type="t5",
        to_config=lambda config, unused: {
            "is_encoder_decoder": False,
            "is_gated_act": True,
            "dense_act_fn": "gelu_new",
            "use_cache": False,
            "pad_token_id": config.get("pad_token_id", 0),
            "eos_token_id": config.get("eos_token_id", 1),
        },
        required={"feed_forward_proj": "gated-gelu"},
        dropped=(r"^decoder\.", r"^lm_head\."),
        defaults={
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": 0.1,
            "layer_norm_epsilon": 1e-6,
        },
    ),
    "audiomae": ComponentSpec(
        AudioMAE,
        None,
        "AudioMAE",
        lambda model: (jnp.zeros((1, *model.img_size)), 0.5, jax.random.split(jax.random.key(0), 1)),
        NAMES["audiomae"],
    ),
    # Of unified models, which diffusers does not have: phonemes beside T5's tokens.
    "text_encoder_3": _VITS,
}
"""What the component of each name is where its config.json does not say otherwise."""

OTHER_SPECS: dict[str, tuple[ComponentSpec, ...]] = {
    # AudioLDM 1, and the authors' 48 kHz model: no states to attend to, CLAP's embedding as class label.
    "unet": (
        dataclasses.replace(
            SPECS["unet"],
            library="diffusers",
            class_name="UNet2DConditionModel",
            from_config=_film_reads,
            to_config=_film_says,
            required={
                **SPECS["unet"].required,
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
        ComponentSpec(
            ClapText,
            "transformers",
            "ClapTextModelWithProjection",
            lambda clap: _ids(),
            NAMES["text_encoder"],
            model_type="clap_text_model",
            required={"hidden_act": "gelu", "projection_hidden_act": "relu"},
            defaults={"projection_dim": 512, **SPECS["text_encoder"].defaults["text_config"]},
            buffers=buffers.clap_text,
        ),
    ),
    # Of unified models. No class of diffusers: AudioLDM2ProjectionModel would leave the third sequence out.
    "projection_model": (
        ComponentSpec(
            ProjectionModel,
            None,
            UNIFIED_PROJECTION,
            lambda model: (
                *SPECS["projection_model"].dummy_inputs(model),
                jnp.zeros((1, 1, model.text_encoder_2_dim)),
                jnp.ones((1, 1), jnp.int32),
            ),
            NAMES["projection_model"],
        ),
    ),
    # Speech: phonemes in the place of T5's tokens.
    "text_encoder_2": (_VITS,),
}
"""What else it may be."""


def spec_of(name: str, config: Config) -> ComponentSpec:
    """The spec of component `name` (a key of `SPECS`), as its config.json says by its class or its `model_type`.

    Raises:
      FolderError: where it is of a class that none of our networks plays.
    """
    specs = (SPECS[name], *OTHER_SPECS.get(name, ()))
    # The class decides, since model_type has changed (that of SpeechT5HifiGan was "hifigan"), or else the type, since
    # classes of one type share their weights (GPT2Model, GPT2LMHeadModel).
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise FolderError(f"{name}/config.json has architectures={architectures!r}; it has to be a list of names.")
    classes = (config.get("_class_name"), *architectures)
    named = [spec for spec in specs if spec.class_name in classes]
    typed = [spec for spec in specs if spec.model_type and spec.model_type == config.get("model_type")]
    if named or typed:
        return (named or typed)[0]
    found = config.get("_class_name") or config.get("model_type")
    if found is None:
        return SPECS[name]
    known = ", ".join(spec.model_type or spec.class_name for spec in specs)
    raise FolderError(f"{name}/config.json is of a {found}; supported as {name}: {known}.")
