"""A whole run of the smallest recipe, and what is said of runs that cannot start or go on."""

import json
import shutil
from pathlib import Path

import by_diffusers
import jax
import numpy as np
import pytest
from diffusers import AudioLDM2Pipeline
from hub_cache import cache
from huggingface_hub import constants
from smallest import Said, get_config

from audioldm2_jax import recipes
from audioldm2_jax.audio.files import write
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.runtime import hub_access
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import loop, main, run, side_by_side, stage_settings
from audioldm2_jax.training.run import RunError


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """(config, what was said) of a run whose stages are all trained; nothing is published yet."""
    config = get_config()
    config.run_dir = str(tmp_path_factory.mktemp("run") / "music")
    for name, every in (("vae", 2), ("vocoder", 4), ("joint", 4)):
        config.train[name].sample_every = every
    # One executable a stage is enough here.
    config.loa.training_poolings = (2,)
    config.train.vocoder.discriminator_start = 0
    said = Said()
    run.prepare(config)
    waits = side_by_side.train_all(config, said)
    assert waits.keys() == STAGES.keys() and all(0 <= share <= 1 for share in waits.values())
    return config, said


@pytest.fixture
def begun(whole, tmp_path):
    """The config of a run folder that holds the beginnings of the whole run's stages, one checkpoint each."""
    config = whole[0].copy_and_resolve_references()
    config.run_dir = str(tmp_path / "run")
    for name in STAGES:
        source = run.stage_folder(whole[0], name)
        (run.stage_folder(config, name) / "checkpoints/4").mkdir(parents=True)
        shutil.copy(source / "config.json", run.stage_folder(config, name))
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(Path(whole[0].run_dir) / part, tmp_path / "run" / part)
    return config


def test_stages_run_in_the_order_in_which_they_build_on_each_other(whole):
    config, said = whole
    assert [line for line in said.lines if line.endswith(": training")] == [f"{name}: training" for name in STAGES]
    assert [report.step for report in said.reports if report.stage == "joint"] == [1, 2, 3, 4]
    for name in STAGES:
        assert run.finished(config, name)
        lines = (run.stage_folder(config, name) / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines if "heldout/" not in line]
        assert len(steps) == 4 and all(np.isfinite(value) for value in steps[-1].values())


def test_samples(whole):
    config, _ = whole
    for name, steps, files in (
        ("vae", ["0000002", "0000004"], {"mels.png"}),
        ("vocoder", ["0000004"], {f"{kind}-{i}.wav" for kind in ("real", "vocoded") for i in range(4)}),
        ("joint", ["0000004"], {"mels.png"}),
    ):
        samples = run.stage_folder(config, name) / "samples"
        assert sorted(path.name for path in samples.iterdir()) == steps
        assert {path.name for path in (samples / "0000004").iterdir()} == files


def test_results_go_from_stage_to_stage(whole):
    """The joint stage starts from what the stages before it made."""
    config, _ = whole
    found = run.load_components(config, "joint")
    for part, maker in (("unet", "diffusion"), ("language_model", "language_model"), ("vae", "vae")):
        own = model_folder.read_component(run.stage_folder(config, maker) / "result", part)
        jax.tree.map(np.testing.assert_array_equal, found[part].variables, own.variables)
    stage = STAGES["joint"](config, found)
    jax.tree.map(np.testing.assert_array_equal, stage.initial()["unet"], found["unet"].variables)
    assert found["vae"].config["scaling_factor"] == stage.scale != 1.0


def test_command_publishes_shows_and_then_says_that_it_is_finished(whole, capsys):
    config, _ = whole
    assert main.main(config) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: finished before" in out for name in STAGES)
    assert f"--model {config.run_dir}" in out and "the tiny recipe" in out and "--config music:base" in out
    root = Path(config.run_dir)
    there = {path.name for path in (root / "samples").iterdir()}
    assert there == {"0.wav", "1.wav", "mels.png", "captions.txt", "lineage.json"}
    model = AudioLDM2.from_pretrained(root / "model")
    for name in model.networks:
        by_diffusers.component(root / "model", name)
    AudioLDM2Pipeline.from_pretrained(root / "model")
    jax.tree.map(
        np.testing.assert_array_equal,
        model_folder.read_component(root / "model", "unet").variables,
        model_folder.read_component(run.stage_folder(config, "joint") / "result", "unet").variables,
    )

    before = (root / "samples/0.wav").stat().st_mtime_ns
    assert main.main(config) == 0
    out = capsys.readouterr().out
    assert f"This run is finished; its model is {root / 'model'}" in out
    assert (root / "samples/0.wav").stat().st_mtime_ns == before


