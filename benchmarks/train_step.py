"""A training step of each stage on the devices that are there, and that of diffusion beside its twin in PyTorch.

    python benchmarks/train_step.py --config music:base --stage diffusion --batch_size 16 32 --json OUT.json

Ours is the loop's own step (training/step.py): loss, gradient, clipping, AdamW, moving average; weights and batch are
random and lie on the devices. By default what frozen networks make comes with the batch, as from the cache, and these
networks are neither run nor held; with --from_audio they run in the step. λ of the LOA is that of generation.

The twin is diffusers' UNet of the same config with the same work in a step: latents drawn and noise added, guidance
dropout, forward, mean squared error, backward, clipping, AdamW (fused on a GPU), average; parameters float32,
bfloat16 by autocast; eager, and through torch.compile. Ours and theirs take turns, and `ratio` is the median over the
turns of theirs by ours: above one, ours is faster.

MFU is of the products of matrices and convolutions in the step, counted in its jaxpr (`products`), by the rate of a
large product of two matrices in the same run. What fails is told in a line, and the next part goes on; what is
measured is printed, and written, at once.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Both frameworks share the device: XLA is not to take most of it at once. Read when JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from audioldm2_jax import config_files
from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.components import build_from_recipe, latent_frames, recipe_config, recipe_fields, recipe_spec
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.models import layers
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES, Stage, features
from audioldm2_jax.stages.diffusion import no_text
from audioldm2_jax.training import optim, stage_settings, state, step

GPU, CPU = (jax.default_backend() == name for name in ("gpu", "cpu"))
VERSIONS = ("jax", "jaxlib", "torch", "diffusers", "transformers")
PEERS = ("eager", "compiled")
TURN = 1 if CPU else 5  # steps between two waits for the device
WARM_UP = 2
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
    texts = {field for field in cls.reads_fields(config) if field.endswith(("_ids", "_mask"))}
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
    return np.asarray(jnp.asarray(values, leaf.dtype))


class Ours:
    """The compiled step of a stage as the loop has it, with its state."""

    counted_by_xla: float | None = None

    def __init__(self, config: ConfigDict, name: str, cached: bool):
        self.stage, fields = make_stage(config, name, cached)
        hparams, mesh = self.stage.hparams, sharding.make_mesh(config.mesh)
        sharding.check_batch(hparams.batch_size, hparams.accumulate, mesh, name)
        variant = self.stage.variant(hparams.steps)
        optimizers = {o.name: optim.optimizer(hparams) for o in self.stage.objectives(variant)}
        abstract = state.shapes(self.stage, optimizers, mesh)
        self.state = state.start(self.stage, optimizers, abstract)
        self.frozen = sharding.place(self.stage.frozen, sharding.state_sharding(self.stage.frozen, mesh))
        self.batch = sharding.to_devices({each: make(hparams.batch_size) for each, make in fields.items()}, mesh)
        take_step = step.compiled(self.stage, optimizers, state.places(abstract), mesh)
        start = time.perf_counter()
        traced = take_step.trace(self.state, self.frozen, self.batch, variant=variant)
        lowered = traced.lower()
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.products = products(traced.jaxpr.jaxpr)
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not every version counts
            # As for a GPU, for which the formulas are the plain ones.
            plain = lowered if GPU else traced.lower(lowering_platforms=("cuda",))
            self.counted_by_xla = (plain.cost_analysis() or {}).get("flops")
        self.devices = mesh.devices.size

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
        forward = jax.make_jaxpr(unet.apply)({"params": self.state["params"]["unet"]}, *given)
        return draws * products(forward.jaxpr)


def products(jaxpr: Any) -> float:
    """Multiplications and additions of products of matrices and convolutions; of a loop's body, as often as it runs.

    Of an attention kernel it is those of the formula, not what it computes a second time. Of branches the largest.
    """
    return float(sum(_products(equation) for equation in jaxpr.eqns))


def _products(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(value.aval, "shape", ()) for value in equation.invars]
    out = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * out * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return 2 * out * math.prod(shapes[1]) / outputs / math.prod(params["lhs_dilation"])
    if name.startswith("dot_product_attention"):
        (b, n, heads, dim), m = shapes[0], shapes[1][1]
        return (8 if "bwd" in name else 4) * b * heads * n * m * dim
    inner = [products(getattr(value, "jaxpr", value)) for value in _jaxprs(params.values())]
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)


def _jaxprs(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value


class Theirs:
    """The same step of diffusers' UNet in PyTorch."""

    def __init__(self, config: ConfigDict, ours: Ours, compiled: bool):
        import torch
        from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel

        self.torch, self.hparams = torch, ours.stage.hparams
        self.device = "cuda" if GPU else "cpu"
        if GPU and not torch.cuda.is_available():
            raise RuntimeError("JAX has a GPU and torch has none: install torch with CUDA")
        spec, fields = recipe_spec(config, "unet"), recipe_fields(config, "unet")
        fields |= spec.required | spec.to_config(fields, {})
        fields["sample_size"] = latent_frames(config, ours.stage.components["vae"].config)
        with torch.device(self.device):
            self.unet = AudioLDM2UNet2DConditionModel.from_config(fields).train()
        self.forward = torch.compile(self.unet, dynamic=False) if compiled else self.unet
        self.params = list(self.unet.parameters())
        self.average = [p.detach().clone() for p in self.params]
        matrices = [p for p in self.params if p.ndim > 1]
        groups = [{"params": matrices, "weight_decay": self.hparams.weight_decay}]
        groups += [{"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0}]
        betas = (self.hparams.b1, self.hparams.b2)
        self.optimizer = torch.optim.AdamW(groups, lr=self.hparams.learning_rate, betas=betas, fused=GPU or None)
        schedule = NoiseSchedule.from_config(config.scheduler.to_dict())
        self.kept = self._tensor(np.asarray(schedule.alphas_cumprod, np.float32))
        batch = {each: self._tensor(np.asarray(leaf)) for each, leaf in ours.batch.items()}
        self.mean, self.logvar = (batch[each].movedim(-1, 1).contiguous() for each in ("latent_mean", "latent_logvar"))
        self.loa = next(leaf for each, leaf in batch.items() if each.startswith("loa_"))
        nothing = [self._tensor(each) for each in no_text(config, len(self.mean))]
        self.text, self.mask = (batch.get(each, none) for each, none in zip(("t5_states", "t5_mask"), nothing))
        self.empty = self._tensor(ours.stage.empty_text.get("t5_states", nothing[0][:1]))
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.dtype)
        self.steps = 0
        if GPU:
            torch.cuda.reset_peak_memory_stats()

    def _tensor(self, array: Any) -> Any:
        array = np.asarray(array)
        return self.torch.tensor(array.astype(np.float32) if array.dtype.kind == "V" else array, device=self.device)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step()
        if GPU:
            self.torch.cuda.synchronize()

    def _step(self) -> None:
        torch, hparams, rows = self.torch, self.hparams, len(self.mean)
        draws, repeat = hparams.noise_draws, partial(torch.repeat_interleave, repeats=hparams.noise_draws, dim=0)
        latents = repeat((self.mean + torch.exp(0.5 * self.logvar) * torch.randn_like(self.mean)) * SCALING_FACTOR)
        timesteps = torch.randint(0, len(self.kept), (rows * draws,), device=self.device)
        noise, kept = torch.randn_like(latents), self.kept[timesteps][:, None, None, None]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        dropped = (torch.rand(rows, device=self.device) < hparams.guidance_dropout)[:, None, None]
        given = {
            "encoder_hidden_states": repeat(torch.where(dropped, 0.0, self.loa)),
            "encoder_hidden_states_1": repeat(torch.where(dropped, self.empty, self.text)),
            "encoder_attention_mask_1": repeat(self.mask),
        }
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            output = self.forward(noisy, timesteps, return_dict=False, **given)[0]
        torch.nn.functional.mse_loss(output.float(), noise).backward()
        if hparams.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params, hparams.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(hparams.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1 - decay)

    def memory(self) -> float | None:
        return self.torch.cuda.max_memory_allocated() / 1e9 if GPU else None


def seconds(way: Ours | Theirs, steps: int) -> float:
    start = time.perf_counter()
    way.run(steps)
    return (time.perf_counter() - start) / steps


def in_turns(ways: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Seconds a step of each, turn by turn, so that all see the same noise."""
    turns = [{name: seconds(way, TURN) for name, way in ways.items()} for _ in range(max(2, steps // TURN))]
    return {name: [turn[name] for turn in turns] for name in ways}


def matrix_rate(dtype: str) -> float:
    """FLOP/s of a product of two square matrices of random numbers on one device, the best of five."""
    n = 2048 if CPU else 8192
    count = 1 if CPU else 10
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    product = jax.jit(jnp.dot)

    def several() -> float:
        start = time.perf_counter()
        for _ in range(count):
            b = product(a, a)
        jax.block_until_ready(b)
        return time.perf_counter() - start

    several()
    return count * 2 * n**3 / min(several() for _ in range(5))


class Results:
    """What was measured, printed as it comes and kept in a file."""

    def __init__(self, path: str | None, head: dict[str, Any]):
        self.path, self.found = path and Path(path), head | {"steps": []}
        self.write()

    def write(self) -> None:
        if self.path:
            partial_file = self.path.with_name(self.path.name + ".partial")
            partial_file.write_text(json.dumps(self.found, indent=1) + "\n")
            partial_file.replace(self.path)

    def add(self, line: str, **found: Any) -> None:
        self.found["steps"].append(found)
        self.write()
        print(line, flush=True)


def measure(config: ConfigDict, name: str, size: int, flags: argparse.Namespace, results: Results) -> None:
    """One stage at one batch size: ours alone, then in turns with each peer."""
    config = ConfigDict(config.to_dict())
    config.train[name].update(batch_size=size, accumulate=1)
    cached = bool(flags.cached and STAGES[name].reads_features(config))
    what = {"stage": name, "batch_size": size, "dtype": config.dtype, "from": "cache" if cached else "audio"}
    head = f"{name:<15}{size:>5}  "
    ours = attempt(lambda: Ours(config, name, cached), results, what | {"way": "ours"}, head + "ours")
    if ours is None:
        return
    if attempt(lambda: _measure_ours(ours, flags, results, what, head), results, what | {"way": "ours"}, head + "ours"):
        for peer in flags.peer if name == "diffusion" and cached else ():
            attempt(
                lambda: _measure_peer(config, ours, peer, flags, results, what, head),  # noqa: B023
                results,
                what | {"way": peer},
                head + peer,
            )


def _measure_ours(ours: Ours, flags: argparse.Namespace, results: Results, what: dict, head: str) -> bool:
    ours.run(WARM_UP)
    median = statistics.median(in_turns({"ours": ours}, flags.steps)["ours"])
    found = _row(ours, ours, median, what | {"way": "ours"}, results)
    found |= {"trace_seconds": ours.trace_seconds, "compile_seconds": ours.compile_seconds}
    found |= {"products": ours.products, "flops_by_xla": ours.counted_by_xla}
    further = f", {ours.products / 1e12:.3f} TFLOP of products"
    if ours.counted_by_xla:
        further += f" ({ours.counted_by_xla / 1e12:.3f} of all kinds by XLA's count)"
    if what["stage"] == "diffusion" and what["from"] == "cache":
        found["unet_products"] = ours.unet_products()
        further += f", {ours.products / found['unet_products']:.3f} times the UNet's forward"
    times = f"traced {ours.trace_seconds:.1f} s, compiled {ours.compile_seconds:.1f} s"
    stats = next(iter(ours.state["step"].devices())).memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        found["process_peak_gb"] = stats["peak_bytes_in_use"] / 1e9
        times += f", {found['process_peak_gb']:.1f} GB the most so far"
    results.add(f"{head}{_line(found)}  {times}{further}", **found)
    return True


def _measure_peer(
    config: ConfigDict, ours: Ours, peer: str, flags: argparse.Namespace, results: Results, what: dict, head: str
) -> None:
    theirs = Theirs(config, ours, compiled=peer == "compiled")
    try:
        first = seconds(theirs, 1)
        theirs.run(WARM_UP)
        times = in_turns({"ours": ours, peer: theirs}, flags.steps)
        found = _row(theirs, ours, statistics.median(times[peer]), what | {"way": peer}, results)
        found["first_step_seconds"] = first
        found["ours_ms"] = 1e3 * statistics.median(times["ours"])
        found["ratio"] = statistics.median(their / our for their, our in zip(times[peer], times["ours"]))
        beside = f"first step {first:.1f} s; ours in turns {found['ours_ms']:.1f} ms: ratio {found['ratio']:.3f}"
        results.add(f"{head}{_line(found)}  {beside}", **found)
    finally:
        torch = theirs.torch
        del theirs
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()


def _row(way: Ours | Theirs, ours: Ours, median: float, what: dict[str, Any], results: Results) -> dict[str, Any]:
    rate = results.found["matrix_flops"] * ours.devices
    return what | {
        "ms": 1e3 * median,
        "examples_per_second": what["batch_size"] / median,
        "mfu": ours.products / median / rate,
        "gb": way.memory(),
    }


def _line(found: dict[str, Any]) -> str:
    memory = "" if found["gb"] is None else f"{found['gb']:.1f} GB"
    return (
        f"{found['way']:<9}{found['ms']:>10.1f} ms{found['examples_per_second']:>9.2f} /s"
        f"{100 * found['mfu']:>7.1f} % MFU{memory:>10}"
    )


def attempt(part: Callable[[], Any], results: Results, what: dict[str, Any], head: str) -> Any:
    """What `part` returns, None where it fails: that is told in a line."""
    try:
        return part()
    except Exception as error:
        message = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:300]}"
        results.add(f"{head}: failed: {message}", **what, error=message)
        return None
    finally:
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="music:base", help="a recipe, as of the command train")
    parser.add_argument("--stage", default="diffusion", choices=("all", *STAGES))
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1 if CPU else 16], help="examples a step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation; default: the recipe's")
    parser.add_argument("--peer", default="eager,compiled" if GPU else "eager", help="eager, compiled, both, or none")
    parser.add_argument("--steps", type=int, default=20, help="steps measured of each")
    parser.add_argument("--attention", default="auto", choices=("auto", "xla"), help="xla: never by a GPU's kernel")
    parser.add_argument("--json", help="file for the results")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cached", action="store_true", default=True, help="without the frozen networks (default)")
    source.add_argument(
        "--from_audio", dest="cached", action="store_false", help="with the frozen networks in the step"
    )
    flags = parser.parse_args()
    flags.peer = [] if flags.peer == "none" else flags.peer.split(",")
    if unknown := sorted({*flags.peer} - {*PEERS}):
        parser.error(f"--peer {unknown[0]}: choose from {', '.join(PEERS)} and none")
    try:
        config = ConfigDict(config_files.load(flags.config).to_dict())
    except ValueError as error:
        parser.error(f"--config: {error}")
    if flags.dtype:
        config.dtype = flags.dtype
    if flags.attention == "xla":
        layers._has_kernel = lambda query, key: False
    config.loa.training_poolings = (config.loa.pooling,)  # each is an executable of its own
    rate = matrix_rate(config.dtype)
    installed = [name for name in VERSIONS if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in installed}
    kind = platform.processor() or platform.machine() if CPU else jax.devices()[0].device_kind
    head = {"config": flags.config, "device": kind, "devices": jax.device_count(), "dtype": config.dtype}
    head["attention"] = flags.attention
    results = Results(flags.json, head | {"versions": versions, "matrix_flops": rate, "turn": TURN})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{kind} × {jax.device_count()}; Python {platform.python_version()}, {listed}")
    print(f"{flags.config}, {config.dtype}; product of two matrices {rate / 1e12:.4g} TFLOP/s", flush=True)
    for name in STAGES if flags.stage == "all" else [flags.stage]:
        for size in flags.batch_size:
            measure(config, name, size, flags, results)
    if not any("ms" in found for found in results.found["steps"]):
        sys.exit("nothing could be measured")


if __name__ == "__main__":
    main()
