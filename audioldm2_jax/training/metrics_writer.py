"""Metrics of a stage: a line of JSON and a TensorBoard scalar each, appended as they come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


class MetricsWriter:
    """Writes to `folder/metrics.jsonl` and to TensorBoard's event files beside it.

    In this thread: tensorboardX's own writer has one, whose errors nobody would see, and which would be waited for.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_half_a_line(path)
        self._lines = _Appended(path)
        self._board = _Appended(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")
        self._board.add(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of step `step`, and those that could not be written before.

        Raises:
            OSError: for want of space, say; with the file's name. What it has no room for is kept for the next call.
        """
        self._lines.add((json.dumps({"step": step, **values}) + "\n").encode())
        for name, value in values.items():
            event = Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value))
            self._board.add(_record(event))
        self.flush()

    def flush(self) -> None:
        """Writes what could not be written before; raises as `scalars`."""
        for file in (self._lines, self._board):
            file.flush()

    def best(self, name: str) -> tuple[float, int] | None:
        """Returns the least value of a metric over the whole stage, earlier processes included, and its step."""
        return min(((value, step) for step, value in self._values(name).items()), default=None)

    def last(self, name: str, step: int) -> float | None:
        """Returns the latest value of a metric up to step `step`, earlier processes included."""
        values = {at: value for at, value in self._values(name).items() if at <= step}
        return values[max(values)] if values else None

    def close(self) -> None:
        """Closes the files; what they have no room for is lost, `scalars` has told of it."""
        for file in (self._lines, self._board):
            file.close()

    def lines(self) -> Iterator[dict[str, float]]:
        """Yields what was logged, in the order of writing, earlier processes included."""
        with open(self._lines.path, encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # half a line, of a process that was killed
                    yield json.loads(line)

    def _values(self, name: str) -> dict[int, float]:
        """Returns a metric by step; of a step that was repeated, as it was the last time."""
        return {entry["step"]: entry[name] for entry in self.lines() if name in entry}


class _Appended:
    """A file that grows by whole pieces: those that there is no room for wait, in their order."""

    def __init__(self, path: Path):
        self.path = path
        self._file, self._waiting = open(path, "ab", buffering=0), b""

    def add(self, piece: bytes) -> None:
        self._waiting += piece

    def flush(self) -> None:
        """Writes what waits, all of it or nothing; raises OSError with the file's name."""
        before, written = os.fstat(self._file.fileno()).st_size, 0
        try:
            while written < len(self._waiting):
                written += self._file.write(self._waiting[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._waiting = b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()
        with contextlib.suppress(OSError):
            self._file.close()


def _record(event: Event) -> bytes:
    """Returns an event as TensorBoard's files have it, which are TFRecord files: length, content, checksums."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checksums) + content + next(checksums)


def _drop_half_a_line(path: Path) -> None:
    """Cuts off what a process that was killed while it wrote has left behind the last whole line."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)  # needs no room, other than writing it anew
