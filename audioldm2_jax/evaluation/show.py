"""What a run has to show: sounds as files, mels as pictures."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audioldm2_jax.audio import files
from audioldm2_jax.runtime.text_files import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_samples(folder: Path, made: Mapping[str, np.ndarray], sampling_rate: int) -> None:
    """Writes what a stage's `sample` returned: `*_waveform` as WAV files, all `*_mel` as rows of one picture."""
    if not made:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, waveforms in made.items():
        if name.endswith("_waveform"):
            for number, waveform in enumerate(waveforms):
                path = folder / f"{name.removesuffix('_waveform')}-{number}.wav"
                files.write(path, waveform, sampling_rate)
    mels = {name.removesuffix("_mel"): mel for name, mel in made.items() if name.endswith("_mel")}
    if mels:
        draw_mels(folder / "mels.png", mels, [""] * len(next(iter(mels.values()))))


def draw_mels(path: Path, rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> None:
    """Draws mels [clips, frames, bands] as a grid: a row a name, a column a clip, on one scale of loudness.

    A picture is never worth a run: where it cannot be drawn, or written, that is logged and there is none.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            _grid(rows, titles).savefig(partial, dpi=110, format="png")
        partial.replace(path)
    except Exception as error:
        partial.unlink(missing_ok=True)
        logging.warning("%s is not drawn: %s", path, str(error) or type(error).__name__)


def _grid(rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    clips = len(titles)
    figure = Figure(figsize=(2.6 * clips, 2.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), clips, squeeze=False)
    low = min(float(mel.min()) for mel in rows.values())
    high = max(float(mel.max()) for mel in rows.values())
    for row, (name, mels) in enumerate(rows.items()):
        for column, (mel, title) in enumerate(zip(mels, titles)):
            axis = axes[row, column]
            axis.imshow(mel.T, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name)
            if row == 0:
                # A caption is text: its $ begin no formulas, and what no font here has is drawn as boxes.
                wrapped = textwrap.wrap(printable(title).replace("\0", ""), 34)[:3]
                axis.set_title("\n".join(wrapped), fontsize=8, parse_math=False, usetex=False)
    return figure
