"""Going on from a whole model: what a recipe takes over from the model folder that `init_from.model` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.audio.mel import MelSettings
from audioldm2_jax.checkpoints import hub, model_folder, model_index
from audioldm2_jax.checkpoints.atomic_folder import FolderError, read_json
from audioldm2_jax.components import LOA_TOKENS, spec_of
from audioldm2_jax.conditioning.conditions import speaks, text_kinds
from audioldm2_jax.conditioning.loa import pooling_of
from audioldm2_jax.data.text import folders
from audioldm2_jax.generation.clip_encoder import mel_settings
from audioldm2_jax.recipe_components import recipe_parts, recipe_spec
from audioldm2_jax.recipe_resolve import run_place
from audioldm2_jax.runtime.storage import is_here, scheme_of
from audioldm2_jax.training.lineage import RunError


def resolve(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Returns the recipe with what the model in `config.init_from.model`, where one is named, fixes; `config` stays.

    Every component that the folder has is what training starts from, unless `config.init_from` names another source
    than the recipe does; sizes, tokenizers, front ends, noise schedule and the pooling of the LOA are the folder's.
    What it lacks, AudioMAE for instance, stays as the recipe says. A hub id stays one: where this machine's cache has
    it is no part of the recipe.

    Returns:
      the recipe, and which sizes and settings were changed, a line each.

    Raises:
      FolderError: where there is no such model, or one that no stage trains.
      StorageError: where a path cannot be served.
    """
    made = config.copy_and_resolve_references()
    with made.unlocked(), made.ignore_type():
        made.run_dir = run_place(config.run_dir)
        if config.init_from.model:
            _take_model(made, model_folder.locate_model(config.init_from.model))
    made.lock()
    changes = _changes(config.to_dict(), made.to_dict()) if config.init_from.model else ()
    unsaid = ("init_from.", "text.", "run_dir")
    return made, [f"{key}: {old} → {new}" for key, old, new in changes if not key.startswith(unsaid)]


def check_mel(config: ConfigDict, name: str) -> None:
    """Compares the mel that a VAE or vocoder in `config.init_from` was trained on with the recipe's.

    A VAE says nothing of it: the vocoder of its model folder does, or the settings of the stage that made it. Of what
    is on the hub two files are fetched, the config.json of both.

    Args:
      name: vae or vocoder; where `config.init_from` names one.

    Raises:
      RunError: they differ; the message says what to set.
      FolderError: there is no such network.
    """
    place = config.init_from[name]
    trained = _mel_of(place, name)
    own = {f"audio.mel.{key}": value for key, value in config.audio.mel.items()}
    own["audio.sampling_rate"] = config.audio.sampling_rate
    different = {key: value for key, value in trained.items() if key in own and own[key] != value}
    if different:
        raise RunError(
            f"--config.init_from.{name}={place} is of other mels than the recipe's "
            f"({', '.join(f'{key}: {value}, here {own[key]}' for key, value in different.items())}): set "
            f"{' '.join(f'--config.{key}={value}' for key, value in different.items())}, or train the {name} anew"
        )


def _mel_of(place: str, name: str) -> dict[str, Any]:
    """Returns the settings of the mel of a VAE or vocoder, by their keys in a recipe; {} where nobody knows them."""
    folder = model_folder.locate_config(place, name)
    if name == "vae" and not (scheme_of(place) or is_here(place, "--config.init_from.vae")):
        hub.fetch_file(place, "vocoder/config.json")
    vocoder = folder if name == "vocoder" else folder.with_name("vocoder")
    stage = folder.parent.with_name("config.json")
    if (vocoder / "config.json").is_file():
        mel = _vocoder_mel(vocoder)
        settings = {f"audio.mel.{key}": getattr(mel, key) for key in recipes.get("base").audio.mel}
        return settings | {"audio.sampling_rate": mel.sampling_rate}
    if stage.is_file():
        return {key: value for key, value in read_json(stage).items() if key.startswith("audio.")}
    return {}


def _vocoder_mel(folder: Path) -> MelSettings:
    fields = read_json(folder / "config.json")
    return mel_settings(spec_of("vocoder", fields).defaults | fields)


def _take_model(config: ConfigDict, path: Path) -> None:
    """Sets what the model folder at `path` fixes."""
    model, usual = config.init_from.model, recipes.get(config.recipe).init_from
    for name in recipe_parts(config):
        named = config.init_from[name]
        if named and named != usual[name]:
            _take_component(config, name, model_folder.locate(named, name))
        elif name in model_index.parts(path):
            _take_component(config, name, path / name)
            config.init_from[name] = model
    for kind, folder in folders(text_kinds(config)).items():
        config.text[f"{kind}_tokenizer"] = f"{model.rstrip('/')}/{folder}"
    if speaks(config):
        config.text.phoneme_length = read_json(path / "projection_model" / "config.json")["max_seq_length"]
    schedule, scheduler_class = model_folder.read_scheduler(path)
    known = schedule.to_config(scheduler_class)
    config.scheduler.update({key: known[key] for key in config.scheduler if key in known})
    _take_front_ends(config, path)
    _take_pooling(config, path)


def _take_component(config: ConfigDict, name: str, path: Path) -> None:
    fields = read_json(path / "config.json")
    spec = spec_of(name, fields)
    wanted = recipe_spec(config, name)
    if spec is not wanted:
        raise FolderError(
            f"{path} is a {spec.class_name}, and the recipe {config.recipe} trains a {wanted.class_name}: a model of "
            "speech is gone on from with the recipes of speech, a unified one with those of full:unified, others with "
            "those of music; what no recipe has can generate, but is not trained."
        )
    if name in config.models:
        _fill(config.models[name], vars(model_folder.build(name, fields)))


def _fill(section: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Sets what the section has; one number for all levels becomes as many where the recipe has one each."""
    for key in section:
        if isinstance(section[key], ConfigDict):
            _fill(section[key], fields[key])
        elif key in fields:
            several = isinstance(section[key], tuple) and isinstance(fields[key], int)
            section[key] = (fields[key],) * len(fields["block_out_channels"]) if several else fields[key]


def _take_front_ends(config: ConfigDict, path: Path) -> None:
    mel = _vocoder_mel(path / "vocoder")
    config.audio.sampling_rate = mel.sampling_rate
    config.audio.mel.update({key: getattr(mel, key) for key in config.audio.mel})
    frames = read_json(path / "unet" / "config.json").get("sample_size")
    if frames:
        factor = 2 ** (len(config.models.vae.block_out_channels) - 1)
        config.audio.seconds = frames * factor * mel.hop_length / mel.sampling_rate
    clap = model_folder.read_feature_extractor(path)
    own = {key: getattr(clap, key) for key in config.audio.clap if key != "seconds"}
    config.audio.clap.update(own, seconds=clap.samples / clap.sampling_rate)


def _take_pooling(config: ConfigDict, path: Path) -> None:
    if not (path / "language_model").is_dir():
        raise ValueError(
            f"--config.init_from.model: {path} has no language_model/: it can generate, but no stage trains it"
        )
    tokens = read_json(path / "language_model" / "config.json").get("max_new_tokens") or LOA_TOKENS
    audiomae = config.models.audiomae
    config.audio.fbank.update(dict(zip(("frames", "n_mels"), audiomae.img_size)))
    config.loa.pooling = pooling_of(tokens, *(side // audiomae.patch_size for side in audiomae.img_size))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""):
    for key, value in after.items():
        if isinstance(value, Mapping):
            yield from _changes(before[key], value, f"{prefix}{key}.")
        elif value != before[key]:
            yield f"{prefix}{key}", before[key], value
