"""Sound files in and out: WAV, FLAC, OGG and MP3 of any rate and channel count.

No JAX here: the processes that load data import this.
"""

import io
import logging
import math
import os
import uuid
from pathlib import Path

import numpy as np
import soundfile
import soxr

# Input samples (of the lower rate) that are decoded on either side of a segment, so that the resampling
# filter sees the same neighbours as when the whole file is read.
_FILTER_REACH = 256
# An MP3 frame (at most 1152 samples) borrows bits from earlier ones: after a jump the first few decode wrongly.
_MP3_PREROLL = 16 * 1152


class UnreadableAudio(ValueError):
    """A file that holds no usable sound. The message names the file and says why."""


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
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            return _read_open(file, path, sampling_rate, start, samples)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(path, error) from error


def length(path: str | os.PathLike, sampling_rate: int) -> int:
    """Samples that the whole file has at `sampling_rate`, from its header alone.

    Raises:
        UnreadableAudio: not there, not a sound file, or empty.
    """
    try:
        info = soundfile.info(os.fspath(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(path, error) from error
    if info.frames < 1:
        raise UnreadableAudio(f"{path} holds no samples: remove it or replace it")
    return -(-info.frames * sampling_rate // info.samplerate)


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
        ValueError: NaN or infinite samples, no samples, or a subtype that the format does not have.
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
    soundfile.write(encoded, waveform, sampling_rate, subtype=subtype, format=form)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(encoded.getbuffer())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_open(
    file: soundfile.SoundFile, path: str | os.PathLike, sampling_rate: int, start: int, samples: int | None
) -> np.ndarray:
    common = math.gcd(file.samplerate, sampling_rate)
    up, down = sampling_rate // common, file.samplerate // common
    if up == down:
        margin = 0
    else:
        margin = math.ceil(_FILTER_REACH * max(1, file.samplerate / sampling_rate))
    # Decoding starts where a sample of the file and one of the result fall together: every `down` of the one
    # and `up` of the other. So a segment is the same sound as that stretch of the whole file.
    first_period = max(0, start // up - -(-margin // down))
    offset = first_period * down
    count = -1 if samples is None else -(-(start + samples) * down // up) + margin - offset
    decoded = _decode(file, offset, count)
    if len(decoded) == 0:
        why = "holds no samples" if start == 0 else f"ends before sample {start} at {sampling_rate} Hz"
        raise UnreadableAudio(f"{path} {why}: remove it or replace it")
    if not np.isfinite(decoded).all():
        raise UnreadableAudio(f"{path} holds NaN or infinite samples: remove it or replace it")
    skip = start - first_period * up
    if up != down:
        total = -(-len(decoded) * up // down)
        resampled = soxr.resample(decoded, file.samplerate, sampling_rate, quality="HQ")
        decoded = segment(resampled, total)
    if skip >= len(decoded):
        raise UnreadableAudio(f"{path} ends before sample {start} at {sampling_rate} Hz: start earlier")
    return decoded[skip:] if samples is None else decoded[skip : skip + samples]


def _decode(file: soundfile.SoundFile, offset: int, count: int) -> np.ndarray:
    """At most `count` samples (-1: all) from `offset` at the file's own rate, channels averaged."""
    if offset >= file.frames:
        return np.zeros(0, np.float32)
    preroll = offset
    if file.seekable():
        preroll = min(offset, _MP3_PREROLL if file.format == "MP3" else 0)
        file.seek(offset - preroll)
    # In one go: soundfile itself jumps after every read.
    decoded = file.read(count if count < 0 else preroll + count, dtype="float32", always_2d=True)[preroll:]
    return decoded[:, 0] if file.channels == 1 else decoded.mean(axis=1)


def _unreadable(path: str | os.PathLike, error: Exception) -> UnreadableAudio:
    if not os.path.exists(path):
        return UnreadableAudio(f"{path} does not exist: check the path")
    return UnreadableAudio(f"{path} cannot be read as sound ({error}): remove it or replace it")
