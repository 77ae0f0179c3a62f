"""Makes the cache of a stage's features (data/cache.py), on all hosts, and opens it.

Where `data.cache` names a folder, or is "auto" and that pays, what frozen networks make of the data is computed once
and read by every stage that asks for it. A mixture has a cache for each of its sources, CACHE/SOURCE/FEATURE, so that
other weights or a further source leave what there is. Every host makes its own share of the shards with its own
devices. What was made stays when a run is stopped; two stages that need the same at the same time begin at different
shards, and each leaves out what it finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.data import cache, sources, text
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Example, Source
from audioldm2_jax.data.mixture import Mixture
from audioldm2_jax.runtime import hosts
from audioldm2_jax.stages import STAGES, features
from audioldm2_jax.training import lineage, run_folder
from audioldm2_jax.training.cache_places import CachePlace, place
from audioldm2_jax.training.feature_maker import FeatureMaker
from audioldm2_jax.training.loop import Stopped
from audioldm2_jax.training.progress import Progress

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


def place_of(config: ConfigDict, name: str) -> CachePlace | None:
    """Returns the place of the cache that stage `name` trains from, None where it trains from sound.

    "auto" is a folder of the run, where the source makes clips of the recipe's own length (the embedded corpus) and the
    recipe's stages draw more of them than the cache would hold, and "off" for a run in an object store. How many crops
    of longer recordings stand for them is a person's decision: for these a folder has to be named.
    """
    asked, stage = config.data.cache.strip(), STAGES[name]
    if asked == "off" or not stage.reads_features(config):
        return None
    if asked != "auto":
        return place(asked, "--config.data.cache")
    drawn = sum(
        config.train[other].steps * config.train[other].batch_size
        for other in STAGES
        if STAGES[other].reads_features(config)
    )
    records = config.data.examples * len(sources.names(config.data.source))
    held = min(config.data.cache_records or records, records)
    pays = _embedded(config) and drawn > held
    return CachePlace(run_folder.path(config) / "cache") if pays and not run_folder.is_remote(config) else None


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
    root = place_of(config, name)
    if root is None:
        return None
    wanted = [features.get(feature) for feature in dict.fromkeys(STAGES[name].reads_features(config))]
    maker = FeatureMaker(config, wanted, components, available)
    made_by = _made_by(config, name, wanted)
    kept = source.first(config.data.cache_records or len(source))
    cached = []
    for part in _parts(config, root, source, kept):
        opened = _open_features(config, part, wanted, maker, made_by)
        for of_text in (False, True):
            chosen = [pair for pair in zip(wanted, opened) if pair[0].of_text == of_text]
            if chosen:
                _complete(_Work(config, name, maker, *zip(*chosen), part, progress), should_stop)
        cached.append(cache.Cached(part.source, opened, config.data.cache_crops))
    with_features = [maker.with_features(wanted, batch) for batch in heldout()]
    whole = Mixture(cached, kept.weights) if isinstance(kept, Mixture) else cached[0]
    return FeatureCache(whole, maker.of_empty_text(wanted), with_features)


class _Part(NamedTuple):
    """A source of the data.

    Attributes:
        number: among the sources.
        name: as `data.source` has it.
        whole: the source.
        source: what of it is cached.
        place: of its features.
    """

    number: int
    name: str
    whole: Source
    source: Source
    place: CachePlace


def _parts(config: ConfigDict, root: CachePlace, whole: Source, kept: Source) -> list[_Part]:
    """Returns the sources of the data; of several, each has a folder of its own, which is called as the source."""
    named = [name for name, _ in sources.names(config.data.source)]
    if not isinstance(kept, Mixture):
        return [_Part(0, named[0], whole, kept, root)]
    folders: dict[str, None] = {}
    for name in named:
        last = re.sub(r"[^\w.-]+", "-", Path(name).name.rpartition(":")[2]).strip(".") or "source"
        numbered = (last, *(f"{last}-{number}" for number in range(2, len(named) + 1)))
        folders[next(folder for folder in numbered if folder not in folders)] = None
    parts = zip(named, whole.parts, kept.parts, folders, strict=True)
    return [_Part(number, *three, root / folder) for number, (*three, folder) in enumerate(parts)]


def _made_by(config: ConfigDict, name: str, wanted: Sequence[features.Feature]) -> list[dict[str, Any]]:
    """Returns what decides each feature beside the data."""
    origins = lineage.inputs(config, name)

    def networks(component: str) -> dict[str, str]:
        return {component: lineage.digest(origins[component].place, component)} if component else {}

    return [_made_from(config, one, networks(one.component)) for one in wanted]


def _open_features(
    config: ConfigDict,
    part: _Part,
    wanted: Sequence[features.Feature],
    maker: FeatureMaker,
    made_by: Sequence[Mapping[str, Any]],
) -> list[cache.Feature]:
    """Opens or begins the features of a source. Called by all hosts.

    Raises:
        CacheError, OSError: see `cache.open_feature`.
    """
    records, crops, opened = len(part.source), config.data.cache_crops, []
    digests = hosts.broadcast(part.source.digests(records) if hosts.is_first() else None, "digests of recordings")
    of_data = _source(config, part, named=not digests)  # files are known by what they hold, wherever they lie
    for feature, fields, made_from in zip(wanted, maker.fields(wanted), made_by):
        entries = records if feature.of_text else records * crops
        of_sound = {"recordings": digests} if digests and not feature.of_text else {}
        everything = {**made_from, "source": of_data | of_sound, "records": records, "crops": crops}
        described = fields, entries, feature.of_text, everything
        opened.append((part.place / feature.name).open(lambda folder: cache.open_feature(folder, *described)))  # noqa: B023
    return opened


def _made_from(config: ConfigDict, feature: features.Feature, networks: Mapping[str, str]) -> dict[str, Any]:
    """Returns what decides a feature beside the data: its network, by its digest, and its settings."""
    made = {**networks, "dtype": config.dtype}
    if feature.of_text:  # named as its tokenizer is
        made["length"] = config.text[f"{feature.name}_length"]
        made["tokenizer"] = text.words_digest(run_folder.path(config) / text.folders(text_kinds(config))[feature.name])
    else:
        made |= {"seconds": config.audio.seconds, "sampling_rate": config.audio.sampling_rate}
    for section in feature.reads:
        value: Any = config
        for key in section.split("."):
            value = value[key]
        made[section] = value.to_dict()
    return made


def _source(config: ConfigDict, part: _Part, named: bool) -> dict[str, Any]:
    """Returns what decides which recordings a source has, in which order; where `named`, its name too."""
    known = {"heldout_share": config.data.heldout_share, "length": len(part.whole)}
    known |= {key: config.data[key] for key in ("audio_feature", "segment", "short")}
    if config.data.silence != "keep":  # caches of before know nothing of it
        known["silence"] = config.data.silence
    if named:
        known["name"] = part.name
    if part.name.startswith("builtin:"):
        known["seed"] = config.seed
    return known | {"recordings and captions": part.whole.listing_digest()}


def _complete(work: _Work, should_stop: Callable[[], int]) -> None:
    """Makes this host's share of the shards that are missing; returns once all are there. Called by all.

    Raises:
        Stopped, CacheError: see `open_cache`.
    """
    # Of small sources, each of one shard, every host makes some.
    begin = (jax.process_index() - work.part.number) % jax.process_count()
    shards = range(begin, len(work.opened[0].shards), jax.process_count())
    work.keep(range(len(work.opened[0].shards)))  # which a run that was killed had not brought there
    # Stages at work side by side begin at different places and meet.
    offset = [*STAGES].index(work.name) * len(shards) // len(STAGES)
    stop = max(hosts.gather(work.make([*shards[offset:], *shards[:offset]], should_stop), "cache", _DAY))
    if stop:
        raise Stopped(f"{work.name}: stopped while features were cached; what was made stays", stop)
    for feature in work.opened:
        (work.part.place / feature.folder.name).catch_up()
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
        maker: FeatureMaker,
        wanted: Sequence[features.Feature],
        opened: Sequence[cache.Feature],
        part: _Part,
        progress: Progress,
    ):
        self.config, self.name, self.maker, self.wanted, self.opened = config, name, maker, wanted, opened
        self.part, self.progress = part, progress

    def make(self, shards: Sequence[int], should_stop: Callable[[], int]) -> int:
        """Makes those of the shards that are missing; returns the signal that asked to stop, 0 without one."""
        shards = [shard for shard in shards if self._missing(shard)]
        total = sum(len(self.opened[0].entries_of(shard)) for shard in shards)
        if not total:
            return 0
        what = ", ".join(feature.name for feature in self.wanted)
        self.progress.say(f"{self.name}: caching {what} of {total} clips in {self.part.place}")
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
            self.keep([shard])
        size = sum(path.stat().st_size for feature in self.opened for path in feature.shards if path.exists())
        minutes = (time.monotonic() - begin) / 60
        self.progress.say(f"{self.name}: cached {what} in {minutes:.1f} minutes, {size / 1e6:.0f} MB")
        return 0

    def keep(self, shards: Iterable[int]) -> None:
        """Brings shards that are here to where the cache lies."""
        for feature in self.opened:
            (self.part.place / feature.folder.name).keep(feature.shards[shard] for shard in shards)

    def _missing(self, shard: int) -> bool:
        return not all(feature.shards[shard].exists() for feature in self.opened)

    def _entries(self, shard: int) -> Iterator[list[list[bytes]]]:
        """Yields, a batch of excerpts at a time, the entries of each feature."""
        data, of_text = self.config.data, self.wanted[0].of_text
        numbers = self.opened[0].entries_of(shard)
        excerpts = cache.Excerpts(
            self.part.source, 1 if of_text else data.cache_crops, self.maker.samples, numbers, of_text
        )
        threads = max(data.threads, 1) * max(data.workers, 1)
        stream = iter(grain.MapDataset.source(excerpts).to_iter_dataset(grain.ReadOptions(threads, 2 * threads)))
        while read := list(itertools.islice(stream, self.maker.batch)):
            yield [*zip(*map(self._packed, numbers, read, self._made(read)))]
            numbers = numbers[len(read) :]

    def _made(self, read: Sequence[Example | str]) -> Iterator[list[list[list[np.ndarray]]]]:
        """Yields what is made of each excerpt, [feature][caption][field]; without text there is one caption."""
        captions = [_captions(one) if self.wanted[0].of_text else [one] for one in read if isinstance(one, Example)]
        flat, rows = list(itertools.chain.from_iterable(captions)), [[] for _ in self.wanted]
        for begin in range(0, len(flat), self.maker.batch):
            made = self.maker(self.wanted, flat[begin : begin + self.maker.batch])
            for found, arrays in zip(rows, made):
                found += zip(*arrays)
        several = [iter(found) for found in rows]
        counts = iter(map(len, captions))
        for one in read:
            count = next(counts) if isinstance(one, Example) else 0
            yield [list(itertools.islice(found, count)) for found in several]

    def _packed(self, number: int, read: Example | str, made: Sequence[Sequence[Sequence[np.ndarray]]]) -> list[bytes]:
        """Returns the entry of this number, of an excerpt, for each feature."""
        if isinstance(read, str):
            return [feature.unreadable(number, read) for feature in self.opened]
        texts = [one.text for one in _captions(read)] if self.wanted[0].of_text else [None]
        transcribed = read.transcription is not None
        return [feature.pack(number, rows, texts, transcribed) for feature, rows in zip(self.opened, made)]


def _captions(read: Example) -> list[Example]:
    """Returns a record as often as it has captions, each time with another one; once where it has none."""
    return [dataclasses.replace(read, text=caption) for caption in read.captions] or [read]
