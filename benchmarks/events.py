"""How good is a trained model of sound effects? Prints figures from a finished run:

    python benchmarks/events.py --model runs/audio --tagger YAMNET.onnx

Captions name two events, one after the other, in pairs that training never had ("two knocks, then a bell"). What is
judged: their real clips; the same through the VAE and the vocoder; what the UNet makes of their LOA, so that its
losses are told from the language model's; and what the model makes of the captions.

The listeners: a classifier fitted on clips of voices that the model never learnt from (this dog, that bell: the corpus
keeps those of its splits apart), and YAMNet, which never heard the corpus at all. Each gives every piece of a clip
probabilities of the classes; the louder a piece, the more it counts. From them

- both: the likeliest two classes, one before the other, are those of the caption, in its order;
- first, second: one of the two is;
- order: the caption's order is likelier than the other (chance 50 %).

In round brackets 95 % intervals, in square ones how often the caption of another clip is found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from instrument_classifier import RATE, fit_clips
from instruments import BATCH, reconstruct
from listeners import Tagger, at_16_khz, share

from audioldm2_jax import AudioLDM2
from audioldm2_jax.audio import files
from audioldm2_jax.data.builtin.effects import EffectsCorpus, heldout_captions, heldout_examples
from audioldm2_jax.data.builtin.sounds import SOUNDS
from audioldm2_jax.generation.editing import Variation

#: AudioSet classes (YAMNet's class map) of the corpus' sounds; of several the highest counts.
AUDIOSET = {
    "knock": (353,),
    "rain": (283, 284, 285),
    "bell": (195, 196),
    "dog": (69, 70),
    "siren": (390,),
    "fire": (292, 293),
    "glass": (435, 437),
    "gunshot": (421,),
    "bird": (106, 107, 108),
    "telephone": (383, 384, 385),
    "waves": (288, 289),
    "horn": (302, 303, 312),
    "helicopter": (333,),
    "cat": (76, 78),
    "thunder": (280, 281),
    "beep": (475,),
    "engine": (337, 346),
    "crow": (112, 113),
    "applause": (58, 62),
    "whistle": (35, 396),
    "cricket": (122,),
    "cow": (85, 86),
    "drop": (442,),
    "sheep": (91, 92),
}
LABELS = tuple(SOUNDS)
_PIECE, _HOP = 0.6, 0.15  # seconds that the classifier hears at once, and from one piece to the next
_QUIET = 30.0  # dB below the loudest piece: what is softer is not heard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="run folder or model folder; without, the real clips alone")
    parser.add_argument("--tagger", help="YAMNet as an ONNX file (benchmarks/listeners.py)")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    listeners = {"classifier of other voices": classifier()}
    if options.tagger:
        listeners["tagger"] = tagger(options.tagger)
    sounds, named = clips(options)
    print(f"{len(named)} captions of two events; in brackets 95 %, in square brackets by another clip's caption")
    for title, listen in listeners.items():
        print(f"\n{title}:")
        for name, waveforms in sounds.items():
            heard = [listen(waveform) for waveform in waveforms]
            print(f"  {name:14}" + "  ".join(_figure(*pair) for pair in _judged(heard, named)))


def clips(options: argparse.Namespace) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Returns the clips of each kind at 16 kHz [clips, samples], and the two classes that each is of, in order."""
    model, rate, seconds = None, RATE, 2.56
    if options.model:
        folder = Path(options.model)
        model = AudioLDM2.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
        rate, seconds = model.sampling_rate, model.own_length
    examples, captions = heldout_examples(2 * options.clips, rate, seconds), heldout_captions(2 * options.clips)
    # What lies over a background has no order.
    chosen = [i for i, example in enumerate(examples) if example.labels["kind"] == "sequence"][: options.clips]
    sounds = {"real": np.stack([files.normalise(examples[i].waveform) for i in chosen])}
    if model:
        texts = [captions[i][0] for i in chosen]
        flags = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        edits = [Variation(clip, rate) for clip in sounds["real"]]
        sounds["VAE, vocoder"] = reconstruct(model, sounds["real"])["VAE, vocoder"]
        sounds["its LOA, UNet"] = np.stack([model(t, edit=e, **flags).audios[0] for t, e in zip(texts, edits)])
        sounds["generated"] = np.concatenate([model(part, **flags).audios for part in parts])
    return {name: at_16_khz(waveforms, rate) for name, waveforms in sounds.items()}, [captions[i][1] for i in chosen]


