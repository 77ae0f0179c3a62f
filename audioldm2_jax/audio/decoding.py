"""Decoding with libsndfile, and what of it cannot be trusted.

What a header says of the length is not: a pipe leaves it open, a broken download keeps that of the whole file.

No JAX here: the processes that load data import this.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator

import numpy as np
import soundfile

from audioldm2_jax.runtime.text_files import shown

# An MP3 frame (at most 1152 samples) borrows bits from earlier ones: after a jump the first few decode wrongly.
_MP3_PREROLL = 16 * 1152
# After a jump into the last page of an OGG file, some hundred samples late come out (libsndfile 1.2.2). A page has at
# most 255 packets, of 1024 samples as libvorbis makes them.
_OGG_LAST_PAGE = 255 * 1024 + 4096
# Values (samples × channels) that are decoded at a time.
_BLOCK = 2**20
# Samples that are read of one file at most: 4 GiB, 18 hours at 16 kHz.
_LONGEST = 2**30
# What libsndfile, the operating system, and NumPy raise where a file is not what its header says.
_DECODING_ERRORS = (soundfile.SoundFileError, OSError, ValueError, TypeError, OverflowError, MemoryError)
# Of libsndfile's log: bytes of sound, as the header says and as there are (WAV, AIFF, AU).
_SIZES = re.compile(r"(?:\bdata|\bSSND|\bData Size)\s*: (\d+) \(should be (\d+)\)")
_UNKNOWN = 0x7FFF0000  # bytes from which a size stands for one that is not known
_SLACK = 4096  # bytes by which a header may be wrong


class UnreadableAudio(ValueError):
    """A file that holds no usable sound. The message names the file and says why."""


class Stream(soundfile.SoundFile):
    """A file that is read from front to back; `seek` works all the same.

    soundfile jumps after every read to where it has just read to, which fails at an end that the header does not know.
    """

    def seekable(self) -> bool:
        return False

    def blocks_of(self, frames: int | None = None) -> Iterator[np.ndarray]:
        """The next so many frames (None: all there are), as [frames, channels] float32."""
        size = max(_BLOCK // self.channels, 1)
        left = sys.maxsize if frames is None else frames
        while left > 0:
            block = self.read(min(size, left), dtype="float32", always_2d=True)
            if not len(block):
                return
            left -= len(block)
            yield block


@contextlib.contextmanager
def opened(path: str | os.PathLike | io.BytesIO, name: str = "") -> Iterator[Stream]:
    """Opens a sound file; whatever goes wrong inside is `UnreadableAudio` with the file's name.

    Args:
        path: the file, or its content.
        name: what messages call a file in memory.
    """
    # A name that is not UTF-8 is opened as it is, and shown with escapes.
    where = name or shown(path)
    try:
        with Stream(path if name else os.fsencode(path)) as file:
            yield file
    except UnreadableAudio:
        raise
    except _DECODING_ERRORS as error:
        if not name and not os.path.exists(path):
            raise UnreadableAudio(f"{where} does not exist: check the path") from error
        if not name and not os.access(path, os.R_OK):
            raise UnreadableAudio(f"{where} may not be read by this user: change its permissions") from error
        raise UnreadableAudio(f"{where} cannot be read as sound ({reason(error)}): remove it or replace it") from error


def frames(source: Callable[[], str | os.PathLike | io.BytesIO], name: str = "") -> tuple[int, int]:
    """Frames that the whole file has, and its own sampling rate in Hz.

    The header says so where the file can be read at the end that it names; else everything is decoded.

    Args:
        source: gives what is to be opened, anew each time.
        name: what messages call a file in memory.

    Raises:
        UnreadableAudio: not there, not a sound file, empty, or damaged so that its end cannot be found.
    """
    with opened(source(), name) as file:
        where, rate = name or shown(source()), file.samplerate
        _check_whole(file, where)
        frames = file.frames if _ends_as_said(file) else 0
    if not frames:
        with opened(source(), name) as file:
            frames = _count(file, where)
    if frames < 1:
        raise UnreadableAudio(f"{where} holds no samples: remove it or replace it")
    return frames, rate


def decode(file: Stream, offset: int, count: int | None, sampling_rate: int) -> tuple[np.ndarray, float]:
    """Returns at most `count` samples (None: all) from `offset`, channels averaged, and the peak of the channels.

    Args:
        file: from `opened`.
        offset, count: at the file's own rate, of which the samples are.
        sampling_rate: Hz of what becomes of them, which decides how many are too many.

    Raises:
        ValueError: more than `_LONGEST` samples at `sampling_rate`.
    """
    if offset >= file.frames:
        return np.zeros(0, np.float32), 0.0
    most, preroll = _LONGEST * file.samplerate // sampling_rate, _preroll(file, offset)
    found, peak = _decode_from(file, offset, preroll, count, most)
    if preroll and not len(found):  # damaged on the way
        found, peak = _decode_from(file, offset, 0, count, most)
    return found, peak


def blocks(file: Stream, offset: int, count: int | None) -> Iterator[np.ndarray]:
    """Yields at most `count` frames (None: all) from `offset`, in blocks [frames, channels] float32 that are not empty.

    Args:
        file: from `opened`.
        offset, count: at the file's own rate.
    """
    yield from _blocks_from(file, offset, _preroll(file, offset), count)


def to_mono(channels: np.ndarray) -> np.ndarray:
    """The mean over the channels of [samples, channels], float32 [samples]."""
    return channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)


def reason(error: Exception) -> str:
    """What went wrong, in one line that says something."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _ends_as_said(file: Stream) -> bool:
    """Whether the last frame that the header promises can be decoded."""
    if file.frames < 1:
        return False
    try:
        file.seek(file.frames - 1)
        return len(file.read(1, dtype="float32", always_2d=True)) == 1
    except _DECODING_ERRORS:
        return False


