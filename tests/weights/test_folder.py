"""The model folder: PyTorch's classes read every component that we write, and we read it back bit by bit."""

import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.audioldm2 import modeling_audioldm2
from safetensors.numpy import load_file
from tiny_folder import CONFIGS, SCHEDULE, random_variables, write_networks

from audioldm2_jax import recipes
from audioldm2_jax.weights import folder, tensors
from audioldm2_jax.weights.folder import FolderError
from audioldm2_jax.weights.names import NAMES, to_torch

LIBRARIES = {"transformers": transformers, "diffusers": diffusers, "audioldm2": modeling_audioldm2}
TWINNED = tuple(name for name in folder.PARTS if name != "audiomae")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


@pytest.mark.parametrize("name", TWINNED)
def test_pytorch_reads_every_key(model, name):
    kind = folder.KINDS[name]
    twin, info = getattr(LIBRARIES[kind.library], kind.class_name).from_pretrained(
        model / name, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    state = twin.state_dict()
    for key, value in to_torch(random_variables(name, CONFIGS[name], folder.PARTS.index(name)), NAMES[name]).items():
        assert torch.equal(state[key], torch.tensor(value)), key


@pytest.mark.parametrize("name", folder.PARTS)
def test_round_trip(model, tmp_path, name):
    part = folder.read_component(model, name)
    expected = random_variables(name, CONFIGS[name], folder.PARTS.index(name))
    jax.tree.map(np.testing.assert_array_equal, part.variables, expected)
    assert part.module == folder.build(name, CONFIGS[name])
    hash(part.module)
    folder.write_component(tmp_path, name, part.config, part.variables, part.passengers)
    again = folder.read_component(tmp_path, name)
    assert again.config == part.config
    files = [load_file(path / name / folder.KINDS[name].weights_file) for path in (model, tmp_path)]
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])


@pytest.mark.parametrize("name", TWINNED)
def test_reads_what_pytorch_writes(model, tmp_path, name):
    """The config.json of today's transformers and diffusers, which leave out or add keys, and single tensors."""
    kind = folder.KINDS[name]
    twin = getattr(LIBRARIES[kind.library], kind.class_name).from_pretrained(model / name)
    twin.save_pretrained(tmp_path / name)
    theirs, ours = folder.read_component(tmp_path, name), folder.read_component(model, name)
    jax.tree.map(np.testing.assert_array_equal, theirs.variables, ours.variables)
    assert theirs.module == ours.module or name == "text_encoder"  # CLAP's nested configs hold more keys


def test_a_component_folder_reads_and_copies_alone(model, tmp_path):
    ours = folder.read_component(model, "vocoder")
    alone = folder.read_component(model / "vocoder", "vocoder")
    jax.tree.map(np.testing.assert_array_equal, alone.variables, ours.variables)
    folder.copy_component(model / "vocoder", tmp_path, "vocoder")
    assert (model / "vocoder" / "config.json").read_bytes() == (tmp_path / "vocoder" / "config.json").read_bytes()
    # A folder of others is written anew, here with what its config leaves out.
    foreign = shutil.copytree(model / "vae", tmp_path / "foreign")
    (foreign / folder.MANIFEST).unlink()
    config = json.loads((foreign / "config.json").read_text())
    del config["act_fn"]
    (foreign / "config.json").write_text(json.dumps(config))
    folder.copy_component(foreign, tmp_path, "vae")
    assert folder.read_component(tmp_path, "vae").config["act_fn"] == "silu"


def test_contexts_are_written_for_every_level(tmp_path):
    """diffusers takes a list for one entry a level; the recipes name the contexts once."""
    config = CONFIGS["unet"] | {"cross_attention_dim": (None, 24, 16)}
    folder.write_component(tmp_path, "unet", config, random_variables("unet", config))
    assert folder.read_component(tmp_path, "unet").module == folder.build("unet", CONFIGS["unet"])


