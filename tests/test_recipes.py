"""Recipes: locked, complete, and of the paper's sizes.

Parameters are counted without allocating any; counts are exact (paper, tables of the released checkpoints).
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.recipe_components import build_from_recipe, recipe_spec
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import optim

NAMES = (
    *("tiny", "small", "base", "large", "48k", "speech-tiny", "speech-base", "speech-large"),
    *("unified-tiny", "unified-base", "unified-large"),
)


@pytest.mark.parametrize("name", NAMES)
def test_locked_with_the_nearest_name(name):
    config = recipes.get(name)
    assert config.recipe == name
    with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
        config.train.vae.learning_rat = 1.0
    with pytest.raises(AttributeError, match='Did you mean "sampling_rate"'):
        _ = config.audio.samplin_rate
    with pytest.raises(TypeError):
        config.train.vae.steps = "many"


def test_unknown_recipe():
    with pytest.raises(
        ValueError, match="unknown recipe 'huge'; the recipes are tiny, small, base, large, 48k, speech-tiny"
    ):
        recipes.get("huge")


def keys(config: ConfigDict, path: tuple = ()) -> set:
    found = set()
    for key, value in config.items():
        found |= keys(value, (*path, key)) if isinstance(value, ConfigDict) else {(*path, key)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_all_recipes_have_the_same_knobs(name):
    """But for the second text encoder, which is another network in the recipes of speech, and the third of unified."""
    second = ("models", "text_encoder_2")

    def others(config: ConfigDict) -> set:
        return {key for key in keys(config) if key[:2] != second and "text_encoder_3" not in " ".join(key)}

    config = recipes.get(name)
    assert others(config) == others(recipes.get("base"))
    like = recipes.get("speech-base" if name.startswith("speech-") else "base")
    assert keys(config.models.text_encoder_2) == keys(like.models.text_encoder_2)
    third = {key for key in keys(config) if "text_encoder_3" in " ".join(key)}
    phonemes = keys(recipes.get("speech-base").models.text_encoder_2, ("models", "text_encoder_3"))
    trained = {("train", stage, "train_text_encoder_3") for stage in ("language_model", "joint")}
    unified = phonemes | trained | {("init_from", "text_encoder_3")}
    assert third == (unified if name.startswith("unified-") else set())


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_make_sense(name):
    config = recipes.get(name)
    assert set(config.train) == set(STAGES)
    assert set(config.stages.split(",")) <= set(STAGES)
    clip = round(config.audio.seconds * config.audio.sampling_rate)
    frames = clip / config.audio.mel.hop_length
    assert frames == int(frames) and config.train.vae.crop_frames <= frames
    assert np.prod(config.models.vocoder.upsample_rates) == config.audio.mel.hop_length
    # transformers' ClapFeatureExtractor, and with it diffusers' ranking of clips, takes whole seconds alone.
    assert config.audio.clap.seconds == int(config.audio.clap.seconds)
    assert config.models.vae.latent_channels == config.models.unet.in_channels == config.models.unet.out_channels
    widths = jax.tree.leaves(config.models.unet.cross_attention_dim)
    speech = name.startswith("speech-")
    text_width = set() if speech else {config.models.text_encoder_2.d_model}
    assert set(widths) == {config.models.language_model.n_embd} | text_width
    assert config.models.language_model.n_embd == config.models.audiomae.embed_dim
    assert config.loa.pooling in config.loa.training_poolings
    grid = [size // config.models.audiomae.patch_size for size in config.models.audiomae.img_size]
    tokens = grid[0] // config.loa.pooling * (grid[1] // min(config.loa.pooling, grid[1]))
    texts = sum(config.text[f"{kind}_length"] + 2 for kind in text_kinds(config)[1:])
    assert 3 + texts + tokens <= config.models.language_model.n_positions
    for stage in config.train.values():
        rate = optim.learning_rate(stage)
        assert 0 <= float(rate(stage.steps)) <= stage.learning_rate * 1.001
        assert stage.warmup < stage.steps and stage.batch_size % stage.accumulate == 0


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def shape(config: ConfigDict, name: str) -> dict:
    """Shapes of a network as the recipe trains it from nothing."""
    module = build_from_recipe(config, name)
    inputs = recipe_spec(config, name).dummy_inputs(module)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("base", {"vae": 55_376_873, "unet": 346_943_496, "vocoder": 55_264_897}),
        ("large", {"vae": 55_376_873, "unet": 718_012_296, "vocoder": 55_264_897}),
        ("48k", {"vae": 223_535_569, "vocoder": 190_281_889}),
        ("speech-base", {"vae": 55_376_873, "unet": 261_926_536, "vocoder": 55_264_897}),
    ],
)
def test_sizes_are_the_papers(name, wanted):
    config = recipes.get(name)
    # The vocoder's `mean` and `scale` are inputs' statistics in its file, and no parameters of ours.
    assert {part: count(shape(config, part)) for part in wanted} == wanted


def test_language_model_of_base_is_gpt2_without_its_words():
    config = recipes.get("base")
    assert count(shape(config, "language_model")) == 124_439_808 - 50_257 * 768
    assert count(shape(config, "projection_model")) == 1_184_256
    assert count(shape(config, "text_encoder_2")) == 341_231_104


def test_the_phonemes_of_speech():
    """Positions of 310 phonemes, 192 wide, beside the projections of both texts and their ends; 6.3M in the encoder."""
    config = recipes.get("speech-base")
    projections = (512 + 1) * 768 + (192 + 1) * 768 + 4 * 768
    assert count(shape(config, "projection_model")) == projections + 192 * 310
    assert round(count(shape(config, "text_encoder_2")) / 1e6, 1) == 6.3


def test_a_unified_model_is_the_full_one_with_the_phonemes_of_speech():
    config, full, speech = (recipes.get(name) for name in ("unified-base", "base", "speech-base"))
    for name in ("unet", "vae", "vocoder", "text_encoder", "text_encoder_2", "language_model"):
        assert config.models[name] == full.models[name]
    assert config.models.text_encoder_3 == speech.models.text_encoder_2
    assert config.loa == speech.loa and config.train.joint.true_loa_share == speech.train.joint.true_loa_share
    assert not config.train.joint.train_text_encoder_2  # T5 comes pretrained
    own = count(shape(config, "projection_model")) - count(shape(full, "projection_model"))
    assert own == (192 + 1) * 768 + 2 * 768 + 192 * 310


def config_file(name: str):
    path = Path(__file__).parents[1] / "configs" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "recipe, source", [("tiny", "builtin:music"), ("small", "builtin:music"), ("base", ""), ("large", ""), ("48k", "")]
)
def test_music(recipe, source):
    music = config_file("music.py")
    config = music.get_config(recipe)
    assert config.recipe == recipe and config.data.source == source and config.is_locked
    assert music.get_config().recipe == "tiny"


@pytest.mark.parametrize("recipe, source", [("tiny", "builtin:speech"), ("base", ""), ("large", "")])
def test_speech(recipe, source):
    speech = config_file("speech.py")
    config = speech.get_config(recipe)
    assert config.recipe == f"speech-{recipe}" and config.data.source == source and config.is_locked
    assert speech.get_config().recipe == "speech-tiny"


@pytest.mark.parametrize(
    "asked, recipe, source",
    [
        ("tiny", "tiny", "builtin:music;builtin:speech;builtin:audio"),
        ("base", "base", ""),
        ("unified", "unified-tiny", "builtin:music;builtin:speech;builtin:audio"),
        ("unified-base", "unified-base", ""),
        ("unified-large", "unified-large", ""),
    ],
)
def test_full(asked, recipe, source):
    config = config_file("full.py").get_config(asked)
    assert config.recipe == recipe and config.data.source == source and config.is_locked
