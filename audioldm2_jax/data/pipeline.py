"""From a source to batches on the host: draw, read, crop, normalise, tokenise, stack; the loop puts them on devices.

A batch holds this host's slots of one step, as NumPy arrays (b slots, n and m the lengths of the tokenizers):

    waveform              [b, samples] float32  −1..1: mean zero, peak 0.5, normalised after cropping, zeros at the end
    clap_ids, clap_mask   [b, n] int32          the caption for CLAP's text tower; 1 where there is a token
    t5_ids, t5_mask       [b, m] int32          the caption for T5
    captioned             [b] bool              False: there is no caption, and the ids are those of ""
    replaced              [b] int32             records that could not be read and were drawn again for this slot

The example in slot i of step s depends on (seed, s, i) and nothing else: not on the number of hosts, workers or
threads, nor on where the run was started. Records are drawn without repetition within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from audioldm2_jax.audio.files import normalise, segment
from audioldm2_jax.data.draw import Draw, digest
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.text import Tokenizers

KEYS = ("waveform", "clap_ids", "clap_mask", "t5_ids", "t5_mask", "captioned", "replaced")
_ATTEMPTS = 20  # records drawn for a slot before the source counts as broken
_STEPS = 2**40  # more than any run has


class ExampleIndex:
    """All examples of a run on one host, in order: element k is slot k mod b of the (k div b)th step from `start_step`.

    Random access, and picklable for worker processes; arguments as of `batches`.
    """

    def __init__(
        self,
        source: Source,
        tokenizers: Tokenizers | None,
        keys: Sequence[str],
        batch_size: int,
        samples: int,
        seed: int,
        start_step: int = 0,
        host_index: int = 0,
        host_count: int = 1,
    ) -> None:
        unknown = set(keys) - set(KEYS)
        if unknown:
            raise ValueError(f"a batch has no {sorted(unknown)}; its keys are {', '.join(KEYS)}")
        if batch_size < 1 or batch_size % host_count:
            raise ValueError(f"batch_size is {batch_size}; it must be a positive multiple of the {host_count} hosts")
        if not 0 <= host_index < host_count:
            raise ValueError(f"host_index is {host_index}; there are {host_count} hosts")
        if not len(source):
            raise ValueError("the source has no records")
        if tokenizers is None and any(key.startswith(("clap", "t5")) for key in keys):
            raise ValueError(f"the keys {tuple(keys)} need tokenizers")
        self.source, self.tokenizers, self.keys = source, tokenizers, tuple(keys)
        self.batch_size, self.samples, self.seed, self.start_step = batch_size, samples, seed, start_step
        self.local = batch_size // host_count
        self.first = host_index * self.local

    def __len__(self) -> int:
        return _STEPS * self.local

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        step, slot = divmod(int(k), self.local)
        return self.example(self.start_step + step, self.first + slot)

    def example(self, step: int, slot: int) -> dict[str, np.ndarray]:
        """The unbatched example of a slot, counted over all hosts.

        Raises:
            UnreadableRecord: 20 records in a row could not be read.
        """
        example, replaced = self._draw(step * self.batch_size + slot)
        text = example.text or ""
        made: dict[str, np.ndarray] = {}
        if "waveform" in self.keys:
            made["waveform"] = segment(normalise(example.waveform), self.samples)
        if "clap_ids" in self.keys or "clap_mask" in self.keys:
            made["clap_ids"], made["clap_mask"] = (row[0] for row in self.tokenizers.clap([text]))
        if "t5_ids" in self.keys or "t5_mask" in self.keys:
            made["t5_ids"], made["t5_mask"] = (row[0] for row in self.tokenizers.t5([text]))
        made["captioned"] = np.bool_(bool(text))
        made["replaced"] = np.int32(replaced)
        return {key: made[key] for key in self.keys}

    def record(self, number: int) -> int:
        """Which record is the `number`th of the run: every epoch is a permutation of its own, computed, not stored."""
        epoch, position = divmod(number, len(self.source))
        if len(self.source) == 1:
            return 0
        seed = digest(self.seed, "epoch", epoch) % 2**32
        return index_shuffle(position, max_index=len(self.source) - 1, seed=seed, rounds=4)

    def _draw(self, number: int) -> tuple[Example, int]:
        position = Draw(self.seed, "crop", number).random()
        index = self.record(number)
        for attempt in range(_ATTEMPTS):
            try:
                return self.source.excerpt(index, self.samples, position), attempt
            except UnreadableRecord as error:
                reason = error
                index = Draw(self.seed, "again", number, attempt).below(len(self.source))
        raise UnreadableRecord(f"{_ATTEMPTS} records drawn one after the other cannot be read; the last: {reason}")


def batches(
    source: Source,
    tokenizers: Tokenizers | None,
    keys: Sequence[str],
    *,
    batch_size: int,
    samples: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from `start_step` on, read ahead in the background.

    Args:
        source: opened at the sampling rate of the batch.
        tokenizers: may be None where `keys` holds no tokens.
        keys: what a batch is to hold, of `KEYS`; only that is made.
        batch_size: examples a step, over all hosts; this host gets the contiguous slots from
            host_index · batch_size / host_count on.
        samples: length of a clip; longer records are cropped at random, shorter ones padded with zeros.
        seed: of the order and the crops.
        start_step: of the first batch; any step is reached at once.
        workers: processes that make batches (spawned: a script needs its `if __name__ == "__main__"`); 0: threads of
            this process.
        threads: that make batches in each process; 0 with no workers: nothing is read ahead.
        prefetch: batches held ready.

    Raises:
        ValueError: unknown keys, or sizes that do not fit.
        UnreadableRecord: from the iterator, where 20 records drawn for one slot cannot be read.
    """
    slots = ExampleIndex(source, tokenizers, keys, batch_size, samples, seed, start_step, host_index, host_count)
    steps = grain.MapDataset.source(slots).batch(slots.local)
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
    if not flags.FLAGS.is_parsed():  # outside absl's app.run (tests, notebooks); Grain reads flags for its workers
        flags.FLAGS.mark_as_parsed()
    ahead = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(threads, 1))
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(-(-prefetch // workers), 1)
    )
    return iter(steps.to_iter_dataset(ahead).mp_prefetch(options))
