"""A model folder of random weights, as small as the architecture allows, for the tests that need a whole one."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.components import UNIFIED_PROJECTION, spec_of
from audioldm2_jax.data import phonemes
from audioldm2_jax.data.text import Tokenizers, train_clap, train_t5
from audioldm2_jax.diffusion.schedule import NoiseSchedule

VOCABULARY = 300
CAPTIONS = [
    "a slow melody on a violin in a minor key",
    "a fast and bright piano duet with soft drums",
    "a low drone of a church organ, calm and dark",
    "two flutes play a cheerful tune at a moderate tempo",
]
SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "v_prediction", steps_offset=1, set_alpha_to_one=False)

CONFIGS = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": ((None, 24, 16), (None, 24, 16)),
        "attention_head_dim": (1, 2),
        "transformer_layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    },
    "vae": {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
    },
    "vocoder": {
        "model_in_dim": 16,
        "sampling_rate": 16000,
        "upsample_initial_channel": 16,
        "upsample_rates": (5, 4, 4, 2),
        "upsample_kernel_sizes": (10, 8, 8, 4),
        "resblock_kernel_sizes": (3,),
        "resblock_dilation_sizes": ((1, 3),),
        "leaky_relu_slope": 0.1,
        "normalize_before": False,
    },
    "language_model": {
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 96,
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "max_new_tokens": 8,
    },
    "projection_model": {"text_encoder_dim": 12, "text_encoder_1_dim": 16, "langauge_model_dim": 24},
    "text_encoder": {
        "projection_dim": 12,
        "logit_scale_init_value": 14.285714285714285,
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 42,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        },
        "audio_config": {
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": (4, 4),
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": (1, 2),
            "num_attention_heads": (1, 2),
            "num_classes": 4,
        },
    },
    "text_encoder_2": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
    },
    "audiomae": {
        "img_size": (64, 32),
        "patch_size": 16,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
    },
}
"""What each config.json says, by component."""

SPEECH_CONFIGS = CONFIGS | {
    "unet": CONFIGS["unet"] | {"cross_attention_dim": ((None, 24), (None, 24))},
    "language_model": CONFIGS["language_model"] | {"max_new_tokens": 12},
    "projection_model": CONFIGS["projection_model"] | {"use_learned_position_embedding": True, "max_seq_length": 60},
    "text_encoder_2": {
        "model_type": "vits",
        "vocab_size": 183,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": 4,
        "use_bias": True,
        "ffn_dim": 24,
        "ffn_kernel_size": 3,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "layer_norm_eps": 1e-5,
    },
}
"""The speech variant: phonemes in the place of T5's tokens, and the UNet attends to the LOA alone."""

UNIFIED_CONFIGS = CONFIGS | {
    "language_model": CONFIGS["language_model"] | {"n_positions": 144, "max_new_tokens": 12},
    "projection_model": SPEECH_CONFIGS["projection_model"]
    | {"_class_name": UNIFIED_PROJECTION, "text_encoder_2_dim": 16},
    "text_encoder_3": SPEECH_CONFIGS["text_encoder_2"],
}
"""A unified model: phonemes beside T5's tokens."""

FILM_CONFIGS = {name: CONFIGS[name] for name in ("vae", "vocoder")} | {
    "unet": CONFIGS["unet"]
    | {
        "_class_name": "UNet2DConditionModel",
        "cross_attention_dim": (None,),
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 12,
        "class_embeddings_concat": True,
    },
    "text_encoder": CONFIGS["text_encoder"]["text_config"] | {"model_type": "clap_text_model", "projection_dim": 12},
}
"""AudioLDM 1: CLAP's embedding of the caption is the UNet's class label, and there is nothing else."""


def random_variables(name: str, config: dict, seed: int = 0, vocoder_gain: float = 2.0) -> dict:
    """Variables of component `name`, all leaves different from what an initialiser would give.

    vocoder_gain: such that a waveform depends on its mel, and does not yet saturate.
    """
    module = model_folder.build(name, config)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *spec_of(name, config).dummy_inputs(module)))
    rng = np.random.default_rng(seed)
    gain = vocoder_gain if name == "vocoder" else 1  # elsewhere it would make rounding errors grow

    def draw(path, leaf):
        keys = [part.key for part in path]
        noise = rng.standard_normal(leaf.shape, np.float32)
        if keys[-1] in ("scale", "var"):
            return 1 + 0.2 * np.abs(noise)
        if keys[-1] in ("kernel", "embedding") and leaf.ndim > 1:
            return gain * noise / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        return 0.1 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_networks(path: Path, configs: Mapping[str, dict] = CONFIGS) -> Path:
    """Writes networks, the scheduler and CLAP's front end."""
    for number, (name, config) in enumerate(configs.items()):
        model_folder.write_component(path, name, config, random_variables(name, config, number))
    model_folder.write_scheduler(path, SCHEDULE)
    model_folder.write_feature_extractor(
        path, sampling_rate=48000, seconds=0.64, n_fft=1024, hop_length=480, n_mels=16, fmin=50.0, fmax=14000.0
    )
    return path


def write_model(path: Path) -> Path:
    """Writes a whole model folder."""
    write_networks(path)
    tokenizers = Tokenizers(train_clap(CAPTIONS, VOCABULARY, 40), train_t5(CAPTIONS, VOCABULARY, 40))
    tokenizers.save(path)
    model_index.write(path)
    return path


def write_speech_model(path: Path) -> Path:
    """Writes a whole model folder of the speech variant; a transcription has 60 phonemes at most."""
    write_networks(path, SPEECH_CONFIGS)
    train_clap(CAPTIONS, VOCABULARY, 40).save(path / "tokenizer")
    length = SPEECH_CONFIGS["projection_model"]["max_seq_length"]
    phonemes.write_tokenizer(path / "tokenizer_2", phonemes.AUTHORS._replace(length=length))
    model_index.write(path)
    return path


def write_unified_model(path: Path) -> Path:
    """Writes a whole model folder of a unified model; a transcription has 60 phonemes at most."""
    write_networks(path, UNIFIED_CONFIGS)
    table = phonemes.AUTHORS._replace(length=UNIFIED_CONFIGS["projection_model"]["max_seq_length"])
    texts = train_clap(CAPTIONS, VOCABULARY, 40), train_t5(CAPTIONS, VOCABULARY, 40)
    Tokenizers(*texts, phonemes.PhonemeTokenizer(table)).save(path)
    model_index.write(path)
    return path


def write_film_model(path: Path) -> Path:
    """Writes a whole model folder of AudioLDM 1."""
    write_networks(path, FILM_CONFIGS)
    train_clap(CAPTIONS, VOCABULARY, 40).save(path / "tokenizer")
    model_index.write(path)
    return path