def test_a_result_that_is_newer_than_the_model_is_published(whole, tmp_path):
    """As after a stage that was trained anew and a run that was killed before it published."""
    config = whole[0].copy_and_resolve_references()
    assert main.main(config) == 0
    with config.unlocked():
        config.run_dir = str(tmp_path / "run")
    shutil.copytree(whole[0].run_dir, config.run_dir)
    assert run.is_published(config)
    result = run.stage_folder(config, "vocoder") / "result"
    part = model_folder.read_component(result, "vocoder")
    louder = jax.tree.map(lambda leaf: 2 * leaf, part.variables)
    model_folder.write_component(result, "vocoder", part.config, louder, part.unused)
    assert not run.is_published(config)
    before = (tmp_path / "run/samples/0.wav").read_bytes()
    assert main.main(config) == 0
    assert run.is_published(config) and (tmp_path / "run/samples/0.wav").read_bytes() != before
    shutil.rmtree(tmp_path / "run/model/unet")
    assert not run.is_published(config)


def test_another_run_starts_from_its_model(whole, tmp_path):
    config = get_config()
    config.run_dir = str(tmp_path)
    result = str(run.stage_folder(whole[0], "audiomae") / "result")
    config.init_from.audiomae = result
    found = run.load_components(config, "audiomae")
    own = model_folder.read_component(result, "audiomae")
    jax.tree.map(np.testing.assert_array_equal, found["audiomae"].variables, own.variables)


def test_weights_of_another_size(whole, tmp_path):
    config = get_config()
    config.run_dir = str(tmp_path)
    config.stages = "audiomae"
    config.init_from.audiomae = str(run.stage_folder(whole[0], "audiomae") / "result")
    config.models.audiomae.embed_dim = 32
    run.prepare(config)
    with pytest.raises(ValueError, match=r"audiomae.audiomae/.*: the recipe has shape"):
        run.train_stage(config, "audiomae", Said())
    assert not run.finished(config, "audiomae")


def test_changed_config_lists_the_differences(begun):
    before, begun.train.vae.kl_weight = begun.train.vae.kl_weight, 31.0
    begun.models.vae.layers_per_block = 2
    with pytest.raises(RunError) as caught:
        run.prepare(begun)
    message = str(caught.value)
    assert "stages/vae was begun with another configuration" in message
    assert "  models.vae.layers_per_block: 1 → 2" in message
    begun.models.vae.layers_per_block = 1
    with pytest.raises(RunError) as caught:
        run.prepare(begun)
    assert "stages/vae was begun" in str(caught.value)
    assert f"  train.vae.kl_weight: {before} → 31.0" in str(caught.value)
    assert str(caught.value).count("→") == 1


def test_what_does_not_change_the_computation_may_change(begun):
    begun.stages, begun.side_by_side, begun.remat = "vae", 3, True
    begun.mesh.fsdp = 4
    begun.data.update(workers=2, threads=3, prefetch=9)
    begun.samples.steps = 77
    begun.train.vae.update(log_every=3, save_every=7, keep=9, sample_every=1)
    for name in STAGES:
        stage_settings.check(begun, name)


def test_damaged_config(begun):
    path = run.stage_folder(begun, "vae") / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(RunError, match=r"config.json is damaged .*; delete .*stages/vae to train the stage anew"):
        run.prepare(begun)


def test_run_folder_of_another_recipe(begun):
    other = recipes.get("base")
    other.run_dir, other.data.source = begun.run_dir, "builtin:music"
    with pytest.raises(RunError, match=r"recipe: tiny → base"):
        run.prepare(other)


def test_missing_component_names_the_command(begun):
    with pytest.raises(RunError) as caught:
        run.train_stage(begun, "diffusion", Said())
    message = str(caught.value)
    assert "stage diffusion needs audiomae" in message and "--config.stages=audiomae" in message
    assert "--config.init_from.audiomae=" in message and "\n" not in message


