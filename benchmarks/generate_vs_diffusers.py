"""Generation beside diffusers' AudioLDM2Pipeline: the same weights, inputs and steps, in one run on this machine.

    python benchmarks/generate_vs_diffusers.py [--folder MODEL] [--steps 10] [--batches 1,8] [--dtypes float32,bfloat16]

Without --folder a base-size model of random weights is written to a temporary folder (4.5 GB): speed does not depend
on what the weights are. Parts are measured one after the other, each in a process of its own, so that two frameworks'
UNets fit into memory; a whole clip is the sum of its parts: prompts to conditions, the denoising loop with guidance
(a batch of two a clip), VAE decoder, vocoder. Ours and theirs take turns, and the ratio is the median over the turns'
own ratios, which a busy machine disturbs least. Prints seconds, ratios (below one: faster), how far the results are
apart, GFLOP/s and peak memory; `first` is the first call: with an empty and with a filled compilation cache.

On a GPU, theirs is measured eager and through torch.compile, and float32 means that of each framework's defaults.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Both frameworks share the device: XLA is not to take most of it at once. Read when JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.components import SPECS
from audioldm2_jax.conditioning.conditions import Conditions
from audioldm2_jax.conditioning.loa import encode_prompt, generate_loa
from audioldm2_jax.data.text import Tokenizers, train_clap, train_t5
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.diffusion.solvers import SOLVERS
from audioldm2_jax.generation.prompts import Prompts
from audioldm2_jax.models.network import Network
from audioldm2_jax.recipes import paper

PARTS = ("encoders", "denoising", "vae", "vocoder")
ENCODERS = ("text_encoder", "text_encoder_2", "projection_model", "language_model")
PROMPT = "a slow and calm melody on a violin in a minor key, with the soft drone of a church organ behind it"
GUIDANCE, LOA_TOKENS, TEXT_TOKENS = 3.5, 8, 32
VERSIONS = ("jax", "jaxlib", "torch", "diffusers", "transformers")
GPU = jax.default_backend() == "gpu"
DEVICE = "cuda" if GPU else "cpu"


def write_random_model(path: Path) -> None:
    """A whole model folder with the base recipe's sizes."""
    config = paper.base()
    models = {name: config.models[name].to_dict() for name in config.models}
    clap, t5, gpt2 = (models[name] for name in ("text_encoder", "text_encoder_2", "language_model"))
    widths = (clap["projection_dim"], t5["d_model"], gpt2["n_embd"])
    configs = {
        "unet": models["unet"] | {"sample_size": 256},
        "vae": models["vae"] | {"scaling_factor": 0.5},
        "vocoder": models["vocoder"] | {"model_in_dim": 64, "sampling_rate": 16000},
        "text_encoder": clap,
        "text_encoder_2": t5,
        "language_model": gpt2 | {"max_new_tokens": LOA_TOKENS},
        "projection_model": dict(zip(("text_encoder_dim", "text_encoder_1_dim", "langauge_model_dim"), widths)),
    }
    random = np.random.default_rng(0)

    def draw(key_path: tuple, leaf: Any) -> np.ndarray:
        if key_path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100.0
        return random.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(fan_in))

    for name, fields in configs.items():
        module = model_folder.build(name, fields)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *SPECS[name].dummy_inputs(module)))  # noqa: B023
        model_folder.write_component(path, name, fields, jax.tree_util.tree_map_with_path(draw, shapes))
    model_folder.write_scheduler(path, NoiseSchedule(**config.scheduler.to_dict()))
    model_folder.write_feature_extractor(path, **config.audio.clap.to_dict())
    Tokenizers(train_clap([PROMPT], 300, 77), train_t5([PROMPT], 300, 128)).save(path)
    model_index.write(path)


