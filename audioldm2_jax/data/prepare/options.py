"""What is to be prepared, and how; the source of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from audioldm2_jax import recipes
from audioldm2_jax.data import sources
from audioldm2_jax.data.example import Source
from audioldm2_jax.runtime.storage import scheme_of

_VERSION = 2  # of how records are made: what another one began is not gone on with
_FEWEST, _MOST, _SHARDS = 32, 1024, 64  # records a shard, and the number of shards that is aimed at between these
_LONGEST = 3600.0  # seconds of a record, which is read as a whole and of which a worker holds one and a half


class PrepareError(ValueError):
    """What keeps a source from being prepared; the message says what to do."""


@dataclass(frozen=True)
class Options:
    """What is to be prepared, and how.

    Attributes:
        source: as `config.data.source`; no mixture, no embedded corpus.
        out: the folder of the prepared set, or its address in an object store.
        sampling_rate: Hz, of the records.
        max_seconds: of a record; longer recordings are cut where they are silent.
        shard_records: recordings a shard; 0: by their number.
        workers: processes of this machine; 0: this one. What is made does not depend on it.
        audio_feature, text_feature: as of `config.data`.
        beam: options of Apache Beam, which then makes the shards in the place of those processes; None: it does not.

    Raises:
        PrepareError: a number is out of bounds.
    """

    source: str
    out: str
    sampling_rate: int = 16000
    max_seconds: float = 600.0
    shard_records: int = 0
    workers: int = 0
    audio_feature: str = ""
    text_feature: str = ""
    beam: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 1000 <= self.sampling_rate <= 192_000:
            raise PrepareError(f"--sampling_rate={self.sampling_rate}: it has to be from 1000 to 192000 (Hz)")
        if not 1 <= self.max_seconds <= _LONGEST:
            raise PrepareError(f"--max_seconds={self.max_seconds:g}: it has to be from 1 to {_LONGEST:g}")
        for name in ("shard_records", "workers"):
            if getattr(self, name) < 0:
                raise PrepareError(f"--{name}={getattr(self, name)}: it may not be negative")
        if self.beam is not None and scheme_of(self.out):
            raise PrepareError(
                f"--out={self.out.strip()} and --beam: Beam's workers write to a folder that they and this machine "
                "share; prepare there, and copy what was made (gsutil rsync, aws s3 sync)"
            )
        if self.workers and self.beam is not None:
            raise PrepareError(f"--workers={self.workers} and --beam: by Beam, its options say how many there are")

    def made_with(self, records: int) -> dict[str, Any]:
        """What decides the records, of a source of so many."""
        size = self.shard_records or min(max(math.ceil(records / _SHARDS), _FEWEST), _MOST)
        return {
            "version": _VERSION,
            "sampling_rate": self.sampling_rate,
            "max_seconds": float(self.max_seconds),
            "shard_records": size,
            "audio_feature": self.audio_feature,
            "text_feature": self.text_feature,
        }


def open_all(options: Options) -> Source:
    """Opens a source with all its records, those of both splits.

    Raises:
        ValueError: it cannot be opened, or there is nothing to prepare in it.
    """
    named = sources.names(options.source)
    if len(named) > 1:
        raise PrepareError(
            f"--source={options.source} is a mixture: prepare each of its {len(named)} sources by itself, and mix the "
            "results: --config.data.source='tfds:/FIRST,2;tfds:/SECOND,1'"
        )
    if options.source.strip().startswith("builtin:"):
        raise PrepareError(
            f"--source={options.source} is made while it is read, and there is nothing to prepare: train from it"
        )
    config = recipes.get("base")
    config.audio.sampling_rate = options.sampling_rate
    config.data.update(
        source=options.source,
        heldout_share=1.0,  # the split "heldout" has all records, of given splits, too
        absent="skip",  # which the report lists
        audio_feature=options.audio_feature,
        text_feature=options.text_feature,
    )
    return sources.open_source(config, "heldout")