@pytest.mark.parametrize("stages, wrong", [("vae,vocodr", "vocodr"), ("", "nothing"), (" , ", "nothing")])
def test_unknown_stage(stages, wrong):
    config = get_config()
    config.stages = stages
    with pytest.raises(RunError, match=rf"{wrong}.* is no stage; choose from audiomae, clap, vae"):
        run.plan(config)


def test_base_without_data():
    config = recipes.get("base")
    with pytest.raises(RunError, match=r"recipe 'base' needs data: .*--config.data.source=builtin:music"):
        run.prepare(config)


def test_unwritable_run_folder(tmp_path):
    (tmp_path / "file").touch()
    config = get_config()
    config.run_dir = str(tmp_path / "file" / "run")
    with pytest.raises(RunError, match=r"cannot write to the run folder .*choose another with --config.run_dir=PATH"):
        run.prepare(config)


def test_full_disk_leaves_no_half_result(whole, tmp_path, monkeypatch):
    config, _ = whole
    components = {"vae": model_folder.read_component(run.stage_folder(config, "vae") / "result", "vae")}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder, "write_tensors", full)
    with pytest.raises(model_folder.FolderError, match="No space left"):
        run._write_result(tmp_path, components)
    assert not (tmp_path / "result").exists()


def test_who_waits_for_whom():
    config, every = get_config(), list(STAGES)
    assert {name: run.waits_for(config, name, every) for name in every} == {
        "audiomae": [],
        "clap": [],
        "vae": [],
        "vocoder": [],
        "diffusion": ["audiomae", "vae"],
        "language_model": ["audiomae", "clap"],
        "joint": ["audiomae", "clap", "vae", "diffusion", "language_model"],
    }
    assert run.waits_for(config, "diffusion", ["vae", "diffusion"]) == ["vae"]
    base = recipes.get("base")
    assert run.maker(base, "text_encoder_2") is None
    assert run.maker(config, "text_encoder_2", before="joint") == "language_model"


def test_refused_settings_may_be_corrected(tmp_path):
    """What failed before its first checkpoint has not begun, as a batch that does not fit the memory."""
    config = get_config()
    config.run_dir, config.stages = str(tmp_path), "audiomae"
    config.train.audiomae.update(batch_size=7, accumulate=2)
    with pytest.raises(ValueError, match="batch_size=7 in 2 microbatches does not split evenly"):
        run.prepare(config)
    config.train.audiomae.update(batch_size=4, accumulate=1, steps=0)
    run.prepare(config)
    with pytest.raises(ValueError, match="at least one step"):  # the stage's config.json is written by then
        run.train_stage(config, "audiomae", Said())
    config.train.audiomae.update(batch_size=2, steps=1)
    run.prepare(config)
    run.train_stage(config, "audiomae", Said())
    assert (
        json.loads((run.stage_folder(config, "audiomae") / "config.json").read_text())["train.audiomae.batch_size"] == 2
    )


def test_stages_without_text_need_no_tokenizers(tmp_path):
    config = get_config()
    config.run_dir, config.stages = str(tmp_path), "audiomae,vae"
    config.text.clap_tokenizer = config.text.t5_tokenizer = "/nowhere"
    run.prepare(config)
    assert not list(tmp_path.glob("tokenizer*"))
    config.stages = "vae,clap"
    with pytest.raises(ValueError, match="cannot load the clap tokenizer"):
        run.prepare(config)
    assert not list(tmp_path.glob("*tokenizer*"))


