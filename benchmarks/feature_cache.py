"""What do cached features save? Counts the operations of a training step from sound and from the cache:

    python benchmarks/feature_cache.py --recipe base
    python benchmarks/feature_cache.py --recipe base --time --clips 1

Operations are those of training/flops.py as an accelerator does them, at the recipe's batch size; no weight is made for
it. `--time` runs the gradient of `--clips` clips on this machine's devices, with random weights, in turn from
sound and from the cache: the optimiser's share, which is the same in both, is left out.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from audioldm2_jax import recipes
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.components import SPECS
from audioldm2_jax.recipe_components import build_from_recipe, recipe_config
from audioldm2_jax.rngs import of_step
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES, Stage, features
from audioldm2_jax.training import flops, step
from audioldm2_jax.training.state import optimizers, shapes

TRAINED_FROM_THEM = ("diffusion", "language_model", "joint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--stages", default=",".join(TRAINED_FROM_THEM))
    parser.add_argument("--clips", type=int, help="of a batch; by default the recipe's")
    parser.add_argument("--time", action="store_true", help="run them, too")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.stages.split(","):
        stage = build(options.recipe, name, options.clips)
        sound, cached = (batch(stage, from_cache) for from_cache in (False, True))
        counts = [operations(stage, given) for given in (sound, cached)]
        clips = stage.hparams.batch_size
        sizes = f"{counts[0] / 1e12:.2f} TFLOP a step from sound, {counts[1] / 1e12:.2f} from the cache"
        print(f"{name}, {clips} clips: {sizes}: {counts[0] / counts[1]:.2f} times as many", flush=True)
        if options.time:
            seconds = timed(stage, (sound, cached), options.repeats)
            print(f"  gradient: {seconds[0]:.2f} s and {seconds[1]:.2f} s: {seconds[0] / seconds[1]:.2f} times as long")


def build(recipe: str, name: str, clips: int | None) -> Stage:
    """Returns a stage whose components have shapes instead of weights."""
    config = recipes.get(recipe)
    if clips:
        config.train[name].batch_size = clips
    text, kind = config.text, STAGES[name]
    lengths = {"clap": text.clap_length, "t5": text.t5_length}
    empty = {f"{who}_{what}": np.ones((1, n), np.int32) for who, n in lengths.items() for what in ("ids", "mask")}

    def component(part: str) -> Component:
        module = build_from_recipe(config, part)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *SPECS[part].dummy_inputs(module)))
        return Component(
            module, shapes, recipe_config(config, part) | ({"scaling_factor": 1.0} if part == "vae" else {})
        )

    return kind(config, {part: component(part) for part in (*kind.needs(config), *kind.continues(config))}, empty)


def batch(stage: Stage, from_cache: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as the loop is given it."""
    config, clips = stage.config, stage.hparams.batch_size
    samples = round(config.audio.seconds * config.audio.sampling_rate)
    known = {
        key: jax.ShapeDtypeStruct((clips, *value.shape[1:]), value.dtype) for key, value in stage.empty_text.items()
    }
    known["waveform"] = jax.ShapeDtypeStruct((clips, samples), jnp.float32)
    known["captioned"] = jax.ShapeDtypeStruct((clips,), jnp.bool_)
    if not from_cache:
        return {field: known[field] for field in stage.batch_fields}
    for feature in map(features.get, stage.reads_features(config)):
        made = jax.eval_shape(partial(stage.made, feature.name), stage.frozen, known)
        known |= dict(zip(feature.fields, made))
        if feature.of_text:  # of the empty caption, too
            empty = (jnp.zeros((1, *one.shape[1:]), one.dtype) for one in made)
            stage.empty_text = stage.empty_text | dict(zip(feature.fields, empty))
    left, read = stage.cached_fields()
    return {field: known[field] for field in (*left, *read)}


def operations(stage: Stage, given: dict[str, jax.ShapeDtypeStruct]) -> float:
    """Returns the floating-point operations of one step."""
    variant = stage.variant(0)
    state = shapes(stage, sharding.all_devices())
    one = partial(step.step, stage, optimizers(stage), stage.key, variant=variant)
    return flops.count(jax.jit(one).trace(state, stage.frozen, given), "tpu")


def timed(stage: Stage, batches: tuple[dict[str, jax.ShapeDtypeStruct], ...], repeats: int) -> list[float]:
    """Returns the median seconds of the gradient for each of the batches, run in turn."""
    random = np.random.default_rng(0)

    def filled(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if shape.dtype.kind in "ib":
            return np.ones(shape.shape, shape.dtype)
        return (0.02 * random.standard_normal(shape.shape, np.float32)).astype(shape.dtype)

    def gradient(params, model_state, frozen, given):
        rngs = of_step(stage.key, 0, stage.hparams.batch_size)
        (objective,) = stage.objectives(stage.variant(0))
        weighed = stage.weigh(given)
        return step.gradient(stage, objective, params, model_state, frozen, weighed, rngs, stage.variant(0), None)[0]

    empty = (*jax.eval_shape(stage.init, stage.key), stage.frozen)
    arrays = jax.tree.map(lambda shape: jax.device_put(filled(shape)), empty)
    given = [jax.tree.map(filled, one) for one in batches]
    run = [jax.jit(gradient).lower(*arrays, one).compile() for one in given]
    seconds = [[] for _ in run]
    for _ in range(repeats + 1):
        for found, one, data in zip(seconds, run, given):
            begin = time.perf_counter()
            jax.block_until_ready(one(*arrays, data))
            found.append(time.perf_counter() - begin)
    return [float(np.median(found[1:])) for found in seconds]


if __name__ == "__main__":
    main()
