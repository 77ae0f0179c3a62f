"""What is kept of a given clip: transfer, inpainting, variation, continuation, and speech in the voice of a recording.

    Transfer       the clip is noised part of the way and denoised after the prompt
    Inpainting     a span of time, a band of frequencies or both are made anew, the rest stays
    Variation      another clip with the same language of audio, or the beginning of it
    Continuation   the beginning stays, in sound and in its language of audio, and goes on
    SpeechPrompt   as that, with what is said in it: new words follow in the same voice

`AudioLDM2.__call__` takes one of these as `edit`. An edit says in seconds and Hz what stays; the pipeline owns the
networks that bring this to latents and LOA.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.signal
import soxr

from audioldm2_jax.audio.files import is_silent, normalise

_NEAR = 0.02  # seconds by which ends may differ and count as one
_LEAST_SPOKEN = 0.3  # seconds of the shortest word behind a recording
_FADE_WINDOW = 0.032  # seconds of the windows in which kept and made sound are joined


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """A given clip. Its loudness is given back to what is made of it.

    Attributes:
      audio: [samples], floats of any loudness.
      sampling_rate: Hz; other rates than the model's are resampled.
    """

    audio: np.ndarray
    sampling_rate: int

    def __post_init__(self) -> None:
        audio = np.asarray(self.audio)
        if audio.ndim != 1 or not audio.size:
            raise ValueError(f"The given clip has the shape {audio.shape}; needed is one channel: [samples].")
        if not np.issubdtype(audio.dtype, np.floating):
            raise ValueError(
                f"The given clip has samples of {audio.dtype}; needed are floats, -1 to 1 (16-bit integers / 32768)."
            )
        if not np.isfinite(audio).all():
            raise ValueError(f"The given clip has {(~np.isfinite(audio)).sum()} samples that are NaN or infinite.")
        if not self.sampling_rate >= 1:
            raise ValueError(f"The given clip's sampling rate is {self.sampling_rate} Hz; it has to be positive.")

    @property
    def seconds(self) -> float:
        """Length of the given clip."""
        return len(self.audio) / self.sampling_rate

    def waveform(self, sampling_rate: int) -> np.ndarray:
        """The clip at a rate, float32 [samples] at its own loudness.

        Raises:
          ValueError: where it is too short to have a sample at that rate.
        """
        audio = np.asarray(self.audio, np.float32)
        waveform = soxr.resample(audio, self.sampling_rate, sampling_rate, quality="HQ")
        if not waveform.size:
            raise ValueError(f"The given clip's {audio.size} samples at {self.sampling_rate} Hz are too few.")
        return waveform

    def remarks(self, seconds: float, said: Sequence[str | None] = ()) -> list[str]:
        """What may surprise where clips of so many seconds are made, in which the transcriptions `said` are said.

        Raises:
          ValueError: the edit leaves nothing to be made of so many seconds.
        """
        del said
        remarks = []
        if is_silent(np.asarray(self.audio)):
            remarks.append("the given clip is silence")
        if self.starts_from_latents and self.silent_behind and seconds > self.seconds + _NEAR:
            remarks.append(
                f"the given clip ends at {self.seconds:.2f} s, and {seconds:.2f} s are made: "
                "behind its end it is silence"
            )
        return remarks

    def transcribe(self, transcription: str | Sequence[str | None] | None) -> str | list[str] | None:
        """What is said in the whole of what is made, where the caller wants `transcription` to be said.

        Raises:
          ValueError: the edit needs one and there is none.
        """
        return transcription

    def length(self, own: float | None) -> float:
        """Seconds of the clip to be made where the caller names none; `own` is the model's own length."""
        del own
        return self.seconds

    def first_step(self, num_steps: int) -> int:
        """How many denoising steps are left out."""
        del num_steps
        return 0

    @property
    def encoded_seconds(self) -> float:
        """Seconds of the clip whose LOA is given."""
        return 0.0

    @property
    def cut_seconds(self) -> float:
        """Seconds at the beginning of what is made that are not given back."""
        return 0.0

    @property
    def silent_behind(self) -> bool:
        """Whether silence stands for what lies behind the end of the clip."""
        return True

    @property
    def starts_from_latents(self) -> bool:
        """Whether the sound itself is used, and not its LOA alone."""
        return True

    def kept(self, seconds: np.ndarray, hertz: np.ndarray) -> np.ndarray | None:
        """Where the sound stays, bool [times, frequencies], at times and frequencies; None where nothing has to."""
        del seconds, hertz


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer(Edit):
    """Style transfer (SDEdit, arXiv 2108.01073; `style_transfer` of haoheliu/AudioLDM).

    Attributes:
      strength: which part of the denoising steps is done, above 0 to 1: little changes little.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ValueError(f"The strength of the transfer is {self.strength}; it has to be above 0 and at most 1.")

    def first_step(self, num_steps: int) -> int:
        """Leaves out the steps at the noisy end, as diffusers' image-to-image pipelines do."""
        steps = int(num_steps * self.strength)
        if not steps:
            raise ValueError(
                f"A transfer of strength {self.strength} does none of {num_steps} denoising steps; raise the strength "
                "or the number of steps."
            )
        return num_steps - steps


