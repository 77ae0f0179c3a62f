"""How good is a trained model of music? Prints figures from a finished run:

    python benchmarks/instruments.py --model runs/music --tagger YAMNET.onnx

Captions each name one of eight instruments, with a tempo, a mode and a register, in combinations that training never
had. What is judged: their real clips; the same taken apart and put together again, by Griffin-Lim from the true mel or
through the VAE, and by VAE and vocoder; and what the model makes of the captions, to the waveform and by Griffin-Lim
from its mel.

1. Is it the named instrument? By listeners that never heard our corpus (benchmarks/listeners.py), and by a classifier
   fitted on it, which forgives what sounds like mush.
2. Of what was taken apart: how far is it from the real clip? Distances of the spectra, the pitch (CREPE), and the
   energy at the partials against that between them.
3. Does it do what the caption says of tempo, mode and register? Beside the same clips with the captions of others. A
   measure that real clips do not pass in 85 % is named and left out. Tempo: are there more onsets a second than lie
   between slow and fast in the scores of this texture (a melody, chords, ...), which the caption names, too? Register
   is that of the median pitch, of all textures but chords.
4. With the LOA zeroed, and with the text states emptied: what each carries.
5. Held-out clips as a start, with captions that name another instrument: which of the two does the classifier hear
   after a transfer of several strengths, and in a variation, whose LOA is the clip's?
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import librosa
import listeners
import numpy as np
from instrument_classifier import fit, real_clips

from audioldm2_jax import AudioLDM2
from audioldm2_jax.audio import files
from audioldm2_jax.audio.mel import MelSettings, compressed_mel, log_mel, magnitudes
from audioldm2_jax.data.builtin.compose import REGISTERS, TEMPOS, window
from audioldm2_jax.data.builtin.instruments import INSTRUMENTS
from audioldm2_jax.data.builtin.music import MusicCorpus, heldout_captions, heldout_examples
from audioldm2_jax.evaluation.distances import spectral_distance
from audioldm2_jax.generation.editing import Transfer, Variation

BATCH = 16
PASSED = 0.85  # of the real clips, for a measure to be used
HALF_SEMITONE = np.log(2) / 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/music", help="run folder or model folder")
    parser.add_argument("--tagger", help="YAMNet as an ONNX file (benchmarks/listeners.py)")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(options.model)
    model = AudioLDM2.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
    captions, named = map(list, zip(*heldout_captions(options.captions)))
    examples = heldout_examples(options.captions, model.sampling_rate, model.own_length)
    classifier = fit()

    made, mels = generate(model, captions, options)
    best, _ = generate(model, captions, options, num_waveforms_per_prompt=3)
    rebuilt = reconstruct(model, np.stack([files.normalise(example.waveform) for example in examples]))
    settings, samples = model.clip_encoder.mel, made.shape[1]
    generated = {
        "generated, whole path": made,
        "  best of 3 by CLAP": best,
        "  its mel, Griffin-Lim": np.stack([griffin_lim(mel, settings)[:samples] for mel in mels]),
    }
    recognition({**rebuilt, **generated}, np.array(named), classifier, options.tagger, model.sampling_rate)
    distances(rebuilt, settings)
    control({"real": rebuilt["real"], **generated}, examples, model.sampling_rate)
    parts(model, captions, np.array(named), classifier, options)
    from_clips(model, classifier, options)


def generate(
    model: AudioLDM2, captions: list[str], options: argparse.Namespace, **changes
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a waveform a caption [captions, samples], of several the first, and the mels."""
    clips = changes.get("num_waveforms_per_prompt", 1)
    made = [
        model(
            captions[start : start + BATCH],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            seed=options.seed,
            **changes,
        )
        for start in range(0, len(captions), BATCH)
    ]
    return tuple(
        np.concatenate([part[::clips] for part in several]) for several in zip(*((m.audios, m.mels) for m in made))
    )


