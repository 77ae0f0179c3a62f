"""The model folder: PyTorch's classes read every component that we write, and we read it back bit by bit."""

import inspect
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
from tiny_folder import (
    CONFIGS,
    FILM_CONFIGS,
    SCHEDULE,
    SPEECH_CONFIGS,
    UNIFIED_CONFIGS,
    random_variables,
    write_networks,
    write_unified_model,
)

from audioldm2_jax import recipes
from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.checkpoints.parameter_names import NAMES, to_torch
from audioldm2_jax.components import SPECS, spec_of

LIBRARIES = {"transformers": transformers, "diffusers": diffusers, "audioldm2": modeling_audioldm2}
TWINNED = tuple(name for name in CONFIGS if name != "audiomae")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


@pytest.mark.parametrize("name", TWINNED)
def test_pytorch_reads_every_key(model, name):
    spec = SPECS[name]
    twin, info = getattr(LIBRARIES[spec.library], spec.class_name).from_pretrained(
        model / name, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    state = twin.state_dict()
    for key, value in to_torch(
        random_variables(name, CONFIGS[name], model_index.PARTS.index(name)), NAMES[name]
    ).items():
        assert torch.equal(state[key], torch.tensor(value)), key


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(model, tmp_path, name):
    part = model_folder.read_component(model, name)
    expected = random_variables(name, CONFIGS[name], model_index.PARTS.index(name))
    jax.tree.map(np.testing.assert_array_equal, part.variables, expected)
    assert part.module == model_folder.build(name, CONFIGS[name])
    hash(part.module)
    model_folder.write_component(tmp_path, name, part.config, part.variables, part.unused)
    again = model_folder.read_component(tmp_path, name)
    assert again.config == part.config
    files = [load_file(path / name / SPECS[name].weights_file) for path in (model, tmp_path)]
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])


@pytest.mark.parametrize("name", TWINNED)
def test_reads_what_pytorch_writes(model, tmp_path, name):
    """The config.json of today's transformers and diffusers, which leave out or add keys, and single tensors."""
    spec = SPECS[name]
    twin = getattr(LIBRARIES[spec.library], spec.class_name).from_pretrained(model / name)
    twin.save_pretrained(tmp_path / name)
    theirs, ours = model_folder.read_component(tmp_path, name), model_folder.read_component(model, name)
    jax.tree.map(np.testing.assert_array_equal, theirs.variables, ours.variables)
    assert theirs.module == ours.module or name == "text_encoder"  # CLAP's nested configs hold more keys


def test_a_component_folder_reads_and_copies_alone(model, tmp_path):
    ours = model_folder.read_component(model, "vocoder")
    alone = model_folder.read_component(model / "vocoder", "vocoder")
    jax.tree.map(np.testing.assert_array_equal, alone.variables, ours.variables)
    model_folder.copy_component(model / "vocoder", tmp_path, "vocoder")
    assert (model / "vocoder" / "config.json").read_bytes() == (tmp_path / "vocoder" / "config.json").read_bytes()
    # A folder of others is written anew, here with what its config leaves out.
    foreign = shutil.copytree(model / "vae", tmp_path / "foreign")
    (foreign / model_folder.MANIFEST).unlink()
    config = json.loads((foreign / "config.json").read_text())
    del config["act_fn"]
    (foreign / "config.json").write_text(json.dumps(config))
    model_folder.copy_component(foreign, tmp_path, "vae")
    assert model_folder.read_component(tmp_path, "vae").config["act_fn"] == "silu"


def test_contexts_are_written_for_every_level(tmp_path):
    """diffusers takes a list for one entry a level; the recipes name the contexts once."""
    config = CONFIGS["unet"] | {"cross_attention_dim": (None, 24, 16)}
    model_folder.write_component(tmp_path, "unet", config, random_variables("unet", config))
    assert model_folder.read_component(tmp_path, "unet").module == model_folder.build("unet", CONFIGS["unet"])


OTHER_CLASSES = {
    "AudioLDM2ProjectionModel": ("projection_model", SPEECH_CONFIGS["projection_model"] | {"max_seq_length": 310}),
    "UNet2DConditionModel": ("unet", FILM_CONFIGS["unet"]),
    "ClapTextModelWithProjection": ("text_encoder", FILM_CONFIGS["text_encoder"]),
    "VitsModel": ("text_encoder_2", SPEECH_CONFIGS["text_encoder_2"]),
}


