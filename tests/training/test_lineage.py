"""Which result was made from which: what no longer fits is named, and never mixed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from smallest import NETWORKS, get_config
from tiny_folder import CONFIGS, random_variables

from audioldm2_jax.audio import files
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import lineage, run
from audioldm2_jax.training.lineage import RunError


def fields(config, part):
    return CONFIGS[part] | (config.models[part].to_dict() if part in NETWORKS else {})


def finish(config, name, seed=0):
    """Writes the result of a stage, as training would: random weights, and what they are made from."""
    where = lineage.stage_folder(config, name)
    shutil.rmtree(where, ignore_errors=True)
    for part in STAGES[name].makes(config):
        weights = random_variables(part, fields(config, part), seed)
        model_folder.write_component(where / "result", part, fields(config, part), weights)
    run.begin(config, name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = get_config()
    config.run_dir = str(tmp_path_factory.mktemp("run"))
    for name in STAGES:
        finish(config, name)
    return config


@pytest.fixture
def config(trained, tmp_path):
    copy = trained.copy_and_resolve_references()
    copy.run_dir = str(tmp_path / "run")
    shutil.copytree(trained.run_dir, copy.run_dir)
    return copy


def test_what_was_just_trained_fits(config):
    assert lineage.stale(config) == {}
    lineage.refuse_stale(config, STAGES)
    assert run.publish(config).is_dir()


def test_a_result_knows_what_it_was_made_from(config):
    record = json.loads((lineage.stage_folder(config, "joint") / "result/lineage.json").read_text())
    sources = {part: entry["from"] for part, entry in record["inputs"].items()}
    assert sources == {
        "audiomae": "stages/audiomae",
        "text_encoder": "stages/clap",
        "vae": "stages/vae",
        "unet": "stages/diffusion",
        "language_model": "stages/language_model",
        "projection_model": "stages/language_model",
        "text_encoder_2": "stages/language_model",
    }


def test_a_vae_that_was_trained_anew(config):
    finish(config, "vae", seed=1)
    assert lineage.stale(config).keys() == {"diffusion", "joint"}
    with pytest.raises(RunError) as refused:
        lineage.refuse_stale(config, STAGES)
    message, root = str(refused.value), Path(config.run_dir) / "stages"
    assert "diffusion was made from another vae than that of stages/vae" in message and "\n" not in message
    assert f"Delete {root / 'diffusion'} and {root / 'joint'} to train them anew" in message
    lineage.refuse_stale(config, ["vae", "clap"])  # which do not read it

    with pytest.raises(RunError, match="diffusion was made from another vae"):
        run.publish(config)
    assert not (Path(config.run_dir) / "model").exists()

    for name in ("diffusion", "joint"):
        finish(config, name)
    assert lineage.stale(config) == {}


def test_the_same_weights_are_no_other_generation(config):
    finish(config, "vae")
    assert lineage.stale(config) == {}


def test_tokenizers_of_other_captions(config, tmp_path):
    """Deleted, as the message of a damaged one advises, and made again: alike of the same captions, not of others."""
    root, own = Path(config.run_dir), tmp_path / "own"
    own.mkdir()
    files.write(own / "a.wav", 0.1 * np.sin(np.arange(16000, dtype=np.float32) / 9), 16000)
    config.data.update(source=str(own), heldout_share=0.0)

    def run_again(caption):
        (own / "metadata.jsonl").write_text(json.dumps({"file_name": "a.wav", "text": caption}))
        for folder in ("tokenizer", "tokenizer_2"):
            shutil.rmtree(root / folder, ignore_errors=True)
        run.prepare(config)

    for name in STAGES:
        shutil.rmtree(lineage.stage_folder(config, name) / "result")
    run_again("a dog barks at the moon")
    for name in STAGES:
        finish(config, name)
    run_again("a dog barks at the moon")
    with pytest.raises(RunError, match=rf"clap was trained with other words than those of {root}/tokenizer \(.*delete"):
        run_again("the moon barks at a dog, and that on a violin")
    assert lineage.stale(config).keys() == {"clap", "language_model", "joint"}
    with pytest.raises(RunError, match="results of different generations"):
        run.publish(config)
    run_again("a dog barks at the moon")
    assert lineage.stale(config) == {}

    # Of a damaged one its reader tells; the stages are as they were.
    (root / "tokenizer/tokenizer.json").write_text("{")
    run.prepare(config)


def test_a_vae_that_was_deleted(config):
    """As the message on another configuration advises."""
    shutil.rmtree(lineage.stage_folder(config, "vae"))
    with pytest.raises(
        RunError, match=r"diffusion was made from the vae of stages/vae, which is gone; joint was .*Delete"
    ):
        run.prepare(config)
    config.stages = "vae"
    run.prepare(config)


def test_a_stage_in_the_middle(config):
    """Checkpoints count as results do; a stage that reads what is to be trained anew is named with it."""
    where = lineage.stage_folder(config, "diffusion")
    shutil.rmtree(where / "result")
    (where / "checkpoints/300").mkdir(parents=True)
    finish(config, "audiomae", seed=3)
    assert lineage.stale(config).keys() == {"diffusion", "language_model", "joint"}
    shutil.rmtree(where / "checkpoints/300")  # it never got to a checkpoint: nothing is lost by beginning it anew
    assert "diffusion" not in lineage.stale(config)


def test_run_folders_of_earlier_versions(config):
    """They wrote nothing down: what is there is taken, which is said once, and from then on it is known."""
    for path in Path(config.run_dir).rglob(lineage.FILE):
        path.unlink()
    joint = lineage.stage_folder(config, "joint")
    shutil.rmtree(joint / "result")
    (joint / "checkpoints/300").mkdir(parents=True)
    said = []
    run.prepare(config, said.append)
    assert len(said) == 1 and "diffusion" in said[0] and "earlier version" in said[0] and "\n" not in said[0]
    assert said[0].endswith("; joint will go on with random numbers that differ from those of then")
    run.prepare(config, said.append)
    assert len(said) == 1
    finish(config, "vae", seed=1)
    assert lineage.stale(config).keys() == {"diffusion", "joint"}


def test_another_source_of_weights_to_start_from(config, tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    model_folder.write_component(first, "vae", CONFIGS["vae"], random_variables("vae", CONFIGS["vae"], 5))
    config.init_from.vae = str(first)
    assert lineage.stale(config).keys() == {"vae", "diffusion", "joint"}  # it was begun without
    finish(config, "vae")
    shutil.move(first, moved)
    config.init_from.vae = str(moved)
    assert lineage.stale(config) == {}
    (moved / "vae/manifest.json").unlink()  # as a folder of others
    assert lineage.stale(config) == {}
    model_folder.write_component(moved, "vae", CONFIGS["vae"], random_variables("vae", CONFIGS["vae"], 6))
    assert "vae was made from another vae" in lineage.explain(config, lineage.stale(config))
    config.init_from.vae = ""
    assert "no longer named" in lineage.explain(config, lineage.stale(config))


def test_a_damaged_record(config):
    (lineage.stage_folder(config, "diffusion") / lineage.FILE).write_text("{")
    with pytest.raises(RunError, match=r"diffusion/lineage.json is damaged .*; delete .*diffusion to train"):
        run.prepare(config)
