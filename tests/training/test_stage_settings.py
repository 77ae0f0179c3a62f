"""Which settings a stage minds: all that change what it computes, and no others."""

import hashlib
import json
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict
from smallest import EMPTY_TEXT, batch, components, get_config

from audioldm2_jax import recipes
from audioldm2_jax.rngs import Rngs
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import lineage, stage_settings
from audioldm2_jax.training.lineage import RunError
from audioldm2_jax.training.stage_settings import settings


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value * 0.75 + 0.125
    return f"{value}x" if isinstance(value, str) else value


def change(config, keep, prefix=""):
    """Changes all settings but those in `keep`."""
    for key in config:
        name, value = f"{prefix}{key}", config[key]
        if isinstance(value, ConfigDict):
            change(value, keep, f"{name}.")
        elif name not in keep:
            config[key] = other(value)


def computation(name, config):
    """Its variants, and digests of what it computes, constants included: new parameters and the last step."""
    given = components(STAGES[name], get_config())  # what a stage reads is compared by its weights, not by settings
    stage = STAGES[name](config, given, EMPTY_TEXT)
    key, rngs = jax.random.key(0), Rngs(jax.random.key(1), jax.random.split(jax.random.key(2), 4))
    params, state = jax.eval_shape(stage.init, key)
    variants = [stage.variant(step) for step in range(stage.hparams.steps)]

    def step(params, state, frozen, fields):
        fields = stage.weigh(fields)
        outputs = stage.forward(params, state, frozen, fields, rngs, variants[-1])
        return [
            o.loss(params, outputs, state, frozen, stage.weigh(fields), rngs) for o in stage.objectives(variants[-1])
        ]

    init = jax.jit(stage.init).lower(key).as_text()
    loss = jax.jit(step).lower(params, state, stage.frozen, batch(4)).as_text()
    return variants, *(hashlib.sha256(text.encode()).hexdigest() for text in (init, loss))


SLOW = ("diffusion", "joint")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in STAGES])
def test_what_is_not_among_the_settings_changes_nothing(name):
    """All of it changed at once: the computation is the same to the letter."""
    config, changed = get_config(), get_config()
    config.data.cache = changed.data.cache = "off"  # "auto" looks at all stages
    before, minded = computation(name, config), settings(config, name)
    change(changed, minded)
    assert settings(changed, name) == minded
    assert computation(name, changed) == before


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        pytest.param("diffusion", "scheduler.beta_end", 0.03, marks=pytest.mark.slow),
        pytest.param("diffusion", "loa.training_poolings", (2,), marks=pytest.mark.slow),
        ("language_model", "loa.pooling", 1),
        pytest.param("joint", "scheduler.prediction_type", "epsilon", marks=pytest.mark.slow),
        ("vae", "audio.mel.fmin", 50.0),
        ("clap", "audio.clap.fmin", 60.0),
        ("audiomae", "train.audiomae.mask_ratio", 0.5),
    ],
)
def test_what_is_among_them_does(name, key, value):
    config = get_config()
    before = computation(name, config)
    config.update_from_flattened_dict({key: value})
    assert computation(name, config) != before
    assert key in settings(config, name)


@pytest.fixture
def begun(tmp_path):
    """The config of a run folder in which every stage has a checkpoint, and nothing is known of what it read."""
    config = get_config()
    config.run_dir = str(tmp_path)
    for name in STAGES:
        (lineage.stage_folder(config, name) / "checkpoints/4").mkdir(parents=True)
        stage_settings.write(config, name)
    return config


def differences(config, name):
    with pytest.raises(RunError) as caught:
        stage_settings.check(config, name)
    return [line.strip() for line in str(caught.value).splitlines() if "→" in line]


def test_a_vae_does_not_mind_what_it_does_not_read(begun):
    begun.scheduler.beta_end, begun.loa.pooling, begun.audio.clap.fmin = 0.03, 1, 60.0
    begun.init_from.unet, begun.text.clap_length, begun.models.language_model.n_layer = "elsewhere", 13, 2
    begun.data.text_feature, begun.recipe = "words", "base"
    for name in ("vae", "vocoder"):
        stage_settings.check(begun, name)
    assert differences(begun, "diffusion")[1:] == ["scheduler.beta_end: 0.0195 → 0.03"]
    assert differences(begun, "clap") == [
        "recipe: tiny → base",
        "audio.clap.fmin: 50.0 → 60.0",
        "data.text_feature:  → words",
        "text.clap_length: 12 → 13",
    ]


def test_what_earlier_versions_wrote_in_excess_or_did_not_know(begun):
    path = lineage.stage_folder(begun, "vae") / "config.json"
    content = json.loads(path.read_text()) | {"models.unet.layers_per_block": 7, "scheduler.beta_end": 1.0}
    del content["train.vae.crops"]  # a setting that there was not: it was as the recipe's
    path.write_text(json.dumps(content))
    begun.train.vae.crops = crops = recipes.get("tiny").train.vae.crops
    stage_settings.check(begun, "vae")
    begun.train.vae.crops = crops + 5
    assert differences(begun, "vae") == [f"train.vae.crops: {crops} → {crops + 5}"]


def test_mels_were_logarithms_before_they_could_be_powers(begun):
    path = lineage.stage_folder(begun, "vae") / "config.json"
    content = json.loads(path.read_text())
    del content["audio.mel.compression"]
    path.write_text(json.dumps(content))
    assert begun.audio.mel.compression == 0.5
    assert differences(begun, "vae") == ["audio.mel.compression: 0.0 → 0.5"]
    begun.audio.mel.compression = 0.0
    stage_settings.check(begun, "vae")


def test_a_path_into_the_hubs_cache_is_the_id_that_it_is_of(begun):
    """Earlier versions wrote down where this machine's cache had the weights."""
    path = lineage.stage_folder(begun, "clap") / "config.json"
    snapshot = "/home/me/.cache/huggingface/hub/models--someone--music/snapshots/0123abcd"
    content = json.loads(path.read_text())
    content |= {"text.clap_tokenizer": f"{snapshot}/tokenizer", "init_from.text_encoder": snapshot}
    path.write_text(json.dumps(content))
    begun.text.clap_tokenizer, begun.init_from.text_encoder = "someone/music/tokenizer", "someone/music"
    stage_settings.check(begun, "clap")
    begun.init_from.text_encoder = "someone/else"
    assert differences(begun, "clap") == ["init_from.text_encoder: someone/music → someone/else"]


def test_a_stage_without_a_checkpoint_may_be_begun_with_other_settings(begun):
    begun.train.vae.kl_weight = 31.0
    (lineage.stage_folder(begun, "vae") / "checkpoints/4").rename(Path(begun.run_dir) / "4.orbax-checkpoint-tmp")
    stage_settings.check(begun, "vae")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_not_given_what_it_does_not_declare(name):
    part = stage_settings.part(get_config(), name)
    assert {"run_dir", "init_from", "stages", "recipe"}.isdisjoint(part)
    assert [*part.train] == [name]
    if name == "vae":
        assert part.train.vae == get_config().train.vae
        with pytest.raises(AttributeError):
            part.scheduler  # noqa: B018