FILM = CONFIGS["unet"] | {
    "_class_name": "UNet2DConditionModel",
    "cross_attention_dim": (None,),
    "class_embed_type": "simple_projection",
    "projection_class_embeddings_input_dim": 12,
    "class_embeddings_concat": True,
}


def test_a_unet_with_class_labels_alone(tmp_path):
    """Its contexts are written as the levels' own widths, which diffusers needs and attends past."""
    variables = random_variables("unet", FILM)
    folder.write_component(tmp_path, "unet", FILM, variables)
    twin, info = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert twin.config.cross_attention_dim == [8, 16]
    twin.save_pretrained(tmp_path / "theirs" / "unet")
    for path in (tmp_path, tmp_path / "theirs"):
        read = folder.read_component(path, "unet")
        assert read.module == folder.build("unet", FILM)
        jax.tree.map(np.testing.assert_array_equal, read.variables, variables)
        folder.write_component(tmp_path / "again", "unet", read.config, read.variables)
        again = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())
        assert again["_class_name"] == "UNet2DConditionModel" and again["cross_attention_dim"] == [8, 16]


def test_a_plain_unet_with_states_has_one_context_a_level(tmp_path):
    crossed = CONFIGS["unet"] | {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 12}
    assert folder.build("unet", crossed).cross_attention_dim == 12
    with pytest.raises(FolderError, match="has one context a level"):
        folder.write_component(tmp_path, "unet", CONFIGS["unet"] | {"_class_name": "UNet2DConditionModel"}, {})


def test_a_component_of_an_unknown_class():
    with pytest.raises(FolderError, match=r"of a UNet1DModel; supported as unet: AudioLDM2.*, UNet2DConditionModel"):
        folder.build("unet", CONFIGS["unet"] | {"_class_name": "UNet1DModel"})
    with pytest.raises(FolderError, match=r"of a bert; supported as text_encoder_2: t5"):
        folder.build("text_encoder_2", CONFIGS["text_encoder_2"] | {"model_type": "bert"})


def test_the_word_table_travels_along(model, tmp_path):
    part = folder.read_component(model, "language_model")
    table = np.ones((5, CONFIGS["language_model"]["n_embd"]), np.float32)
    folder.write_component(tmp_path, "language_model", part.config, part.variables, {"transformer.wte.weight": table})
    again = folder.read_component(tmp_path, "language_model")
    np.testing.assert_array_equal(again.passengers["transformer.wte.weight"], table)
    assert again.config["vocab_size"] == 5 and again.config["max_new_tokens"] == 4


def test_a_whole_t5_becomes_an_encoder(model, tmp_path):
    """What is published loads without unexpected keys, though its source held a decoder too."""
    part = folder.read_component(model, "text_encoder_2")
    foreign = {
        "decoder.final_layer_norm.weight": np.ones(16, np.float32),
        "lm_head.weight": np.ones((4, 16), np.float32),
    }
    folder.write_component(tmp_path, "text_encoder_2", part.config, part.variables, foreign)
    assert not folder.read_component(tmp_path, "text_encoder_2").passengers


def test_scheduler_and_feature_extractor(model):
    assert folder.read_scheduler(model) == (SCHEDULE, "DDIMScheduler")
    theirs = diffusers.DDIMScheduler.from_pretrained(model / "scheduler")
    assert theirs.config.prediction_type == "v_prediction" and theirs.config.steps_offset == 1
    extractor = transformers.ClapFeatureExtractor.from_pretrained(model / "feature_extractor")
    assert extractor.nb_max_samples == 30720 and extractor.truncation == "rand_trunc"
    assert (extractor.frequency_min, extractor.frequency_max) == (50, 14000)
    read = folder.read_feature_extractor(model)
    assert (read.samples, read.fmin, read.fmax) == (30720, 50.0, 14000.0)
    assert (read.sampling_rate, read.n_fft) == (extractor.sampling_rate, extractor.fft_window_size)
    assert (read.hop_length, read.n_mels) == (extractor.hop_length, extractor.feature_size)


