"""Makes the cache of a stage's features (data/cache.py), on all hosts, and opens it.

Where `data.cache` names a folder, or is "auto" and that pays, what frozen networks make of the data is computed once
and read by every stage that asks for it. Every host makes its own share of the shards with its own devices. What was
made stays when a run is stopped; two stages that need the same at the same time begin at different shards, and each
leaves out what it finds.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.data import cache, encoders, sources, text
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Example, Source
from audioldm2_jax.models.network import Network
from audioldm2_jax.runtime import hosts
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.stages import STAGES, features
from audioldm2_jax.training import lineage
from audioldm2_jax.training.loop import Stopped
from audioldm2_jax.training.progress import Progress

_BATCH = 16  # clips a device
_DAY = 24 * 3600.0  # seconds that a host waits for others that are slower
_LATE = 600.0  # seconds until this host sees what another one wrote
_INTERVAL = 20.0  # seconds between two lines of progress


class FeatureCache(NamedTuple):
    """What a stage trains from.

    Attributes:
        source: the data as the cache has it.
        empty_text: the features of the empty caption, [1, ...] by field.
        heldout: the batches of held-out data, with their features.
    """

    source: Source
    empty_text: dict[str, np.ndarray]
    heldout: list[dict[str, np.ndarray]]


def folder(config: ConfigDict, name: str) -> Path | None:
    """Returns the folder of the cache that stage `name` trains from, None where it trains from sound.

    "auto" is a folder of the run, where the source makes clips of the recipe's own length (the embedded corpus) and the
    recipe's stages draw more of them than the cache would hold. How many crops of longer recordings stand for them is
    a person's decision: for these a folder has to be named.
    """
    asked, stage = config.data.cache.strip(), STAGES[name]
    if asked == "off" or not stage.reads_features(config):
        return None
    if asked != "auto":
        return local_path(asked, "--config.data.cache")
    drawn = sum(
        config.train[other].steps * config.train[other].batch_size
        for other in STAGES
        if STAGES[other].reads_features(config)
    )
    held = min(config.data.cache_records or config.data.examples, config.data.examples)
    pays = _embedded(config) and drawn > held
    return Path(config.run_dir) / "cache" if pays else None


def _embedded(config: ConfigDict) -> bool:
    return all(name.startswith("builtin:") for name, _ in sources.names(config.data.source))


def open_cache(
    config: ConfigDict,
    name: str,
    components: Mapping[str, Component],
    source: Source,
    available: Sequence[Encoder],
    progress: Progress,
    should_stop: Callable[[], int] = lambda: 0,
    heldout: Callable[[], Sequence[Mapping[str, np.ndarray]]] = list,
) -> FeatureCache | None:
    """Returns what stage `name` trains from, made where it is missing; None where that is the sound. Called by all.

    Args:
        components: of the stage, read.
        source: the training data.
        available: the encoders of the recipe.
        heldout: reads the batches, of this host, by which the stage is compared. They are few, always the same, and
            their features are not kept in files.

    Raises:
        CacheError: the cache was made from something else, or is damaged.
        Stopped: asked to stop; what was made stays.
        OSError: it cannot be written.
    """
    root = folder(config, name)
    if root is None:
        return None
    data = config.data
    whole, source = source, source.first(data.cache_records or len(source))
    records = len(source)
    wanted = [features.get(feature) for feature in dict.fromkeys(STAGES[name].reads_features(config))]
    maker = _Maker(config, wanted, components, available)
    opened = []
    origins = lineage.inputs(config, name)
    digests = hosts.broadcast(source.digests(records) if hosts.is_first() else None, "digests of recordings")
    of_data = _source(config, whole, named=not digests)  # files are known by what they hold, wherever they lie
    for feature, fields in zip(wanted, maker.fields(wanted)):
        entries = records if feature.of_text else records * data.cache_crops
        made_from = _made_from(config, feature, lineage.digest(origins[feature.component].place, feature.component))
        of_sound = {"recordings": digests} if digests and not feature.of_text else {}
        made_from |= {"source": of_data | of_sound, "records": records, "crops": data.cache_crops}
        opened.append(cache.open_feature(root / feature.name, fields, entries, feature.of_text, made_from))
    for of_text in (False, True):
        chosen = [pair for pair in zip(wanted, opened) if pair[0].of_text == of_text]
        if chosen:
            _complete(_Work(config, name, maker, *zip(*chosen), source, progress), should_stop)
    with_features = [_with_features(maker, wanted, batch) for batch in heldout()]
    return FeatureCache(cache.Cached(source, opened, data.cache_crops), _of_empty_text(maker, wanted), with_features)


def _made_from(config: ConfigDict, feature: features.Feature, digest: str) -> dict[str, Any]:
    """Returns what decides a feature beside the data: its network and its settings."""
    made = {feature.component: digest, "dtype": config.dtype}
    if feature.of_text:  # named as its tokenizer is
        made["length"] = config.text[f"{feature.name}_length"]
        made["tokenizer"] = text.words_digest(Path(config.run_dir) / text.folder_of(feature.name))
    else:
        made |= {"seconds": config.audio.seconds, "sampling_rate": config.audio.sampling_rate}
    for section in feature.reads:
        value: Any = config
        for key in section.split("."):
            value = value[key]
        made[section] = value.to_dict()
    return made


def _source(config: ConfigDict, source: Source, named: bool) -> dict[str, Any]:
    """Returns what decides which recordings a source has, in which order; where `named`, its name too."""
    known = {"heldout_share": config.data.heldout_share, "length": len(source)}
    known |= {key: config.data[key] for key in ("audio_feature", "segment", "short")}
    if named:
        known["name"] = config.data.source
    if any(name.startswith("builtin:") for name, _ in sources.names(config.data.source)):
        known["seed"] = config.seed
    return known | {"recordings and captions": source.listing_digest()}


class _Maker:
    """Computes features of excerpts, in batches, on the devices of this host."""

    def __init__(
        self,
        config: ConfigDict,
        wanted: Sequence[features.Feature],
        components: Mapping[str, Component],
        available: Sequence[Encoder],
    ):
        self._components, self._ends = components, FrontEnds(config.audio)
        self._encoders = {feature.name: encoders.select(available, sorted(feature.inputs)) for feature in wanted}
        self.samples = round(config.audio.seconds * config.audio.sampling_rate)
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.batch = _BATCH * mesh.devices.size
        self._split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._variables = {
            part: jax.device_put(components[part].variables, whole)
            for part in dict.fromkeys(feature.component for feature in wanted)
        }
        self._make = jax.jit(self._arrays, static_argnums=0)

    def __call__(self, wanted: Sequence[features.Feature], read: Sequence[Example]) -> list[list[np.ndarray]]:
        """Returns the arrays [excerpts, ...] of each feature in `wanted`, of at most `batch` excerpts."""
        return self._of_part(wanted, self._encode(wanted, read))

    def of_batch(self, wanted: Sequence[features.Feature], batch: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """Returns the arrays [excerpts, ...] of each feature in `wanted`, of however many excerpts."""
        inputs = {field: batch[field] for feature in wanted for field in feature.inputs}
        size = len(next(iter(inputs.values())))
        parts = [
            self._of_part(wanted, {field: array[begin : begin + self.batch] for field, array in inputs.items()})
            for begin in range(0, size, self.batch)
        ]
        return [[np.concatenate(several) for several in zip(*arrays)] for arrays in zip(*parts)]

    def fields(self, wanted: Sequence[features.Feature]) -> list[list[cache.Field]]:
        """Returns the fields of each feature."""
        silence = Example(np.zeros(self.samples, np.float32), None)
        shapes = jax.eval_shape(
            functools.partial(self._arrays, tuple(wanted)), self._variables, self._encode(wanted, [silence])
        )
        return [
            [cache.Field(name, array.dtype.name, array.shape[1:]) for name, array in zip(feature.fields, arrays)]
            for feature, arrays in zip(wanted, shapes)
        ]

    def _encode(self, wanted: Sequence[features.Feature], read: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns the batch that features are made from."""
        used = dict.fromkeys(encoder for feature in wanted for encoder in self._encoders[feature.name])
        rows = [{k: v for encoder in used for k, v in encoder(example).items()} for example in read]
        return {field: np.stack([row[field] for row in rows]) for field in rows[0]}

    def _of_part(self, wanted: Sequence[features.Feature], batch: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """Returns the arrays of at most `batch` excerpts; computed is always a whole batch, the last one repeated."""
        size = len(next(iter(batch.values())))
        rows = np.minimum(np.arange(self.batch), size - 1)
        placed = jax.device_put({field: array[rows] for field, array in batch.items()}, self._split)
        made = jax.device_get(self._make(tuple(wanted), self._variables, placed))
        return [[array[:size] for array in arrays] for arrays in made]

    def _arrays(
        self, wanted: Sequence[features.Feature], variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> tuple[tuple[jax.Array, ...], ...]:
        return tuple(
            tuple(
                feature.make(
                    self._ends,
                    Network(self._components[feature.component].module, variables[feature.component]),
                    batch,
                )
            )
            for feature in wanted
        )


def _of_empty_text(maker: _Maker, wanted: Sequence[features.Feature]) -> dict[str, np.ndarray]:
    """Returns the features of the empty caption, [1, ...] by field."""
    of_text = [feature for feature in wanted if feature.of_text]
    made = maker(of_text, [Example(np.zeros(0, np.float32), None)]) if of_text else []
    return {name: array for feature, arrays in zip(of_text, made) for name, array in zip(feature.fields, arrays)}


def _with_features(
    maker: _Maker, wanted: Sequence[features.Feature], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the batch with its features."""
    found = dict(batch)
    for of_text in (False, True):  # as the cache is made: so that it is the same program
        chosen = [feature for feature in wanted if feature.of_text == of_text]
        if chosen:
            arrays = zip(chosen, maker.of_batch(chosen, batch))
            found |= {field: array for feature, made in arrays for field, array in zip(feature.fields, made)}
    return found


def _complete(work: _Work, should_stop: Callable[[], int]) -> None:
    """Makes this host's share of the shards that are missing; returns once all are there. Called by all.

    Raises:
        Stopped, CacheError: see `open_cache`.
    """
    shards = range(jax.process_index(), len(work.opened[0].shards), jax.process_count())
    # Stages at work side by side begin at different places and meet.
    offset = [*STAGES].index(work.name) * len(shards) // len(STAGES)
    stop = max(hosts.gather(work.make([*shards[offset:], *shards[:offset]], should_stop), "cache", _DAY))
    if stop:
        raise Stopped(f"{work.name}: stopped while features were cached; what was made stays", stop)
    end = time.monotonic() + _LATE
    while missing := [path for feature in work.opened for path in feature.shards if not path.exists()]:
        if time.monotonic() > end:
            raise cache.CacheError(
                f"{missing[0]} is not there: the folder of the cache has to be the same one on all hosts"
            )
        time.sleep(0.5)
        os.listdir(missing[0].parent)  # has a network file system look again


class _Work:
    """The making of features from the same excerpts, on one host."""

    def __init__(
        self,
        config: ConfigDict,
        name: str,
        maker: _Maker,
        wanted: Sequence[features.Feature],
        opened: Sequence[cache.Feature],
        source: Source,
        progress: Progress,
    ):
        self.config, self.name, self.maker, self.wanted, self.opened = config, name, maker, wanted, opened
        self.source, self.progress = source, progress

    def make(self, shards: Sequence[int], should_stop: Callable[[], int]) -> int:
        """Makes those of the shards that are missing; returns the signal that asked to stop, 0 without one."""
        shards = [shard for shard in shards if self._missing(shard)]
        total = sum(len(self.opened[0].entries_of(shard)) for shard in shards)
        if not total:
            return 0
        what = ", ".join(feature.name for feature in self.wanted)
        self.progress.say(f"{self.name}: caching {what} of {total} clips in {self.opened[0].folder.parent}")
        begin = last = time.monotonic()
        done = 0
        for shard in shards:
            with contextlib.ExitStack() as stack:
                writers = {
                    number: stack.enter_context(feature.writer(shard))
                    for number, feature in enumerate(self.opened)
                    if not feature.shards[shard].exists()
                }
                if not writers:  # made by a stage beside
                    done += len(self.opened[0].entries_of(shard))
                    continue
                for entries in self._entries(shard):
                    if stop := should_stop():
                        return stop
                    for number, writer in writers.items():
                        for entry in entries[number]:
                            writer.write(entry)
                    done += len(entries[0])
                    if (now := time.monotonic()) - last > _INTERVAL:
                        left, last = (now - begin) / done * (total - done), now
                        self.progress.say(f"{self.name}: cached {done} of {total} clips, {left / 60:.1f} minutes left")
        size = sum(path.stat().st_size for feature in self.opened for path in feature.shards if path.exists())
        minutes = (time.monotonic() - begin) / 60
        self.progress.say(f"{self.name}: cached {what} in {minutes:.1f} minutes, {size / 1e6:.0f} MB")
        return 0

    def _missing(self, shard: int) -> bool:
        return not all(feature.shards[shard].exists() for feature in self.opened)

    def _entries(self, shard: int) -> Iterator[list[list[bytes]]]:
        """Yields, a batch of excerpts at a time, the entries of each feature."""
        data, of_text = self.config.data, self.wanted[0].of_text
        numbers = self.opened[0].entries_of(shard)
        excerpts = cache.Excerpts(self.source, 1 if of_text else data.cache_crops, self.maker.samples, numbers, of_text)
        threads = max(data.threads, 1) * max(data.workers, 1)
        stream = iter(grain.MapDataset.source(excerpts).to_iter_dataset(grain.ReadOptions(threads, 2 * threads)))
        while read := list(itertools.islice(stream, self.maker.batch)):
            good = [excerpt for excerpt in read if isinstance(excerpt, Example)]
            made = self.maker(self.wanted, good) if good else [[] for _ in self.wanted]
            rows = [
                iter([feature.pack(row, excerpt.text) for *row, excerpt in zip(*arrays, good)])
                for feature, arrays in zip(self.opened, made)
            ]
            yield [[cache.unreadable(e) if isinstance(e, str) else next(row) for e in read] for row in rows]
