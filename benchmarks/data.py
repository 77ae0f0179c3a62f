"""How fast is data read, and how fast do accelerators consume it?

    python benchmarks/data.py
    python benchmarks/data.py --recipes tiny,base,large --mfu 0.4

Prints clips a second of one core, as the processor time of the process says it, so that other work on the machine
changes little: of decoding alone, of the whole way from a FLAC file to a batch, and of the way from the cache; the
median of `--repeats`, and their range. "Handed over" is what the training process itself does for a batch that worker
processes read: it is one thread, so that more workers do not speed it up. Beside them what eight devices consume: their
peak rate times `--mfu`, divided by the operations of a step from the cache (training/flops.py).

Recordings are 10.24 s of the embedded music at 48 kHz; the cache is of random numbers in the recipe's shapes. Both lie
in a temporary folder, and are read again and again: the file system's cache holds them, no disk is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import feature_cache as steps
import numpy as np

from audioldm2_jax import recipes
from audioldm2_jax.audio import files
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.data import cache, encoders, pipeline, text
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.sources import open_source
from audioldm2_jax.runtime.chips import PEAKS
from audioldm2_jax.stages import STAGES, Stage, features

CONSUMERS = ("H100 SXM", "v5e")
DEVICES, MARGIN = 8, 1.2  # of a host; what is wanted of what they consume
_FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
_SECONDS, _RATE, _FILES, _BATCH = 10.24, 48000, 16, 16


class Speed(NamedTuple):
    """Clips a second of processor time: the median, the slowest and the fastest repeat."""

    clips: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.clips:9.1f} ({self.least:.1f} to {self.most:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="tiny,base,large", help="whose steps consume")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak rate that a step is assumed to reach")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=64, help="of a repeat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from_sound(Path(folder), options)
        from_cache(Path(folder), options)


def from_sound(folder: Path, options: argparse.Namespace) -> None:
    """Prints the speed of decoding, and of every stage's way from file to batch, of the base recipe."""
    corpus = MusicCorpus(_RATE, _SECONDS, 0, "train", examples=_FILES)
    lines = []
    for index in range(_FILES):
        example = corpus[index]
        for suffix, subtype in _FORMATS.items():
            files.write(folder / suffix / f"{index}.{suffix}", example.waveform, _RATE, subtype)
        lines.append(json.dumps({"file_name": f"{index}.flac", "text": example.text}))
    (folder / "flac/metadata.jsonl").write_text("\n".join(lines))
    print(f"{_SECONDS} s at {_RATE} Hz, one core                clips/s")
    for suffix in _FORMATS:
        paths = [folder / suffix / f"{index}.{suffix}" for index in range(_FILES)]
        for what, rate in (("decoded", _RATE), ("decoded, and resampled to 16 kHz", 16000)):

            def decode(k: int, paths: Sequence[Path] = paths, rate: int = rate) -> object:
                return files.read(paths[k % _FILES], rate)

            print(f"{suffix + ' ' + what:45}{speed(decode, options)}", flush=True)
    config = recipes.get("base")
    config.data.source, config.data.heldout_share = str(folder / "flac"), 1e-9
    config.text.update(clap_tokenizer="", t5_tokenizer="", vocabulary=512)
    source = open_source(config, "train")
    tokenizers = text.open_tokenizers(config.text, source, text_kinds(config))
    available = encoders.recipe_encoders(round(config.audio.seconds * config.audio.sampling_rate), tokenizers)
    for name, stage in STAGES.items():
        wanted = encoders.select(available, stage.reads_fields(config))
        print(f"{'flac to the batch of ' + name:45}{speed(batch_of(source, wanted), options, _BATCH)}", flush=True)


def from_cache(folder: Path, options: argparse.Namespace) -> None:
    """Prints the speed of reading what the recipes' stages read of a cache, and what devices consume of it."""
    for recipe in filter(None, options.recipes.split(",")):
        for name in steps.TRAINED_FROM_THEM:
            stage = steps.build(recipe, name, 1)
            batch = steps.batch(stage, from_cache=True)
            opened = random_cache(folder / recipe / name, stage, batch)
            size = sum(field.size for feature in opened.features for field in feature.fields)
            wanted = [encoders.Features(stage.cached_fields()[1])]
            found = speed(batch_of(opened, wanted), options, _BATCH)
            print(f"{f'{recipe} {name}, cache, {size / 1e6:.2f} MB a clip':45}{found}", flush=True)
            print(f"{'    handed over':45}{handed_over(opened, wanted, options)}", flush=True)
            operations = steps.operations(stage, batch)
            for device in CONSUMERS:
                eaten = DEVICES * PEAKS[device].bfloat16 * options.mfu / operations
                cores = math.ceil(MARGIN * eaten / found.clips)
                print(
                    f"    {DEVICES} x {device} eat {eaten:.0f} clips/s ({operations / 1e12:.3f} TFLOP a clip, "
                    f"{options.mfu:.0%} of the peak), {eaten * size / 1e9:.2f} GB/s: {MARGIN} times as many by {cores} "
                    f"cores; one core has {found.clips / eaten:.2f} of it",
                    flush=True,
                )


def batch_of(source: Source, wanted: Sequence[encoders.Encoder]) -> Callable[[int], object]:
    """Returns what makes batch k, as a worker does."""
    index = pipeline.ExampleIndex(source, wanted, _BATCH, round(_SECONDS * 16000), seed=0)

    def made(k: int) -> object:
        rows = [index[k * _BATCH + slot] for slot in range(_BATCH)]
        return {field: np.stack([row[field] for row in rows]) for field in rows[0]}

    return made


def speed(make: Callable[[int], object], options: argparse.Namespace, size: int = 1) -> Speed:
    """Returns how fast `make` makes `size` clips at a time."""
    times, found = max(options.clips // size, 1), []
    make(0)
    for repeat in range(options.repeats):
        begin = time.process_time()
        for k in range(times):
            make(repeat * times + k)
        found.append(times * size / (time.process_time() - begin))
    return Speed(float(np.median(found)), min(found), max(found))


def handed_over(source: Source, wanted: Sequence[encoders.Encoder], options: argparse.Namespace) -> Speed:
    """Returns how many clips a second of its own time a process takes from two worker processes."""
    samples = round(_SECONDS * 16000)
    stream = pipeline.batches(source, wanted, batch_size=_BATCH, samples=samples, seed=0, workers=2, prefetch=2)
    try:
        return speed(lambda k: next(stream), options, _BATCH)
    finally:
        stream.close()


class _Clips(Source):
    """Captioned records that nobody reads."""

    def __len__(self) -> int:
        return 64

    def text(self, index: int) -> str:
        return f"clip {index}"


def random_cache(folder: Path, stage: Stage, batch: dict) -> cache.Cached:
    """Writes the features that the stage reads, of random numbers, and opens them."""
    source, random, opened = _Clips(), np.random.default_rng(0), []
    for feature in map(features.get, stage.reads_features(stage.config)):
        fields = [cache.Field(name, batch[name].dtype.name, batch[name].shape[1:]) for name in feature.fields]
        one = cache.open_feature(folder / feature.name, fields, len(source), feature.of_text, {})
        with one.writer(0) as shard:
            for index in range(len(source)):
                arrays = [random.standard_normal(field.shape, np.float32).astype(field.dtype) for field in fields]
                shard.write(one.pack(index, [arrays], [source.text(index)]))
        opened.append(one)
    return cache.Cached(source, opened, 1)


if __name__ == "__main__":
    main()
