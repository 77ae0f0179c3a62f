"""The data of a stage: sources opened alike on all hosts, what the stage learns from of them, cached or from sound."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.data import encoders, pipeline, sources, text
from audioldm2_jax.data.clips import Clips
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.mixture import Mixture
from audioldm2_jax.evaluation import heldout_loss
from audioldm2_jax.runtime import hosts
from audioldm2_jax.stages import STAGES, Stage
from audioldm2_jax.training import feature_cache
from audioldm2_jax.training.lineage import RunError
from audioldm2_jax.training.progress import Progress

Batches = Iterator[dict[str, np.ndarray]]


class StageData:
    """What a stage trains from and is compared by.

    Attributes:
        empty_text: the fields of no text, and the features of it that are cached, [1, ...] each.
        has_heldout: whether there are held-out records that the stage could learn from.
    """

    def __init__(
        self,
        config: ConfigDict,
        name: str,
        components: Mapping[str, Component],
        tokenizers: text.Tokenizers | None,
        progress: Progress,
        should_stop: Callable[[], int] = lambda: 0,
    ):
        """Opens the sources, and makes what is missing of the cache. Called by all hosts.

        Args:
            components: of the stage, read.
            tokenizers: of the run; None for a stage without text.

        Raises:
            RunError: there is nothing that the stage could learn from.
            CacheError, Stopped, OSError: see `feature_cache.open_cache`.
        """
        self._config, self._samples = config, round(config.audio.seconds * config.audio.sampling_rate)
        self._available = encoders.recipe_encoders(self._samples, tokenizers)
        source, heldout = (open_source(config, split) for split in ("train", "heldout"))
        learnt = STAGES[name].learns_from(config)
        restricted = heldout.restricted(learnt) if learnt else heldout
        self.has_heldout, self._heldout = restricted is not None, heldout if restricted is None else restricted
        if not self.has_heldout:
            logging.warning("%s: no held-out record is %s, so there is no held-out loss", name, " or ".join(learnt))
        self._cached = feature_cache.open_cache(
            config, name, components, source, self._available, progress, should_stop, partial(self._held, name)
        )
        self.empty_text = encoders.empty_text(self._available) | (self._cached.empty_text if self._cached else {})
        opened = self._cached.source if self._cached else source
        drawn = opened.restricted(learnt) if learnt else opened
        if drawn is None:
            raise RunError(
                f"{name} learns from records that are {' or '.join(learnt)}, and of the {len(opened)} that it is given "
                f"of {config.data.source} none is: give them captions or transcriptions, or leave the stage out with "
                "--config.stages="
            )
        self._source = drawn
        if hosts.is_first() and not all(part.startswith("builtin:") for part, _ in sources.names(config.data.source)):
            having = f" that are {' or '.join(learnt)}" if learnt else ""
            progress.say(
                f"{name}: learns from {drawn.count_drawn()} of {len(opened)} records{having}; held out: "
                f"{self._heldout.count_drawn() if self.has_heldout else 0}"
            )

    def train(self, stage: Stage, step: int) -> Batches:
        """Opens this host's training batches from a step on."""
        return self._batches(
            self._source, self._wanted(stage), stage.hparams.batch_size, step, self._config.data.workers
        )

    def records(self, stage: Stage, step: int) -> list[str]:
        """Returns the names of the records in this host's slots of a training step; reads them.

        Raises:
            UnreadableRecord: see `pipeline.batches`.
        """
        slots = pipeline.ExampleIndex(
            self._source,
            self._wanted(stage),
            stage.hparams.batch_size,
            self._samples,
            self._config.seed,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )
        return [slots.record(step, slots.first + slot) for slot in range(slots.local)]

    def _wanted(self, stage: Stage) -> tuple[Encoder, ...]:
        if not self._cached:
            return tuple(encoders.select(self._available, stage.batch_fields))
        of_example, of_cache = stage.cached_fields()
        return (*encoders.select(self._available, of_example), encoders.Features(of_cache))

    def heldout(self, batch_size: int) -> Batches:
        """Opens this host's held-out batches, from sound, with all fields."""
        return self._batches(self._heldout, self._available, batch_size)

    def held(self, stage: Stage) -> list[dict[str, np.ndarray]]:
        """Returns the batches by whose loss the stage is compared, with what is cached."""
        return self._cached.heldout if self._cached else self._held(stage.name)

    def _held(self, name: str) -> list[dict[str, np.ndarray]]:
        return heldout_loss.read(self._config.train[name], self.heldout) if self.has_heldout else []

    def _batches(
        self, source: Source, wanted: Sequence[Encoder], batch_size: int, step: int = 0, workers: int = 0
    ) -> Batches:
        data = self._config.data
        return pipeline.batches(
            source,
            wanted,
            batch_size=batch_size,
            samples=self._samples,
            seed=self._config.seed,
            start_step=step,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            workers=workers,
            threads=data.threads,
            prefetch=data.prefetch,
        )


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens the data, as clips of the recipe, with the records that process 0 found. Called by all hosts.

    A file that one host alone cannot read would otherwise give that host, silently, another order of all of its data.
    Process 0 is first, so that the others find its index. The records themselves are sent where hosts differ alone.
    """
    source = _open_clips(config, split) if hosts.is_first() else None
    hosts.wait_for_hosts(f"records of {split} found")
    source = _open_clips(config, split) if source is None else source
    if len({*hosts.gather(source.listing_digest(), f"digests of the records of {split}")}) == 1:
        return source
    listing = hosts.broadcast(source.listing() if hosts.is_first() else None, f"records of {split}")
    if not hosts.is_first() and (difference := source.follow(listing)):
        logging.warning("process %d follows process 0 in what can be read. %s", jax.process_index(), difference)
    return source


def _open_clips(config: ConfigDict, split: str) -> Source:
    source = sources.open_source(config, split)
    choices = {key: config.data[key] for key in ("segment", "short", "silence")}
    clips = partial(Clips, sampling_rate=config.audio.sampling_rate, **choices)
    if isinstance(source, Mixture):
        return Mixture([clips(part) for part in source.parts], source.weights)  # each has a cache of its own
    return clips(source)