@dataclasses.dataclass(frozen=True, eq=False)
class Inpainting(Edit):
    """Inpainting and super-resolution (`sr_inpainting` of haoheliu/AudioLDM2; Lugmayr et al. 2022, arXiv 2201.09865).

    Attributes:
      span: from and to, in seconds, of what is made anew; None: all of the time.
      band: from and to, in Hz, of what is made anew; None: all frequencies. Super-resolution of a clip that ends at
        4 kHz is the band (4000, infinity).
    """

    span: tuple[float, float] | None = None
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.span is None and self.band is None:
            raise ValueError("Inpainting needs a span in seconds, a band in Hz, or both: what is to be made anew?")
        for name, unit, interval in (("span", "s", self.span), ("band", "Hz", self.band)):
            if interval is not None and not 0 <= interval[0] < interval[1]:
                raise ValueError(
                    f"The {name} to be made anew is {interval[0]} to {interval[1]} {unit}; "
                    "it has to begin at 0 or later and before it ends."
                )
        if self.span is not None and self.span[0] >= self.seconds:
            raise ValueError(f"The span begins at {self.span[0]} s, but the given clip ends at {self.seconds:.2f} s.")

    def remarks(self, seconds: float, said: Sequence[str | None] = ()) -> list[str]:
        remarks = super().remarks(seconds, said)
        if self.span is not None and seconds + _NEAR < self.span[1] < math.inf:
            remarks.append(f"the span ends at {self.span[1]:.2f} s, and {seconds:.2f} s are made: it ends there")
        return remarks

    @property
    def silent_behind(self) -> bool:
        # What is made anew up to the end, at all frequencies, is not the clip's silence.
        return self.band is not None or self.span is None or self.span[0] > self.seconds or self.span[1] <= self.seconds

    def kept(self, seconds: np.ndarray, hertz: np.ndarray) -> np.ndarray:
        """All that is not both in the span and in the band."""
        return ~np.logical_and.outer(_within(seconds, self.span), _within(hertz, self.band))


