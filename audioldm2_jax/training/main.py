"""A run as its user sees it: what will be trained, progress, and at the end sounds and how to make more."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax import recipe_check, recipe_resolve, recipes
from audioldm2_jax.audio import files
from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.audio.mel import log_mel
from audioldm2_jax.checkpoints import model_index
from audioldm2_jax.checkpoints.atomic_folder import FolderError, read_json
from audioldm2_jax.conditioning.conditions import speaks, text_kinds
from audioldm2_jax.data import sources
from audioldm2_jax.data.example import Example, UnreadableRecord
from audioldm2_jax.evaluation import show
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import cluster, error_log, hosts, lock, object_store, sharding, start, warnings_once, watch
from audioldm2_jax.runtime.storage import StorageError
from audioldm2_jax.training import fine_tuning, lineage, profiler, run, run_folder, side_by_side, stage_settings
from audioldm2_jax.training.checkpoint import CheckpointError
from audioldm2_jax.training.loop import Stopped
from audioldm2_jax.training.progress import Progress, Screen, Silent

#: What is told in one line, without a traceback.
REPORTED_ERRORS = (*side_by_side.REPORTED_ERRORS, side_by_side.StageFailed, lock.LockedError, hosts.HostsError)
#: Exit codes: of a run that is to be started again as it is, and after Ctrl-C.
RESTART, INTERRUPTED = watch.RESTART, 130


def main(config: ConfigDict, others: cluster.Cluster | None = None, caches_only: bool = False) -> int:
    """Runs the recipe to its end, or from where its run folder stands; returns the exit code.

    It is 0 for a finished run, 75 (`RESTART`) for one that SIGTERM stopped, or the loss of another host, or an object
    store that does not answer: the same command goes on from there; 130 after Ctrl-C; 1 for an error that a person
    has to mend.

    Args:
        config: the recipe.
        others: how the other processes of the job are found; by default as JAX finds them.
        caches_only: makes the caches that the stages train from, and trains none.
    """
    error_log.collect()
    error_log.escape_output()
    warnings_once.show_plainly()
    try:
        config = recipe_resolve.resolve_paths(config)
        start.start(config.compilation_cache, others or cluster.Cluster())
    except (cluster.ClusterError, start.DeviceError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    shown = Screen(shown=partial(run_folder.shown, config)) if hosts.is_first() else Silent()
    with shown as screen, profiler.listening():
        try:
            code = _run(config, screen, caches_only)
        except KeyboardInterrupt:
            screen.say("Interrupted; the same command goes on after the last checkpoint.")
            watch.fail("interrupted", INTERRUPTED)
            return INTERRUPTED
        except REPORTED_ERRORS as error:
            return _fail(config, error, error_log.describe(error))
        except Exception as error:
            if jax.process_count() == 1:
                raise
            return _fail(config, error, f"{type(error).__name__}: {error}")
    start.leave()
    return code


def _run(config: ConfigDict, screen: Progress, caches_only: bool) -> int:
    """Trains, publishes and samples, or makes caches; returns the exit code."""
    begin = time.monotonic()
    config, followed = recipe_resolve.follow(config)
    config, taken = fine_tuning.resolve(config)
    notes = recipe_check.check(config, run.plan(config))
    _compare_hosts(config)
    _introduce(config, screen)
    for line in (*followed, *notes):
        screen.say(f"  {line}")
    for change in taken:
        screen.say(f"  as in {config.init_from.model}: {change}")
    with _locked(config, run.make_folder(config), screen), run_folder.LogUploads(config, screen.say):
        run.prepare(config, screen.say)
        try:
            if caches_only:
                with side_by_side.stop_flag() as stopped:
                    places = run.make_caches(config, screen, stopped)
                for place in places:
                    screen.say(f"{place} is whole. Train from it with --config.data.cache={place}")
                return 0
            waits = side_by_side.train_all(config, screen)
        except Stopped as stop:
            screen.say(f"{stop}. The same command goes on from there.")
            return INTERRUPTED if stop.number == signal.SIGINT else RESTART
        for name, share in waits.items():
            screen.say(f"{name}: waited for data {share:.1%} of the time")
        model = _publish(config, screen, anew=bool(waits))
        if model:
            _show(config, model, screen)
        if waits:
            better = ""
            if model and recipe_resolve.follows_budget(config, run.plan(config)):
                better = (
                    " With more of it the sound gets better; twice as much: "
                    f"--config.budget={2 * config.budget:g} --config.run_dir=ANOTHER_FOLDER"
                )
            screen.say(f"Done in {(time.monotonic() - begin) / 60:.1f} minutes.{better}")
    return 0


#: What may differ from host to host: places, and how the data are read.
_OF_A_HOST = (
    "run_dir",
    "compilation_cache",
    "data.source",
    "data.cache",
    "data.workers",
    "data.threads",
    "data.prefetch",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def _compare_hosts(config: ConfigDict) -> None:
    """Compares the settings and the versions of all processes. Called by all.

    Raises:
        HostsError: they differ; the message names the process, and what differs.
    """
    own = {f"--config.{key}": value for key, value in stage_settings.flat(config).items() if key not in _OF_A_HOST}
    own |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    if run_folder.is_remote(config):  # elsewhere the same folder may be mounted at another place
        own["--config.run_dir"] = config.run_dir
    own["the code of audioldm2_jax"] = _code_digest()
    first, *others = hosts.gather(own, "settings")
    for name, other in zip(watch.names()[1:], others):
        different = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if different:
            said = "; ".join(f"{key}: {first.get(key)}, there {other.get(key)}" for key in different[:5])
            more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
            raise hosts.HostsError(
                f"{name} was started otherwise than process 0 ({said}{more}): start the same command with the same "
                "packages on all hosts"
            )


def _code_digest() -> str:
    """Returns a digest of the files of the package."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return found.hexdigest()[:12]


