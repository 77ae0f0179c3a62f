"""Sound files in and out: WAV, FLAC, OGG and MP3 of any rate and channel count.

No JAX here: the processes that load data import this.
"""

import contextlib
import io
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from audioldm2_jax.audio import decoding
from audioldm2_jax.audio.decoding import UnreadableAudio
from audioldm2_jax.runtime.text_files import shown

# Input samples (of the lower rate) that are decoded on either side of a segment, so that the resampling
# filter sees the same neighbours as when the whole file is read.
_FILTER_REACH = 256
_WRITTEN = 2**14  # samples that are encoded at a time
# Peak below which a clip counts as silence: half a step of 16 bits.
_SILENCE = 2.0**-16
_SILENT_QUOTED = 5  # files, in each process


def read(path: str | os.PathLike, sampling_rate: int, start: int = 0, samples: int | None = None) -> np.ndarray:
    """Reads a file, or a segment of it, as mono at the asked rate.

    Only the segment is decoded where the format can seek, and it is the same sound as that stretch of the
    whole file.

    Args:
        path: a WAV, FLAC, OGG or MP3 file (whatever libsndfile reads). Channels are averaged.
        sampling_rate: Hz of what is returned; other rates are resampled by soxr at high quality.
        start: first sample of the segment, counted at `sampling_rate`.
        samples: length of the segment, counted at `sampling_rate`; None reads to the end. `segment` pads what
            is short.

    Returns:
        [samples] float32, mostly in -1..1; fewer than asked where the file ends.

    Raises:
        UnreadableAudio: not there, not a sound file, damaged, empty, NaN or infinite samples, or `start`
            behind the end.
        ValueError: a negative start, a length or a rate below one.
    """
    if start < 0 or (samples is not None and samples < 1) or sampling_rate < 1:
        raise ValueError(
            f"cannot read {samples} samples from sample {start} at {sampling_rate} Hz: "
            "the start must not be negative, length and rate must be positive"
        )
    with decoding.opened(path) as file:
        return _read_open(file, path, sampling_rate, start, samples)


def read_encoded(
    content: bytes, where: str, sampling_rate: int, samples: int | None = None, position: float = 0.0
) -> np.ndarray:
    """Reads a sound file in memory, or an excerpt of it, as `read` does.

    Args:
        content: the file.
        where: what messages call it.
        sampling_rate: Hz of what is returned.
        samples: length of the excerpt at `sampling_rate`; None reads all.
        position: in [0, 1), where the excerpt lies between the ends of the whole.

    Raises:
        UnreadableAudio: as of `read`.
    """
    start = 0
    if samples is not None and position:
        whole = samples_at(sampling_rate, *decoding.frames(lambda: io.BytesIO(content), where))
        start = int(position * max(whole - samples + 1, 1))
    with decoding.opened(io.BytesIO(content), where) as file:
        return _read_open(file, where, sampling_rate, start, samples)


def length(path: str | os.PathLike, sampling_rate: int) -> int:
    """Samples that the whole file has at `sampling_rate`.

    The header says so where the file can be read at the end that it names; else everything is decoded.

    Raises:
        UnreadableAudio: not there, not a sound file, empty, or damaged so that its end cannot be found.
    """
    return samples_at(sampling_rate, *frames(path))


def frames(path: str | os.PathLike) -> tuple[int, int]:
    """Frames that the whole file has, and its own sampling rate in Hz; see `length`."""
    return decoding.frames(lambda: path)


