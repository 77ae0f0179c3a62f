"""Which settings decide what a stage computes, and whether those that it was begun with are those of now.

Only these are compared: a finished VAE does not mind another noise schedule. What a stage reads beside what all
stages read is declared by the stage (`Stage.reads`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.data import text
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import feature_cache, lineage
from audioldm2_jax.training.lineage import RunError, begun, finished, hub_name, inputs, stage_folder, write_json

FILE = "config.json"
_ALL = (
    "seed",
    "dtype",
    "audio.sampling_rate",
    "audio.seconds",
    "data.source",
    "data.heldout_share",
    "data.segment",
    "data.short",
    "data.silence",
    "data.audio_feature",
    "data.examples",
)
# Sections of `models` that had names of their own, and a key.
_RENAMED = {
    "models.clap.": "models.text_encoder.",
    "models.t5.": "models.text_encoder_2.",
    "models.gpt2.": "models.language_model.",
}
#: What earlier versions did where they had no such key and today's recipes may differ.
_FORMER = {"data.cache": "off", "data.silence": "keep", "audio.mel.compression": 0.0}
_T5 = re.compile(r"(train\.\w+\.)train_t5$")
# How, not what, every stage computes.
_HOW = ("remat",)
# Of `train.STAGE`: what may change on the way.
_FREE = (
    "log_every",
    "save_every",
    "keep",
    "sample_every",
    "heldout_every",
    "heldout_clips",
    "max_skipped_updates",
    "profile",
)


def settings(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns {dotted key: value} of all that decides what stage `name` computes, beside the components it reads."""
    kinds = STAGES[name].text_kinds(config)
    of_text = [f"text.{kind}_{key}" for kind in kinds for key in ("tokenizer", "length")]
    of_text += ["text.vocabulary", "data.text_feature"] if kinds else []
    wanted = (*_sections(config, name), *of_text)
    free = {f"train.{name}.{key}" for key in _FREE}
    found = {key: value for key, value in flat(config).items() if _below(key, wanted) and key not in free}
    return found | _cache(config, name)


def part(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the part of the recipe that stage `name` is given: what decides what it computes, and how it does.

    That is what `settings` has but for the tokenizers, which a stage gets as token ids, and what may change on the way.

    A stage that reads what it does not declare has an AttributeError.
    """
    wanted = (*_sections(config, name), *_HOW, *STAGES[name].reads_to_evaluate)

    def wanted_of(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found = {}
        for key, value in section.items():
            if _below(f"{prefix}{key}", wanted):
                found[key] = value
            elif isinstance(value, dict) and (inner := wanted_of(value, f"{prefix}{key}.")):
                found[key] = inner
        return found

    return ConfigDict(wanted_of(config.to_dict(), "")).lock()


def _cache(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns whether stage `name` trains from a cache, wherever it lies, and its settings; {} where it never does."""
    if not STAGES[name].reads_features(config):
        return {}
    if feature_cache.place_of(config, name) is None:
        return {"data.cache": "off"}
    return {"data.cache": "on", **{f"data.{key}": config.data[key] for key in ("cache_records", "cache_crops")}}


def _sections(config: ConfigDict, name: str) -> tuple[str, ...]:
    """Returns the sections, or single keys, of the recipe that decide what stage `name` computes."""
    stage = STAGES[name]
    return (*_ALL, f"train.{name}", *stage.reads, *(f"models.{part}" for part in stage.makes(config)))


def write(config: ConfigDict, name: str) -> None:
    """Writes down the settings that stage `name` is begun with; the recipe's name and sources for its reader."""
    sources = {f"init_from.{part}": source.origin for part, source in inputs(config, name).items()}
    write_json(stage_folder(config, name) / FILE, {"recipe": config.recipe, **settings(config, name), **sources})


def check(config: ConfigDict, name: str) -> None:
    """Compares what stage `name` was begun with.

    Raises:
        RunError: with the differences, and how to go on; or the file is damaged.
    """
    path = stage_folder(config, name) / FILE
    if not begun(config, name) or not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to train the stage anew") from error
    differences = _differences(config, name, before)
    if not differences:
        return
    if before.get("recipe") != config.recipe:
        differences.insert(0, f"  recipe: {before.get('recipe')} → {config.recipe}")
    raise RunError(
        f"{path.parent} was begun with another configuration:\n" + "\n".join(differences) + "\n"
        f"Take these back, choose another --config.run_dir, or delete {path.parent} to train {name} anew."
        + (_go_on(config, name) if finished(config, name) else "")
    )


def _differences(config: ConfigDict, name: str, before: Mapping[str, Any]) -> list[str]:
    """Returns a line a setting that is not as it was; one that earlier versions did not have was the recipe's."""
    now, lines = settings(config, name), []
    before = _FORMER | {_renamed(key): value for key, value in before.items()}
    if now.get("data.cache") == "on" != before["data.cache"]:  # what else comes with it is not told
        now = {key: value for key, value in now.items() if not key.startswith("data.cache_")}
    usual = flat(recipes.get(config.recipe)) if now.keys() - before.keys() else {}
    for key, value in now.items():
        old = before.get(key, usual.get(key))
        if isinstance(old, str) and key.startswith("text."):
            old = hub_name(old)
        if old != value:
            lines.append(f"  {key}: {old} → {value}")
    if lineage.read(config, name) is None:  # of earlier versions: elsewhere it is the weights that are compared
        for part, source in inputs(config, name).items():
            old = hub_name(before.get(f"init_from.{part}", source.origin))
            if not source.origin.startswith("stages/") and old != source.origin:
                lines.append(f"  init_from.{part}: {old} → {source.origin}")
    return lines


def _renamed(key: str) -> str:
    """Returns what a key of an earlier version is called now."""
    for old, new in _RENAMED.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return _T5.sub(r"\1train_text_encoder_2", key)


def _go_on(config: ConfigDict, name: str) -> str:
    """Returns how to train on from the result of a finished stage with other settings."""
    sources = {part: source.place for part, source in inputs(config, name).items()}
    sources |= {part: str(stage_folder(config, name) / "result") for part in STAGES[name].makes(config)}
    flags = [f"--config.init_from.{part}={place}" for part, place in sources.items()]
    root, folders = stage_folder(config, name).parents[1], text.folders(text_kinds(config))
    for kind in STAGES[name].text_kinds(config):
        flags.append(f"--config.text.{kind}_tokenizer={root / folders[kind]}")
    return (
        f"\n{name} is finished; to go on from its result, give the same command with "
        f"--config.run_dir=ANOTHER_FOLDER --config.stages={name} {' '.join(flags)}"
    )


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns {dotted key: value} of a config, as JSON has it."""
    found: dict[str, Any] = {}

    def walk(tree: Mapping, prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk(json.loads(json.dumps(config.to_dict())), "")
    return found


def _below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)
