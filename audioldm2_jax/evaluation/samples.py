"""What a stage makes of held-out clips, as files to look at and to listen to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audioldm2_jax.evaluation import show
from audioldm2_jax.evaluation.base import Snapshot, of_few_runs
from audioldm2_jax.evaluation.distances import spectral_distance
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Stage

CLIPS = 4
"""Clips that are shown, or one for each device where there are more."""


class Samples:
    """Writes what `Stage.sample` makes with the averaged parameters to `folder/STEP/`.

    Metric, of a stage that makes clips again: `samples/spectral_distance`, dB, the mean over the clips that are shown.
    """

    name = "samples"

    def __init__(
        self,
        stage: Stage,
        batches: Callable[[], Iterator[dict[str, np.ndarray]]],
        mesh: Mesh,
        folder: Path,
        say: Callable[[str], None],
    ):
        """Args:
        stage: whose samples.
        batches: opens this host's part of the held-out data, in batches of `clips(mesh)`.
        mesh: of the training.
        folder: for the samples of all steps.
        say: gets a line where nothing could be written.
        """
        self.every = stage.hparams.sample_every
        self._batches, self._mesh, self._folder, self._say = batches, mesh, folder, say
        self._rate = stage.config.audio.sampling_rate

        def sample(params, model_state, frozen, batch, step):
            return stage.sample(params, model_state, frozen, batch, jax.random.key(step))

        self._sample = jax.jit(
            sample, out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=of_few_runs(mesh)
        )

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        stream = self._batches()
        batch = sharding.to_devices(next(stream), self._mesh)
        getattr(stream, "close", lambda: None)()
        made = self._sample(snapshot.averaged, snapshot.model_state, snapshot.frozen, batch, np.uint32(snapshot.step))
        if jax.process_index() == 0:
            first = {name: np.asarray(value)[:CLIPS] for name, value in made.items()}
            try:
                show.write_samples(self._folder / f"{snapshot.step:07}", first, self._rate)
            except OSError as error:  # a disk that is full stops the next checkpoint, not the training
                self._say(f"no samples of step {snapshot.step}: {error}")
        sounds = {name: np.asarray(value) for name, value in made.items() if name.endswith("_waveform")}
        real = sounds.pop("real_waveform", None)
        if real is None or not sounds:
            return {}
        return {"samples/spectral_distance": float(np.mean([spectral_distance(real, one) for one in sounds.values()]))}


def clips(mesh: Mesh) -> int:
    """Returns how many clips are made, over all hosts: `CLIPS`, filled up so that every device has as many."""
    return -(-CLIPS // mesh.size) * mesh.size
