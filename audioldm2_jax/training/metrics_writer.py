"""Metrics of a stage: a line of JSON and a TensorBoard scalar each, appended as they come."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Writes to `folder/metrics.jsonl` and to TensorBoard's event files beside it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), flush_secs=30)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of step `step`."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sound(self, step: int, name: str, waveform: np.ndarray, sampling_rate: int) -> None:
        """Writes one clip [samples] to TensorBoard."""
        self._board.add_audio(name, waveform[:, None], step, sample_rate=sampling_rate)

    def best(self, name: str) -> tuple[float, int] | None:
        """Returns the least value of a metric over the whole stage, earlier processes included, and its step."""
        values = {}
        with open(self._lines.name, encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # half a line, of a process that was killed
                    continue
                if name in entry:
                    values[entry["step"]] = entry[name]  # a step that was repeated counts as it was the last time
        return min(((value, step) for step, value in values.items()), default=None)

    def close(self) -> None:
        self._lines.close()
        self._board.close()
