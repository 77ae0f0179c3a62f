"""Ours of train_step.py: the loop's step of a stage on random weights and a random batch, and its operations."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.recipe_components import build_from_recipe, recipe_config, recipe_spec
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES, Stage, features
from audioldm2_jax.stages.diffusion import no_text
from audioldm2_jax.training import flops, stage_settings, state, step

GPU = jax.default_backend() == "gpu"
SCALING_FACTOR = 0.5  # of the latents, which is measured from data


def random_array(seed: int, name: str, leaf: Any) -> np.ndarray:
    """A parameter or statistic as a network in training has them, more or less."""
    if name in ("scale", "var"):
        return np.ones(leaf.shape, leaf.dtype)
    fan_in = math.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
    return np.random.default_rng(seed).standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(fan_in))


def random_component(config: ConfigDict, name: str, drawn: bool) -> Component:
    """A component of the recipe; its weights are shapes alone where they are not `drawn`."""
    module, seeds = build_from_recipe(config, name), iter(range(1_000_000))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *recipe_spec(config, name).dummy_inputs(module)))
    if drawn:
        shapes = jax.tree_util.tree_map_with_path(
            lambda path, leaf: random_array(next(seeds), getattr(path[-1], "key", ""), leaf), shapes
        )
    fields = recipe_config(config, name) | ({"scaling_factor": SCALING_FACTOR} if name == "vae" else {})
    return Component(module, shapes, fields)


def field(config: ConfigDict, name: str, rows: int) -> np.ndarray:
    """A field of a batch that data/encoders.py documents."""
    random = np.random.default_rng(0)
    if name == "waveform":
        samples = round(config.audio.seconds * config.audio.sampling_rate)
        return (0.1 * random.standard_normal((rows, samples))).astype(np.float32)
    kind, _, part = name.partition("_")
    if part == "ids":
        return random.integers(3, 100, (rows, config.text[f"{kind}_length"]), dtype=np.int32)
    if part == "mask":
        return np.ones((rows, config.text[f"{kind}_length"]), np.int32)
    return np.ones(rows, bool)  # captioned, transcribed


def make_stage(config: ConfigDict, name: str, cached: bool) -> tuple[Stage, dict[str, Any]]:
    """The stage with random weights, and what it trains from, by field: functions of the number of rows."""
    cls, part = STAGES[name], stage_settings.part(config, name)
    read = [features.get(feature) for feature in cls.reads_features(config)] if cached else []
    makers = {feature.component for feature in read}
    parts = dict.fromkeys((*cls.needs(config), *cls.continues(config), *cls.makes(config)))
    components = {each: random_component(config, each, drawn=each not in makers) for each in parts}
    texts = {each for each in cls.reads_fields(config) if each.endswith(("_ids", "_mask"))}
    stage = cls(part, components, {text: field(config, text, 1) for text in sorted(texts)})
    fields = {each: partial(field, config, each) for each in stage.batch_fields}
    if read:
        of_example, _ = stage.cached_fields()
        fields = {each: fields[each] for each in of_example} | dict(_of_cache(config, stage, read))
    of_text = {each for feature in read if feature.of_text for each in feature.fields}
    stage.empty_text |= {each: fields[each](1) for each in of_text}
    # The networks behind the cache are no part of the step.
    stage.components |= {each: part._replace(variables={}) for each, part in components.items() if each in makers}
    return stage, fields


def _of_cache(config: ConfigDict, stage: Stage, read: list[features.Feature]) -> Iterator[tuple[str, Callable]]:
    """What a cache has: the fields of features, of random numbers."""
    for feature in read:
        variables = {feature.component: stage.components[feature.component].variables}
        inputs = {name: field(config, name, 1) for name in feature.inputs}
        network = partial(stage.network, feature.component)
        made = jax.eval_shape(lambda frozen, batch: feature.make(stage.ends, network(frozen), batch), variables, inputs)  # noqa: B023
        for name, leaf in zip(feature.fields, made):
            yield name, partial(_random_rows, leaf)


def _random_rows(leaf: Any, rows: int) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((rows, *leaf.shape[1:]), np.float32)
    return values.astype(leaf.dtype)


class Ours:
    """The compiled step of a stage as the loop has it, with its state."""

    state: dict[str, Any] | None = None
    counted_by_xla: float | None = None

    def __init__(self, config: ConfigDict, name: str, cached: bool):
        self.stage, self.fields = make_stage(config, name, cached)
        self.mesh = sharding.make_mesh(config.mesh)
        self.variant = self.stage.variant(self.stage.hparams.steps)
        self.abstract = state.shapes(self.stage, self.mesh)
        self.frozen = sharding.place(self.stage.frozen, sharding.state_sharding(self.stage.frozen, self.mesh))

    def prepare(self, size: int) -> None:
        """Makes a batch, and compiles the step for it."""
        sharding.check_batch(size, 1, self.mesh, self.stage.name)
        self.compiled = self.batch = None  # gives their memory back
        if self.state is None or any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):  # a step has failed
            self.state = None
            self.state = state.start(self.stage, self.abstract)
        self.batch = sharding.to_devices({each: make(size) for each, make in self.fields.items()}, self.mesh)
        take_step = step.compiled(self.stage, state.optimizers(self.stage), state.places(self.abstract), self.mesh)
        start = time.perf_counter()
        traced = take_step.trace(self.state, self.frozen, self.batch, variant=self.variant)
        lowered = traced.lower()
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.products = flops.count(traced, self.mesh.devices.flat[0].platform)
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not every version counts
            # As for a GPU, for which the formulas are the plain ones.
            plain = lowered if GPU else traced.lower(lowering_platforms=("cuda",))
            self.counted_by_xla = (plain.cost_analysis() or {}).get("flops")

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
        jax.block_until_ready(metrics)

    def memory(self) -> float:
        """GB that the executable needs on a device: what it is given, returns beside that, and works with."""
        needs = self.compiled.memory_analysis()
        kept = needs.output_size_in_bytes - needs.alias_size_in_bytes
        return (needs.argument_size_in_bytes + kept + needs.temp_size_in_bytes) / 1e9

    def unet_products(self) -> float:
        """Products of the UNet's forward pass for the batch, each clip with as many noises as the recipe says."""
        unet, draws = self.stage.modules["unet"], self.stage.hparams.noise_draws
        shapes = {each: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for each, leaf in self.batch.items()}
        latents, loa = shapes["latent_mean"], next(leaf for each, leaf in shapes.items() if each.startswith("loa_"))
        text = shapes.get("t5_states", no_text(self.stage.config, latents.shape[0])[0])
        given = (latents, jax.ShapeDtypeStruct(latents.shape[:1], jnp.int32), loa, text)
        forward = jax.jit(unet.apply).trace({"params": self.state["params"]["unet"]}, *given)
        return draws * flops.count(forward, self.mesh.devices.flat[0].platform)