@contextlib.contextmanager
def _locked(config: ConfigDict, folder: Path | str, screen: Progress) -> Iterator[None]:
    """Holds the lock of the run folder, which is one for all processes of the job; process 0 keeps it.

    What of the folder lies in a store is fetched then.

    Raises:
        LockedError: another run is at work there.
        HostsError: the folder is not the same one on all hosts.
    """

    def lost(holder: str) -> None:
        message = f"{folder} was taken over by another run ({holder}) while this one was suspended; this one ends"
        print(f"error: {message}", file=sys.stderr, flush=True)
        watch.fail(message, 1)
        os._exit(1)

    held, refusal = lock.RunLock(folder, screen.say, lost), ""
    if hosts.is_first():
        try:
            held.__enter__()
            watch.at_end(held.release)
        except lock.LockedError as error:
            refusal = str(error)
    if refusal := hosts.broadcast(refusal, "lock"):
        raise lock.LockedError(refusal)
    try:
        run_folder.wait_for(config, run_folder.path(config) / lock.FILE, "run folder locked")
        run_folder.fetch(config)
        yield
    finally:
        if hosts.is_first():
            held.release()


def _fail(config: ConfigDict, error: Exception, message: str) -> int:
    """Says what went wrong, once where it went wrong for all processes, and ends the others too; returns the code."""
    message = run_folder.shown(config, message)
    code = RESTART if run_folder.is_remote(config) and object_store.is_passing(error) else 1
    if not watch.first_says(message):
        where = f" in {watch.names()[jax.process_index()]}" if jax.process_count() > 1 else ""
        print(f"error{where}: {message}{_keep_traceback(config, error)}", file=sys.stderr, flush=True)
    watch.fail(message, code, look_for_cause=_of_communication(error))
    return code


