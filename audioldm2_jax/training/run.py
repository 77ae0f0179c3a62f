"""A whole run: the recipe's stages in dependency order, the run folder, and the model folder at its end.

run_dir/
  tokenizer/ tokenizer_2/ …     as in the model folder
  stages/STAGE/config.json      the settings that the stage was begun with
  stages/STAGE/lineage.json     the components and tokenizers that it was begun with; a copy is in result/
  stages/STAGE/checkpoints/     for resuming
  stages/STAGE/metrics.jsonl    and TensorBoard's files
  stages/STAGE/samples/         what it makes, step by step
  stages/STAGE/result/          the components it made; there once the stage is done
  model/                        the diffusers folder; there once all stages are done
  samples/                      clips of held-out captions
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints import hub, model_folder, model_index
from audioldm2_jax.checkpoints.atomic_folder import remove_unfinished
from audioldm2_jax.conditioning.conditions import text_encoders, text_kinds
from audioldm2_jax.data import sources, text
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.evaluation import samples
from audioldm2_jax.evaluation.base import Evaluator
from audioldm2_jax.evaluation.heldout_loss import HeldoutLoss
from audioldm2_jax.evaluation.samples import Samples
from audioldm2_jax.recipe_components import check_networks, recipe_parts
from audioldm2_jax.runtime import hosts, sharding
from audioldm2_jax.runtime.hub_access import no_folder
from audioldm2_jax.runtime.stall import StallWatch
from audioldm2_jax.runtime.storage import is_here, scheme_of
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import feature_cache, fine_tuning, lineage, loop, mesh_choice, run_folder, stage_settings
from audioldm2_jax.training.cache_places import CachePlace
from audioldm2_jax.training.lineage import RunError, finished, maker, stage_folder
from audioldm2_jax.training.progress import Progress
from audioldm2_jax.training.stage_data import StageData

#: Field of the batch → what stages that read it learn from, how that is found in a source, and its name in metadata.
_LEARNT_FROM = {
    "captioned": ("captions", text.captions, "text"),
    "transcribed": ("transcriptions", text.transcriptions, "transcription"),
}


#: Networks of the mel, which has to be the recipe's also where no stage reads them, as all are published.
_OF_MEL = ("vae", "vocoder")


def plan(config: ConfigDict) -> list[str]:
    """Returns the stages that `config.stages` names, in its order.

    Raises:
        RunError: a name is not a stage, or stands there twice.
    """
    names = [name.strip() for name in config.stages.split(",") if name.strip()]
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise RunError(
            f"--config.stages={config.stages}: {unknown or 'nothing'} is no stage; choose from {', '.join(STAGES)}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(f"--config.stages={config.stages} names {', '.join(twice)} twice")
    return names


def waits_for(config: ConfigDict, name: str, chosen: list[str]) -> list[str]:
    """Returns the stages among `chosen` whose result stage `name` reads."""
    stage = STAGES[name]
    parts = (*stage.needs(config), *stage.continues(config))
    makers = {maker(config, part, before=name) for part in parts}
    return [other for other in chosen if other in makers and other != name]


def make_folder(config: ConfigDict) -> Path | str:
    """Makes the run folder and returns it, or its address. Called by all hosts.

    Raises:
        RunError, StoreError: no data is named, or the folder cannot be written.
    """
    if not config.data.source:
        raise RunError(
            f"the recipe {config.recipe!r} needs data: name a folder of recordings with --config.data.source=PATH, a "
            "TensorFlow Datasets set with --config.data.source=tfds:NAME, or the embedded corpus with "
            "--config.data.source=builtin:music"
        )
    root = run_folder.path(config)
    try:
        run_folder.make(config)
    except OSError as error:
        raise RunError(
            f"cannot write to the run folder {root} ({error.strerror}): choose another with --config.run_dir=PATH"
        ) from error
    return run_folder.place(config)


def prepare(config: ConfigDict, say: Callable[[str], None] = lambda line: None) -> None:
    """Checks the run folder against the recipe, and writes the tokenizers if a stage reads text. Called by all hosts.

    Raises:
        RunError: it belongs to another recipe, holds results of different generations, and what `make_folder` raises.
    """
    make_folder(config)
    chosen = plan(config)
    _check_inputs(config, [name for name in chosen if not finished(config, name)])
    for name in STAGES:
        stage_settings.check(config, name)
    lineage.refuse_stale(config, chosen)
    if any(STAGES[name].text_kinds(config) for name in chosen):
        if hosts.is_first():
            write_tokenizers(config)
        for folder in _tokenizer_folders(config):
            run_folder.share(config, folder, "tokenizers written")
        lineage.refuse_stale(config, chosen)  # they may have been made again, of other captions
    _check_hub(config, [name for name in chosen if not finished(config, name)])
    hosts.wait_for_hosts("run folder checked")
    if hosts.is_first():
        lineage.adopt(config, say)


def _check_inputs(config: ConfigDict, names: list[str]) -> None:
    """Looks, before the first stage begins, for what the later ones need.

    Raises:
        RunError, ValueError: a batch does not fit the devices, a folder to start from is not there, sizes inside a
            network do not fit, or stages that learn from captions find none.
    """
    mesh = sharding.make_mesh(config.mesh)
    for name in names:
        hparams, stage = config.train[name], STAGES[name]
        sharding.check_batch(hparams.batch_size, hparams.accumulate, mesh, name)
        for part in {*stage.needs(config), *stage.continues(config), *stage.makes(config)}:
            place = config.init_from[part]
            key = f"--config.init_from.{part}"
            if place and not (scheme_of(place) or hub.is_id(place.strip()) or is_here(place, key)):
                raise RunError(f"{key}: {no_folder(place)}; {name} starts from it")
        _check_cache(config, name)
    for part in _OF_MEL:
        place = config.init_from[part]
        if place and is_here(place, f"--config.init_from.{part}"):
            fine_tuning.check_mel(config, part)
    check_networks(config, dict.fromkeys(_new_networks(config, names)))
    _check_words(config, names)


def _new_networks(config: ConfigDict, names: list[str]) -> Iterator[str]:
    """Yields the networks that stages make whose sizes are the recipe's, not those of the weights it starts from."""
    for name in names:
        yield from (part for part in STAGES[name].makes(config) if not config.init_from[part])