def reconstruct(model: AudioLDM2, real: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the real clips [clips, samples], and what they become on several ways through a mel."""
    settings, networks = model.clip_encoder.mel, model.networks
    mel = np.asarray(jax.jit(lambda waveform: compressed_mel(waveform, settings))(real))

    @jax.jit
    def through_vae(mel):
        mean, _ = networks["vae"](mel[..., None], method="encode")
        return networks["vae"](mean, method="decode")[..., 0]

    vocoder, smoothed = jax.jit(networks["vocoder"].__call__), np.asarray(through_vae(mel))
    made = {
        "Griffin-Lim": np.stack([griffin_lim(one, settings) for one in mel]),
        "vocoder": np.asarray(vocoder(mel)),
        "VAE, Griffin-Lim": np.stack([griffin_lim(one, settings) for one in smoothed]),
        "VAE, vocoder": np.asarray(vocoder(smoothed)),
    }
    length = real.shape[1]
    return {"real": real} | {n: np.stack([files.segment(w, length) for w in sounds]) for n, sounds in made.items()}


def recognition(sounds: dict[str, np.ndarray], named: np.ndarray, classifier, tagger: str | None, rate: int) -> None:
    """Prints in how many clips which listener finds the named instrument."""
    print(f"the named instrument is found, of {len(named)} (chance {1 / len(set(named)):.1%}; 95 % intervals):")
    outside = listeners.Tagger(tagger) if tagger else None
    print(f"{'':26}{'tagger' if outside else '':24}classifier of the corpus")
    for name, waveforms in sounds.items():
        heard = np.array(classifier.predict(waveforms))
        found = listeners.share(outside.choose(waveforms, rate) == named) if outside else ""
        print(f"  {name:24}{found:24}{listeners.share(heard == named)}")
        if name.startswith("generated"):
            shares = {label: (heard == named)[named == label].mean() for label in dict.fromkeys(named)}
            print("    by the classifier: " + ", ".join(f"{label} {share:.0%}" for label, share in shares.items()))


def distances(sounds: dict[str, np.ndarray], settings: MelSettings) -> None:
    """Prints how far what was put together again is from the real clips."""
    real, rate = sounds["real"], settings.sampling_rate
    spectrum = jax.jit(lambda waveform: log_mel(waveform, settings))
    mel, with_pitch = np.asarray(spectrum(real)), listeners.has_pitch()
    if with_pitch:
        pitch, periodicity = listeners.pitch(real, rate)
        voiced = periodicity > listeners.VOICED
    heading = (
        "     pitch kept    voiced   at / between partials" if with_pitch else "   (pitch: pip install torchcrepe)"
    )
    print(f"\nfrom the real clip:         log-mel L1  spectra{heading}")
    for name, waveforms in sounds.items():
        row = [
            f"{np.abs(np.asarray(spectrum(waveforms)) - mel).mean():10.3f}",
            listeners.mean(spectral_distance(real, waveforms), " dB"),
        ]
        if with_pitch:
            other, sure = listeners.pitch(waveforms, rate)
            kept = (np.abs(np.log(other / pitch)) < HALF_SEMITONE) & (sure > listeners.VOICED)
            row += [
                f"{kept[voiced].mean():8.1%}",
                f"{(sure > listeners.VOICED).mean():8.1%}",
                listeners.mean(listeners.harmonic_to_noise(waveforms, rate, pitch, voiced), " dB"),
            ]
        print(f"  {name:24}{'  '.join(row)}")


def control(sounds: dict[str, np.ndarray], examples: list, rate: int) -> None:
    """Prints whether clips do what their captions say, and whether they do what those of others say."""
    tempo, mode = (np.array([example.labels[what] for example in examples]) for what in ("tempo", "mode"))
    register = np.array([REGISTERS.index(example.labels["registers"][0]) for example in examples])
    ranges = [[window(INSTRUMENTS[e.labels["instruments"][0]], r) for r in REGISTERS] for e in examples]
    centres = np.array([[(low + high) / 2 for low, high in one] for one in ranges])
    between = between_slow_and_fast(len(examples[0].waveform) / rate)
    threshold = np.array([between[example.labels["textures"][0]] for example in examples])
    single = np.array([example.labels["textures"][0] != "chords" for example in examples])  # CREPE hears one note
    others = np.random.default_rng(0).permutation(len(examples))
    shares: dict[str, dict[str, tuple[str, float, float]]] = defaultdict(dict)

    def obeyed(found: np.ndarray, said: np.ndarray, counts: np.ndarray) -> tuple[str, float, float]:
        """Of the clips that count: the share that is right, and how often what another caption says would be."""
        right = (found == said)[counts]
        return listeners.share(right), (found == said[others])[counts & counts[others]].mean(), right.mean()

    for name, waveforms in sounds.items():
        fast = listeners.onset_rate(waveforms, rate) > threshold
        shares["tempo (slow or fast)"][name] = obeyed(fast, tempo == "fast", tempo != "moderate")
        everywhere = np.ones(len(examples), bool)
        shares["mode"][name] = obeyed(listeners.mode(waveforms, rate), mode, everywhere)
        if listeners.has_pitch():
            height = listeners.median_note(*listeners.pitch(waveforms, rate))
            found = np.abs(height[:, None] - centres).argmin(1)
            shares["register"][name] = obeyed(found, register, np.isfinite(height) & single)
    print("\nwhat the caption says is done (in brackets: what those of other clips say):")
    for what, found in shares.items():
        if found["real"][2] < PASSED:
            print(f"  {what}: not used, since real clips pass in {found['real'][2]:.0%}")
            continue
        for name, (said, by_chance, _) in found.items():
            print(f"  {what:22}{name:26}{said} [{by_chance:.0%}]")


def between_slow_and_fast(seconds: float) -> dict[str, float]:
    """Returns for each texture the onsets a second between its slow and its fast scores, by the notes written there."""
    counts, apart = defaultdict(list), np.mean(TEMPOS["fast"]) / np.mean(TEMPOS["slow"])
    corpus = MusicCorpus(16000, seconds, 0, "train")
    for labels in (corpus[index].labels for index in range(600)):
        if labels["tempo"] != "moderate":
            onsets = np.unique(labels["notes"][labels["notes"][:, 3] == 0, 0].round(2))
            towards = apart ** (0.5 if labels["tempo"] == "slow" else -0.5)
            counts[labels["textures"][0]].append(len(onsets) / seconds * towards)
    return {texture: float(np.mean(rates)) for texture, rates in counts.items()}


def parts(model: AudioLDM2, captions: list[str], named: np.ndarray, classifier, options: argparse.Namespace) -> None:
    """Prints what is left of the named instrument without the LOA, and without the text states."""
    print("\nby the classifier of the corpus:")
    for name, changes in (("LOA zeroed", {"use_loa": False}), ("text states emptied", {"use_text_states": False})):
        made, _ = generate(model, captions, options, **changes)
        print(f"  {name:24}{listeners.share(np.array(classifier.predict(made)) == named)}")


def from_clips(model: AudioLDM2, classifier, options: argparse.Namespace) -> None:
    """Prints whose instrument is heard in what is made from a clip and a caption of another instrument."""
    real, own = real_clips(options.captions, seed=2, split="heldout")
    captions, named = zip(*heldout_captions(options.captions))
    pairs = [(clip, mine, text, other) for clip, mine, text, other in zip(real, own, captions, named) if mine != other]
    edits = {
        f"transfer, strength {strength}": partial(Transfer, strength=strength) for strength in (0.3, 0.5, 0.7, 0.9)
    }
    edits["variation"] = Variation
    print(f"\nfrom {len(pairs)} held-out clips:      the clip's instrument   the caption's")
    for name, edit in edits.items():
        settings = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
        made = [model(text, **settings, edit=edit(clip, model.sampling_rate)).audios[0] for clip, _, text, _ in pairs]
        heard = classifier.predict(np.stack([files.normalise(one) for one in made]))
        shares = [np.mean([one == pair[i] for one, pair in zip(heard, pairs)]) for i in (1, 3)]
        print(f"  {name:25} {shares[0]:20.1%} {shares[1]:15.1%}")


def griffin_lim(mel: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Returns a waveform [frames * hop] whose mel is near the vocoder's mel [frames, bands], without a network."""
    filters = librosa.filters.mel(
        sr=settings.sampling_rate,
        n_fft=settings.n_fft,
        n_mels=settings.n_mels,
        fmin=settings.fmin,
        fmax=settings.fmax,
    )
    magnitude = np.maximum(np.linalg.pinv(filters) @ magnitudes(mel.T, settings), 0)
    waveform = librosa.griffinlim(
        magnitude, n_iter=60, hop_length=settings.hop_length, n_fft=settings.n_fft, random_state=0
    )
    # Frames of ours begin (n_fft - hop) / 2 before the clip, librosa's n_fft / 2.
    return files.segment(
        np.pad(waveform, (0, settings.n_fft)), len(mel) * settings.hop_length, settings.hop_length // 2
    )


if __name__ == "__main__":
    main()