def load_twin(path, spec):
    twin, info = getattr(LIBRARIES[spec.library], spec.class_name).from_pretrained(path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return twin


@pytest.mark.parametrize("class_name", OTHER_CLASSES)
def test_speech_and_audioldm_1_go_to_pytorch_and_back(tmp_path, class_name):
    name, config = OTHER_CLASSES[class_name]
    variables, spec = random_variables(name, config), spec_of(name, config)
    assert spec.class_name == class_name
    model_folder.write_component(tmp_path, name, config, variables)
    twin = load_twin(tmp_path / name, spec)
    state = twin.state_dict()
    for key, value in to_torch(variables, spec.names).items():
        assert torch.equal(state[key], torch.tensor(value)), key
    twin.save_pretrained(tmp_path / "theirs" / name)
    for path in (tmp_path, tmp_path / "theirs"):
        read = model_folder.read_component(path, name)
        assert read.module == model_folder.build(name, config)
        jax.tree.map(np.testing.assert_array_equal, read.variables, variables)
        model_folder.write_component(path / "again", name, read.config, read.variables, read.unused)
        files = [load_file(where / name / spec.weights_file) for where in (path, path / "again")]
        assert all(np.array_equal(value, files[1][key]) for key, value in files[0].items())
        load_twin(path / "again" / name, spec)


def test_a_unet_without_states_is_written_with_the_widths_of_its_levels(tmp_path):
    """diffusers needs some width, and attends to the latents, which have this one, where it is given no states."""
    model_folder.write_component(tmp_path, "unet", FILM_CONFIGS["unet"], random_variables("unet", FILM_CONFIGS["unet"]))
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["cross_attention_dim"] == [8, 16]


VITS_REST = {
    "flow_size": 4,
    "spectrogram_bins": 3,
    "upsample_initial_channel": 4,
    "upsample_rates": [2],
    "upsample_kernel_sizes": [4],
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
    "duration_predictor_num_flows": 1,
}


def test_a_whole_vits_travels_along(tmp_path):
    config = SPEECH_CONFIGS["text_encoder_2"]
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    torch.manual_seed(0)
    whole = transformers.VitsModel(transformers.VitsConfig(**sizes, **VITS_REST))
    whole.save_pretrained(tmp_path / "theirs" / "text_encoder_2")
    read = model_folder.read_component(tmp_path / "theirs", "text_encoder_2")
    model_folder.write_component(tmp_path, "text_encoder_2", read.config, read.variables, read.unused)
    twin = load_twin(tmp_path / "text_encoder_2", spec_of("text_encoder_2", config))
    expected = whole.state_dict()
    assert any(key.startswith("duration_predictor.post_flows") for key in expected)
    assert twin.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in twin.state_dict().items())


@pytest.mark.parametrize("projection", [True, False])
def test_a_phoneme_encoder_alone_becomes_a_vits(tmp_path, projection):
    """As from the authors' files, which have the projection to means and variances behind it and nothing else."""
    config = SPEECH_CONFIGS["text_encoder_2"] | VITS_REST
    weight, bias = np.ones((6, 16, 1), np.float32), np.ones(6, np.float32)
    behind = {"text_encoder.project.weight": weight, "text_encoder.project.bias": bias} if projection else None
    model_folder.write_component(tmp_path, "text_encoder_2", config, random_variables("text_encoder_2", config), behind)
    twin = load_twin(tmp_path / "text_encoder_2", spec_of("text_encoder_2", config))
    assert twin.config.flow_size == (3 if projection else 1)
    assert bool((twin.text_encoder.project.weight == 1).all()) is projection
    rest = sum(value.numel() for key, value in twin.named_parameters() if not key.startswith("text_encoder."))
    assert rest < 300


def test_a_phoneme_encoder_that_is_trained_on_stays_one(tmp_path):
    """A stage that goes on from such a folder writes the recipe's sizes, which say nothing of the rest."""
    config = SPEECH_CONFIGS["text_encoder_2"]
    variables = random_variables("text_encoder_2", config)
    model_folder.write_component(tmp_path / "first", "text_encoder_2", config, variables)
    read = model_folder.read_component(tmp_path / "first", "text_encoder_2")
    assert "decoder.conv_pre.weight" in read.unused
    model_folder.write_component(tmp_path, "text_encoder_2", config, variables, read.unused)
    load_twin(tmp_path / "text_encoder_2", spec_of("text_encoder_2", config))


@pytest.mark.parametrize(
    ("configs", "pipeline", "classes"),
    [
        (CONFIGS, "AudioLDM2Pipeline", {"unet": "AudioLDM2UNet2DConditionModel", "tokenizer_2": "T5TokenizerFast"}),
        (SPEECH_CONFIGS, "AudioLDM2Pipeline", {"text_encoder_2": "VitsModel", "tokenizer_2": "VitsTokenizer"}),
        (
            FILM_CONFIGS,
            "AudioLDMPipeline",
            {"unet": "UNet2DConditionModel", "text_encoder": "ClapTextModelWithProjection"},
        ),
        ({"unet": CONFIGS["unet"]}, "AudioLDM2Pipeline", {"text_encoder_2": None, "vae": None}),
    ],
)
def test_the_index_says_what_the_folders_hold(tmp_path, configs, pipeline, classes):
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).mkdir()
    model_folder.write_scheduler(tmp_path, SCHEDULE)
    model_index.write(tmp_path)
    index = model_index.read(tmp_path)
    assert index.get("feature_extractor", [None])[0] is None  # there is none
    assert index["_class_name"] == pipeline and "audiomae" not in index
    assert {name: index[name][1] for name in classes} == classes
    signature = inspect.signature(getattr(diffusers, pipeline).__init__).parameters.keys() - {"self"}
    assert {name for name in index if not name.startswith("_")} == signature