def classifier(events: int = 6000) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A listener fitted on `events` pieces of clips of the held-out voices, other ones than those that are judged."""
    corpus, pieces, names, index = EffectsCorpus(RATE, 2.56, 1000, "heldout"), [], [], 0
    while len(pieces) < events:
        example, index = corpus[index], index + 1
        for name, onset, duration, _ in example.labels["events"]:
            if example.labels["kind"] == "overlay":
                continue
            last = max(onset + duration - _PIECE / 2, onset + 0.01)
            for start in np.arange(max(onset - _PIECE / 4, 0.0), last, 2 * _HOP):
                piece = _piece(example.waveform, start)
                if len(piece) == round(_PIECE * RATE):
                    pieces.append(piece)
                    names.append(name)
    fitted = fit_clips(np.stack(pieces), names, LABELS)

    def listen(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = [_piece(waveform, start) for start in np.arange(0.0, len(waveform) / RATE - _PIECE, _HOP)]
        return np.log(fitted.probabilities(np.stack(cut)) + 1e-3), _loudness(cut)

    return listen


def tagger(path: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """YAMNet as a listener."""
    yamnet = Tagger(path)

    def listen(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.arange(0.0, len(waveform) / RATE - _PIECE, _HOP)
        pieces = [_piece(waveform, start, 0.975) for start in starts]
        scores = yamnet.scores(np.stack([np.pad(p, (0, 15600 - len(p))) for p in pieces]), RATE)
        scores = np.stack([scores[:, AUDIOSET[name]].max(1) for name in LABELS], axis=1)
        return np.log(np.maximum(scores, 0) + 1e-3), _loudness([_piece(waveform, start) for start in starts])

    return listen


def _piece(waveform: np.ndarray, start: float, seconds: float = _PIECE) -> np.ndarray:
    return waveform[round(start * RATE) : round(start * RATE) + round(seconds * RATE)]


def _loudness(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """[pieces], 0 to 1, of the level in dB."""
    level = np.array([10 * np.log10(np.mean(np.square(piece)) + 1e-9) for piece in pieces])
    return np.clip(1 + (level - level.max()) / _QUIET, 0, 1)


def pairs(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log-likelihood [classes, classes] of each first and second class, at the best time between the two.

    Args:
        logs: [pieces, classes], of the probabilities.
        weights: [pieces], how much each piece counts.
    """
    weighted = logs * weights[:, None]
    before = np.concatenate([np.zeros((1, logs.shape[1])), np.cumsum(weighted, 0)])
    after = before[-1] - before
    return np.max([b[:, None] + a for b, a in zip(before[1:-1], after[1:-1], strict=True)], axis=0)


def _judged(heard: Sequence[tuple[np.ndarray, np.ndarray]], named: Sequence[tuple[str, str]]):
    """(title, right [clips], and by the caption of another clip) of each figure."""
    likely = [pairs(*one) for one in heard]
    for one in likely:
        np.fill_diagonal(one, -np.inf)
    found = np.array([np.unravel_index(one.argmax(), one.shape) for one in likely])
    own = np.array([[LABELS.index(name) for name in pair] for pair in named])
    for title, right in (
        ("both", lambda given: (found == given).all(1)),
        ("first", lambda given: found[:, 0] == given[:, 0]),
        ("second", lambda given: found[:, 1] == given[:, 1]),
        ("order", lambda given: np.array([one[a, b] > one[b, a] for one, (a, b) in zip(likely, given, strict=True)])),
    ):
        yield title, right(own), right(np.roll(own, 1, axis=0))


def _figure(title: str, right: np.ndarray, other: np.ndarray) -> str:
    return f"{title} {share(right)} [{other.mean():.0%}]"


if __name__ == "__main__":
    main()
