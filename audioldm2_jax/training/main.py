"""A run as its user sees it: what will be trained, progress, and at the end sounds and how to make more."""

from __future__ import annotations

import itertools
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax import recipes
from audioldm2_jax.audio import files
from audioldm2_jax.audio.front_ends import front_ends
from audioldm2_jax.data import sources
from audioldm2_jax.evaluation import show
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.runtime import start
from audioldm2_jax.training import fine_tuning, run, side_by_side
from audioldm2_jax.training.loop import Stopped
from audioldm2_jax.training.progress import Progress, Screen


def main(config: ConfigDict) -> int:
    """Runs the recipe to its end, or from where its run folder stands; returns the exit code."""
    start.start(config)
    begin = time.monotonic()
    with Screen() as screen:
        try:
            taken = fine_tuning.take_over(config)
            _introduce(config, screen)
            for change in taken:
                screen.say(f"  as in {config.init_from.model}: {change}")
            run.prepare(config)
            waits = side_by_side.train_all(config, screen)
            for name, share in waits.items():
                screen.say(f"{name}: waited for data {share:.1%} of the time")
            model = _publish(config, screen, anew=bool(waits))
            if model:
                _show(config, model, screen)
            if waits:
                screen.say(f"Done in {(time.monotonic() - begin) / 60:.1f} minutes.")
            return 0
        except Stopped as stop:
            screen.say(f"{stop}. The same command goes on from there.")
            return 0
        except KeyboardInterrupt:
            screen.say("Interrupted; the same command goes on after the last checkpoint.")
            return 130
        except (*side_by_side.REPORTED_ERRORS, side_by_side.StageFailed) as error:
            print(f"error: {error}{_keep_traceback(config)}", file=sys.stderr, flush=True)
            return 1


def _keep_traceback(config: ConfigDict) -> str:
    """Writes the traceback of the error in hand to the run folder; returns where it is, for the end of the message."""
    path = Path(config.run_dir) / "error.txt"
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (traceback: {path})"


def _introduce(config: ConfigDict, screen: Progress) -> None:
    devices = jax.devices()
    screen.say(f"AudioLDM 2, recipe {config.recipe}: stages {config.stages}; data {config.data.source or '(none)'}")
    screen.say(
        f"{len(devices)} × {devices[0].device_kind} on {jax.process_count()} host(s); run folder {config.run_dir}"
    )
    if config.recipe == recipes.SMALL:
        screen.say(
            f"This is the small recipe: every network of the paper in its own topology, at a fraction of the size, on "
            f"{config.audio.seconds} s clips. The paper's model:\n"
            "  python launch/train.py --config configs/music.py:base --config.data.source=/your/recordings"
        )


def _publish(config: ConfigDict, screen: Progress, anew: bool) -> Path | None:
    model = Path(config.run_dir) / "model"
    if jax.process_index() > 0:
        return None  # the first host publishes and shows
    if not anew and (model / "model_index.json").exists():
        screen.say(f"This run is finished; its model is {model}.")
        return model
    published = run.publish(config)
    if published is None:
        missing = [name for name in run.STAGES if not run.finished(config, name)]
        screen.say(f"No model folder yet: {', '.join(missing)} still to be trained.")
    return published


def _show(config: ConfigDict, model: Path, screen: Progress) -> None:
    """Generates a clip for held-out captions and lays them beside the real ones, unless that was done before."""
    target, hparams = Path(config.run_dir) / "samples", config.samples
    picture = target / "mels.png"
    heldout = sources.open_source(config, "heldout")
    examples = (heldout[index] for index in range(len(heldout)))
    chosen = list(itertools.islice((example for example in examples if example.text), hparams.clips))
    if not picture.exists() and chosen:
        target.mkdir(parents=True, exist_ok=True)
        captions = [example.text for example in chosen]
        result = AudioLDM2.from_pretrained(model)(
            captions,
            num_inference_steps=hparams.steps,
            guidance_scale=hparams.guidance_scale,
            audio_length_in_s=config.audio.seconds,
            seed=config.seed,
        )
        samples = round(config.audio.seconds * config.audio.sampling_rate)
        real = np.stack([files.normalise(files.segment(example.waveform, samples)) for example in chosen])
        for number, waveform in enumerate(result.audios):
            files.write(target / f"{number}.wav", waveform, config.audio.sampling_rate)
        ends = front_ends(config)
        log_mel = jax.jit(ends.log_mel)
        show.draw_mels(picture, {"real": log_mel(real), "generated": log_mel(result.audios)}, captions)
        lines = "\n".join(f"{number}.wav  {caption}" for number, caption in enumerate(captions))
        (target / "captions.txt").write_text(lines + "\n", encoding="utf-8")
    screen.say(f"Clips of held-out captions: {target}; their spectrograms beside real clips: {picture}")
    screen.say(
        f'More:\n  python launch/generate.py --model {config.run_dir} -t "a slow melody on a violin in a minor key"'
    )
