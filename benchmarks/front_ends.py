"""How fast the front ends are beside the libraries that define them, clip by clip, in one run on this machine.

    python benchmarks/front_ends.py [--batch 8] [--seconds 2.56] [--repeats 5]

Prints milliseconds a clip, their ratio to the library's (below one: faster) and how far the results are apart. The
libraries come with `pip install -e ".[test]"`. Pin it to one core (`taskset -c 0`) to compare core with core.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import librosa
import numpy as np
import soxr
from transformers import ClapFeatureExtractor

from audioldm2_jax.audio import mel
from audioldm2_jax.audio.resample import resample

MEL_16K = mel.MelSettings(16000, 1024, 160, 64, 0.0, 8000.0)
MEL_48K = mel.MelSettings(48000, 2048, 480, 256, 20.0, 24000.0)
BANDS = 80  # Kaldi refuses AudioMAE's 128: some fall between the bins


def librosa_mel(clip: np.ndarray, settings: mel.MelSettings) -> np.ndarray:
    """The same log-mel by librosa: [frames, bands]."""
    padding = (settings.n_fft - settings.hop_length) // 2
    spectrum = librosa.feature.melspectrogram(
        y=np.pad(clip, padding, mode="reflect"),
        sr=settings.sampling_rate,
        n_fft=settings.n_fft,
        hop_length=settings.hop_length,
        n_mels=settings.n_mels,
        fmin=settings.fmin,
        fmax=settings.fmax,
        center=False,
        power=1.0,
    )
    return np.log(np.maximum(spectrum, 1e-5)).T


def kaldi_fbank(clip: np.ndarray, frames: int) -> np.ndarray:
    """The same normalised fbank by kaldi-native-fbank: [frames, bands]."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = BANDS
    options.htk_compat = True
    options.use_energy = False
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, clip - clip.mean())
    fbank.input_finished()
    got = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    return (np.pad(got, ((0, frames - len(got)), (0, 0))) - mel.FBANK_MEAN) / (2 * mel.FBANK_STD)


def noise(batch: int, samples: int, rate: int) -> np.ndarray:
    """White below 6.5 kHz, which every resampling filter passes, and very quiet above: [batch, samples]."""
    sound = np.random.default_rng(0).standard_normal((batch, samples))
    spectrum = np.fft.rfft(sound)
    spectrum[:, int(6500 / rate * samples) :] *= 1e-6
    return (0.1 * np.fft.irfft(spectrum, samples)).astype(np.float32)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Best of `repeats` timings, after a first call that compiles or fills caches."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(
    name: str,
    ours: Callable[[jax.Array], jax.Array],
    library: Callable[[np.ndarray], np.ndarray],
    clips: np.ndarray,
    repeats: int,
) -> None:
    """Times both on the same clips [batch, samples] and prints a line."""
    device = jnp.asarray(clips)
    forward = jax.jit(ours)
    both = jax.jit(jax.grad(lambda waveform: jnp.abs(ours(waveform)).mean()))
    expected = library(clips[0])
    got = np.asarray(forward(device))[0][: len(expected)]
    apart = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    here = seconds(lambda: forward(device).block_until_ready(), repeats) / len(clips)
    gradient = seconds(lambda: both(device).block_until_ready(), repeats) / len(clips)
    there = seconds(lambda: [library(clip) for clip in clips], repeats) / len(clips)
    print(
        f"{name:<34} {here * 1e3:8.2f} {gradient * 1e3:12.2f} {there * 1e3:9.2f} {here / there:8.2f} {apart:10.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="clips at once (the libraries take them one by one)")
    parser.add_argument("--seconds", type=float, default=2.56, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many runs counts")
    flags = parser.parse_args()

    slow, fast = (noise(flags.batch, round(flags.seconds * rate), rate) for rate in (16000, 48000))
    frames = round(flags.seconds * 100)
    fbank = mel.FbankSettings(16000, BANDS, frames)
    clap = mel.ClapMelSettings(48000, 1024, 480, 64, 50.0, 14000.0, fast.shape[1])
    extractor = ClapFeatureExtractor(frequency_min=50, frequency_max=14000)
    extract = functools.partial(
        extractor, truncation="rand_trunc", max_length=clap.samples, sampling_rate=48000, return_tensors="np"
    )

    print(f"{flags.batch} clips of {flags.seconds} s on {jax.devices()[0].device_kind}; milliseconds a clip")
    print(f"{'':<34} {'ours':>8} {'and gradient':>12} {'library':>9} {'ratio':>8} {'apart':>10}")
    run = functools.partial(compare, repeats=flags.repeats)
    for name, settings, clips in (("16 kHz", MEL_16K, slow), ("48 kHz", MEL_48K, fast)):
        run(
            f"log-mel {name} / librosa",
            functools.partial(mel.log_mel, settings=settings),
            functools.partial(librosa_mel, settings=settings),
            clips,
        )
    run(
        "fbank / kaldi-native-fbank",
        functools.partial(mel.kaldi_fbank, settings=fbank),
        functools.partial(kaldi_fbank, frames=frames),
        slow,
    )
    run(
        "CLAP mel / ClapFeatureExtractor",
        functools.partial(mel.clap_mel, settings=clap),
        lambda clip: extract(clip)["input_features"][0, 0],
        fast,
    )
    for name, source, target, clips in (("16 → 48 kHz", 16000, 48000, slow), ("48 → 16 kHz", 48000, 16000, fast)):
        run(
            f"resampling {name} / soxr VHQ",
            functools.partial(resample, from_rate=source, to_rate=target),
            functools.partial(soxr.resample, in_rate=source, out_rate=target, quality="VHQ"),
            clips,
        )


if __name__ == "__main__":
    main()
