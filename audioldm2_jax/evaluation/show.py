"""What a run has to show: sounds as files, mels as pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audioldm2_jax.audio import files


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
    """Draws mels [clips, frames, bands] as a grid: a row a name, a column a clip, on one scale of loudness."""
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
                axis.set_title("\n".join(textwrap.wrap(title, 34)[:3]), fontsize=8)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
