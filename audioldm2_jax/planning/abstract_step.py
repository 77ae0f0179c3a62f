"""The training step of a stage as training/loop.py jits it, of shapes alone: nothing is read, drawn or allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.data import encoders
from audioldm2_jax.data.encoders import Encoder
from audioldm2_jax.data.example import Example
from audioldm2_jax.recipe_components import build_from_recipe, recipe_config, recipe_spec
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES, Stage, features
from audioldm2_jax.training import feature_cache, stage_settings, state, step

Shapes = Any  # a pytree of jax.ShapeDtypeStruct


class AbstractStep(NamedTuple):
    """A step that can be traced.

    Attributes:
        stage: built of components without weights.
        state, frozen, batch: the arguments, with their places on the mesh.
        mesh: that mesh.
        cached: whether the batch has features in the place of what they are made from.
        jitted: `step.compiled`.
    """

    stage: Stage
    state: Shapes
    frozen: Shapes
    batch: Shapes
    mesh: Mesh
    cached: bool
    jitted: Any

    def trace(self, variant: Any) -> jax.stages.Traced:
        """Returns the step of a variant, ready to be lowered and compiled."""
        return self.jitted.trace(self.state, self.frozen, self.batch, variant=variant)


def build(config: ConfigDict, name: str, mesh_of: Callable[[Stage], Mesh]) -> AbstractStep:
    """Returns the step of stage `name` of a recipe.

    Args:
        config: the recipe, resolved.
        name: of the stage.
        mesh_of: gives its mesh, whose devices need not be here.
    """
    cached = feature_cache.place_of(config, name) is not None
    components = {part: _component(config, part) for part in STAGES[name].needs(config)}
    available = _encoders(config)
    empty = encoders.empty_text(available)
    wanted = [features.get(feature) for feature in dict.fromkeys(STAGES[name].reads_features(config))] if cached else []
    if cached:
        of_text = [feature for feature in wanted if feature.of_text]
        empty = empty | {
            field: np.zeros(shape.shape, shape.dtype)
            for field, shape in _features(config, components, of_text, _shapes(empty)).items()
        }
    stage = STAGES[name](stage_settings.part(config, name), components, empty)
    batch = _batch(config, stage, available, components, wanted)
    mesh = mesh_of(stage)
    abstract = state.shapes(stage, mesh)
    return AbstractStep(
        stage,
        abstract,
        _placed(stage.frozen, sharding.state_sharding(stage.frozen, mesh)),
        _placed(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)),
        mesh,
        cached,
        step.compiled(stage, state.optimizers(stage), state.places(abstract), mesh),
    )


def variants(stage: Stage) -> dict[Any, float]:
    """Returns the variants of a stage's steps, each with its share of a thousand that are spread over the run."""
    steps = stage.hparams.steps
    taken = [stage.variant(number * steps // 1000) for number in range(1000)]
    return {variant: taken.count(variant) / len(taken) for variant in sorted(set(taken), key=str)}


def _component(config: ConfigDict, name: str) -> Component:
    """Returns a component of the recipe's sizes, with shapes in the place of its weights."""
    module, spec = build_from_recipe(config, name), recipe_spec(config, name)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *spec.dummy_inputs(module)))
    # A VAE of a run says what it measured; the step computes the same with any number.
    return Component(module, variables, {"scaling_factor": 1.0} | spec.defaults | recipe_config(config, name))


class _NoWords:
    """Stands for tokenizers: of all texts it makes as many zeros."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, texts: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(texts), self.length), np.int32), np.ones((len(texts), self.length), np.int32)


class _NoTokenizers(NamedTuple):
    by_kind: Mapping[str, _NoWords]


def _samples(config: ConfigDict) -> int:
    return round(config.audio.seconds * config.audio.sampling_rate)


def _encoders(config: ConfigDict) -> tuple[Encoder, ...]:
    words = {kind: _NoWords(config.text[f"{kind}_length"]) for kind in text_kinds(config)}
    return encoders.recipe_encoders(_samples(config), _NoTokenizers(words))


def _batch(
    config: ConfigDict, stage: Stage, available: tuple[Encoder, ...], components: Mapping[str, Component], wanted: list
) -> Shapes:
    """Returns the whole batch of a step: what `StageData.train` opens, and `replaced` of data/pipeline.py."""
    of_example, of_cache = stage.cached_fields() if wanted else (stage.batch_fields, ())
    silence = Example(np.zeros(_samples(config), np.float32), None)
    one = {field: np.asarray(array)[None] for encoder in available for field, array in encoder(silence).items()}
    chosen = {field for encoder in encoders.select(available, of_example) for field in encoder.fields}
    made = _features(config, components, wanted, _shapes(one))
    shapes = {field: _shapes(one)[field] for field in sorted(chosen)} | {field: made[field] for field in of_cache}
    shapes["replaced"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    size = stage.hparams.batch_size
    return {field: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for field, leaf in shapes.items()}


def _features(config: ConfigDict, components: Mapping[str, Component], wanted: list, batch: Shapes) -> dict[str, Any]:
    """Returns the shapes of features of a batch, by field."""
    ends, found = FrontEnds(config.audio), {}
    for feature in wanted:
        networks = {feature.component: components[feature.component].network} if feature.component else {}
        made = jax.eval_shape(lambda known, given: feature.of(ends, known.__getitem__, given), networks, batch)  # noqa: B023
        found |= dict(zip(feature.fields, made))
    return found


def _shapes(batch: Mapping[str, np.ndarray]) -> Shapes:
    return {field: jax.ShapeDtypeStruct(array.shape, array.dtype) for field, array in batch.items()}


def _placed(tree: Shapes, places: Any) -> Shapes:
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)
