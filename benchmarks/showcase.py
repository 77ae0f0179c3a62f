"""What a run of music has become, for a page about it:

    python benchmarks/showcase.py --run runs/music-small --out docs/small

The first eight held-out captions (by index, not by ear), their real clips and what the model makes of them with seed
0, as `real-N.ogg` and `generated-N.ogg`, with `captions.txt`; the mels of both, one above the other, in `clips.png`;
and the losses of all stages while they were trained, in `losses.png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from audioldm2_jax import AudioLDM2
from audioldm2_jax.audio import files
from audioldm2_jax.audio.mel import log_mel
from audioldm2_jax.data.builtin.music import heldout_captions, heldout_examples
from audioldm2_jax.evaluation.show import draw_mels
from audioldm2_jax.stages import STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/music", help="run folder")
    parser.add_argument("--out", required=True, help="folder for what is made")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run, out = Path(options.run), Path(options.out)
    model = AudioLDM2.from_pretrained(run / "model")
    captions = [caption for caption, _ in heldout_captions(options.clips)]
    examples = heldout_examples(options.clips, model.sampling_rate, model.own_length)
    made = model(captions, num_inference_steps=options.steps, guidance_scale=options.guidance, seed=options.seed).audios
    sounds = {
        "real": np.stack([files.normalise(example.waveform) for example in examples]),
        "generated": np.stack([files.normalise(waveform) for waveform in made]),
    }
    for name, waveforms in sounds.items():
        for number, waveform in enumerate(waveforms):
            files.write(out / f"{name}-{number}.ogg", waveform, model.sampling_rate, "VORBIS")
    (out / "captions.txt").write_text("".join(f"{number}: {text}\n" for number, text in enumerate(captions)))
    mels = {name: np.asarray(log_mel(waveforms, model.clip_encoder.mel)) for name, waveforms in sounds.items()}
    draw_mels(out / "clips.png", mels, captions)
    draw_losses(run, out / "losses.png")
    for name in ("clips.png", "losses.png"):  # a third of the size, and no difference to see
        with Image.open(out / name) as picture:
            palette = picture.convert("RGB").quantize(96, Image.Quantize.MEDIANCUT)
        palette.save(out / name, optimize=True)


def draw_losses(run: Path, path: Path) -> None:
    """Draws for every stage of the run its loss on training and on held-out clips, by step."""
    trained = [name for name in STAGES if (run / "stages" / name / "metrics.jsonl").exists()]
    figure = Figure(figsize=(3 * len(trained), 2.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(trained), squeeze=False)[0], trained):
        lines = [json.loads(line) for line in (run / "stages" / name / "metrics.jsonl").read_text().splitlines()]
        objective = next(key for line in lines for key in line if key.endswith("/loss") and key != "heldout/loss")
        for key, label in ((objective, "training"), ("heldout/loss", "held-out")):
            steps, values = zip(*((line["step"], line[key]) for line in lines if key in line))
            axis.plot(steps, values, label=label, marker="." if key == "heldout/loss" else "", linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_yscale("log")
        axis.tick_params(labelsize=7, which="both")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