class Job(NamedTuple):
    """What one process measures."""

    folder: str
    part: str
    dtype: str
    batch: int
    steps: int
    seconds: float

    def draw(self, number: int, *shape: int) -> np.ndarray:
        """Standard normal numbers [batch, *shape], the same for both frameworks."""
        return np.random.default_rng(number).standard_normal((self.batch, *shape), np.float32)

    def config(self, component: str) -> dict[str, Any]:
        return json.loads((Path(self.folder) / component / "config.json").read_text())

    def latents(self) -> np.ndarray:
        """Latents of clips of the model's own length, channels last."""
        vae, unet = self.config("vae"), self.config("unet")
        bands = self.config("vocoder")["model_in_dim"] // 2 ** (len(vae["block_out_channels"]) - 1)
        return self.draw(0, unet["sample_size"], bands, unet["in_channels"])

    def conditions(self, number: int) -> Conditions:
        """A LOA and text states of a sentence's length."""
        loa, text = (dim for dim in self.config("unet")["cross_attention_dim"][-1] if dim is not None)
        mask = np.ones((self.batch, TEXT_TOKENS), np.int32)
        return Conditions(self.draw(number, LOA_TOKENS, loa), self.draw(number, TEXT_TOKENS, text), mask)

    def mel(self) -> np.ndarray:
        bands, frames = self.config("vocoder")["model_in_dim"], self.config("unet")["sample_size"]
        return self.draw(3, frames * 2 ** (len(self.config("vae")["block_out_channels"]) - 1), bands)


class Work(NamedTuple):
    """One framework's way through a part: a call that waits for its result (channels last), and its FLOP if counted."""

    call: Callable[[], Any]
    flops: float | None = None


def ours(job: Job) -> Work:
    def network(name: str) -> Network:
        return jax.device_put(model_folder.read_component(job.folder, name, jnp.dtype(job.dtype)).network)

    if job.part == "encoders":
        prompts = Prompts.from_folder(Path(job.folder), clap_limit=77, t5_limit=128)
        networks = [network(name) for name in ENCODERS]
        # Theirs puts the negative prompts first.
        return _work(_encode, networks, prompts.encode([PROMPT] * job.batch, [""] * job.batch), counted=False)
    if job.part == "vae":
        return _work(lambda vae, latents: vae(latents, method="decode")[..., 0], network("vae"), job.latents())
    if job.part == "vocoder":
        return _work(lambda vocoder, mel: vocoder(mel), network("vocoder"), job.mel())
    unet, (schedule, _) = sampling.cast_kernels(network("unet")), model_folder.read_scheduler(job.folder)
    table = SOLVERS["ddim"].plan(schedule, job.steps, 0.0, 0)
    inputs = jax.device_put((job.latents(), job.conditions(1), job.conditions(2)))

    def denoise() -> jax.Array:
        latents = sampling.denoise_by_steps(unet, table, *inputs, GUIDANCE, None, solver="ddim")
        return jax.block_until_ready(latents)

    doubled = [np.concatenate([part, part]) for part in (job.latents(), np.zeros(job.batch), *job.conditions(1)[:2])]
    return Work(denoise, job.steps * _flops(lambda unet, *given: unet(*given), unet, *doubled))


def _work(function: Callable, *arguments: Any, counted: bool = True) -> Work:
    compiled, arguments = jax.jit(function), jax.device_put(arguments)
    flops = _flops(function, *arguments) if counted else None
    return Work(lambda: jax.block_until_ready(compiled(*arguments)), flops)


