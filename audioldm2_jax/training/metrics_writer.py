"""Metrics of a stage: a line of JSON and a TensorBoard scalar each, appended as they come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

_FLUSH_SECONDS = 30


class MetricsWriter:
    """Writes to `folder/metrics.jsonl` and to TensorBoard's event files beside it.

    In this thread: tensorboardX's own writer has one, whose errors nobody would see, and which would be waited for.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_half_a_line(self._path)
        self._lines = open(self._path, "ab", buffering=0)
        self._board = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"))
        self._write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of step `step`.

        Raises:
            OSError: for want of space, say; with the file's name, which then ends with the line before.
        """
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        before = self._lines.seek(0, os.SEEK_END)  # not where a line that was cut off again ended
        try:
            if self._lines.write(line) < len(line):
                self._lines.write(line[self._lines.tell() - before :])  # says why the rest was not written
            for name, value in values.items():
                self._write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._board.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._lines.truncate(before)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def best(self, name: str) -> tuple[float, int] | None:
        """Returns the least value of a metric over the whole stage, earlier processes included, and its step."""
        return min(((value, step) for step, value in self._values(name).items()), default=None)

    def last(self, name: str, step: int) -> float | None:
        """Returns the latest value of a metric up to step `step`, earlier processes included."""
        values = {at: value for at, value in self._values(name).items() if at <= step}
        return values[max(values)] if values else None

    def close(self) -> None:
        """Closes the files; what TensorBoard's has no room for is lost, `scalars` has told of it."""
        for file in (self._lines, self._board):
            with contextlib.suppress(OSError):
                file.close()

    def _values(self, name: str) -> dict[int, float]:
        """Returns a metric by step; of a step that was repeated, as it was the last time."""
        values = {}
        with open(self._lines.name, encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # half a line, of a process that was killed
                    continue
                if name in entry:
                    values[entry["step"]] = entry[name]
        return values

    def _write_event(self, event: Event) -> None:
        self._board.write(event.SerializeToString())


def _drop_half_a_line(path: Path) -> None:
    """Cuts off what a process that was killed while it wrote has left behind the last whole line."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
