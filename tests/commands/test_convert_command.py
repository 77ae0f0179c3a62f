"""The command convert: what is written appears whole or not at all, and plays."""

import json
import os

import authors
import diffusers
import huggingface_hub
import numpy as np
import pytest
import tiny_folder
import torch
from safetensors.numpy import load_file

from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.commands import convert as command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder.write_model(tmp_path_factory.mktemp("tiny") / "model")


def save(path, name):
    torch.save({"state_dict": authors.checkpoint(name)}, path)
    return path


def run(source, target, *more):
    return command.main(["--from", str(source), "--to", str(target), *map(str, more)])


def contents(path):
    """Every weight of a folder, bit by bit."""
    return {
        f"{file.parent.name}/{key}": value.tobytes()
        for file in sorted(path.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def test_a_pipeline_of_the_authors_becomes_a_folder_that_diffusers_loads(model, tmp_path, capsys):
    target = tmp_path / "converted"
    assert run(save(tmp_path / "audioldm2-full.pth", "audioldm2-full"), target, "--tokenizers", model) == 0
    said = capsys.readouterr().out
    assert "the authors' pipeline" in said and "AudioLDM2UNet2DConditionModel: channels [32, 96]" in said
    assert "Left out 418 tensors: moving averages" in said and f"to {target}" in said
    pipeline = diffusers.AudioLDM2Pipeline.from_pretrained(target)
    assert pipeline.language_model.config.max_new_tokens == 8 and pipeline.unet.config.attention_head_dim == [1, 3]
    assert pipeline.scheduler.config.beta_end == 0.0195 and pipeline.vae.config.scaling_factor == authors.SCALE
    key = "model.diffusion_model.out.2.weight"
    theirs = authors.tensor(key, authors.shapes("audioldm2-full", "small")[key])
    np.testing.assert_array_equal(pipeline.unet.conv_out.weight.detach().numpy(), theirs)


@pytest.mark.parametrize(
    "name, pipeline, absent",
    [
        ("audioldm2-speech-gigaspeech", "AudioLDM2Pipeline", []),
        ("audioldm_48k", "AudioLDMPipeline", []),
        ("audioldm_16k_crossattn_t5", "AudioLDM2Pipeline", ["language_model", "projection_model"]),
    ],
)
def test_other_pipelines_of_the_authors(model, tmp_path, name, pipeline, absent):
    target = tmp_path / "converted"
    assert run(save(tmp_path / "x.pth", name), target, "--tokenizers", model) == 0
    index = json.loads((target / model_index.FILE).read_text())
    assert index["_class_name"] == pipeline
    assert [part for part, where in index.items() if where == [None, None]] == absent
    for part in model_index.parts(target):
        model_folder.read_component(target, part)
    if "48k" in name:
        # Two transformers a ResNet block, which diffusers' plain UNet does not have: the UNet is AudioLDM 2's.
        played = diffusers.AudioLDMPipeline.from_pretrained(target)
        assert played.unet.config.cross_attention_dim == [[None, None]] * 2
        assert played.unet.config.class_embeddings_concat and played.vocoder.config.sampling_rate == 48000
    if "speech" in name:
        assert model_folder.read_component(target, "language_model").config["max_new_tokens"] == 512
        assert index["tokenizer_2"] == ["transformers", "VitsTokenizer"]


def test_one_network_becomes_a_folder_with_that_network(tmp_path):
    torch.save({"generator": authors.checkpoint("hifigan_16k")}, tmp_path / "g_01080000.pth")
    assert run(tmp_path / "g_01080000.pth", tmp_path / "vocoder") == 0
    assert [path.name for path in (tmp_path / "vocoder").iterdir()] == ["vocoder"]
    assert run(tmp_path / "vocoder", tmp_path / "again") == 0  # such a folder is a source, too
    assert contents(tmp_path / "again") == contents(tmp_path / "vocoder")


def test_folder_to_folder_is_bit_identical(model, tmp_path):
    assert run(model, tmp_path / "copy") == 0
    assert contents(tmp_path / "copy") == contents(model)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in model.iterdir()}


def test_a_unified_model_is_for_this_package_alone(tmp_path, capsys):
    """Its folder can be copied, with a word on that; the authors' form has no place for its third text encoder."""
    folder = tiny_folder.write_unified_model(tmp_path / "unified")
    assert run(folder, tmp_path / "copy") == 0
    assert "diffusers' pipelines read two texts" in capsys.readouterr().out
    assert contents(tmp_path / "copy") == contents(folder)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in folder.iterdir()}
    assert run(folder, tmp_path / "model.pth") == 1
    said = capsys.readouterr().err
    assert "a unified one" in said and "no place for a third text encoder" in said and said.count("\n") == 1
    assert not (tmp_path / "model.pth").exists()


def test_a_run_folder_is_a_source(model, tmp_path, capsys):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    assert run(tmp_path / "run", tmp_path / "copy") == 1
    assert "has not finished" in capsys.readouterr().err
    os.symlink(model, tmp_path / "run" / "model")
    assert run(tmp_path / "run", tmp_path / "copy") == 0


def test_without_tokenizers_the_message_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert run(save(tmp_path / "x.pth", "audioldm_48k"), tmp_path / "converted") == 1
    said = capsys.readouterr().err
    assert "roberta-base" in said and "--tokenizers" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_destination_that_is_in_the_way(model, tmp_path, capsys):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    assert run(model, tmp_path / "papers") == 1
    assert "not empty" in capsys.readouterr().err
    assert run(model, tmp_path / "papers", "--overwrite") == 1  # never what is no model folder
    assert "is no model folder" in capsys.readouterr().err
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert run(model, tmp_path / "empty") == 0
    assert run(model, tmp_path / "empty") == 1
    assert run(model, tmp_path / "empty", "--overwrite") == 0
    assert run(model, model / "inside") == 1
    assert "within each other" in capsys.readouterr().err


def test_nothing_is_left_half_written(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_index, "write", full)
    assert run(model, tmp_path / "out" / "copy") == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_bad_sources(tmp_path, capsys):
    (tmp_path / "x.pth").write_bytes(b"no checkpoint")
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "x.pth", "is no PyTorch file"),
        (tmp_path / "none.ckpt", "is no file"),
        (tmp_path / "empty", "holds no network"),
    ):
        assert run(source, tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_goes_to_the_authors_and_comes_back_bit_by_bit(model, tmp_path, capsys):
    assert run(save(tmp_path / "x.pth", "audioldm2-full"), tmp_path / "first", "--tokenizers", model) == 0
    assert run(tmp_path / "first", tmp_path / "back.pth") == 0
    assert "The authors' build_model loads the file" in capsys.readouterr().out
    assert run(tmp_path / "first", tmp_path / "back.pth") == 1
    assert "back.pth exists" in capsys.readouterr().err
    assert run(tmp_path / "back.pth", tmp_path / "second", "--tokenizers", model) == 0
    assert contents(tmp_path / "second") == contents(tmp_path / "first")
    for name in model_index.parts(tmp_path / "first"):
        first, second = (json.loads((tmp_path / x / name / "config.json").read_text()) for x in ("first", "second"))
        assert first == second