def test_transformers_hears_clips_by_the_papers_feature_extractor(tmp_path):
    folder.write_feature_extractor(tmp_path, **recipes.get("base").audio.clap)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(tmp_path / "feature_extractor")
    for samples in (4000, 500_000):  # to be padded, to be cut
        heard = extractor(np.zeros(samples, np.float32), sampling_rate=48000, return_tensors="np")
        assert heard["input_features"].shape == (1, 1, 1001, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_extractor_type": "EncodecFeatureExtractor"}, "says EncodecFeatureExtractor; only Clap"),
        ({"feature_size": None}, "says nothing of 'feature_size'"),
        ({"frequency_max": 48000}, "mel bands need"),
    ],
)
def test_a_feature_extractor_of_another_kind(copy, change, message):
    file = copy / "feature_extractor" / "preprocessor_config.json"
    config = {key: value for key, value in (json.loads(file.read_text()) | change).items() if value is not None}
    file.write_text(json.dumps(config))
    (copy / "feature_extractor" / "manifest.json").unlink()
    with pytest.raises(folder.FolderError, match=message):
        folder.read_feature_extractor(copy)


def test_damage_is_noticed(copy):
    file = copy / "vocoder" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FolderError, match=r"model\.safetensors is damaged.*delete .*manifest"):
        folder.read_component(copy, "vocoder")
    file.unlink()
    with pytest.raises(FolderError, match=r"model\.safetensors is missing"):
        folder.read_component(copy, "vocoder")


def test_truncated_file_without_a_manifest(copy):
    file = copy / "vocoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (copy / "vocoder" / folder.MANIFEST).unlink()
    with pytest.raises(FolderError, match=r"model\.safetensors cannot be read.*copy or download"):
        folder.read_component(copy, "vocoder")


def change(copy, name, **keys):
    (copy / name / folder.MANIFEST).unlink()
    config = json.loads((copy / name / "config.json").read_text()) | keys
    config = {key: value for key, value in config.items() if value != "absent"}
    (copy / name / "config.json").write_text(json.dumps(config))


def test_config_that_contradicts_the_weights(copy):
    change(copy, "vocoder", upsample_initial_channel=32)
    with pytest.raises(FolderError, match=r"(?s)vocoder: .*shape: conv_pre"):
        folder.read_component(copy, "vocoder")


def test_config_that_we_do_not_play(copy):
    change(copy, "text_encoder_2", feed_forward_proj="relu")
    with pytest.raises(FolderError, match="feed_forward_proj='relu'; only 'gated-gelu'"):
        folder.read_component(copy, "text_encoder_2")
    change(copy, "text_encoder", audio_config=CONFIGS["text_encoder"]["audio_config"] | {"enable_fusion": True})
    with pytest.raises(FolderError, match=r"audio_config\.enable_fusion=True"):
        folder.read_component(copy, "text_encoder")


def test_config_that_lacks_a_key_or_is_no_json(copy):
    change(copy, "vae", latent_channels="absent")
    with pytest.raises(FolderError, match=r"vae/config\.json lacks latent_channels"):
        folder.read_component(copy, "vae")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(FolderError, match=r"config\.json cannot be read"):
        folder.read_component(copy, "vae")


def test_missing_things(copy):
    shutil.rmtree(copy / "vae")
    with pytest.raises(FolderError, match="has no vae"):
        folder.read_component(copy, "vae")
    with pytest.raises(FolderError, match=r"no model_index\.json"):
        folder.read_index(copy)
    (copy / folder.INDEX).write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(FolderError, match="holds a StableDiffusionPipeline"):
        folder.read_index(copy)


def test_nothing_is_left_when_writing_fails(model, tmp_path, monkeypatch):
    part = folder.read_component(model, "vocoder")
    folder.copy_component(model, tmp_path, "vocoder")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(FolderError, match=r"vocoder cannot be written.*No space left.*Make room"):
        folder.write_component(tmp_path, "vocoder", part.config, part.variables)
    assert [path.name for path in tmp_path.iterdir()] == ["vocoder"]
    folder.read_component(tmp_path, "vocoder")
