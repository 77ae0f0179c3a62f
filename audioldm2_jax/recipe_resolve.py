"""A recipe as it is meant: paths and addresses as they were typed, and keys that follow others.

Some facts stand in a recipe several times, since a network's config.json has them, too. Those that were left as the
recipe has them follow those that were changed; `recipe_check` compares what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.runtime.object_store import normalized
from audioldm2_jax.runtime.storage import local_path, scheme_of

FBANK_RATE = 100
"""Frames of AudioMAE's input a second."""

_DECODER_WINDOW = 4  # patches in time that the windows of AudioMAE's decoder hold

# What of `train.STAGE` is counted in steps. Weights decay, and averages forget, by the step: they stay as they are.
_IN_STEPS = {
    "steps",
    "warmup",
    "decay_every",
    "discriminator_start",
    "log_every",
    "save_every",
    "heldout_every",
    "sample_every",
}


class RecipeError(ValueError):
    """Keys of a recipe that contradict each other; the message names them and what would fit."""


def resolve_paths(config: ConfigDict) -> ConfigDict:
    """Returns the config with the paths and addresses in it as they are meant; hub ids stay.

    Raises:
        StorageError: one is none; named by its key.
    """
    made = ConfigDict(config.to_dict())
    made.run_dir = run_place(config.run_dir)
    for section, keys in (
        ("init_from", config.init_from),
        ("text", ("clap_tokenizer", "t5_tokenizer", "phoneme_tokenizer")),
    ):
        for key in keys:
            typed = config[section][key]
            if typed.strip():
                what = f"--config.{section}.{key}"
                if scheme_of(typed):
                    made[section][key] = normalized(typed, what)
                else:
                    path = local_path(typed, what)
                    made[section][key] = str(path) if path.exists() else typed.strip()
    return made.lock()


def run_place(typed: str) -> str:
    """Returns `config.run_dir` as it is meant: a path of this machine, or an address.

    Raises:
        StorageError: it is neither.
    """
    return normalized(typed, "--config.run_dir") if scheme_of(typed) else str(local_path(typed, "--config.run_dir"))


def follow(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Lets keys that were left as the recipe has them follow those that were changed.

    AudioMAE's input follows `audio.seconds`, the upper end of the mel the sampling rate, and the tables of words the
    vocabulary of tokenizers that are trained here. All that is counted in steps follows `budget`, and with it how many
    records are cached.

    Returns:
        the config, a new one where something follows, and what has changed in it, a line each.
    """
    usual = recipes.get(config.recipe)
    changed = ConfigDict(config.to_dict())
    _follow_fbank(changed, usual)
    audio, former = changed.audio, usual.audio
    if audio.sampling_rate != former.sampling_rate and audio.mel.fmax == former.mel.fmax == former.sampling_rate / 2:
        audio.mel.fmax = audio.sampling_rate / 2
    for part, tokenizer, section in tables(changed):
        starts_new = not (changed.init_from[part] or changed.init_from.model or changed.text[tokenizer])
        if starts_new and changed.text.vocabulary > section.vocab_size:
            section.vocab_size = changed.text.vocabulary
    lines = [
        f"{key}: {_at(config, key)} → {_at(changed, key)} (follows {cause})"
        for key, cause in (
            ("audio.fbank.frames", "audio.seconds"),
            ("audio.fbank.n_mels", "models.audiomae.img_size"),
            ("models.audiomae.img_size", "audio.seconds"),
            ("audio.mel.fmax", "audio.sampling_rate"),
            ("models.text_encoder.text_config.vocab_size", "text.vocabulary"),
            ("models.text_encoder_2.vocab_size", "text.vocabulary"),
        )
        if _at(config, key) != _at(changed, key)
    ]
    if config.budget != 1:
        kept = _follow_budget(changed, usual)
        steps = ", ".join(f"{name} {stage.steps}" for name, stage in changed.train.items())
        stays = f"; set, and so not multiplied: {', '.join(kept)}" if kept else ""
        lines.append(f"train.*.steps: {config.budget:g} times the recipe's (follows budget): {steps}{stays}")
    return (changed.lock() if lines else config), lines


def follows_budget(config: ConfigDict, stages: Sequence[str]) -> bool:
    """Returns whether the steps of one of the stages are those of the recipe, and so would follow another budget."""
    usual = recipes.get(config.recipe)
    return any(config.train[name].steps == max(round(usual.train[name].steps * config.budget), 1) for name in stages)


def _at(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def tables(config: ConfigDict) -> tuple[tuple[str, str, ConfigDict], ...]:
    """Each text encoder of captions: its component, its tokenizer's key, and the section with the rows of its table."""
    models = config.models
    clap = ("text_encoder", "clap_tokenizer", models.text_encoder.text_config)
    t5 = ("text_encoder_2", "t5_tokenizer", models.text_encoder_2)
    return (clap, t5) if "t5" in text_kinds(config) else (clap,)


def _follow_fbank(config: ConfigDict, usual: ConfigDict) -> None:
    """Sets the frames of AudioMAE's input, where neither of the two keys that have them was changed, or one was."""
    fbank, audiomae = config.audio.fbank, config.models.audiomae
    usual_size = (usual.audio.fbank.frames, usual.audio.fbank.n_mels)
    declared, network = (fbank.frames, fbank.n_mels), tuple(audiomae.img_size)
    if not math.isfinite(config.audio.seconds) or audiomae.patch_size < 1:
        return  # `check` refuses them
    if declared == network == usual_size:
        if config.audio.seconds == usual.audio.seconds or config.init_from.audiomae or config.init_from.model:
            return
        unit = audiomae.patch_size * math.lcm(_DECODER_WINDOW, config.loa.pooling, *config.loa.training_poolings)
        frames = math.ceil(round(config.audio.seconds * FBANK_RATE, 6) / unit) * unit
        network = (frames, fbank.n_mels)
    elif network == usual_size:
        network = declared
    elif declared != usual_size:
        return  # both were set: `check` compares them
    fbank.frames, fbank.n_mels = network
    audiomae.img_size = network


def _follow_budget(config: ConfigDict, usual: ConfigDict) -> list[str]:
    """Multiplies what is counted in steps, and the records of the cache, each of which is seen as often as before;
    what is 0, which means never, at once or all, stays so, and so does what is not as the recipe has it.

    Returns:
        what was set by hand, and stays.

    Raises:
        RecipeError: the budget is not a positive number.
    """
    if not (math.isfinite(config.budget) and config.budget > 0):
        raise RecipeError(f"budget={config.budget}: it has to be above 0; 0.1 takes a tenth of the recipe's steps")
    sections = [(f"train.{name}", stage, usual.train[name], _IN_STEPS) for name, stage in config.train.items()]
    kept = []
    for where, section, former, keys in (*sections, ("data", config.data, usual.data, ("cache_records",))):
        for key in (key for key in section if key in keys):
            if section[key] != former[key]:
                kept.append(f"{where}.{key}={section[key]}")
            elif section[key] > 0:  # `check` refuses what is below 0
                section[key] = max(round(section[key] * config.budget), 1)
    return kept
