"""Whose voice is it? Prints how alike recordings of one voice are, and of two, to a listener that never heard ours:

    pip install --no-deps resemblyzer
    python benchmarks/speakers.py --clips 48

and of a model of speech, how alike what it says is to the voice that it was given, by a recording (in-context speech)
and by its description, beside another voice and beside what espeak-ng says in that voice:

    python benchmarks/speakers.py --clips 48 --model runs/speech

The listener is Resemblyzer (Apache licence), a speaker encoder [Wan et al. 2018, arXiv 1710.10467]: of its package the
weights are used and nothing else, since it asks for versions of other packages that are long gone.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import soxr
from listeners import mean, share

from audioldm2_jax.audio import files
from audioldm2_jax.audio.silence import LEAD
from audioldm2_jax.data import espeak
from audioldm2_jax.data.builtin.sentences import heldout, sentence
from audioldm2_jax.data.builtin.speakers import PITCHES, RATES, VOICES, Speaker, describe
from audioldm2_jax.data.builtin.speech import most_seconds
from audioldm2_jax.data.draw import Draw

_RATE, _WINDOW, _HOP, _BANDS = 16000, 400, 160, 40  # of the listener's mel
_FRAMES, _STEP = 160, 77  # of the excerpts that it hears, and from one to the next
_LOUDNESS = 10 ** (-30 / 20)  # what quieter recordings are raised to
_LAYERS, _WIDTH = 3, 256
_PACE = "fast"  # of sentences of which two fit in a clip
_BEFORE, _BETWEEN = LEAD, 0.1  # seconds of silence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48, help="pairs of sentences, evenly over the voices")
    parser.add_argument("--seconds", type=float, default=2.56, help="of two sentences; with a model its clips' length")
    parser.add_argument("--model", help="run folder or model folder of a model that speaks")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = None
    if options.model:
        from audioldm2_jax import AudioLDM2

        folder = Path(options.model)
        model = AudioLDM2.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
        options.seconds = model.own_length
    pairs = [draw_pair(index, options.seconds) for index in range(options.clips)]
    prompts, wanted = ([speak(pair[0], pair[part]) for pair in pairs] for part in (1, 2))
    sounds = {"espeak-ng": wanted} | ({} if model is None else generated(model, pairs, prompts, options))
    print(f"cosine of {len(pairs)} recordings with others that say something else (95 %); and how often the one of the")
    print("same voice is nearer than others are on average, and than every other:")
    for name, recordings in sounds.items():
        own, others = similarities(recordings, prompts, [speaker for speaker, *_ in pairs])
        average = np.nanmean(others, 1)
        print(f"  {name:12} own voice {mean(own)}  other voices {mean(average)}", end="")
        print(f"  nearer {share(own > average)}  nearest {share(own > np.nanmax(others, 1))}")


def draw_pair(index: int, seconds: float) -> tuple[Speaker, str, str]:
    """Returns a speaker and two held-out sentences of which that speaker says both in a clip of `seconds`."""
    draw = Draw("speakers", index)
    speaker = Speaker(tuple(VOICES)[index % len(VOICES)], _PACE, draw.pick(tuple(PITCHES)))
    texts: list[str] = []
    while len(texts) < 2:
        text = sentence(draw)
        if heldout(text) and text not in texts and most_seconds(text, _PACE) <= (seconds - _BEFORE - _BETWEEN) / 2:
            texts.append(text)
    return speaker, *texts


def speak(speaker: Speaker, text: str) -> np.ndarray:
    """What espeak-ng says in a speaker's voice: [samples] at 16 kHz, with a short silence at either end."""
    pitch = round(sum(PITCHES[speaker.pitch]) / 2)
    spoken = soxr.resample(espeak.speak(text, speaker.voice, RATES[speaker.rate], pitch), espeak.SAMPLING_RATE, _RATE)
    return np.pad(spoken, (round(_BEFORE * _RATE), round(_BETWEEN * _RATE))).astype(np.float32)


