"""A whole run: the recipe's stages in dependency order, the run folder, and the model folder at its end.

run_dir/
  tokenizer/ tokenizer_2/       as in the model folder
  stages/STAGE/config.json      what the stage was begun with
  stages/STAGE/checkpoints/     for resuming
  stages/STAGE/metrics.jsonl    and TensorBoard's files
  stages/STAGE/samples/         what it makes, step by step
  stages/STAGE/result/          the components it made; there once the stage is done
  model/                        the diffusers folder; there once all stages are done
  samples/                      clips of held-out captions
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.data import encoders, pipeline, sources, text
from audioldm2_jax.data.example import Source
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.evaluation import heldout_loss, samples
from audioldm2_jax.evaluation.base import Evaluator
from audioldm2_jax.evaluation.heldout_loss import HeldoutLoss
from audioldm2_jax.evaluation.samples import Samples
from audioldm2_jax.runtime import hosts
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import loop
from audioldm2_jax.training.progress import Progress

# What may differ from the run that a folder was begun with.
FREE = ("run_dir", "stages", "side_by_side", "compilation_cache", "mesh", "remat", "samples")
FREE_BELOW = {
    "data": ("workers", "threads", "prefetch"),
    "train": ("log_every", "save_every", "keep", "sample_every", "heldout_every", "heldout_clips"),
}
# Which sections of `config.models` decide what a component is, and what becomes of it in training.
SECTIONS = {
    "audiomae": ("audiomae",),
    "text_encoder": ("clap",),
    "text_encoder_2": ("t5",),
    "projection_model": ("clap", "t5", "gpt2"),
    "language_model": ("gpt2",),
    "vae": ("vae", "patch_discriminator"),
    "vocoder": ("vocoder", "period_discriminator", "scale_discriminator"),
    "unet": ("unet",),
}


class RunError(ValueError):
    """The run cannot start or go on as asked; the message says what to do."""


def plan(config: ConfigDict) -> list[str]:
    """Returns the stages that `config.stages` names, in its order.

    Raises:
        RunError: a name is not a stage.
    """
    names = [name.strip() for name in config.stages.split(",") if name.strip()]
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise RunError(
            f"--config.stages={config.stages}: {unknown or 'nothing'} is no stage; choose from {', '.join(STAGES)}"
        )
    return names


def stage_folder(config: ConfigDict, name: str) -> Path:
    return Path(config.run_dir) / "stages" / name


def finished(config: ConfigDict, name: str) -> bool:
    """Returns whether the stage's result is there."""
    return (stage_folder(config, name) / "result").is_dir()


def maker(config: ConfigDict, component: str, before: str = "") -> str | None:
    """Returns the last stage that makes `component`, earlier than the stage `before`; None if no stage does."""
    made = None
    for name, stage in STAGES.items():
        if name == before:
            break
        if component in stage.makes(config):
            made = name
    return made


def waits_for(config: ConfigDict, name: str, chosen: list[str]) -> list[str]:
    """Returns the stages among `chosen` whose result stage `name` reads."""
    stage = STAGES[name]
    parts = (*stage.needs(config), *stage.continues(config))
    makers = {maker(config, part, before=name) for part in parts}
    return [other for other in chosen if other in makers and other != name]


def make_folder(config: ConfigDict) -> Path:
    """Makes the run folder and returns it. Called by all hosts.

    Raises:
        RunError: no data is named, or the folder cannot be written.
    """
    if not config.data.source:
        raise RunError(
            f"the recipe {config.recipe!r} needs data: name a folder of recordings with --config.data.source=PATH, a "
            "TensorFlow Datasets set with --config.data.source=tfds:NAME, or the embedded corpus with "
            "--config.data.source=builtin:music"
        )
    root = Path(config.run_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable-{jax.process_index()}"  # a name for each host
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"cannot write to the run folder {root} ({error.strerror}): choose another with --config.run_dir=PATH"
        ) from error
    return root


def prepare(config: ConfigDict) -> None:
    """Checks the run folder against the recipe and writes the tokenizers. Called by all hosts.

    Raises:
        RunError: it belongs to another recipe, and what `make_folder` raises.
    """
    root = make_folder(config)
    for name in STAGES:
        if (stage_folder(config, name) / "config.json").exists():
            _check_config(config, name)
    if hosts.is_first() and not (root / text.T5_FOLDER).is_dir():
        text.open_tokenizers(config, sources.open_source(config, "train")).save(root)
    hosts.wait_for_hosts("run folder prepared")