def test_more_steps_after_the_end(whole, tmp_path, compiled_once):
    """The message says how to go on from the result, and that works."""
    config = whole[0].copy_and_resolve_references()
    config.train.audiomae.steps = 6
    with pytest.raises(RunError) as caught:
        run.prepare(config)
    message = str(caught.value)
    assert "train.audiomae.steps: 4 → 6" in message and "audiomae is finished; to go on from its result" in message
    flags = dict(word.split("=", 1) for word in message.split() if word.startswith("--config.") and "=" in word)
    assert flags.pop("--config.run_dir") == "ANOTHER_FOLDER"
    config.run_dir = str(tmp_path)
    config.update_from_flattened_dict({key.removeprefix("--config."): value for key, value in flags.items()})
    assert config.stages == "audiomae"
    config.train.audiomae.update(steps=1, learning_rate=0.0, ema=0.0, weight_decay=0.0)
    run.prepare(config)
    run.train_stage(config, "audiomae", Said())
    first, second = (
        model_folder.read_component(run.stage_folder(which, "audiomae") / "result", "audiomae").variables
        for which in (whole[0], config)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_how_to_go_on_from_the_joint_stage_names_all_that_it_reads(whole):
    config = whole[0].copy_and_resolve_references()
    config.train.joint.steps = 6
    with pytest.raises(RunError) as caught:
        run.prepare(config)
    named = {word.split("=")[0] for word in str(caught.value).split() if word.startswith("--config.init_from.")}
    needed = {"audiomae", "text_encoder", "vae", "unet", "language_model", "projection_model", "text_encoder_2"}
    assert named == {f"--config.init_from.{part}" for part in needed}
    assert f"--config.text.clap_tokenizer={config.run_dir}/tokenizer " in str(caught.value)


def test_stopping_between_steps_is_told(whole, tmp_path):
    config = get_config()
    config.run_dir = str(tmp_path)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(Path(whole[0].run_dir) / part, tmp_path / part)
    with pytest.raises(loop.Stopped, match="audiomae: stopped and saved after step 1 of 4"):
        run.train_stage(config, "audiomae", Said(), lambda: True)
    said = Said()
    run.train_stage(config, "audiomae", said)
    assert said.lines[0] == "audiomae: going on after step 1 of 4" and run.finished(config, "audiomae")
    straight, resumed = (
        model_folder.read_component(run.stage_folder(which, "audiomae") / "result", "audiomae").variables
        for which in (whole[0], config)
    )
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_what_later_stages_need_is_looked_for_at_the_start(tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(3):
        write(recordings / f"{number}.wav", np.linspace(-0.5, 0.5, 8000, dtype=np.float32), 16000)
    config = get_config()
    config.run_dir, config.data.source, config.stages = str(tmp_path / "run"), str(recordings), "vae,clap"
    with pytest.raises(RunError, match=r"clap learns from captions, and of the \d records to train on of .* none"):
        run.prepare(config)
    config.stages, config.init_from.audiomae = "audiomae,diffusion", str(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"init_from\.audiomae: /.*nowhere does not exist; audiomae starts from it"):
        run.prepare(config)
    config.stages = "vae,vae"
    with pytest.raises(RunError, match="names vae twice"):
        run.plan(config)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_access.hub_reachable.cache_clear()
    yield tmp_path / "hub"
    hub_access.hub_reachable.cache_clear()


@pytest.mark.parametrize(
    "place, said",
    [
        ("models/audio/mae", r"models/audio/mae is no folder here \(/.*/models/audio/mae does not exist\)"),
        ("models/mae", r"\(/.*/models/mae does not exist\); as the id of a repository on the hub"),
        ("mae", r"mae is no folder here .* it is not in the hub's cache"),
        ("./mae", r"no folder here"),
        ("models/ma\u00eb", r"no folder here"),
    ],
)
def test_a_mistyped_path_to_start_from_is_told_before_the_first_stage(tmp_path, offline, place, said):
    config = get_config()
    config.run_dir, config.stages = str(tmp_path / "run"), "vae,diffusion"
    config.init_from.audiomae = place
    with pytest.raises(RunError, match=rf"^--config\.init_from\.audiomae.*{said}.* diffusion starts from it$"):
        run.prepare(config)


def test_what_stages_start_from_may_lie_on_the_hub(tmp_path, offline):
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae/config.json").write_text("{}")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/readme.txt").write_text("no network")
    for name in ("mae", "words"):
        cache(offline, f"someone/{name}", tmp_path / name)
    config = get_config()
    config.run_dir, config.stages = str(tmp_path / "run"), "vae,diffusion"
    config.init_from.audiomae = "someone/mae"
    run.prepare(config)
    config.init_from.audiomae = "someone/words"
    with pytest.raises(RunError, match=r"init_from\.audiomae: someone/words has no audiomae/config\.json"):
        run.prepare(config)
