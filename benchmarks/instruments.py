"""How good is a trained model of music? Prints figures from a finished run:

    python benchmarks/instruments.py --model runs/music

1. Captions that each name one of eight instruments, in combinations that training never had: in how many clips does a
   classifier, fitted on real clips, hear the named instrument? Through the whole path to the waveform; from the
   generated mel by Griffin-Lim, which leaves the vocoder out; in the clip that CLAP likes best of three, as
   launch/generate.py gives it; with the LOA zeroed, and with the text states emptied, to show what each carries.
2. Real held-out clips through VAE and vocoder: the distance of the log-mels, and in how much of the time the pitch is
   that of the original (within half a semitone), beside the vocoder alone and Griffin-Lim from the true mel.
3. Held-out clips as a start, with captions that name another instrument: which of the two does the classifier hear
   after a transfer of several strengths, and in a variation, whose LOA is the clip's?
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import librosa
import numpy as np
from instrument_classifier import fit, real_clips

from audioldm2_jax import AudioLDM2
from audioldm2_jax.audio import files
from audioldm2_jax.audio.mel import MelSettings, log_mel
from audioldm2_jax.data.builtin.music import heldout_captions, heldout_examples
from audioldm2_jax.generation.editing import Transfer, Variation

SEMITONE = 2 ** (1 / 12)
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/music", help="run folder or model folder")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(options.model)
    model = AudioLDM2.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
    classifier = fit()
    real, named = real_clips(256, seed=1, split="heldout")
    print(f"classifier on held-out real clips: {classifier.accuracy(real, named):.1%}")
    _named_instruments(model, classifier, options)
    _reconstruction(model, options.captions)
    _from_clips(model, classifier, options)


def _named_instruments(model: AudioLDM2, classifier, options: argparse.Namespace) -> None:
    captions, named = map(list, zip(*heldout_captions(options.captions)))
    print(f"the named instrument is heard, of {len(captions)} held-out captions (chance {1 / len(set(named)):.1%}):")
    variants = {
        "whole path": {},
        "best of 3 by CLAP": {"num_waveforms_per_prompt": 3},
        "LOA zeroed": {"use_loa": False},
        "text states emptied": {"use_text_states": False},
    }
    for name, changes in variants.items():
        begin = time.monotonic()
        parts = [
            model(
                captions[start : start + BATCH],
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                seed=options.seed,
                **changes,
            )
            for start in range(0, len(captions), BATCH)
        ]
        audios = np.concatenate([part.audios[:: changes.get("num_waveforms_per_prompt", 1)] for part in parts])
        right = np.array(classifier.predict(audios)) == np.array(named)
        print(f"  {name:20} {right.mean():6.1%}   ({time.monotonic() - begin:.0f} s)")
        if name == "whole path":
            mels = np.concatenate([part.mels for part in parts])
            settings = model.clip_encoder.mel
            without = np.stack([griffin_lim(mel, settings)[: audios.shape[1]] for mel in mels])
            print(f"  {'its mel, Griffin-Lim':20} {classifier.accuracy(without, named):6.1%}")
            shares = {label: right[np.array(named) == label].mean() for label in dict.fromkeys(named)}
            print("    " + ", ".join(f"{label} {share:.0%}" for label, share in shares.items()))


def _reconstruction(model: AudioLDM2, clips: int) -> None:
    settings = model.clip_encoder.mel
    examples = heldout_examples(clips, settings.sampling_rate, model.own_length)
    real = np.stack([files.normalise(example.waveform) for example in examples])
    spectrum = jax.jit(lambda waveform: log_mel(waveform, settings))
    mel = np.asarray(spectrum(real))
    networks = model.networks

    @jax.jit
    def through_both(mel):
        mean, _ = networks["vae"](mel[..., None], method="encode")
        return networks["vocoder"](networks["vae"](mean, method="decode")[..., 0])

    results = {
        "VAE and vocoder": np.asarray(through_both(mel)),
        "vocoder alone": np.asarray(jax.jit(networks["vocoder"].__call__)(mel)),
        "Griffin-Lim": np.stack([griffin_lim(one, settings) for one in mel]),
    }
    print(f"reconstruction of {clips} held-out clips:   log-mel L1   pitch kept")
    pitch, sounding = pitches(real, settings)
    for name, made in results.items():
        made = np.stack([files.segment(one, real.shape[1]) for one in made]).astype(np.float32)
        distance = np.abs(np.asarray(spectrum(made)) - mel).mean()
        other, _ = pitches(made, settings)
        kept = np.abs(np.log(other / pitch)) < np.log(SEMITONE) / 2
        print(f"  {name:33} {distance:10.3f} {kept[sounding].mean():12.1%}")


def _from_clips(model: AudioLDM2, classifier, options: argparse.Namespace) -> None:
    real, own = real_clips(options.captions, seed=2, split="heldout")
    captions, named = zip(*heldout_captions(options.captions))
    pairs = [(clip, mine, text, other) for clip, mine, text, other in zip(real, own, captions, named) if mine != other]
    edits = {
        f"transfer, strength {strength}": partial(Transfer, strength=strength) for strength in (0.3, 0.5, 0.7, 0.9)
    }
    edits["variation"] = Variation
    print(f"from {len(pairs)} held-out clips:      the clip's instrument   the caption's")
    for name, edit in edits.items():
        settings = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
        made = [model(text, **settings, edit=edit(clip, model.sampling_rate)).audios[0] for clip, _, text, _ in pairs]
        heard = classifier.predict(np.stack([files.normalise(one) for one in made]))
        shares = [np.mean([one == pair[i] for one, pair in zip(heard, pairs)]) for i in (1, 3)]
        print(f"  {name:25} {shares[0]:20.1%} {shares[1]:15.1%}")


def griffin_lim(mel: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Returns a waveform [frames * hop] whose mel is near the natural-log mel [frames, bands], without a network."""
    filters = librosa.filters.mel(
        sr=settings.sampling_rate,
        n_fft=settings.n_fft,
        n_mels=settings.n_mels,
        fmin=settings.fmin,
        fmax=settings.fmax,
    )
    magnitude = np.maximum(np.linalg.pinv(filters) @ np.exp(mel.T), 0)
    waveform = librosa.griffinlim(
        magnitude, n_iter=60, hop_length=settings.hop_length, n_fft=settings.n_fft, random_state=0
    )
    # Frames of ours begin (n_fft - hop) / 2 before the clip, librosa's n_fft / 2.
    return files.segment(
        np.pad(waveform, (0, settings.n_fft)), len(mel) * settings.hop_length, settings.hop_length // 2
    )


def pitches(waveforms: np.ndarray, settings: MelSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fundamental in Hz [clips, frames] by YIN, and which frames are loud enough to have one."""
    length, hop = 1024, 320
    pitch = np.stack(
        [
            librosa.yin(one, fmin=60, fmax=2000, sr=settings.sampling_rate, frame_length=length, hop_length=hop)
            for one in waveforms
        ]
    )
    loudness = np.stack([librosa.feature.rms(y=one, frame_length=length, hop_length=hop)[0] for one in waveforms])
    return pitch, loudness > 0.2 * loudness.max(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
