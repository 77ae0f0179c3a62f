"""The recipe `tiny`, shrunk until a stage compiles in seconds; its networks are those of `tiny_folder`.

Also a config file: `--config tests/smallest.py`, and `tests/smallest.py:speech` for speech, `…:unified` for all kinds.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tiny_folder import CONFIGS, SPEECH_CONFIGS, UNIFIED_CONFIGS, VOCABULARY, random_variables, write_networks

from audioldm2_jax import recipes
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.data.phonemes import END
from audioldm2_jax.recipe_components import recipe_fields
from audioldm2_jax.stages import STAGES, Stage
from audioldm2_jax.training import stage_settings

SAMPLES = 10240
TOKENS = 12
PHONEMES = 48
STEPS = 4
# Components that `config.models` describes.
NETWORKS = (
    *("audiomae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("language_model", "vae", "unet", "vocoder"),
)
_KINDS = {
    "music": ("tiny", CONFIGS, "builtin:music"),
    "speech": ("speech-tiny", SPEECH_CONFIGS, "builtin:speech"),
    "unified": ("unified-tiny", UNIFIED_CONFIGS, "builtin:music;builtin:speech;builtin:audio"),
}

EMPTY_TEXT = {
    "clap_ids": np.array([[0, 2] + [1] * (TOKENS - 2)], np.int32),
    "clap_mask": np.array([[1, 1] + [0] * (TOKENS - 2)], np.int32),
    "t5_ids": np.array([[1] + [0] * (TOKENS - 1)], np.int32),
    "t5_mask": np.array([[1] + [0] * (TOKENS - 1)], np.int32),
    "phoneme_ids": np.zeros((1, PHONEMES), np.int32),
    "phoneme_mask": np.zeros((1, PHONEMES), np.int32),
}


def get_config(kind: str = "music") -> ConfigDict:
    """Every stage in four steps of two clips of 0.64 s, of speech 2.56 s; the discriminators start in the middle."""
    recipe, configs, source = _KINDS[kind]
    speaks = kind != "music"
    config = recipes.get(recipe)
    config.side_by_side = 1
    config.compilation_cache = "off"
    config.data.update(source=source, threads=1, prefetch=1, examples=64)
    config.audio.seconds = SAMPLES / 16000
    config.audio.mel.update(hop_length=160, n_mels=16)
    config.audio.fbank.update(frames=64, n_mels=32)
    config.audio.clap.update(seconds=0.63, n_mels=16)
    config.text.update(clap_length=TOKENS, t5_length=TOKENS, phoneme_length=PHONEMES, vocabulary=VOCABULARY)
    config.loa.update(pooling=1 if speaks else 2, training_poolings=(1,) if speaks else (1, 2))
    for name in [name for name in NETWORKS if name in config.models]:
        fields = config.models[name]
        fields.update({key: value for key, value in configs[name].items() if key in fields})
    if speaks:  # there is no saying much in 0.64 s
        config.audio.seconds = 2.56
        config.audio.fbank.frames = 256
        config.models.audiomae.img_size = (256, 32)
    # Attention in the middle alone: the UNet is what takes longest to compile.
    config.models.unet.update(
        cross_attention_dim=(None, 24) if kind == "speech" else (None, 24, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    config.models.language_model.n_layer = 1
    config.models.text_encoder.audio_config.update(depths=(1, 1))
    config.models.patch_discriminator.widths = (4, 8)
    config.models.period_discriminator.update(periods=(2, 3), channels=(4, 4))
    config.models.scale_discriminator.update(scales=2, channels=(4, 4), groups=(1, 1))
    for stage in config.train.values():
        stage.update(steps=STEPS, batch_size=2, warmup=2, log_every=1, save_every=2, sample_every=0)
        stage.update(heldout_every=2, heldout_clips=2)
    config.train.clap.batch_size = 4
    config.train.vae.update(learning_rate=1e-3, crop_frames=32, crops=1, discriminator_start=2)
    config.train.vocoder.update(segment_samples=3200, crops=1, discriminator_start=2)
    config.samples.update(clips=2, steps=2)
    return config


def starting_from_sound(kind: str, folder: Path) -> ConfigDict:
    """The recipe `kind` without the stages that learn of sound alone: it starts from networks written to `folder`."""
    config = get_config(kind)
    config.stages = "diffusion,language_model,joint"
    configs = {name: _KINDS[kind][1][name] for name in ("audiomae", "text_encoder", "vae", "vocoder")}
    configs["audiomae"] = configs["audiomae"] | {"img_size": config.models.audiomae.img_size}
    write_networks(folder, configs)
    config.init_from.update(dict.fromkeys(configs, str(folder)))
    config.audio.mel.compression = 0.0  # as the vocoder there has it
    return config


def components(stage: type[Stage], config: ConfigDict) -> dict[str, model_folder.Component]:
    """What `stage` reads, with random weights."""
    found = {}
    for number, name in enumerate((*stage.needs(config), *stage.continues(config))):
        own = recipe_fields(config, name)
        fields = own if "model_type" in own else CONFIGS[name] | own
        found[name] = model_folder.Component(
            model_folder.build(name, fields), random_variables(name, fields, number), fields
        )
    return found


def build(name: str, config: ConfigDict) -> Stage:
    """The stage `name` on random components."""
    return STAGES[name](stage_settings.part(config, name), components(STAGES[name], config), EMPTY_TEXT)


def batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """All keys of a batch: noise, captions of differing length, one clip in four without a caption."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, TOKENS + 1, (2, size, 1))
    masks = (np.arange(TOKENS) < lengths).astype(np.int32)
    ids = rng.integers(3, VOCABULARY, (2, size, TOKENS), np.int32) * masks
    return {
        "waveform": 0.1 * rng.standard_normal((size, SAMPLES), np.float32),
        "clap_ids": np.where(masks[0], ids[0], 1),
        "clap_mask": masks[0],
        "t5_ids": ids[1],
        "t5_mask": masks[1],
        "phoneme_ids": np.pad(ids[1] % END, ((0, 0), (0, PHONEMES - TOKENS))),
        "phoneme_mask": np.pad(masks[1], ((0, 0), (0, PHONEMES - TOKENS))),
        "captioned": np.arange(size) % 4 != 3,
        "transcribed": np.arange(size) % 4 != 3,
    }


def batches(stage: Stage):
    """The stage's data: a function of the step, as the pipeline's is."""

    def start(step: int) -> Iterator[dict[str, np.ndarray]]:
        while True:
            made = batch(stage.hparams.batch_size, step)
            yield {key: made[key] for key in stage.batch_fields}
            step += 1

    return start


class Said:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.reports, self.lines = [], []

    def report(self, report) -> None:
        self.reports.append(report)

    def say(self, text: str) -> None:
        self.lines.append(text)


def same(first, second) -> None:
    """Fails unless two trees are equal to the bit."""
    first, second = jax.device_get((first, second))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second)):
        assert np.array_equal(a, b, equal_nan=True), jax.tree_util.keystr(path)
