"""From a source to batches on the host: draw, read, crop, encode, stack; the loop puts them on devices.

The fields of a batch are its encoders' (data/encoders.py), and beside them

    replaced              [b] int32             records that could not be read and were drawn again for this slot

The example in slot i of step s depends on (seed, s, i) and nothing else: not on the number of hosts, workers or
threads, nor on where the run was started. Records are drawn without repetition within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from audioldm2_jax.data import batch_workers
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.runtime import children

_ATTEMPTS = 20  # records drawn for a slot before the source counts as broken
_STEPS = 2**40  # more than any run has


class ExampleIndex:
    """All examples of a run on one host, in order: element k is slot k mod b of the (k div b)th step from `start_step`.

    Random access, and picklable for worker processes; arguments as of `batches`.
    """

    def __init__(
        self,
        source: Source,
        encoders: Sequence[Encoder],
        batch_size: int,
        samples: int,
        seed: int,
        start_step: int = 0,
        host_index: int = 0,
        host_count: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % host_count:
            raise ValueError(f"batch_size is {batch_size}; it must be a positive multiple of the {host_count} hosts")
        if not 0 <= host_index < host_count:
            raise ValueError(f"host_index is {host_index}; there are {host_count} hosts")
        if not len(source):
            raise ValueError("the source has no records")
        self.source, self.encoders = source, tuple(encoders)
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
        _, attempts, made = self._read(step, slot)
        return made | {"replaced": np.int32(attempts)}

    def record(self, step: int, slot: int) -> str:
        """The name of the record that the example of a slot is of; reads it, since it may give way to another one.

        Raises:
            UnreadableRecord: see `example`.
        """
        return self.source.name_of(self._read(step, slot)[0])

    def _read(self, step: int, slot: int) -> tuple[int, int, dict[str, np.ndarray]]:
        """Returns the number of the record of a slot, how many gave way to it, and its fields."""
        number = step * self.batch_size + slot
        position, caption = (Draw(self.seed, use, number).random() for use in ("crop", "caption"))
        index = self.source.draw(number, self.seed)
        for attempt in range(_ATTEMPTS):
            try:
                excerpt = self.source.excerpt(index, self.samples, position)
                return index, attempt, self._encode(self.source.with_caption(excerpt, index, caption))
            except UnreadableRecord as error:
                reason = error
                index = self.source.another(index, Draw(self.seed, "again", number, attempt))
        raise UnreadableRecord(f"{_ATTEMPTS} records drawn one after the other cannot be read; the last: {reason}")

    def _encode(self, example: Example) -> dict[str, np.ndarray]:
        return {field: array for encoder in self.encoders for field, array in encoder(example).items()}


def batches(
    source: Source,
    encoders: Sequence[Encoder],
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
        encoders: make the fields of the batch.
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
        ValueError: sizes that do not fit, a source without records, or too little shared memory for the workers.
        UnreadableRecord: here or from the iterator, where 20 records drawn for one slot cannot be read.
        ChildProcessError: from the iterator, where a worker has ended.
    """
    slots = ExampleIndex(source, encoders, batch_size, samples, seed, start_step, host_index, host_count)
    steps = grain.MapDataset.source(slots).batch(slots.local)
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
    if not flags.FLAGS.is_parsed():  # outside absl's app.run (tests, notebooks); Grain reads flags for its workers
        flags.FLAGS.mark_as_parsed()
    made = sum(np.asarray(value).nbytes for value in slots.example(start_step, slots.first).values())
    batch_workers.check_memory(made * slots.local, workers, prefetch)
    ahead = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(threads, 1))
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=batch_workers.buffer_of_each(workers, prefetch)
    )
    return batch_workers.WorkerBatches(iter(steps.to_iter_dataset(ahead).mp_prefetch(options, _begin_worker)))


def _begin_worker(number: int, count: int) -> None:
    children.end_with_parent()
