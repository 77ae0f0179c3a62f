"""What frozen networks make of excerpts, in batches, on the devices of one host."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.data import cache, encoders
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Example
from audioldm2_jax.models.network import Network
from audioldm2_jax.stages import features

_BATCH = 16  # clips a device


class FeatureMaker:
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
            for part in dict.fromkeys(feature.component for feature in wanted if feature.component)
        }
        self._make = jax.jit(self._arrays, static_argnums=0)

    def __call__(self, wanted: Sequence[features.Feature], read: Sequence[Example]) -> list[list[np.ndarray]]:
        """Returns the arrays [excerpts, ...] of each feature in `wanted`, of at most `batch` excerpts."""
        return self._of_part(wanted, self._encode(wanted, read))

    def fields(self, wanted: Sequence[features.Feature]) -> list[list[cache.Field]]:
        """Returns the fields of each feature."""
        silence = [Example(np.zeros(self.samples, np.float32), None)]
        shapes = jax.eval_shape(
            functools.partial(self._arrays, tuple(wanted)), self._variables, self._encode(wanted, silence)
        )
        return [
            [cache.Field(name, array.dtype.name, array.shape[1:]) for name, array in zip(feature.fields, arrays)]
            for feature, arrays in zip(wanted, shapes)
        ]

    def of_empty_text(self, wanted: Sequence[features.Feature]) -> dict[str, np.ndarray]:
        """Returns the features of the empty caption, [1, ...] by field."""
        of_text = [feature for feature in wanted if feature.of_text]
        made = self(of_text, [Example(np.zeros(0, np.float32), None)]) if of_text else []
        return {name: array for feature, arrays in zip(of_text, made) for name, array in zip(feature.fields, arrays)}

    def with_features(
        self, wanted: Sequence[features.Feature], batch: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the batch with its features."""
        found = dict(batch)
        for of_text in (False, True):  # as the cache is made: so that it is the same program
            chosen = [feature for feature in wanted if feature.of_text == of_text]
            if chosen:
                arrays = zip(chosen, self._of_batch(chosen, batch))
                found |= {field: array for feature, made in arrays for field, array in zip(feature.fields, made)}
        return found

    def _of_batch(self, wanted: Sequence[features.Feature], batch: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
        """Returns the arrays [excerpts, ...] of each feature in `wanted`, of however many excerpts."""
        inputs = {field: batch[field] for feature in wanted for field in feature.inputs}
        size = len(next(iter(inputs.values())))
        parts = [
            self._of_part(wanted, {field: array[begin : begin + self.batch] for field, array in inputs.items()})
            for begin in range(0, size, self.batch)
        ]
        return [[np.concatenate(several) for several in zip(*arrays)] for arrays in zip(*parts)]

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
        def network(component: str) -> Network:
            return Network(self._components[component].module, variables[component])

        return tuple(tuple(feature.of(self._ends, network, batch)) for feature in wanted)
