"""Sentences spoken by espeak-ng, in the library that the package espeakng-loader brings along.

What espeak-ng says depends on what it said before: where it stands in its table of wavering pitch, the noise of breath
and the phase of a voice are static variables in C that nothing sets back (espeak-ng: src/libespeak-ng/wavegen.c,
Flutter_ix and others). So every text is spoken by a copy of the library that is loaded for it alone, which takes two
milliseconds: the same text has the same samples in every process, thread and order, and whoever else uses the library
in this process (phonemizer) does not matter.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SAMPLING_RATE = 22050
"""Of espeak-ng's voices, Hz."""

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_QUIET = 0.01  # of the peak: what is less before the first and after the last word is the pause around a sentence
_LOCK = threading.Lock()  # one copy at a time
_LISTENER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@contextmanager
def speech_packages() -> Iterator[None]:
    """Turns the error of an import into one line that says what to install.

    Raises:
        ImportError: a package of the extra `speech` is missing; says which.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"Speech needs {error.name}, which is not installed: pip install espeakng-loader phonemizer unidecode"
            ", or the extra `speech` of this package."
        ) from None


def speak(text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """Speaks a text.

    Args:
        text: of any number of sentences.
        voice: of espeak-ng, with a variant or without, such as "en-us+f2".
        rate: words a minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own.

    Returns:
        [samples] float32 at `SAMPLING_RATE` in −1..1, from the first sound to the last.

    Raises:
        ImportError: espeakng-loader is missing.
        ValueError: espeak-ng has no such voice, or says nothing to the text.
        RuntimeError: espeak-ng does not start.
    """
    with speech_packages():
        import espeakng_loader
    data = espeakng_loader.get_data_path()
    with _LOCK, _copy(espeakng_loader.get_library_path()) as library:
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT) != SAMPLING_RATE:
            raise RuntimeError(f"espeak-ng does not start with its data in {data}: install espeakng-loader anew")
        spoken = _record(library, text, voice, rate, pitch)
    loud = np.flatnonzero(np.abs(spoken) > _QUIET * np.abs(spoken).max(initial=0.0))
    if not len(loud):
        raise ValueError(f"espeak-ng says nothing to the text {text!r}")
    return spoken[loud[0] : loud[-1] + 1]


@contextmanager
def _copy(path: str) -> Iterator[ctypes.CDLL]:
    """A copy of the library with all its variables as they are at first; a second loading of one file is the first."""
    from _ctypes import dlclose  # ctypes itself never unloads

    with tempfile.TemporaryDirectory(prefix="espeak-ng") as folder:
        library = ctypes.CDLL(shutil.copy(path, Path(folder) / Path(path).name))
        try:
            yield library
        finally:
            dlclose(library._handle)


def _record(library: ctypes.CDLL, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """Lets the initialised library speak; returns all that it says, with pauses, and ends it."""
    pieces = []

    def listen(samples: int | None, count: int, events: int | None) -> int:
        if samples:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    listener, utf8 = _LISTENER(listen), text.encode() + b"\0"
    library.espeak_SetSynthCallback(listener)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # initialising takes it from the clock
    try:
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        if library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 0, 0, _UTF8, None, None):
            raise ValueError(f"espeak-ng cannot speak the text {text!r}")
    finally:
        library.espeak_Terminate()
    return np.frombuffer(b"".join(pieces), "<i2").astype(np.float32) / 32768.0
