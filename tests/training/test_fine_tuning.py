"""Going on from a whole model folder: the recipe becomes that of the folder, and the joint stage trains its weights."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_cache import cache
from huggingface_hub import constants
from smallest import Said, get_config
from tiny_folder import (
    CONFIGS,
    SCHEDULE,
    SPEECH_CONFIGS,
    random_variables,
    write_film_model,
    write_model,
    write_speech_model,
)

from audioldm2_jax import recipe_check, recipes
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.data.text import open_tokenizers
from audioldm2_jax.recipe_components import recipe_parts
from audioldm2_jax.training import fine_tuning, lineage, run, stage_settings
from audioldm2_jax.training.run import RunError

# Attention in the middle alone: the UNet is what takes longest to compile.
UNET = CONFIGS["unet"] | {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("model"))
    model_folder.write_component(path, "unet", UNET, random_variables("unet", UNET, 9))
    return path


def test_the_recipe_becomes_that_of_the_folder(model):
    config = recipes.get("base")
    config.init_from.model = str(model)
    given = config.to_dict()
    resolved, changes = fine_tuning.resolve(config)
    assert config.to_dict() == given
    config = resolved
    for name in ("unet", "vae", "language_model", "text_encoder_2"):
        for key, value in (CONFIGS | {"unet": UNET})[name].items():
            if key in config.models[name]:
                assert config.models[name][key] == value, key
    assert config.models.text_encoder.text_config.vocab_size == CONFIGS["text_encoder"]["text_config"]["vocab_size"]
    assert config.scheduler.prediction_type == SCHEDULE.prediction_type == "v_prediction"
    assert config.audio.mel.n_mels == 16 and config.audio.seconds == 0.16 and config.audio.clap.seconds == 0.64
    assert config.loa.pooling == 1 and config.audio.fbank.frames == CONFIGS["audiomae"]["img_size"][0]
    assert {config.init_from[name] for name in recipe_parts(config)} == {str(model)}
    assert "scheduler.prediction_type: epsilon → v_prediction" in changes
    with pytest.raises(AttributeError, match="locked"):
        config.models.unet.another = 1
    assert fine_tuning.resolve(recipes.get("base")) == (recipes.get("base"), [])


def test_one_number_of_heads_for_all_levels(model, tmp_path):
    """As in diffusers' converted folders; the recipe has one for each of its levels, which are not the folder's."""
    for part in model.iterdir():
        if part.name != "unet":
            (tmp_path / part.name).symlink_to(part)
    unet = UNET | {"attention_head_dim": 2}
    model_folder.write_component(tmp_path, "unet", unet, random_variables("unet", unet, 9))
    config = recipes.get("base")
    config.init_from.model = str(tmp_path)
    config, _ = fine_tuning.resolve(config)
    assert config.models.unet.attention_head_dim == (2, 2)


def test_what_the_folder_lacks_stays(model, tmp_path):
    """diffusers' folders have no AudioMAE; it is named beside."""
    for part in model.iterdir():
        if part.name != "audiomae":
            (tmp_path / part.name).symlink_to(part)
    config = get_config()
    other = tmp_path / "other"
    model_folder.write_component(other, "vae", CONFIGS["vae"], random_variables("vae", CONFIGS["vae"], 5))
    config.init_from.update(model=str(tmp_path), audiomae=str(model), vae=str(other))
    config, _ = fine_tuning.resolve(config)
    assert config.init_from.audiomae == str(model) and config.init_from.unet == str(tmp_path)
    assert config.init_from.vae == str(other)  # named beside the model, though that has one


