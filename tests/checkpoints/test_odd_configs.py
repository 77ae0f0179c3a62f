"""Config files that people have edited and other programs have written: read, or refused in one line."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tiny_folder import CONFIGS, FILM_CONFIGS, SPEECH_CONFIGS, write_model

from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.commands import convert, generate
from audioldm2_jax.components import spec_of
from audioldm2_jax.generation.pipeline import AudioLDM2

KINDS = {
    **{f"{name}": (name, config) for name, config in CONFIGS.items()},
    "film unet": ("unet", FILM_CONFIGS["unet"]),
    "film text": ("text_encoder", FILM_CONFIGS["text_encoder"]),
    "vits": ("text_encoder_2", SPEECH_CONFIGS["text_encoder_2"]),
    "speech projection": ("projection_model", SPEECH_CONFIGS["projection_model"]),
}
ABSENT = object()
ODD = (None, True, "", "16", "many", -1, 0, 1, 3, 2.5, float("nan"), 1e400, [], [0], [None], [[1, "x"]], {}, {"a": 1})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def paths(config, prefix=()):
    for key, value in config.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def edited(config, path, value):
    """The config as JSON has it, with the key at `path` set, or deleted."""
    made = json.loads(json.dumps(config))
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return made


@st.composite
def odd_configs(draw):
    name, config = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    spec = spec_of(name, config)
    also = {"architectures", "model_type", "_class_name", "max_new_tokens", "scaling_factor", "sample_size"}
    known = sorted({*paths(config), *((key,) for key in (*also, *spec.required, *spec.further))})
    path = draw(st.sampled_from(known))
    value = draw(st.sampled_from((ABSENT, *ODD)) | st.recursive(st.integers(-4, 40) | st.text(max_size=3), st.lists))
    assume(value is not ABSENT or path in {*paths(config)})
    return name, path, edited(config, path, value)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(odd_configs())
@example(("unet", ("block_out_channels",), edited(CONFIGS["unet"], ("block_out_channels",), [])))
@example(("text_encoder", ("audio_config", "depths"), edited(CONFIGS["text_encoder"], ("audio_config", "depths"), 3)))
def test_a_config_describes_a_network_or_is_refused_by_its_file(case):
    name, _, config = case
    try:
        model_folder.variable_shapes(name, config)
    except FolderError as error:
        assert str(error).startswith(f"{name}/config.json ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "name, path, value, said",
    [
        ("unet", ("in_channels",), "four", "in_channels='four'; it has to be a whole number above 0"),
        ("unet", ("block_out_channels",), None, "block_out_channels=None; it has to be a list, each of it a whole"),
        ("unet", ("cross_attention_dim",), ["a"], r"cross_attention_dim=\['a'\]; it has to be a whole number"),
        ("unet", ("down_block_types",), ABSENT, "lacks down_block_types; is it a AudioLDM2UNet2DConditionModel"),
        ("unet", ("norm_num_groups",), 5, "describes no AudioLDM2UNet2DConditionModel: "),
        ("unet", ("sample_size",), "long", "sample_size='long'; it has to be a whole number above 0 or a list"),
        ("vae", ("scaling_factor",), [0.7], r"scaling_factor=\[0.7\]; it has to be a number above 0"),
        ("vae", ("scaling_factor",), 0, r"scaling_factor=0; it has to be a number above 0"),
        ("vocoder", ("sampling_rate",), 0, "sampling_rate=0; it has to be a whole number above 0"),
        ("vocoder", ("upsample_rates",), {}, "upsample_rates={}; it has to be a list, each of it a whole number"),
        ("language_model", ("max_new_tokens",), "8", "max_new_tokens='8'; it has to be a whole number above 0 or null"),
        ("language_model", ("n_layer",), True, "n_layer=True; it has to be a whole number above 0"),
        ("text_encoder", ("audio_config",), None, "audio_config=None; it has to be an object of names and values"),
        ("text_encoder", ("text_config", "hidden_size"), 1.5, "text_config.hidden_size=1.5; it has to be a whole"),
        ("text_encoder", ("architectures",), 5, "architectures=5; it has to be a list of names"),
        ("text_encoder_2", ("dropout_rate",), float("nan"), "dropout_rate=nan; it has to be a number"),
        ("projection_model", ("langauge_model_dim",), [24], r"langauge_model_dim=\[24\]; it has to be a whole number"),
    ],
)
def test_the_key_is_named_with_what_it_has_to_be(name, path, value, said):
    with pytest.raises(FolderError, match=rf"^{name}/config\.json (has )?{said}"):
        model_folder.variable_shapes(name, edited(CONFIGS[name], path, value))


@pytest.mark.parametrize("name, key, meant", [("vae", "scaling_factor", 0.18215), ("vocoder", "sampling_rate", 16000)])
def test_what_pytorch_takes_for_granted_is_meant(model, tmp_path, name, key, meant):
    """diffusers' AutoencoderKL and transformers' SpeechT5HifiGanConfig have these values where config.json has none."""
    folder = edit(model, tmp_path, f"{name}/config.json", (key,), ABSENT)
    assert model_folder.read_component(folder, name).config[key] == meant


def edit(model, tmp_path, file, path, value):
    """A copy of the model folder with one key of a file changed, as a person would."""
    folder = shutil.copytree(model, tmp_path / "edited", dirs_exist_ok=True)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(edited(content, path, value)))
    for manifest in folder.rglob(model_folder.MANIFEST):
        manifest.unlink()
    return folder


@pytest.mark.parametrize(
    "file, key, value, said",
    [
        ("unet/config.json", "in_channels", "four", "unet/config.json has in_channels='four'; it has to be"),
        ("vocoder/config.json", "upsample_rates", None, "vocoder/config.json has upsample_rates=None; it has to be"),
        ("model_index.json", "vae", 5, "model_index.json has vae=5; it has to be [library, class] or [null, null]"),
        ("model_index.json", "tokenizer_2", "T5", "model_index.json has tokenizer_2='T5'; it has to be [library"),
        ("model_index.json", "_class_name", ABSENT, "holds a None, not an AudioLDM2Pipeline"),
        (
            "scheduler/scheduler_config.json",
            "beta_end",
            "much",
            "scheduler_config.json: beta_end='much'; it has to be a number",
        ),
        ("scheduler/scheduler_config.json", "num_train_timesteps", [1000], "scheduler_config.json: "),
        ("scheduler/scheduler_config.json", "_class_name", ["DDIM"], "scheduler_config.json"),
        ("feature_extractor/preprocessor_config.json", "hop_length", ABSENT, "says nothing of 'hop_length'"),
        (
            "feature_extractor/preprocessor_config.json",
            "max_length_s",
            1e400,
            "max_length_s=inf; it has to be a number",
        ),
        ("feature_extractor/preprocessor_config.json", "sampling_rate", "48k", "preprocessor_config.json: "),
        ("tokenizer/tokenizer.json", "model", None, "tokenizer cannot be read: "),
        ("tokenizer/tokenizer_config.json", "model_max_length", "long", "tokenizer"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_class", 3, "tokenizer_2"),
    ],
)
def test_the_commands_say_it_in_one_line(model, tmp_path, capsys, file, key, value, said):
    folder = edit(model, tmp_path, file, (key,), value)
    assert generate.main(["--model", str(folder), "-t", "rain", "-s", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    if file.endswith("config.json") and not file.startswith(("tokenizer", "feature")):
        assert convert.main(["--from", str(folder), "--to", str(tmp_path / "converted")]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and said in error and "\n" not in error
        assert not (tmp_path / "converted").exists()


FILES = ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json", "model_index.json")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_other_files_of_a_model_folder(model, tmp_path_factory, data):
    """Nothing but a ValueError, and that in one line, comes of what they hold."""
    file = data.draw(st.sampled_from(FILES))
    path = data.draw(st.sampled_from(sorted(paths(json.loads((model / file).read_text())))))
    folder = edit(model, tmp_path_factory.mktemp("odd"), file, path, data.draw(st.sampled_from((ABSENT, *ODD))))
    try:
        schedule, kind = model_folder.read_scheduler(folder)
        model_folder.read_feature_extractor(folder)
        model_index.parts(folder)
        AudioLDM2({}, schedule, None, None, scheduler_class=kind)
    except KeyError as error:
        assert error.args == ("vocoder",)  # all was read; there are no networks here
    except ValueError as error:
        assert file.split("/")[0] in str(error) or "scheduler" in str(error).lower() or "holds a " in str(error)
        assert "\n" not in str(error)