def _of_communication(error: BaseException | None) -> bool:
    """Whether it may come of another process that is lost: JAX raised it or what led to it, or a save failed."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError | CheckpointError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _keep_traceback(config: ConfigDict, error: Exception) -> str:
    """Writes the traceback of the error in hand to the run folder; returns where it is, for the end of the message.

    Of a run in a store it is on this machine.
    """
    if isinstance(error, side_by_side.StageFailed | lock.LockedError):  # its process has written it; another's folder
        return ""
    name = f"error-{jax.process_index()}.txt" if jax.process_index() else error_log.FILE
    path = error_log.write(run_folder.path(config) / name)
    return f" (traceback: {path})" if path else ""


def _introduce(config: ConfigDict, screen: Progress) -> None:
    devices = jax.devices()
    screen.say(f"AudioLDM 2, recipe {config.recipe}: stages {config.stages}; data {config.data.source or '(none)'}")
    screen.say(
        f"{len(devices)} × {devices[0].device_kind} in {jax.process_count()} process(es); run folder {config.run_dir}"
    )
    if config.recipe not in recipes.PAPER:
        kind = "full:unified-base" if _says_optionally(config) else "speech:base" if speaks(config) else "music:base"
        screen.say(
            f"This is the {config.recipe} recipe: every network of the paper in its own topology, at a fraction of the "
            f"size, on {config.audio.seconds} s clips. The paper's model:\n"
            f"  {command_line('train', f'--config {kind} --config.data.source=/your/recordings')}"
        )


def _publish(config: ConfigDict, screen: Progress, anew: bool) -> Path | None:
    """Has the first host publish the model folder; returns it on all hosts, or None while a network is missing."""
    model = run_folder.path(config) / "model"
    there = False
    if hosts.is_first():
        try:
            published = not anew and run.is_published(config)
            there = (published and not lineage.stale_results(config)) or bool(run.publish(config))
        except (run.RunError, FolderError) as error:
            screen.say(f"No model folder: {error}.{f' {model} stays as it was.' if model.exists() else ''}")
        else:
            missing = [name for name in run.STAGES if not run.finished(config, name)]
            if not there:
                screen.say(f"No model folder yet: {', '.join(missing)} still to be trained.")
            elif published:
                screen.say(f"This run is finished; its model is {model}.")
    if not hosts.broadcast(there, "published"):
        return None
    run_folder.share(config, model, "published", last=model_index.FILE)
    return model


def _show(config: ConfigDict, model: Path, screen: Progress) -> None:
    """Generates a clip for held-out captions and lays them beside the real ones, unless that was done before.

    All hosts generate, on the mesh of the training; the first one chooses the captions and writes. A finished run does
    not fail for want of samples: what goes wrong is said.
    """
    target = run_folder.path(config) / "samples"
    done = target / "captions.txt"  # is written last
    chosen: list[Example] = []
    if hosts.is_first() and not _are_of(target, model):
        with _said(screen, "no held-out captions to show"):
            chosen = _heldout_examples(config)
    texts = hosts.broadcast([(example.text or "", example.transcription) for example in chosen], "captions")
    if texts:
        # Of several processes an error of one must reach the others, which would wait for it.
        guard = contextlib.nullcontext() if jax.process_count() > 1 else _said(screen, "no samples")
        with guard:
            audios = _generate(config, model, texts)
            if hosts.is_first():
                with _said(screen, f"not all samples are in {target}"):
                    _write_clips(config, target, chosen, audios)
                    lineage.write_json(target / lineage.FILE, {"model": _model_digests(model)})
                    run_folder.upload(config, target)
    if done.exists():
        beside = f"; their spectrograms beside real clips: {target / 'mels.png'}" * (target / "mels.png").exists()
        screen.say(f"Clips of held-out captions: {target}{beside}")
    words = '-t "a slow melody on a violin in a minor key"'
    if config.data.source == "builtin:audio":
        words = '-t "a dog barks twice, then a bell rings"'
    if speaks(config):
        words = '-t "a woman speaks slowly" --transcription "the words to be said"'
    if not config.data.source.startswith("builtin:"):
        words = '-t "your text"' + ' --transcription "the words to be said"' * speaks(config)
    more = command_line("generate", f"--model {config.run_dir} {words}")
    screen.say(f"More:\n  {more}")


def _generate(config: ConfigDict, model: Path, texts: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """Returns a clip [samples] for each caption and transcription, on the mesh of the training."""
    captions, transcriptions = map(list, zip(*texts))
    return AudioLDM2.from_pretrained(model, mesh=sharding.make_mesh(config.mesh))(
        captions,
        transcription=transcriptions if speaks(config) else None,
        num_inference_steps=config.samples.steps,
        guidance_scale=config.samples.guidance_scale,
        audio_length_in_s=config.audio.seconds,
        seed=config.seed,
    ).audios


def _are_of(target: Path, model: Path) -> bool:
    """Returns whether the samples are there, and of this model; those of earlier versions do not say."""
    if not (target / "captions.txt").exists():
        return False
    made_from = target / lineage.FILE
    try:
        return not made_from.exists() or read_json(made_from).get("model") == _model_digests(model)
    except FolderError:  # damaged
        return False


def _model_digests(model: Path) -> dict[str, str]:
    return {part: lineage.digest(str(model), part) for part in model_index.parts(model)}


def _says_optionally(config: ConfigDict) -> bool:
    """Returns whether it is a unified model, which takes captions with a transcription or without."""
    return speaks(config) and "t5" in text_kinds(config)


@contextlib.contextmanager
def _said(screen: Progress, what: str) -> Iterator[None]:
    """Says what goes wrong instead of raising it; for what a finished run can do without."""
    try:
        yield
    except Exception as error:
        screen.say(f"{what} ({type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]})")


def _heldout_examples(config: ConfigDict) -> list[Example]:
    """Returns the beginnings of the first held-out records that have a caption, of speech a transcription, and can be
    read.

    Captions are looked at first, and of a record no more is decoded than a clip.
    """
    samples = round(config.audio.seconds * config.audio.sampling_rate)
    heldout, chosen = sources.open_source(config, "heldout"), []
    needed = speaks(config) and not _says_optionally(config)
    for index in range(len(heldout)):
        if len(chosen) == config.samples.clips:
            break
        with contextlib.suppress(UnreadableRecord):
            if (heldout.transcription if needed else heldout.text)(index):
                chosen.append(heldout.excerpt(index, samples, 0.0))
    return chosen


def _write_clips(config: ConfigDict, target: Path, chosen: Sequence[Example], audios: np.ndarray) -> None:
    """Writes generated clips [clips, samples], their captions, and their mels below those of the real clips."""
    target.mkdir(parents=True, exist_ok=True)
    captions = [": ".join(filter(None, (example.text, example.transcription))) for example in chosen]
    samples = round(config.audio.seconds * config.audio.sampling_rate)
    real = np.stack([files.normalise(files.segment(example.waveform, samples)) for example in chosen])
    for number, waveform in enumerate(audios):
        files.write(target / f"{number}.wav", waveform, config.audio.sampling_rate)
    front_end = FrontEnds(config.audio).mel
    mels = {"real": log_mel(real, front_end), "generated": log_mel(audios, front_end)}
    show.draw_mels(target / "mels.png", mels, captions)
    lines = "\n".join(f"{number}.wav  {' '.join(caption.split())}" for number, caption in enumerate(captions))
    partial = target / ".captions.partial"
    partial.write_text(lines + "\n", encoding="utf-8")
    partial.replace(target / "captions.txt")  # last: it says that the others are there