def test_a_hub_id_stays_one(model, tmp_path, monkeypatch):
    """Where this machine's cache has it is no part of the recipe, which another machine compares with its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings, shown = [], []
    for name in ("one", "other"):
        cache(tmp_path / name, "someone/music", model)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name))
        config = get_config()
        config.run_dir, config.init_from.model, config.stages = str(tmp_path / "run"), "someone/music", "joint"
        config, _ = fine_tuning.resolve(config)
        assert {config.init_from[part] for part in recipe_parts(config)} == {"someone/music"}
        assert config.text.t5_tokenizer == "someone/music/tokenizer_2"
        settings.append(stage_settings.settings(config, "joint"))
        lineage.stage_folder(config, "joint").mkdir(parents=True, exist_ok=True)
        lineage.write(config, "joint")
        shown.append(lineage.read(config, "joint"))
        assert model_folder.read_component(config.init_from.vae, "vae").config
    assert settings[0] == settings[1] and shown[0] == shown[1]
    assert shown[0]["inputs"]["vae"] == {"from": "someone/music", "digest": lineage.digest(str(model), "vae")}


def test_paths_that_cannot_be_served():
    config = get_config()
    config.run_dir = "hdfs://host/run"
    with pytest.raises(ValueError, match=r"--config.run_dir=hdfs://host/run: hdfs:// is not served"):
        fine_tuning.resolve(config)
    config.run_dir = "~/run"
    assert fine_tuning.resolve(config)[0].run_dir == str(Path.home() / "run")


def test_training_goes_on(model, tmp_path):
    config = get_config()
    config.run_dir = str(tmp_path)
    config.init_from.model = str(model)
    config.stages = "joint"
    config.train.joint.update(steps=2, warmup=0, learning_rate=1e-4)
    config, _ = fine_tuning.resolve(config)
    run.prepare(config)
    run.train_stage(config, "joint", Said())
    published = run.publish(config)
    for name in ("vae", "vocoder", "unet", "language_model"):
        before, after = (model_folder.read_component(path, name).variables["params"] for path in (model, published))
        moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)))
        # Two steps of Adam move a weight by 1e-4 each at most; the EMA has not seen all of it.
        assert moved == 0 if name in ("vae", "vocoder") else 1e-6 < moved < 1e-3, name
    assert model_folder.read_scheduler(published)[0].prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("write", "recipe", "found", "trained"),
    [
        (write_speech_model, "base", "VitsModel", "base trains a T5EncoderModel"),
        (write_film_model, "base", "UNet2DConditionModel", "base trains a AudioLDM2UNet2DConditionModel"),
        (write_model, "speech-base", "T5EncoderModel", "speech-base trains a VitsModel"),
    ],
)
def test_models_of_another_kind(write, recipe, found, trained, tmp_path):
    config = recipes.get(recipe)
    config.init_from.model = str(write(tmp_path))
    with pytest.raises(FolderError, match=rf"is a {found}, and the recipe {trained}"):
        fine_tuning.resolve(config)


def test_a_vae_of_other_mels_is_refused(model, tmp_path):
    """It has no word of them: the vocoder beside it tells, or the settings of the stage that made it."""
    config = get_config()
    config.run_dir, config.stages = str(tmp_path / "run"), "audiomae,diffusion"
    config.init_from.vae = str(model)  # of logarithms; so is not the tiny recipe
    with pytest.raises(RunError, match=r"compression: 0.0, here 0.5.*set --config.audio.mel.compression=0.0") as caught:
        run.prepare(config)
    assert not (tmp_path / "run/stages").exists() and "hop_length" not in str(caught.value)
    config.audio.mel.compression = 0.0
    run.prepare(config)

    stage = tmp_path / "other/stages/vae"
    config.init_from.vae = str(stage / "result")
    model_folder.write_component(stage / "result", "vae", CONFIGS["vae"], random_variables("vae", CONFIGS["vae"], 5))
    run.prepare(config)  # nothing is known of it
    settings = {f"audio.mel.{key}": value for key, value in config.audio.mel.items()} | {"audio.mel.hop_length": 320}
    (stage / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"audio.mel.hop_length: 320, here 160"):
        run.prepare(config)


def test_a_vocoder_of_other_mels_is_refused_whatever_its_folder_is_called(model, tmp_path):
    """No stage reads it, but it would be published beside a VAE of the recipe's mels."""
    config = get_config()
    config.run_dir, config.stages = str(tmp_path / "run"), "audiomae"
    config.init_from.vocoder = str((tmp_path / "hifigan").resolve())
    shutil.copytree(model / "vocoder", tmp_path / "hifigan")
    with pytest.raises(RunError, match=r"init_from.vocoder=/.*hifigan is of other mels .*audio.mel.compression=0.0"):
        run.prepare(config)


@pytest.mark.parametrize("part", ["vae", "vocoder"])
def test_mels_on_the_hub_are_compared(model, tmp_path, monkeypatch, part):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache(tmp_path / "hub", "someone/music", model)))
    config = get_config()
    config.run_dir = str(tmp_path / "run")
    config.stages = "audiomae,diffusion" if part == "vae" else "vocoder"
    config.init_from[part] = "someone/music"
    with pytest.raises(RunError, match=rf"init_from.{part}=someone/music is of other mels .*compression: 0.0, here"):
        run.prepare(config)
    config.audio.mel.compression = 0.0
    run.prepare(config)


@pytest.mark.parametrize("hub", [False, True])
def test_a_model_of_speech_is_gone_on_from_with_a_recipe_of_speech(hub, tmp_path, monkeypatch):
    """Its phonemes are the folder's, as many as its table of positions has."""
    folder = write_speech_model(tmp_path / "model")
    gpt2 = SPEECH_CONFIGS["language_model"] | {"max_new_tokens": 8}  # as many as AudioMAE's grid has
    model_folder.write_component(folder, "language_model", gpt2, random_variables("language_model", gpt2, 3))
    table = json.loads((folder / "tokenizer_2/vocab.json").read_text())
    table["a"], table["b"] = table["b"], table["a"]
    (folder / "tokenizer_2/vocab.json").write_text(json.dumps(table))
    config = recipes.get("speech-base")
    config.init_from.model = str(folder)
    if hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        cache(tmp_path / "hub", "someone/speech", folder)
        config.init_from.model = "someone/speech"
    config, _ = fine_tuning.resolve(config)
    assert config.text.phoneme_length == 60 and config.models.text_encoder_2.hidden_size == 16
    assert config.models.unet.cross_attention_dim == ((None, 24), (None, 24))
    assert {config.init_from[name] for name in recipe_parts(config)} == {config.init_from.model}
    with config.unlocked():
        config.text.clap_length = 40  # as many as the folder's CLAP has room for
    recipe_check.check(config, ["joint"])
    tokenizers = open_tokenizers(config.text, kinds=("clap", "phoneme"))
    ids, mask = tokenizers.by_kind["phoneme"](["a bee"])
    assert ids.shape == mask.shape == (1, 60) and tokenizers.by_kind["phoneme"].table.ids == table