def generated(model, pairs, prompts: Sequence[np.ndarray], options: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """What the model says of each pair's second sentence: behind the recording of the first, and without one."""
    from audioldm2_jax.generation.editing import SpeechPrompt

    how = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
    found: dict[str, list[np.ndarray]] = {"in context": [], "described": []}
    for index, ((speaker, before, after), prompt) in enumerate(zip(pairs, prompts)):
        text = describe(speaker, Draw("speakers", "description", index), full=True)
        edit = SpeechPrompt(prompt, _RATE, transcription=before)
        for name, more in (("in context", {"edit": edit}), ("described", {})):
            (audio,) = model(text, transcription=after, **how, **more).audios
            found[name].append(soxr.resample(audio, model.sampling_rate, _RATE))
    return found


def similarities(
    recordings: Sequence[np.ndarray], references: Sequence[np.ndarray], speakers: Sequence[Speaker]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of recordings with references: of each with its own [n], and with those of other voices [n, n], NaN where
    the voice is its own."""
    cosines = embed(recordings) @ embed(references).T
    others = np.array([[one.voice != other.voice for other in speakers] for one in speakers])
    return np.diagonal(cosines), np.where(others, cosines, np.nan)


def embed(recordings: Sequence[np.ndarray]) -> np.ndarray:
    """The listener's embeddings of recordings [samples] at 16 kHz: [recordings, 256], of length 1.

    Raises:
        SystemExit: its package is not installed.
    """
    found = []
    for recording in recordings:
        quiet = np.sqrt(np.mean(np.square(recording)))
        mel = _mel(recording * max(_LOUDNESS / max(quiet, 1e-8), 1.0))
        starts = range(0, max(len(mel) - _FRAMES, 0) + 1, _STEP)
        excerpts = np.stack(
            [np.pad(mel[s : s + _FRAMES], ((0, max(s + _FRAMES - len(mel), 0)), (0, 0))) for s in starts]
        )
        average = _encode(excerpts).mean(0)
        found.append(average / np.linalg.norm(average))
    return np.stack(found)


def _mel(recording: np.ndarray) -> np.ndarray:
    """[frames, bands], of power and not its logarithm."""
    sound = files.segment(recording, max(len(recording), _WINDOW))
    mel = librosa.feature.melspectrogram(y=sound, sr=_RATE, n_fft=_WINDOW, hop_length=_HOP, n_mels=_BANDS)
    return mel.T.astype(np.float32)


def _encode(mels: np.ndarray) -> np.ndarray:
    """Mels [excerpts, frames, bands] through three layers of LSTM, in PyTorch's order of gates, and a projection."""
    weights, states = _weights(), mels
    for layer in range(_LAYERS):
        at_input, at_state = (weights[f"lstm.weight_{kind}_l{layer}"].T for kind in ("ih", "hh"))
        bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
        hidden = cell = np.zeros((len(mels), _WIDTH), np.float32)
        out = []
        for frame in np.swapaxes(states @ at_input + bias, 0, 1):
            enter, forget, new, leave = np.split(frame + hidden @ at_state, 4, axis=1)
            cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
            hidden = _sigmoid(leave) * np.tanh(cell)
            out.append(hidden)
        states = np.stack(out, 1)
    raw = np.maximum(states[:, -1] @ weights["linear.weight"].T + weights["linear.bias"], 0)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


@cache
def _weights() -> dict[str, np.ndarray]:
    from audioldm2_jax.checkpoints.torch_pickle import read_pickle  # runs nothing of what it reads

    package = importlib.util.find_spec("resemblyzer")  # found, not imported
    if package is None:
        sys.exit("error: the listener is not installed: pip install --no-deps resemblyzer")
    stored = read_pickle(Path(package.origin).with_name("pretrained.pt"))
    return {key.removeprefix("model_state."): value for key, value in stored.items() if key.startswith("model_state.")}


if __name__ == "__main__":
    main()