def _check_words(config: ConfigDict, names: list[str]) -> None:
    """Looks whether the data has what stages learn from: of several kinds of texts one is enough.

    Raises:
        RunError: it has none.
    """
    learning: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        fields = tuple(field for field in _LEARNT_FROM if field in STAGES[name].reads_fields(config))
        if fields:
            learning.setdefault(fields, []).append(name)
    source = sources.open_source(config, "train") if learning else None
    for fields, stages in learning.items():
        texts, finders, keys = zip(*(_LEARNT_FROM[field] for field in fields))
        if not any(find(source) for find in finders):
            raise RunError(
                f"{', '.join(stages)} {'learn' if stages[1:] else 'learns'} from {' or '.join(texts)}, and of the "
                f"{len(source)} records to train on of {config.data.source} none has one: write them into a "
                f"metadata.jsonl as {' or '.join(keys)}, or leave these stages out with --config.stages="
            )


def _check_hub(config: ConfigDict, names: list[str]) -> None:
    """Looks whether what stages start from on the hub or in a store is there, of each for its config.json.

    Raises:
        RunError: one is not; so is a path that looks like a hub id, and that nothing has.
    """
    for name in names:
        for part, source in lineage.inputs(config, name).items():
            if source.place != config.init_from[part] or is_here(source.place, source.origin):
                continue
            try:
                model_folder.locate_config(source.place, part)
            except model_folder.FolderError as error:
                raise RunError(f"--config.init_from.{part}: {error} {name} starts from it") from error
            if part in _OF_MEL:
                fine_tuning.check_mel(config, part)


def _check_cache(config: ConfigDict, name: str) -> None:
    """Looks whether the cache that stage `name` would make can be written.

    Raises:
        RunError, StorageError: it cannot.
    """
    place = feature_cache.place_of(config, name)
    if place is None:
        return
    folder = place.folder
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "not writable" if there.is_dir() else "no folder"
        raise RunError(f"--config.data.cache={config.data.cache}: {there} is {fault}; name a folder, auto or off")


def _tokenizer_folders(config: ConfigDict) -> list[Path]:
    """Returns where the run's tokenizers lie; the last one is there once all are."""
    return [run_folder.path(config) / name for name in text.folders(text_kinds(config)).values()]


