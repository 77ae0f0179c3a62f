"""Long recordings in pieces, cut where they are silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_FRAME = 0.02  # seconds from one frame to the next, of which each is twice as long
_SILENT = 40.0  # dB below the loudest frame


def cut(blocks: Iterable[np.ndarray], most: int, rate: int) -> Iterator[np.ndarray]:
    """Cuts a sound into pieces; what fits into one stays whole.

    A cut lies in the middle of the longest stretch that is 40 dB below the loudest frame, or where there is none, of
    the quietest frame. It leaves at least a quarter of `most` on either side.

    Args:
        blocks: the sound from front to back, [samples] each. How it is divided into blocks makes no difference.
        most: samples of a piece.
        rate: Hz.

    Yields:
        the pieces, at most [most].
    """
    waiting = np.zeros(0, np.float32)
    ahead = most + most // 2  # what is looked at, so that a cut leaves no short rest
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while len(waiting) > ahead:
            place = _place(waiting[:ahead], most // 2, most, rate)
            yield waiting[:place]
            waiting = waiting[place:]
    while len(waiting) > most:
        place = _place(waiting, most // 2, min(most, len(waiting) - most // 4), rate)
        yield waiting[:place]
        waiting = waiting[place:]
    if len(waiting):
        yield waiting


def _place(waveform: np.ndarray, first: int, last: int, rate: int) -> int:
    """Where to cut a waveform, between two of its samples."""
    import librosa

    hop = max(min(int(_FRAME * rate), (last - first) // 4), 1)
    levels = librosa.feature.rms(y=waveform, frame_length=2 * hop, hop_length=hop, center=False)[0]
    centres = hop * (1 + np.arange(len(levels)))
    within = (centres >= first) & (centres <= last)
    silent = within & (levels < levels.max() * 10 ** (-_SILENT / 20))
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return int(centres[within][levels[within].argmin()])
    longest = int((ends - starts).argmax())
    return int(centres[starts[longest]] + centres[ends[longest] - 1]) // 2