def _check_whole(file: Stream, where: str) -> None:
    """Raises UnreadableAudio for a file without compression that ends long before its header says, as half a download.

    libsndfile takes what there is and notes both sizes in its log. Where the length was not known when the header was
    written, as in a pipe, that says about 2 or 4 GiB.
    """
    found = _SIZES.search(file.extra_info)
    if found and (said := int(found[1])) < _UNKNOWN and (there := int(found[2])) < said - _SLACK:
        raise UnreadableAudio(
            f"{where} is damaged or incomplete ({there} of its {said} bytes of sound are there): download or make "
            "it again, or remove it"
        )


def _count(file: Stream, where: str) -> int:
    """Frames that can be decoded. A file that ends within a frame, as half a download does, is refused."""
    frames = 0
    try:
        for block in file.blocks_of():
            frames += len(block)
    except _DECODING_ERRORS as error:
        raise UnreadableAudio(
            f"{where} is damaged or incomplete ({reason(error)} about {frames / file.samplerate:.1f} s in): "
            "download or make it again, or remove it"
        ) from error
    return frames


def _preroll(file: Stream, offset: int) -> int:
    """Frames before `offset` that have to be decoded for those from there on to be right."""
    if file.format == "MP3":
        return min(offset, _MP3_PREROLL)
    if file.format == "OGG":
        return offset - min(offset, max(file.frames - _OGG_LAST_PAGE, 0))
    return 0


def _decode_from(file: Stream, offset: int, preroll: int, count: int | None, most: int) -> tuple[np.ndarray, float]:
    """As `decode`, from `preroll` samples before `offset`, which are left out."""
    parts, read, peak = [], 0, 0.0
    for block in _blocks_from(file, offset, preroll, count):
        read += len(block)
        if read > most:
            raise ValueError(f"it is longer than the {_LONGEST:,} samples that are read at once")
        if file.channels > 1:
            peak = max(peak, float(np.abs(block).max()))
        parts.append(to_mono(block))
    return (np.concatenate(parts) if parts else np.zeros(0, np.float32)), peak


def _blocks_from(file: Stream, offset: int, preroll: int, count: int | None) -> Iterator[np.ndarray]:
    """As `blocks`, from `preroll` frames before `offset`, which are left out."""
    if offset:
        file.seek(offset - preroll)
    for block in file.blocks_of(None if count is None else preroll + count):
        left, preroll = block[preroll:], max(preroll - len(block), 0)
        if len(left):
            yield left
