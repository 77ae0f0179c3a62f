"""The loss of a stage on held-out data: the same clips, crops, noise and timesteps each time, no network's dropout."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from audioldm2_jax.evaluation.base import Snapshot, of_few_runs
from audioldm2_jax.rngs import heldout_rngs
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Stage

NAME = "heldout/loss"
"""The metric by which a stage is compared: that of the parameters that it publishes."""


class HeldoutLoss:
    """Evaluates `Stage.heldout_loss` with the averaged parameters and with the current ones.

    Metrics: `heldout/loss` and what else the loss reports, of the averaged parameters, and `heldout/current_loss`.
    """

    name = "held-out loss"

    def __init__(self, stage: Stage, held: Callable[[], Sequence[dict[str, np.ndarray]]], mesh: Mesh):
        """Args:
        stage: whose loss.
        held: gives this host's part of the held-out batches; asked once.
        mesh: of the training.
        """
        self.every = stage.hparams.heldout_every
        self._held, self._mesh = functools.cache(held), mesh

        key = stage.key

        def loss(number, params, model_state, frozen, batch):
            size = jax.tree.leaves(batch)[0].shape[0]
            return stage.heldout_loss(params, model_state, frozen, batch, heldout_rngs(key, number, size))

        self._loss = jax.jit(
            loss, out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=of_few_runs(mesh)
        )

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        metrics = {f"heldout/{name}": value for name, value in self._mean(snapshot, snapshot.averaged).items()}
        if snapshot.averaged is not snapshot.params:
            metrics["heldout/current_loss"] = self._mean(snapshot, snapshot.params)["loss"]
        return metrics

    def _mean(self, snapshot: Snapshot, params) -> dict[str, float]:
        """Returns the means over the held-out batches."""
        values = defaultdict(list)
        for number, batch in enumerate(self._held()):
            placed = sharding.to_devices(batch, self._mesh)
            loss, metrics = self._loss(np.int32(number), params, snapshot.model_state, snapshot.frozen, placed)
            for name, value in (metrics | {"loss": loss}).items():
                values[name].append(value)
        return {name: float(np.mean(jax.device_get(several))) for name, several in values.items()}


def read(hparams: ConfigDict, batches: Callable[[int], Iterator[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Returns the batches whose loss is taken: `heldout_clips` of them, filled up, in batches of a microbatch's size.

    Args:
        hparams: of the stage; [] where it asks for no held-out loss.
        batches: opens the held-out data, of this host, in batches of so many clips over all hosts.
    """
    if not hparams.heldout_every:
        return []
    size = hparams.batch_size // hparams.accumulate
    stream = batches(size)
    try:
        return list(itertools.islice(stream, -(-hparams.heldout_clips // size)))
    finally:
        getattr(stream, "close", lambda: None)()