def test_no_pipeline_of_diffusers_plays_a_unified_model(tmp_path):
    """Not even the one that it is asked to be, which would leave the phonemes out."""
    folder = write_unified_model(tmp_path / "model")
    index = model_index.read(folder)
    assert index["_class_name"] == "AudioLDM2UnifiedPipeline"
    assert index["text_encoder_3"] == ["transformers", "VitsModel"]
    assert index["tokenizer_3"] == ["transformers", "VitsTokenizer"]
    assert set(model_index.parts(folder)) == set(UNIFIED_CONFIGS)
    with pytest.raises(AttributeError, match="AudioLDM2UnifiedPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(folder)
    with pytest.raises((ValueError, AttributeError), match="AudioLDM2UnifiedProjectionModel"):
        diffusers.AudioLDM2Pipeline.from_pretrained(folder)


def test_a_plain_unet_with_states_has_one_context_a_level(tmp_path):
    crossed = CONFIGS["unet"] | {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 12}
    assert model_folder.build("unet", crossed).cross_attention_dim == 12
    with pytest.raises(FolderError, match="has one context a level"):
        model_folder.write_component(tmp_path, "unet", CONFIGS["unet"] | {"_class_name": "UNet2DConditionModel"}, {})


def test_older_names_of_a_class():
    vocoder = CONFIGS["vocoder"] | {"architectures": ["SpeechT5HifiGan"], "model_type": "hifigan"}  # transformers 4
    assert model_folder.build("vocoder", vocoder) == model_folder.build("vocoder", CONFIGS["vocoder"])
    gpt2 = CONFIGS["language_model"] | {"architectures": ["GPT2Model"], "model_type": "gpt2"}
    assert model_folder.build("language_model", gpt2) == model_folder.build("language_model", CONFIGS["language_model"])


def test_a_component_of_an_unknown_class():
    with pytest.raises(FolderError, match=r"of a UNet1DModel; supported as unet: AudioLDM2.*, UNet2DConditionModel"):
        model_folder.build("unet", CONFIGS["unet"] | {"_class_name": "UNet1DModel"})
    with pytest.raises(FolderError, match=r"of a bert; supported as text_encoder_2: t5, vits"):
        model_folder.build("text_encoder_2", CONFIGS["text_encoder_2"] | {"model_type": "bert"})


def test_the_word_table_travels_along(model, tmp_path):
    part = model_folder.read_component(model, "language_model")
    table = np.ones((5, CONFIGS["language_model"]["n_embd"]), np.float32)
    model_folder.write_component(
        tmp_path, "language_model", part.config, part.variables, {"transformer.wte.weight": table}
    )
    again = model_folder.read_component(tmp_path, "language_model")
    np.testing.assert_array_equal(again.unused["transformer.wte.weight"], table)
    assert again.config["vocab_size"] == 5
    assert again.config["max_new_tokens"] == CONFIGS["language_model"]["max_new_tokens"]


def test_a_whole_t5_becomes_an_encoder(model, tmp_path):
    """What is published loads without unexpected keys, though its source held a decoder too."""
    part = model_folder.read_component(model, "text_encoder_2")
    foreign = {
        "decoder.final_layer_norm.weight": np.ones(16, np.float32),
        "lm_head.weight": np.ones((4, 16), np.float32),
    }
    model_folder.write_component(tmp_path, "text_encoder_2", part.config, part.variables, foreign)
    assert not model_folder.read_component(tmp_path, "text_encoder_2").unused


def test_scheduler_and_feature_extractor(model):
    assert model_folder.read_scheduler(model) == (SCHEDULE, "DDIMScheduler")
    theirs = diffusers.DDIMScheduler.from_pretrained(model / "scheduler")
    assert theirs.config.prediction_type == "v_prediction" and theirs.config.steps_offset == 1
    extractor = transformers.ClapFeatureExtractor.from_pretrained(model / "feature_extractor")
    assert extractor.nb_max_samples == 30720 and extractor.truncation == "rand_trunc"
    assert (extractor.frequency_min, extractor.frequency_max) == (50, 14000)
    read = model_folder.read_feature_extractor(model)
    assert (read.samples, read.fmin, read.fmax) == (30720, 50.0, 14000.0)
    assert (read.sampling_rate, read.n_fft) == (extractor.sampling_rate, extractor.fft_window_size)
    assert (read.hop_length, read.n_mels) == (extractor.hop_length, extractor.feature_size)


def test_transformers_hears_clips_by_the_papers_feature_extractor(tmp_path):
    model_folder.write_feature_extractor(tmp_path, **recipes.get("base").audio.clap)
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
    with pytest.raises(model_folder.FolderError, match=message):
        model_folder.read_feature_extractor(copy)


def test_damage_is_noticed(copy):
    file = copy / "vocoder" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FolderError, match=r"model\.safetensors is damaged.*delete .*manifest"):
        model_folder.read_component(copy, "vocoder")
    file.unlink()
    with pytest.raises(FolderError, match=r"model\.safetensors is missing"):
        model_folder.read_component(copy, "vocoder")


