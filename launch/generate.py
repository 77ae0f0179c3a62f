"""Text to sound: python launch/generate.py --model runs/music -t "a slow melody on a violin in a minor key"

The flags are those of the authors' `audioldm2` command. Beside each sound lies a JSON file with all that is needed to
make it again.
"""

import argparse
import itertools
import json
import os
import re
import sys
from pathlib import Path

#: Ending and libsndfile's name of the samples, of each `--format`.
FORMATS = {"wav": (".wav", "PCM_16"), "float": (".wav", "FLOAT"), "flac": (".flac", "PCM_16")}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-t", "--text", default="", help="what to generate")
    parser.add_argument("-tl", "--text_list", default="", help="a text file with a prompt a line")
    parser.add_argument(
        "--model", required=True, help="a run folder, a model folder in the diffusers layout, or a hub id"
    )
    parser.add_argument("-s", "--save_path", "--save", default="output", help="folder for the sounds")
    parser.add_argument("--negative_prompt", default="", help="what to steer away from")
    parser.add_argument("--ddim_steps", type=int, default=200, help="denoising steps")
    parser.add_argument(
        "--solver", help="ddim, ddpm, plms, euler, euler_ancestral or dpmsolver++; by default the model folder's"
    )
    parser.add_argument("--eta", type=float, default=0.0, help="randomness of the sampler; the authors' tool has 1")
    parser.add_argument("-dur", "--duration", type=float, help="seconds; by default what the model was trained on")
    parser.add_argument("-gs", "--guidance_scale", type=float, default=3.5, help="how strongly to follow the text")
    parser.add_argument(
        "-n", "--n_candidate_gen_per_text", type=int, default=3, help="clips made of a prompt; CLAP's favourite is kept"
    )
    parser.add_argument("-b", "--batchsize", type=int, default=1, help="prompts computed at a time")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same sound")
    parser.add_argument(
        "--unconditional",
        choices=("language_model", "zeros"),
        default="language_model",
        help="the LOA that guidance steers away from: as GPT-2 writes it (diffusers), or zeros (the authors' tool)",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="wav", help="WAV of 16 bits or of floats, or FLAC of 16 bits"
    )
    return parser


def read_prompts(text: str, text_list: str) -> list[str]:
    """The prompts of `-t` and of the lines of the file `-tl`, each once.

    Raises:
      ValueError: where there is none, or the file cannot be read.
    """
    prompts = [text] if text.strip() else []
    if text_list:
        try:
            lines = Path(text_list).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The list of prompts {text_list} cannot be read: {error}") from None
        prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"The list of prompts {text_list} is empty: write a prompt a line.")
    if not prompts:
        raise ValueError('Nothing to generate: give -t "a prompt", or -tl with a file of prompts.')
    return list(dict.fromkeys(prompts))


def model_folder(model: str) -> str:
    """`model` itself, or the model folder inside where it is a run folder.

    Raises:
      ValueError: for a run that has not published its model yet.
    """
    path = Path(model)
    if (path / "model" / "model_index.json").is_file():
        return str(path / "model")
    if (path / "stages").is_dir():
        raise ValueError(f"The run in {model} has not finished: it has no model/ yet. Run the training command again.")
    return model


def file_stem(prompt: str) -> str:
    """The prompt as a file name: its letters and digits, of any script, and dashes; at most 60 characters."""
    return re.sub(r"\W+", "-", prompt)[:60].strip("-") or "clip"


def free_path(folder: Path, stem: str, ending: str) -> Path:
    """The first of stem-0, stem-1, ... that no sound and no record has, with `ending`, so that none is written over."""
    endings = {".json", *(ending for ending, _ in FORMATS.values())}
    paths = (folder / f"{stem}-{number}{ending}" for number in itertools.count())
    return next(path for path in paths if not any(path.with_suffix(other).exists() for other in endings))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = flags().parse_args(arguments)
    try:
        for path in generate(options):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def generate(options: argparse.Namespace):
    """Yields the paths of the sounds as they are written."""
    prompts = read_prompts(options.text, options.text_list)
    if options.batchsize < 1:
        raise ValueError(f"-b is {options.batchsize}; it has to be at least 1.")
    model, target = model_folder(options.model), Path(options.save_path)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write to {target}: {error.strerror}. Choose another folder with -s.") from None

    from audioldm2_jax.audio import files
    from audioldm2_jax.pipeline import AudioLDM2

    pipeline = AudioLDM2.from_pretrained(model)
    for first in range(0, len(prompts), options.batchsize):
        batch = prompts[first : first + options.batchsize]
        settings = {
            "negative_prompt": options.negative_prompt,
            "num_inference_steps": options.ddim_steps,
            "guidance_scale": options.guidance_scale,
            "audio_length_in_s": options.duration,
            "num_waveforms_per_prompt": options.n_candidate_gen_per_text,
            "solver": options.solver,
            "eta": options.eta,
            "seed": options.seed,
            "uncond": options.unconditional,
        }
        output = pipeline(batch, **settings)
        # The first of a prompt's clips is CLAP's favourite.
        for prompt, audio in zip(batch, output.audios[:: options.n_candidate_gen_per_text], strict=True):
            ending, subtype = FORMATS[options.format]
            path = free_path(target, file_stem(prompt), ending)
            files.write(path, audio, output.sampling_rate, subtype)
            record = {"prompt": prompt, "model": str(model), **settings}
            path.with_suffix(".json").write_text(
                json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            yield path


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/audioldm2_jax/xla").expanduser()))
    raise SystemExit(main())