def write_tokenizers(config: ConfigDict) -> None:
    """Writes the run's tokenizers, all or none, unless they are there."""
    root, folders = run_folder.path(config), _tokenizer_folders(config)
    if folders[-1].is_dir():
        return
    partial = root / ".tokenizers.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizers = text.open_tokenizers(config.text, sources.open_source(config, "train"), text_kinds(config))
    text.check_tables(tokenizers, word_tables(config, {}))
    tokenizers.save(partial)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial / folder.name, folder)
    partial.rmdir()


def begin(config: ConfigDict, name: str) -> None:
    """Writes down the settings and the components that stage `name` is begun with, in the place of earlier ones."""
    stage_folder(config, name).mkdir(parents=True, exist_ok=True)
    stage_settings.write(config, name)
    lineage.write(config, name)
    for file in (stage_settings.FILE, lineage.FILE):
        run_folder.upload(config, stage_folder(config, name) / file)


def load_components(config: ConfigDict, name: str) -> dict[str, model_folder.Component]:
    """Returns the components that stage `name` reads, from the run folder or from `init_from`.

    Raises:
        RunError: a component is nowhere; the message gives the command that makes it.
    """
    there, stage = lineage.inputs(config, name), STAGES[name]
    for part in (*stage.needs(config), *stage.continues(config)):
        if part not in there:
            source = maker(config, part, before=name)
            train = f"train it with --config.stages={source}, or " if source else ""
            raise RunError(
                f"stage {name} needs {part}, which {config.run_dir} does not have: {train}"
                f"give a folder or hub id that has it with --config.init_from.{part}="
            )
    found = {}
    for part, source in there.items():
        try:
            found[part] = model_folder.read_component(source.place, part, jnp.dtype(config.dtype))
        except model_folder.FolderError as error:
            if source.place != config.init_from[part]:
                raise
            raise RunError(f"--config.init_from.{part}: {error}") from error
    return found


def _load_tokenizers(config: ConfigDict) -> text.Tokenizers:
    lengths = {kind: config.text[f"{kind}_length"] for kind in text_kinds(config)}
    return text.load_tokenizers(run_folder.path(config), lengths)


def word_tables(config: ConfigDict, components: dict[str, model_folder.Component]) -> dict[str, int | None]:
    """Returns the rows of the text encoders' tables of words, by what they read; None where only weights that are not
    read yet know.

    Args:
        components: those that are read already.
    """
    found: dict[str, int | None] = {}
    others = ((kind, part, config.models[part]) for part, kind in text_encoders(config).items())
    for kind, part, section in (("clap", "text_encoder", config.models.text_encoder.text_config), *others):
        known = components[part].config if part in components else {}
        of_weights = (known.get("text_config") or known).get("vocab_size")
        found[kind] = of_weights if known else None if config.init_from[part] else section.vocab_size
    return found


def train_stage(config: ConfigDict, name: str, progress: Progress, should_stop: Callable[[], int] = lambda: 0) -> float:
    """Trains one stage to its end and writes its result; returns the share of time spent waiting for data.

    Raises:
        RunError, FolderError, Stopped, NotFinite, Unreadable, CheckpointError: see there.
    """
    where = stage_folder(config, name)
    components, tokenizers = _load(config, name)
    if lineage.begun(config, name):
        lineage.refuse_stale(config, [name], fetched=name)
    elif hosts.is_first():
        begin(config, name)
    run_folder.wait_for(config, where, f"{name} begun")
    data = StageData(config, name, components, tokenizers, progress, should_stop)
    stage = STAGES[name](stage_settings.part(config, name), components, data.empty_text)
    mesh = mesh_choice.make_mesh(config, stage, progress.say)
    evaluators: list[Evaluator] = [
        Samples(stage, partial(data.heldout, samples.clips(mesh)), mesh, where / "samples", progress.say)
    ]
    if data.has_heldout:
        evaluators.insert(0, HeldoutLoss(stage, partial(data.held, stage), mesh))
    with StallWatch(config.stall_seconds, run_folder.path(config) / f"stacks-{jax.process_index()}.txt") as stall:
        trained = loop.train(
            stage,
            mesh,
            partial(data.train, stage),
            where,
            progress,
            should_stop,
            evaluators=evaluators,
            records=partial(data.records, stage),
            max_unreadable=config.data.max_unreadable,
            stall=stall,
            saved=run_folder.place(config, where / run_folder.CHECKPOINTS),
        )
    results = stage.results(trained.params, trained.model_state, trained.frozen, trained.batch)
    _write_result(where, results)
    run_folder.share(config, where / "result", f"{name} finished")
    return trained.data_wait