@pytest.mark.parametrize("content", ["{}", '{"sha256": []}', '{"name": "an app"}'])
def test_a_manifest_of_something_else(copy, content):
    (copy / "vocoder" / model_folder.MANIFEST).write_text(content)
    with pytest.raises(FolderError, match=r"manifest.json is damaged or another program's.*delete that file"):
        model_folder.read_component(copy, "vocoder")


def test_truncated_file_without_a_manifest(copy):
    file = copy / "vocoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (copy / "vocoder" / model_folder.MANIFEST).unlink()
    with pytest.raises(FolderError, match=r"model\.safetensors cannot be read.*copy or download"):
        model_folder.read_component(copy, "vocoder")


def change(copy, name, **keys):
    (copy / name / model_folder.MANIFEST).unlink()
    config = json.loads((copy / name / "config.json").read_text()) | keys
    config = {key: value for key, value in config.items() if value != "absent"}
    (copy / name / "config.json").write_text(json.dumps(config))


def test_config_that_contradicts_the_weights(copy):
    change(copy, "vocoder", upsample_initial_channel=32)
    with pytest.raises(FolderError, match=r"(?s)vocoder: .*shape: conv_pre"):
        model_folder.read_component(copy, "vocoder")


def test_config_that_we_do_not_play(copy):
    change(copy, "text_encoder_2", feed_forward_proj="relu")
    with pytest.raises(FolderError, match="feed_forward_proj='relu'; only 'gated-gelu'"):
        model_folder.read_component(copy, "text_encoder_2")
    change(copy, "text_encoder", audio_config=CONFIGS["text_encoder"]["audio_config"] | {"enable_fusion": True})
    with pytest.raises(FolderError, match=r"audio_config\.enable_fusion=True"):
        model_folder.read_component(copy, "text_encoder")


def test_config_that_lacks_a_key_or_is_no_json(copy):
    change(copy, "vae", latent_channels="absent")
    with pytest.raises(FolderError, match=r"vae/config\.json lacks latent_channels"):
        model_folder.read_component(copy, "vae")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(FolderError, match=r"config\.json cannot be read"):
        model_folder.read_component(copy, "vae")


def test_a_run_folder_stands_for_its_model(tmp_path):
    (tmp_path / "stages").mkdir()
    with pytest.raises(FolderError, match="has not finished: it has no model/ yet"):
        model_folder.locate_model(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / model_index.FILE).write_text('{"_class_name": "AudioLDM2Pipeline"}')
    assert model_folder.locate_model(tmp_path) == tmp_path / "model"


def test_missing_things(copy):
    shutil.rmtree(copy / "vae")
    with pytest.raises(FolderError, match="has no vae"):
        model_folder.read_component(copy, "vae")
    with pytest.raises(FolderError, match=r"no model_index\.json"):
        model_index.read(copy)
    (copy / model_index.FILE).write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(FolderError, match="holds a StableDiffusionPipeline"):
        model_index.read(copy)


def test_nothing_is_left_when_writing_fails(model, tmp_path):
    part = model_folder.read_component(model, "vocoder")
    model_folder.copy_component(model, tmp_path, "vocoder")

    class Last:
        """After all others were written the disk is full."""

        shape, dtype = (8,), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            raise OSError(28, "No space left on device")

    leaves, structure = jax.tree.flatten(part.variables)
    last = max(number for number, leaf in enumerate(leaves) if leaf.ndim == 1)
    leaves[last] = Last()
    part = part._replace(variables=jax.tree.unflatten(structure, leaves))
    with pytest.raises(FolderError, match=r"vocoder cannot be written.*No space left.*Free some space"):
        model_folder.write_component(tmp_path, "vocoder", part.config, part.variables)
    assert [path.name for path in tmp_path.iterdir()] == ["vocoder"]
    model_folder.read_component(tmp_path, "vocoder")