def _relevant(config: ConfigDict, name: str) -> dict[str, object]:
    """Returns {dotted key: value} of all that decides what stage `name` computes."""
    flat: dict[str, object] = {}
    sections = _sections(config, name)

    def walk(tree: dict, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            here = (*path, key)
            if (path == () and key in FREE) or (path[:1] in (("data",), ("train",)) and key in FREE_BELOW[path[0]]):
                continue
            if (path == ("train",) and key != name) or (path == ("models",) and key not in sections):
                continue
            if isinstance(value, dict):
                walk(value, here)
            else:
                flat[".".join(here)] = value

    walk(json.loads(json.dumps(config.to_dict())), ())
    return flat


def _sections(config: ConfigDict, name: str) -> set[str]:
    """Returns the sections of `config.models` that stage `name` has to do with."""
    stage = STAGES[name]
    parts = (*stage.needs(config), *stage.continues(config), *stage.makes(config))
    return {section for part in parts for section in SECTIONS[part]}


def _check_config(config: ConfigDict, name: str) -> None:
    path = stage_folder(config, name) / "config.json"
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to train the stage anew") from error
    now, sections = _relevant(config, name), _sections(config, name)
    # Earlier versions wrote down the sizes of every network.
    before = {
        key: value for key, value in before.items() if not key.startswith("models.") or key.split(".")[1] in sections
    }
    missing = "(not there)"
    differences = [
        f"  {key}: {before.get(key, missing)} → {now.get(key, missing)}"
        for key in sorted({*before, *now})
        if before.get(key, missing) != now.get(key, missing)
    ]
    if differences:
        raise RunError(
            f"{path.parent} was begun with another configuration:\n" + "\n".join(differences) + "\n"
            f"Take these back, choose another --config.run_dir, or delete {path.parent} to train {name} anew"
        )


def load_components(config: ConfigDict, name: str) -> dict[str, model_folder.Component]:
    """Returns the components that stage `name` reads, from the run folder or from `init_from`.

    Raises:
        RunError: a component is nowhere; the message gives the command that makes it.
    """
    stage, found = STAGES[name], {}
    needed = (*stage.needs(config), *stage.continues(config))
    for part in dict.fromkeys((*needed, *stage.makes(config))):
        source = maker(config, part, before=name)
        if source and finished(config, source):
            found[part] = model_folder.read_component(
                stage_folder(config, source) / "result", part, jnp.dtype(config.dtype)
            )
        elif config.init_from[part]:
            found[part] = model_folder.read_component(config.init_from[part], part, jnp.dtype(config.dtype))
        elif part in needed:
            train = f"train it with --config.stages={source}, or " if source else ""
            raise RunError(
                f"stage {name} needs {part}, which {config.run_dir} does not have: {train}"
                f"give a folder or hub id that has it with --config.init_from.{part}="
            )
    return found


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens the data, with the records that process 0 found. Called by all hosts.

    A file that one host alone cannot read would otherwise give that host, silently, another order of all of its data.
    """
    source = sources.open_source(config, split)
    listing = hosts.broadcast(source.listing() if hosts.is_first() else None, f"records of {split}")
    if not hosts.is_first() and (difference := source.follow(listing)):
        logging.warning("process %d follows process 0 in what can be read. %s", jax.process_index(), difference)
    return source


def train_stage(config: ConfigDict, name: str, progress: Progress, should_stop: Callable[[], int] = lambda: 0) -> float:
    """Trains one stage to its end and writes its result; returns the share of time spent waiting for data.

    Raises:
        RunError, FolderError, Stopped, NotFinite, CheckpointError: see there.
    """
    where, root = stage_folder(config, name), Path(config.run_dir)
    tokenizers = text.load_tokenizers(root, config.text.clap_length, config.text.t5_length)
    clip_samples = round(config.audio.seconds * config.audio.sampling_rate)
    available = encoders.recipe_encoders(clip_samples, tokenizers)
    stage = STAGES[name](config, load_components(config, name), encoders.empty_text(available))
    wanted = encoders.select(available, stage.batch_fields)
    where.mkdir(parents=True, exist_ok=True)
    if hosts.is_first():
        _write_json(where / "config.json", _relevant(config, name))

    def batches(split: str, batch_size: int) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
        source = open_source(config, split)
        return lambda step: pipeline.batches(
            source,
            wanted,
            batch_size=batch_size,
            samples=clip_samples,
            seed=config.seed,
            start_step=step,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            workers=config.data.workers if split == "train" else 0,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )

    def evaluators(mesh: Mesh, key: jax.Array) -> tuple[Evaluator, ...]:
        heldout = batches("heldout", heldout_loss.batch_size(stage))
        some = batches("heldout", samples.clips(mesh))
        return (
            HeldoutLoss(stage, lambda: heldout(0), mesh, key),
            Samples(stage, lambda: some(0), mesh, where / "samples", progress.say),
        )

    trained = loop.train(stage, batches("train", stage.hparams.batch_size), where, progress, should_stop, evaluators)
    results = stage.results(trained.params, trained.model_state, trained.frozen, trained.batch)
    _write_result(where / "result", results)
    hosts.wait_for_file(where / "result", f"{name} finished")
    return trained.data_wait


def publish(config: ConfigDict) -> Path | None:
    """Writes the model folder from the latest results; returns it, or None while a network is still missing.

    What no stage of this run made comes from `init_from`.
    """
    root, target = Path(config.run_dir), Path(config.run_dir) / "model"
    sources = {}
    for part in model_folder.PARTS:
        makers = [name for name, stage in STAGES.items() if part in stage.makes(config) and finished(config, name)]
        sources[part] = stage_folder(config, makers[-1]) / "result" if makers else config.init_from[part]
    if not all(sources.values()):
        return None
    for part, source in sources.items():
        model_folder.copy_component(source, target, part)
    for part in ("tokenizer", "tokenizer_2"):
        model_folder.copy_part(root / part, target, part)
    model_folder.write_scheduler(target, NoiseSchedule.from_config(config.scheduler.to_dict()))
    model_folder.write_feature_extractor(target, **config.audio.clap)
    model_folder.write_index(target)
    return target


def _write_result(target: Path, components: dict[str, model_folder.Component]) -> None:
    """Writes all components of a stage's result, or none. Called by all hosts; the first one writes.

    Weights that lie on several hosts come to it one by one, so that only its memory ever holds a whole component.
    """
    partial = target.with_name("result.partial")
    if hosts.is_first():
        shutil.rmtree(partial, ignore_errors=True)
    for name, part in components.items():
        variables = hosts.to_first(part.variables)
        if hosts.is_first():
            model_folder.write_component(partial, name, part.config, variables, part.unused)
    if hosts.is_first():
        os.replace(partial, target)


def _write_json(path: Path, content: object) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    os.replace(temporary, path)