def make_caches(config: ConfigDict, progress: Progress, should_stop: Callable[[], int] = lambda: 0) -> list[CachePlace]:
    """Makes what is missing of the caches that the chosen stages train from, and trains nothing. Called by all hosts.

    Each host makes its share of the shards; what is there stays, so that the same call goes on after an interruption.

    Args:
        config: a recipe, resolved; read are `stages`, and the networks from the run folder or `init_from`.

    Returns:
        their places, without those of stages that train from sound.

    Raises:
        RunError: none of the stages reads a cache, or one lacks a network; the message says what to do.
        CacheError, Stopped, OSError: see `feature_cache.open_cache`.
    """
    places = {name: place for name in plan(config) if (place := feature_cache.place_of(config, name))}
    if not places:
        raise RunError(
            f"--config.stages={config.stages} with --config.data.cache={config.data.cache}: no stage trains from a "
            "cache; name its folder with --config.data.cache=FOLDER, and of the stages "
            f"{', '.join(name for name, stage in STAGES.items() if stage.reads_features(config))}"
        )
    prepare(config, progress.say)
    for name in places:
        components, tokenizers = _load(config, name)
        StageData(config, name, components, tokenizers, progress, should_stop)
    return list(dict.fromkeys(places.values()))


def _load(config: ConfigDict, name: str) -> tuple[dict[str, model_folder.Component], text.Tokenizers | None]:
    """Reads what stage `name` starts from: its components, and the tokenizers where it reads text."""
    tokenizers = _load_tokenizers(config) if STAGES[name].text_kinds(config) else None
    components = load_components(config, name)
    if tokenizers:
        text.check_tables(tokenizers, word_tables(config, components))
    return components, tokenizers


def is_published(config: ConfigDict) -> bool:
    """Returns whether the model folder is there and whole, with the networks of the latest results."""
    target = run_folder.path(config) / "model"
    if not (target / model_index.FILE).exists():
        return False
    there = model_index.parts(target)
    for part, source in _sources(config).items():
        if part not in there:
            return False
        of_run = source and Path(source).parent.parent == run_folder.path(config) / "stages"
        try:
            if of_run and lineage.digest(str(target), part) != lineage.digest(str(source), part):
                return False
        except model_folder.FolderError:  # something of it is gone
            return False
    return True


def _sources(config: ConfigDict) -> dict[str, str | Path]:
    """Returns where each network of the model comes from: the last stage that made it, or `init_from`; "": nowhere."""
    sources: dict[str, str | Path] = {}
    for part in recipe_parts(config):
        makers = [name for name, stage in STAGES.items() if part in stage.makes(config) and finished(config, name)]
        sources[part] = stage_folder(config, makers[-1]) / "result" if makers else config.init_from[part]
    return sources


def publish(config: ConfigDict) -> Path | None:
    """Writes the model folder from the latest results; returns it, or None while a network is still missing.

    What no stage of this run made comes from `init_from`. Called by process 0.

    Raises:
        RunError: results do not fit together; what was published before stays.
    """
    target = run_folder.path(config) / "model"
    if found := lineage.stale_results(config):
        raise RunError(lineage.explain(config, found))
    sources = _sources(config)
    if not all(sources.values()):
        return None
    write_tokenizers(config)
    if found := lineage.stale_results(config):
        raise RunError(lineage.explain(config, found))
    remove_unfinished(target)
    for part, source in sources.items():
        model_folder.copy_component(source, target, part)
    for folder in _tokenizer_folders(config):
        model_folder.copy_part(folder, target, folder.name)
    model_folder.write_scheduler(target, NoiseSchedule.from_config(config.scheduler.to_dict()))
    model_folder.write_feature_extractor(target, **config.audio.clap)
    model_index.write(target)
    return target


def _write_result(where: Path, components: dict[str, model_folder.Component]) -> None:
    """Writes a stage's result: all components, and what they were made from; or nothing. Called by all hosts.

    Process 0 writes. Weights that lie on several hosts come to it one by one, while they are written.
    """
    unfinished = where / "result.partial"
    if hosts.is_first():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
    for name, part in components.items():
        write = partial(model_folder.write_component, unfinished, name, part.config, unused=part.unused)
        hosts.give_first(part.variables, write)
    if hosts.is_first():
        if (where / lineage.FILE).exists():
            shutil.copy(where / lineage.FILE, unfinished)
        os.replace(unfinished, where / "result")