@dataclasses.dataclass(frozen=True, eq=False)
class Variation(Edit):
    """A new clip from the given clip's LOA.

    Attributes:
      until: seconds from the beginning whose LOA is given; GPT-2 writes the rest after the prompt. None: all of it.
    """

    until: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until is not None and not self.until > 0:
            raise ValueError(f"until is {self.until}; it has to be above 0 s.")

    def remarks(self, seconds: float, said: Sequence[str | None] = ()) -> list[str]:
        remarks = super().remarks(seconds, said)
        if self.until is not None and self.seconds + _NEAR < self.until < math.inf:
            remarks.append(f"until is {self.until:.2f} s, but the given clip ends at {self.seconds:.2f} s")
        return remarks

    def length(self, own: float | None) -> float | None:
        """The model's own length."""
        return own

    @property
    def encoded_seconds(self) -> float:
        return math.inf if self.until is None else self.until

    @property
    def starts_from_latents(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation(Edit):
    """The beginning of the given clip, and how it goes on.

    Attributes:
      until: seconds from the beginning that are kept; None: the whole clip.
    """

    until: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until is not None and not 0 < self.until <= self.seconds:
            raise ValueError(
                f"until is {self.until}; it has to be above 0 and at most the clip's {self.seconds:.2f} s."
            )

    def length(self, own: float | None) -> float | None:
        """The model's own length."""
        return own

    @property
    def encoded_seconds(self) -> float:
        return self.seconds if self.until is None else self.until

    @property
    def silent_behind(self) -> bool:
        return False

    def kept(self, seconds: np.ndarray, hertz: np.ndarray) -> np.ndarray:
        """What lies before `until`."""
        return np.logical_and.outer(seconds < self.encoded_seconds, np.ones_like(hertz, bool))


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechPrompt(Continuation):
    """In-context speech: new words in the voice of a recording [arXiv 2308.05734v2; A2 issue 24].

    GPT-2 reads the phonemes of the recording and of the new words, then the recording's language of audio, and goes on
    with that. The UNet is given both parts of it, and the recording's own latents where it stands, so that the new part
    fits to its sound, too. The length of what is made counts the recording in.

    Attributes:
      until: seconds from the beginning that are used; None: the whole recording.
      transcription: what is said in them.
      keep: whether what is given back begins with the recording; False: the new words alone.
    """

    transcription: str = ""
    keep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.transcription, str) or not self.transcription.strip():
            raise ValueError("The recording has no transcription: write down what is said in it.")
        if is_silent(self.audio[: round(self.encoded_seconds * self.sampling_rate)]):
            raise ValueError("The recording is silence: there is no voice in it to go on in.")

    def waveform(self, sampling_rate: int) -> np.ndarray:
        """What is used of the recording, by AudioMAE, too."""
        return super().waveform(sampling_rate)[: round(self.encoded_seconds * sampling_rate)]

    def transcribe(self, transcription: str | Sequence[str | None] | None) -> str | list[str]:
        """Puts what is said in the recording before the new words, of which every prompt needs some."""
        texts = [transcription] if isinstance(transcription, str) else transcription
        if texts is None or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("There are no new words: give a transcription of what is to be said behind the recording.")
        both = [f"{self.transcription.strip()} {text.strip()}" for text in texts]
        return both[0] if isinstance(transcription, str) else both

    def remarks(self, seconds: float, said: Sequence[str | None] = ()) -> list[str]:
        left, used = seconds - self.encoded_seconds, self.encoded_seconds
        if left < _LEAST_SPOKEN:
            raise ValueError(
                f"The recording takes {used:.2f} s of the {seconds:.2f} s that are made, which leaves no room for new "
                f"words: use its first {max(seconds / 2, 0):.1f} s or less (until), with what is said in these."
            )
        letters = len(self.transcription.strip())
        longest = max((len(text or "") - letters for text in said), default=0)
        if longest * used / letters > left:
            return [
                f"at the pace of the recording the new words take {longest * used / letters:.1f} s, and {left:.1f} s "
                "are left: say less at a time, or use less of the recording"
            ]
        return []

    @property
    def cut_seconds(self) -> float:
        return 0.0 if self.keep else self.encoded_seconds


def join(edit: Edit, made: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Gives made clips the loudness of the given one, and the given sound itself where it is kept.

    Kept and made sound are joined in overlapping windows of 32 ms, each frequency for itself, so that what is kept is
    the given recording and not what VAE and vocoder make of it.

    Args:
      edit: what was asked for.
      made: [clips, samples], normalised as the model has them; what of the given clip lies behind that is ignored.
      sampling_rate: Hz.

    Returns:
      [clips, samples] float32.
    """
    if not edit.starts_from_latents:
        return made
    samples = made.shape[-1]
    given = edit.waveform(sampling_rate)[:samples]
    made = made * loudness(given)
    window = 2 * int(min(_FADE_WINDOW * sampling_rate, samples) / 2)
    transform = dict(fs=sampling_rate, nperseg=window, noverlap=window // 2)
    hertz = np.fft.rfftfreq(window, 1 / sampling_rate)
    times = np.arange(samples // (window // 2) + 3) * (window // 2) / sampling_rate
    kept = edit.kept(times, hertz)
    if kept is None:
        return made
    given = np.pad(given, (0, samples - len(given)))
    _, _, kept_spectrum = scipy.signal.stft(given, **transform)
    _, _, made_spectrum = scipy.signal.stft(made, **transform)
    mask = kept[: kept_spectrum.shape[-1]].T
    _, joined = scipy.signal.istft(np.where(mask, kept_spectrum, made_spectrum), **transform)
    return joined[..., :samples].astype(np.float32)


def loudness(waveform: np.ndarray) -> np.float32:
    """What a normalised clip has to be multiplied by to be as loud as [samples] is; 1 for silence."""
    peak = np.abs(normalise(waveform)).max()
    return np.float32(np.abs(waveform - waveform.mean()).max() / peak) if peak else np.float32(1)


def _within(places: np.ndarray, interval: tuple[float, float] | None) -> np.ndarray:
    if interval is None:
        return np.ones_like(places, bool)
    return (places >= interval[0]) & (places < interval[1])
