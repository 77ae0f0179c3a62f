"""The loss of a stage on held-out data: the same clips, crops, noise and timesteps each time, no network's dropout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audioldm2_jax.evaluation.base import Snapshot
from audioldm2_jax.rngs import heldout_rngs
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.base import Stage

NAME = "heldout/loss"
"""The metric by which a stage is compared: that of the parameters that it publishes."""


class HeldoutLoss:
    """Evaluates `Stage.heldout_loss` with the averaged parameters and with the current ones.

    Metrics: `heldout/loss` and what else the loss reports, of the averaged parameters, and `heldout/current_loss`.
    """

    def __init__(self, stage: Stage, batches: Callable[[], Iterator[dict[str, np.ndarray]]], mesh: Mesh):
        """Args:
        stage: whose loss.
        batches: opens this host's part of the held-out data, in batches of `batch_size(stage)`.
        mesh: of the training.
        """
        self.every = stage.hparams.heldout_every
        self._batches, self._mesh = batches, mesh
        self._clips, self._batch_size = stage.hparams.heldout_clips, batch_size(stage)
        self._held: list[dict[str, np.ndarray]] = []

        key = stage.key

        def loss(number, params, model_state, frozen, batch):
            size = jax.tree.leaves(batch)[0].shape[0]
            return stage.heldout_loss(params, model_state, frozen, batch, heldout_rngs(key, number, size))

        self._loss = jax.jit(loss, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, snapshot: Snapshot) -> dict[str, float]:
        if not self._held:
            stream = self._batches()
            self._held = list(islice(stream, -(-self._clips // self._batch_size)))
            getattr(stream, "close", lambda: None)()
        metrics = {f"heldout/{name}": value for name, value in self._mean(snapshot, snapshot.averaged).items()}
        if snapshot.averaged is not snapshot.params:
            metrics["heldout/current_loss"] = self._mean(snapshot, snapshot.params)["loss"]
        return metrics

    def _mean(self, snapshot: Snapshot, params) -> dict[str, float]:
        """Returns the means over the held-out batches."""
        values = defaultdict(list)
        for number, batch in enumerate(self._held):
            placed = sharding.to_devices(batch, self._mesh)
            loss, metrics = self._loss(np.int32(number), params, snapshot.model_state, snapshot.frozen, placed)
            for name, value in (metrics | {"loss": loss}).items():
                values[name].append(value)
        return {name: float(np.mean(jax.device_get(several))) for name, several in values.items()}


def batch_size(stage: Stage) -> int:
    """Returns the clips of a held-out batch over all hosts: as many as a microbatch of the training has."""
    return stage.hparams.batch_size // stage.hparams.accumulate
