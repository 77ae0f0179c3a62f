"""Text to sound: %(prog)s --model runs/music -t "a slow melody on a violin in a minor key"

The flags are those of the authors' `audioldm2` command. Beside each sound lies a JSON file with all that is needed to
make it again. With a sound file (-f), what is made starts from it:

    -f clip.wav                         another clip with the same language of audio, or (--until) its beginning
    --mode transfer -f clip.wav         the clip, pulled towards the text
    --mode sr_inpainting -f clip.wav    a span of time or a band of frequencies made anew
    --mode continuation -f clip.wav     how it goes on
    --prompt_transcription "what is said in it" -f clip.wav --transcription "the new words"
                                        the new words in the voice of the clip; with --mode continuation behind it
"""

import argparse
import itertools
import json
import logging
import math
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import cluster, error_log, warnings_once, watch
from audioldm2_jax.runtime.object_store import normalized
from audioldm2_jax.runtime.storage import local_path, scheme_of
from audioldm2_jax.runtime.text_files import read_text, shown

#: Ending and libsndfile's name of the samples, of each `--format`.
FORMATS = {"wav": (".wav", "PCM_16"), "float": (".wav", "FLOAT"), "flac": (".flac", "PCM_16")}
#: Where the models are that the authors' command knows by name; None: not on the hub in the diffusers layout.
AUTHORS_NAMES = {
    "audioldm2-full": "cvssp/audioldm2",
    "audioldm2-music-665k": "cvssp/audioldm2-music",
    "audioldm2-full-large-1150k": "cvssp/audioldm2-large",
    "audioldm2-speech-gigaspeech": "anhnct/audioldm2_gigaspeech",
    "audioldm2-speech-ljspeech": "anhnct/audioldm2_ljspeech",
    "audioldm_48k": None,
    "audioldm_16k_crossattn_t5": None,
}
#: Flags, by their names in the options, that only some modes of starting from a file (-f) have.
OF_MODES = {
    "transfer_strength": ("transfer",),
    "span": ("sr_inpainting",),
    "band": ("sr_inpainting",),
    "until": ("generation", "continuation"),
    "prompt_transcription": ("generation", "continuation"),
}
#: The authors' speaker where a transcription comes without a description.
SPEAKER = "A female reporter is speaking full of emotion"
#: Where the voice is that of a recording.
SOMEONE = "A person is speaking"
#: The authors' span that is made anew where none is named: parts of the clip.
SPAN = (0.4, 0.6)
#: Seconds of a clip that are made where nobody says how many.
LONGEST = 600


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command_line("generate"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument("-t", "--text", default="", help="what to generate; for speech, who is speaking")
    what.add_argument("-tl", "--text_list", default="", help="a text file with a prompt a line, or prompt|file name")
    what.add_argument("--transcription", help="what is said, with a model of speech")
    what.add_argument("--negative_prompt", default="", help="what to steer away from")
    what.add_argument("-dur", "--duration", type=float, help="seconds; by default what the model was trained on")
    what.add_argument(
        "--model",
        "--model_name",
        required=True,
        help="a run folder or a model folder in the diffusers layout, by its path or address (gs://, s3://), a hub id, "
        "or the authors' name of a model",
    )
    clip = parser.add_argument_group("starting from a sound file")
    clip.add_argument("-f", "--file_path", help="the sound file")
    clip.add_argument(
        "--mode", choices=("generation", "transfer", "sr_inpainting", "continuation"), default="generation"
    )
    clip.add_argument("-ts", "--transfer_strength", type=float, help="transfer: 0 to 1, a little to much; 0.5")
    clip.add_argument(
        "--span", type=float, nargs=2, metavar=("FROM", "TO"), help="sr_inpainting: seconds to be made anew"
    )
    clip.add_argument(
        "--band", type=float, nargs=2, metavar=("FROM", "TO"), help="sr_inpainting: Hz to be made anew; inf is the top"
    )
    clip.add_argument("--until", type=float, help="generation, continuation: seconds of the file that are used; all")
    clip.add_argument(
        "--prompt_transcription",
        help="what is said in the file: with a model of speech --transcription is said in its voice",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--ddim_steps", type=int, default=200, help="denoising steps")
    how.add_argument(
        "--solver", help="ddim, ddpm, plms, euler, euler_ancestral, dpmsolver++ or unipc; by default the model folder's"
    )
    how.add_argument("--eta", type=float, default=0.0, help="randomness of the sampler; the authors' tool has 1")
    how.add_argument("-gs", "--guidance_scale", type=float, default=3.5, help="how strongly to follow the text")
    how.add_argument(
        "-n", "--n_candidate_gen_per_text", type=int, default=3, help="clips made of a prompt; CLAP's favourite is kept"
    )
    how.add_argument("-b", "--batchsize", type=int, default=1, help="prompts computed at a time")
    how.add_argument("--seed", type=int, default=0, help="the same seed gives the same sound")
    how.add_argument(
        "--unconditional",
        choices=("language_model", "zeros"),
        default="language_model",
        help="the LOA that guidance steers away from: as GPT-2 writes it (diffusers), or zeros (the authors' tool)",
    )
    how.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the computation")
    how.add_argument("-d", "--device", choices=("auto", "cpu", "cuda", "tpu"), default="auto", help="where to compute")
    out = parser.add_argument_group("where to")
    out.add_argument("-s", "--save_path", "--save", default="output", help="folder for the sounds")
    out.add_argument(
        "--format", choices=tuple(FORMATS), default="wav", help="WAV of 16 bits or of floats, or FLAC of 16 bits"
    )
    hosts = parser.add_argument_group("on several hosts")
    for name, help in cluster.FLAGS.items():
        default = cluster.Cluster._field_defaults[name]
        hosts.add_argument(f"--{name}", type=type(default), default=default, help=help)
    return parser


class Request(NamedTuple):
    """A prompt, and what its sound is to be called."""

    prompt: str
    name: str


def read_requests(options: argparse.Namespace) -> list[Request]:
    """The prompts of `-t` and of the lines of the file `-tl`, each once: the same prompt gives the same sound.

    A prompt may name its sound behind a bar, as with the authors' command. A transcription names it elsewhere.

    Raises:
      ValueError: where there is none, one has two names, or the file cannot be read.
    """
    prompts = [options.text] if options.text.strip() else []
    if options.text_list:
        # Not splitlines, which also splits at marks that stand within a line of text.
        lines = read_text(local_path(options.text_list, "-tl")).split("\n")
        prompts += [line.strip() for line in lines if line.strip()]
        if len(prompts) == bool(options.text.strip()):
            raise ValueError(f"The list of prompts {options.text_list} is empty: write a prompt a line.")
    if not prompts and options.transcription is not None:
        prompts = [SPEAKER if options.prompt_transcription is None else SOMEONE]
    if not prompts:
        raise ValueError('Nothing to generate: give -t "a prompt", or -tl with a file of prompts.')
    names = {}
    for prompt in prompts:
        prompt, bar, name = prompt.rpartition("|") if prompt.count("|") == 1 else (prompt, "", "")
        prompt = prompt.strip()
        name = name.strip() if bar else options.transcription or prompt
        if not prompt:
            raise ValueError(f'There is no prompt before the bar of "|{name}": write prompt|file name.')
        if names.setdefault(prompt, name) != name:
            raise ValueError(
                f'"{prompt}" is listed as {names[prompt]} and as {name}, but gives one sound: name it once.'
            )
    if again := len(prompts) - len(names):
        logging.warning("%d prompts are listed again, and make the same sound once; -n makes several of each", again)
    return [Request(prompt, name) for prompt, name in names.items()]


def model_folder(model: str) -> str:
    """`model` itself, the model folder inside where it is a run folder, or the hub id of a model of the authors.

    An address stays as it is.

    Raises:
      ValueError: for a model that is not on the hub.
    """
    if scheme_of(model):
        return normalized(model, "--model")
    path = local_path(model, "--model")
    model = str(path) if path.exists() else model.strip()
    if model in AUTHORS_NAMES and not path.exists():
        if AUTHORS_NAMES[model] is None:
            raise ValueError(
                f"{model} is not on the hub in the diffusers layout: download the authors' {model}.pth, and make a "
                f"model folder of it with {command_line('convert', f'--from {model}.pth --to {model}')}"
            )
        return AUTHORS_NAMES[model]
    return str(path / "model") if (path / "model" / "model_index.json").is_file() else model


def file_stem(prompt: str) -> str:
    """The prompt as a file name: its letters and digits, of any script, and dashes; at most 60, and 180 bytes."""
    stem = re.sub(r"\W+", "-", prompt)[:60].encode()[:180]  # a file name has 255 bytes at most
    return stem.decode(errors="ignore").strip("-") or "clip"


def free_path(folder: Path, stem: str, ending: str) -> Path:
    """The first of stem-0, stem-1, ... that no sound and no record has, with `ending`, so that none is written over."""
    endings = {".json", *(ending for ending, _ in FORMATS.values())}
    paths = (folder / f"{stem}-{number}{ending}" for number in itertools.count())
    return next(path for path in paths if not any(path.with_suffix(other).exists() for other in endings))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = flags().parse_args(arguments)
    error_log.escape_output()
    warnings_once.show_plainly()
    try:
        for path in generate(options):
            print(path)
    # JAX's are RuntimeErrors: no device, no memory; NumPy's is the last.
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        print(f"error: {error_log.describe(error)}", file=sys.stderr)
        watch.fail(str(error), 1)  # others would wait for this process
        return 1
    return 0


def check(options: argparse.Namespace, model: str) -> None:
    """Refuses what can be told of the flags before the weights of the model are read.

    Raises:
      ValueError: for a value that there is not, flags that do not fit together, or a file that cannot be read.
    """
    from audioldm2_jax.audio import files
    from audioldm2_jax.checkpoints.model_folder import locate_model, read_scheduler
    from audioldm2_jax.generation.sampling_options import plan_sampling

    for flag, modes in OF_MODES.items():
        if getattr(options, flag) is not None and not (options.file_path and options.mode in modes):
            raise ValueError(f"--{flag} is for a sound file (-f) with --mode {' or '.join(modes)}: leave it out.")
    if not options.file_path:
        if options.mode != "generation":
            raise ValueError(f"--mode {options.mode} starts from a sound file: give one with -f.")
    else:
        files.original(local_path(options.file_path, "-f"))
    scheduler = read_scheduler(locate_model(model))
    plan_sampling(*scheduler, options.ddim_steps, options.guidance_scale, options.eta, options.solver)


def given_clip(options: argparse.Namespace, pipeline):
    """What of the file `-f` is kept, as an `audioldm2_jax.generation.editing.Edit`; None without a file.

    Of the file no more is read than `pipeline` looks at.

    Raises:
      ValueError: for a file that cannot be read, or values that do not fit it.
    """
    from audioldm2_jax.generation import editing

    if not options.file_path:
        return None
    clip = _beginning(options, pipeline), pipeline.sampling_rate
    if options.mode == "transfer":
        return editing.Transfer(*clip, 0.5 if options.transfer_strength is None else options.transfer_strength)
    if options.prompt_transcription is not None:
        keep = options.mode == "continuation"
        return editing.SpeechPrompt(*clip, options.until, options.prompt_transcription, keep)
    if options.mode == "continuation":
        return editing.Continuation(*clip, options.until)
    if options.mode == "generation":
        return editing.Variation(*clip, options.until)
    span = options.span and tuple(options.span)
    if not span and not options.band:
        seconds = len(clip[0]) / pipeline.sampling_rate
        span = tuple(part * min(seconds, options.duration or math.inf) for part in SPAN)
        logging.warning("neither --span nor --band: %.2f to %.2f s are made anew", *span)
    return editing.Inpainting(*clip, span, options.band and tuple(options.band))


def _beginning(options: argparse.Namespace, pipeline):
    """The file `-f`, [samples] at the model's rate, as far as it makes a difference.

    Raises:
      ValueError: for a file that cannot be read, or of which minutes would be made anew without having been asked for.
    """
    from audioldm2_jax.audio import files

    path, rate = local_path(options.file_path, "-f"), pipeline.sampling_rate
    made = options.duration
    if made is None and options.mode in ("generation", "continuation"):
        made = pipeline.own_length
    if made is None:
        made = files.length(path, rate) / rate
        if made > LONGEST:
            raise ValueError(f"{path} has {made:.0f} s, and as many would be made: say how many with -dur SECONDS.")
    looked_at = [made, options.until, pipeline.clip_encoder.window, *(options.span or ())]
    seconds = max(value for value in looked_at if value is not None and math.isfinite(value))
    # Beyond that, as much as tells that the file does not end there.
    return files.read(path, rate, samples=math.ceil((max(seconds, 0) + 1) * rate))


def generate(options: argparse.Namespace):
    """Yields the paths of the sounds as they are written."""
    requests = read_requests(options)
    if options.batchsize < 1:
        raise ValueError(f"-b is {options.batchsize}; it has to be at least 1.")
    if options.n_candidate_gen_per_text < 1:
        raise ValueError(f"-n is {options.n_candidate_gen_per_text}; it has to be at least 1.")
    model, target = model_folder(options.model), local_path(options.save_path, "-s")
    if Path(model).exists():
        model = os.path.abspath(model)  # for the record
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to {target}: {error.strerror}. Choose another folder with -s.") from None
    if options.device != "auto":
        os.environ["JAX_PLATFORMS"] = options.device

    import jax
    from tqdm import tqdm

    from audioldm2_jax.audio import files
    from audioldm2_jax.generation.pipeline import AudioLDM2
    from audioldm2_jax.runtime import start

    cluster.join(cluster.Cluster(**{name: getattr(options, name) for name in cluster.FLAGS}))
    start.open_devices()
    check(options, model)
    pipeline = AudioLDM2.from_pretrained(model, options.dtype)
    edit = given_clip(options, pipeline)
    # A CLAP that only reads has no favourite.
    candidates = options.n_candidate_gen_per_text if pipeline.clap_mel else 1
    settings = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.ddim_steps,
        "guidance_scale": options.guidance_scale,
        "audio_length_in_s": options.duration,
        "num_waveforms_per_prompt": candidates,
        "solver": options.solver,
        "eta": options.eta,
        "seed": options.seed,
        "uncond": options.unconditional,
        "transcription": options.transcription,
    }
    ending, subtype = FORMATS[options.format]
    # Batches of one size, as far as that goes: another size compiles anew.
    size = -(-len(requests) // -(-len(requests) // options.batchsize))
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        with tqdm(
            desc=shown(batch[0].name[:30]), unit="step", leave=False, disable=bool(jax.process_index()) or None
        ) as bar:

            def show(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            output = pipeline([request.prompt for request in batch], **settings, edit=edit, progress=show)
        if jax.process_index():
            continue  # all hosts compute, the first one writes
        # The first of a prompt's clips is CLAP's favourite.
        for request, audio in zip(batch, output.audios[::candidates], strict=True):
            path = free_path(target, file_stem(request.name), ending)
            files.write(path, audio, output.sampling_rate, subtype)
            write_record(path.with_suffix(".json"), record(options, request, model, settings, edit))
            yield path
    start.leave()


def record(options: argparse.Namespace, request: Request, model: str, settings: dict, edit) -> dict:
    """All that is needed to make a sound again."""
    versions = {name: metadata.version(name) for name in ("audioldm2-jax", "jax")}
    known = {"prompt": request.prompt, "model": str(model), **settings, "dtype": options.dtype, "versions": versions}
    if edit is None:
        return known
    kept = {name: value for name, value in vars(edit).items() if name not in ("audio", "sampling_rate")}
    kept = {name: [_json(x) for x in v] if isinstance(v, tuple) else _json(v) for name, v in kept.items()}
    return known | {
        "edit": {"kind": type(edit).__name__, "file": os.path.abspath(local_path(options.file_path, "-f")), **kept}
    }


def _json(value):
    """A value as JSON has it, which knows no infinity."""
    return str(value) if value == math.inf else value


def write_record(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        # Halves of characters become "?", as in what the tokenizers read.
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