def _encode(networks: list[Network], text: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    clap, t5, projection, gpt2 = networks
    prefix, states, _ = encode_prompt(clap, {"t5": t5}, projection, text)
    return jnp.roll(generate_loa(gpt2, prefix, LOA_TOKENS), len(states) // 2, axis=0), states


def _flops(function: Callable, *arguments: Any) -> float:
    """Multiplications and additions of the plain formulas, which are those of a GPU, before XLA compiles them."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]


def theirs(job: Job, compiled: bool = False) -> Work:
    import diffusers
    import transformers
    from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel

    dtype = getattr(torch, job.dtype)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()

    def load(cls: Any, name: str) -> Any:
        model = cls.from_pretrained(Path(job.folder) / name, torch_dtype=dtype).to(DEVICE).eval()
        return torch.compile(model) if compiled else model

    def tensor(x: np.ndarray, channels_first: bool = False) -> torch.Tensor:
        x = torch.tensor(x, device=DEVICE)
        return (x.movedim(-1, 1) if channels_first else x).to(dtype)

    if job.part == "encoders":
        left_out = dict.fromkeys(("unet", "vae", "vocoder"))
        pipeline = diffusers.AudioLDM2Pipeline.from_pretrained(job.folder, torch_dtype=dtype, **left_out).to(DEVICE)
        prompts = [PROMPT] * job.batch
        return Work(_run(lambda: pipeline.encode_prompt(prompts, DEVICE, 1, True, negative_prompt=[""] * job.batch)[2]))
    if job.part == "vae":
        vae, latents = load(diffusers.AutoencoderKL, "vae"), tensor(job.latents(), True)
        decode = torch.compile(vae.decode) if compiled else vae.decode
        return Work(_run(lambda: decode(latents, return_dict=False)[0][:, 0]))
    if job.part == "vocoder":
        vocoder, mel = load(transformers.SpeechT5HifiGan, "vocoder"), tensor(job.mel())
        return Work(_run(lambda: vocoder(mel)))
    unet, latents = load(AudioLDM2UNet2DConditionModel, "unet"), tensor(job.latents(), True)
    scheduler = diffusers.DDIMScheduler.from_pretrained(Path(job.folder) / "scheduler")
    loa, text, mask = (np.concatenate(parts) for parts in zip(job.conditions(2)[:3], job.conditions(1)[:3]))
    contexts = dict(encoder_hidden_states=tensor(loa), encoder_hidden_states_1=tensor(text))
    return Work(_run(lambda: _their_loop(unet, scheduler, latents, job.steps, contexts, torch.tensor(mask).to(DEVICE))))


def _their_loop(unet: Any, scheduler: Any, latents: torch.Tensor, steps: int, contexts: dict, mask: Any) -> Any:
    """The loop of AudioLDM2Pipeline.__call__."""
    scheduler.set_timesteps(steps, device=DEVICE)
    for timestep in scheduler.timesteps:
        doubled = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        output = unet(doubled, timestep, **contexts, encoder_attention_mask_1=mask, return_dict=False)[0]
        without, within = output.chunk(2)
        output = without + GUIDANCE * (within - without)
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents.movedim(1, -1)


def _run(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with torch.no_grad():
            result = call()
        if GPU:
            torch.cuda.synchronize()
        return result

    return run


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(job: Job) -> dict[str, Any]:
    """First calls, and both frameworks in turns: what one process finds out about a part."""
    with tempfile.TemporaryDirectory() as cache:
        for option, value in (("dir", cache), ("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
            key = "jax_compilation_cache_dir" if option == "dir" else f"jax_persistent_cache_{option}"
            jax.config.update(key, value)
        here = ours(job)
        found = {"flops": here.flops, "first": {"ours": seconds(here.call)}}
        jax.clear_caches()
        found["first"]["ours, cached"] = seconds(here.call)
    ways = {"ours": here, "theirs": theirs(job)}
    if GPU and job.part != "encoders":  # whose loop in Python is not compiled by their users either
        ways["compiled"] = theirs(job, compiled=True)
    for name in ways.keys() - {"ours"}:
        found["first"][name] = seconds(ways[name].call)
    found["apart"] = _apart(here.call(), ways["theirs"].call())
    turns, start = [], time.perf_counter()
    while len(turns) < 2 or (time.perf_counter() - start < job.seconds and len(turns) < 50):
        turns.append({name: seconds(way.call) for name, way in ways.items()})
    found["seconds"] = {name: statistics.median(turn[name] for turn in turns) for name in ways}
    found["ratios"] = {name: statistics.median(turn["ours"] / turn[name] for turn in turns) for name in ways}
    return found | {"turns": len(turns)}


def _apart(mine: Any, other: torch.Tensor) -> float:
    mine = np.asarray(jax.tree.leaves(mine)[0], np.float32)
    other = other.float().cpu().numpy()
    mine, other = (x.reshape(len(x), -1)[:, : mine[0].size] for x in (mine, other.reshape(len(mine), -1)))
    return float(np.linalg.norm(mine - other) / np.linalg.norm(other))


def peak_memory(job: Job, framework: str) -> float:
    """GB that one framework took at most to load a part and run it twice, in a process of its own."""
    work = ours(job) if framework == "ours" else theirs(job)
    work.call(), work.call()
    if not GPU:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    if framework == "theirs":
        return torch.cuda.max_memory_allocated() / 1e9
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9


def matmul_rate(dtype: str) -> dict[str, float]:
    """FLOP/s of a product of two square matrices in each framework, the best of ten."""
    n = 8192 if GPU else 2048
    a = jnp.ones((n, n), jnp.dtype(dtype))
    b = torch.ones((n, n), dtype=getattr(torch, dtype), device=DEVICE)
    product = jax.jit(jnp.dot)
    calls = {"ours": lambda: product(a, a).block_until_ready(), "theirs": _run(lambda: b @ b)}
    return {name: 2 * n**3 / min(seconds(call) for _ in range(10)) for name, call in calls.items()}


def in_process(what: str, job: Job) -> Any:
    """Runs `measure`, `ours`, `theirs` or `rate` in a process of its own, which gives its memory back."""
    command = [sys.executable, __file__, "--process", what, "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{what} of {job.part} failed with exit code {done.returncode}; see above.")
    return json.loads(done.stdout.splitlines()[-1])


def process(what: str, job: Job) -> None:
    tools = {"measure": measure, "rate": lambda job: matmul_rate(job.dtype)}
    print(json.dumps(tools[what](job) if what in tools else peak_memory(job, what)))


def report(path: str, flags: argparse.Namespace, dtype: str, batch: int) -> None:
    """Measures and prints all parts at one precision and batch size."""
    job = Job(path, "denoising", dtype, batch, flags.steps, flags.seconds)
    rate = in_process("rate", job)
    print(f"\n{dtype}, {batch} clip(s), {flags.steps} steps; matrix product (TFLOP/s):", end=" ")
    print(", ".join(f"{name} {value / 1e12:.3g}" for name, value in rate.items()))
    names = ("ours", "theirs", "ratio", "compiled", "ratio", "apart", "TFLOP/s", "of product", "GB ours", "GB theirs")
    print(f"{'':<12}" + "".join(f"{name:>11}" for name in names) + "   first call: empty cache, filled, theirs")
    total = dict.fromkeys(("ours", "theirs"), 0.0)
    for part in PARTS:
        job = job._replace(part=part)
        found = in_process("measure", job)
        memory = [in_process(name, job) for name in ("ours", "theirs")] if flags.memory else []
        total = {name: total[name] + found["seconds"][name] for name in total}
        _print_row(part, found, rate["ours"], memory)
        if part == "denoising":
            step = {name: value / flags.steps for name, value in found["seconds"].items()}
            _print_row("  a step", {"seconds": step, "ratios": found["ratios"]}, rate["ours"], [])
    _print_row("whole clip", {"seconds": total, "ratios": {"theirs": total["ours"] / total["theirs"]}}, 0, [])


def _print_row(name: str, found: dict[str, Any], rate: float, memory: list[float]) -> None:
    seconds, ratios = found["seconds"], found["ratios"]
    cells = [seconds["ours"], seconds["theirs"], ratios["theirs"], seconds.get("compiled"), ratios.get("compiled")]
    speed = found["flops"] / seconds["ours"] if found.get("flops") else None
    cells += [found.get("apart"), speed and speed / 1e12, speed and speed / rate, *memory]
    line = "".join(f"{'' if cell is None else format(cell, '.3g'):>11}" for cell in cells)
    first = "  ".join(f"{value:.1f}" for value in found.get("first", {}).values())
    print(f"{name:<12}{line:<110}   {first}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="a model folder; random weights by default")
    parser.add_argument("--steps", type=int, default=50 if GPU else 10, help="denoising steps")
    parser.add_argument("--batches", default="1,8" if GPU else "1", help="clips at once, comma-separated")
    parser.add_argument("--dtypes", default="float32,bfloat16" if GPU else "float32", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=40.0, help="time for the turns of a part; at least two")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the memory's processes")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.process:
        return process(flags.process, Job(*json.loads(flags.job)))
    if GPU and not torch.cuda.is_available():
        raise SystemExit("JAX has a GPU and torch has none; install torch with CUDA to compare them.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    kind = torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine()
    print(f"{kind}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as temporary:
        if not flags.folder:
            write_random_model(Path(temporary))
        for dtype in flags.dtypes.split(","):
            for batch in flags.batches.split(","):
                report(flags.folder or temporary, flags, dtype, int(batch))


if __name__ == "__main__":
    main()