def samples_at(sampling_rate: int, frames: int, rate: int) -> int:
    """Samples that so many frames at `rate` become at `sampling_rate`."""
    return -(-frames * sampling_rate // rate)


class Original(NamedTuple):
    """A sound as it is stored, before its channels are averaged and its rate is changed.

    Attributes:
        rate: Hz.
        channels: how many.
        encoding: format and sample format by libsndfile's names, "FLAC PCM_16".
        blocks: gives the samples from front to back, each time it is called, in blocks [frames, channels] float32 whose
            lengths depend on the number of channels alone. It raises `UnreadableAudio` where they are damaged, NaN or
            infinite, and where there are none.
        whole: whether that is all of a file; a part at another rate is not these blocks resampled, but that stretch of
            the whole file resampled.
    """

    rate: int
    channels: int
    encoding: str
    blocks: Callable[[], Iterator[np.ndarray]]
    whole: bool = True


def original(sound: str | os.PathLike | bytes, where: str = "", part: tuple[float, float] | None = None) -> Original:
    """Opens a sound file, or one in memory, to be read as it is.

    Args:
        sound: the path, or the content of the file.
        where: what messages call a file in memory.
        part: the seconds at which a part begins and how many it has; None: the whole.

    Raises:
        UnreadableAudio: not there, or not a sound file.
    """

    def opened() -> contextlib.AbstractContextManager[decoding.Stream]:
        return decoding.opened(io.BytesIO(sound), where) if isinstance(sound, bytes) else decoding.opened(sound)

    def blocks() -> Iterator[np.ndarray]:
        with opened() as file:
            offset, count = (0, None) if part is None else (round(seconds * file.samplerate) for seconds in part)
            yield from checked(decoding.blocks(file, offset, count), where or shown(sound))

    with opened() as file:
        if file.samplerate < 1:
            raise UnreadableAudio(f"{where or shown(sound)} says that it has {file.samplerate} Hz: correct its header")
        return Original(file.samplerate, file.channels, f"{file.format} {file.subtype}", blocks, part is None)


def checked(blocks: Iterable[np.ndarray], where: str) -> Iterator[np.ndarray]:
    """The blocks of a sound, while their samples are finite.

    Raises:
        UnreadableAudio: NaN or infinite samples, or none at all; `where` is what the message calls the sound.
    """
    frames = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise UnreadableAudio(f"{where} holds NaN or infinite samples: remove it or replace it")
        frames += len(block)
        yield block
    if not frames:
        raise UnreadableAudio(f"{where} holds no samples: remove it or replace it")


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a clip [samples] is silence, which a constant is, too."""
    return not waveform.size or float(waveform.max()) - float(waveform.min()) < 2 * _SILENCE


def warn_of_silence(where: str, waveform: np.ndarray, channel_peak: float = 0.0) -> None:
    """Warns once a process where a clip [samples] is silence, and of the first few of such files only.

    Args:
        where: what the message calls the clip.
        channel_peak: the loudest sample of its channels before they were averaged.
    """
    if not is_silent(waveform) or where in _silent:
        return
    _silent.add(where)
    if len(_silent) > _SILENT_QUOTED:
        return
    why = "is silence where it was read"
    if channel_peak > 32 * _SILENCE:
        why = "becomes silence: its channels have opposite phase and cancel each other out when they are averaged"
    last = " (further silent files are not listed)" if len(_silent) == _SILENT_QUOTED else ""
    logging.warning("%s %s%s", where, why, last)


_silent: set[str] = set()


def segment(waveform: np.ndarray, samples: int, start: int = 0) -> np.ndarray:
    """`waveform[start : start + samples]`, padded with zeros at the end: exactly [samples] float32."""
    cut = np.asarray(waveform, np.float32)[start : start + samples]
    return np.pad(cut, (0, samples - len(cut)))


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Mean zero and peak one half: (x - mean) / (max|x - mean| + 1e-8) × 0.5, [samples] float32.

    haoheliu/AudioLDM-training-finetuning, audioldm_train/utilities/data/dataset.py, `normalize_wav`. Silence
    stays silence.
    """
    waveform = np.asarray(waveform, np.float32)
    waveform = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    return waveform / (np.abs(waveform).max() + np.float32(1e-8)) * np.float32(0.5)


def write(path: str | os.PathLike, waveform: np.ndarray, sampling_rate: int, subtype: str = "PCM_16") -> None:
    """Writes a sound file under a temporary name and renames it, so that nobody ever finds half a file.

    Args:
        path: the ending names the format: .wav, .flac, .ogg, .mp3. Missing folders are made.
        waveform: [samples] or [samples, channels] in -1..1. What lies outside is clipped and logged; "FLOAT"
            and "DOUBLE" keep it.
        sampling_rate: Hz
        subtype: libsndfile's name of the sample format: "PCM_16" or "PCM_24", "FLOAT" (WAV only), "VORBIS"
            (OGG), "MPEG_LAYER_III" (MP3).

    Raises:
        ValueError: NaN or infinite samples, no samples, or a subtype, rate or number of channels that the format does
            not have.
        OSError: the folder cannot be written, or the disk is full; no part of the file stays behind.
    """
    path = Path(path)
    waveform = np.asarray(waveform, np.float32)
    form = path.suffix[1:].upper()
    if not soundfile.check_format(form, subtype):
        raise ValueError(
            f"cannot write {path}: the format {form or '(no ending)'} has no subtype {subtype}. "
            "Use .wav or .flac with PCM_16, or .wav with FLOAT"
        )
    faulty = waveform.size - np.isfinite(waveform).sum()
    if waveform.ndim not in (1, 2) or waveform.size == 0 or faulty:
        raise ValueError(
            f"cannot write {path}: a waveform is [samples] or [samples, channels], finite and not empty, "
            f"got {waveform.shape} with {faulty} NaN or infinite samples"
        )
    if subtype not in ("FLOAT", "DOUBLE") and np.abs(waveform).max() > 1:
        logging.warning("%s: %d samples outside -1..1 are clipped", path, (np.abs(waveform) > 1).sum())
        waveform = np.clip(waveform, -1, 1)
    encoded = io.BytesIO()
    channels = 1 if waveform.ndim == 1 else waveform.shape[1]
    try:
        with soundfile.SoundFile(encoded, "w", sampling_rate, channels, subtype, format=form) as file:
            # In pieces: libsndfile's Vorbis encoder crashes on minutes of sound at once.
            for first in range(0, len(waveform), _WRITTEN):
                file.write(waveform[first : first + _WRITTEN])
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"cannot write {path}: {form} takes no {channels} channels at {sampling_rate} Hz as {subtype} "
            f"({decoding.reason(error)}); use .wav"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(encoded.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_open(
    file: decoding.Stream, path: str | os.PathLike, sampling_rate: int, start: int, samples: int | None
) -> np.ndarray:
    def take(offset: int, count: int | None) -> tuple[np.ndarray, float]:
        return decoding.decode(file, offset, count, sampling_rate)

    return segment_of(take, file.samplerate, shown(path), sampling_rate, start, samples)


def segment_of(
    take: Callable[[int, int | None], tuple[np.ndarray, float]],
    rate: int,
    where: str,
    sampling_rate: int,
    start: int = 0,
    samples: int | None = None,
) -> np.ndarray:
    """A segment at `sampling_rate` of a sound that `take` gives in pieces; the rest as of `read`.

    Args:
        take: (offset, count or None) → at most `count` mono samples from `offset`, and the peak of their channels.
        rate: Hz of these samples.
        where: what messages call the sound.

    Raises:
        UnreadableAudio: empty, NaN or infinite samples, or `start` behind the end.
    """
    common = math.gcd(rate, sampling_rate)
    up, down = sampling_rate // common, rate // common
    margin = 0 if up == down else math.ceil(_FILTER_REACH * max(1, rate / sampling_rate))
    # Decoding starts where a sample of the file and one of the result fall together: every `down` of the one
    # and `up` of the other. So a segment is the same sound as that stretch of the whole file.
    first_period = max(0, start // up - -(-margin // down))
    offset = first_period * down
    count = None if samples is None else -(-(start + samples) * down // up) + margin - offset
    decoded, channel_peak = take(offset, count)
    if len(decoded) == 0:
        why = "holds no samples" if start == 0 else f"ends before sample {start} at {sampling_rate} Hz"
        raise UnreadableAudio(f"{where} {why}: remove it or replace it")
    if not np.isfinite(decoded).all():
        raise UnreadableAudio(f"{where} holds NaN or infinite samples: remove it or replace it")
    skip = start - first_period * up
    if up != down:
        total = -(-len(decoded) * up // down)
        decoded = segment(soxr.resample(decoded, rate, sampling_rate, quality="HQ"), total)
    if skip >= len(decoded):
        raise UnreadableAudio(f"{where} ends before sample {start} at {sampling_rate} Hz: start earlier")
    read = decoded[skip:] if samples is None else decoded[skip : skip + samples]
    warn_of_silence(where, read, channel_peak)
    return read
