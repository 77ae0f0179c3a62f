"""Metrics are whole lines, and a full disk is an error of the one who writes, in this thread and at once."""

import errno
import json
import resource
import struct
import subprocess
import sys

from tensorboardX.proto.event_pb2 import Event

from audioldm2_jax.training.metrics_writer import MetricsWriter


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_and_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2):
        writer.scalars(step, {"loa/loss": 0.5 / step, "rate": 3.0})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loa/loss": 0.5, "rate": 3.0}, {"step": 2, "loa/loss": 0.25, "rate": 3.0}]
    (file,) = tmp_path.glob("events.out.tfevents.*")
    found = [(value.tag, event.step, value.simple_value) for event in events(file) for value in event.summary.value]
    assert found == [("loa/loss", 1, 0.5), ("rate", 1, 3.0), ("loa/loss", 2, 0.25), ("rate", 2, 3.0)]


def events(file):
    """The events of a TensorBoard file: records of length, checksum, content, checksum."""
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack_from("Q", content)
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_half_a_line_of_a_killed_process_goes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    writer = MetricsWriter(tmp_path)
    writer.scalars(2, {"loss": 1.0})
    writer.close()
    assert lines(tmp_path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


FULL = """
import resource, signal, sys
from pathlib import Path
from audioldm2_jax.training.metrics_writer import MetricsWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = MetricsWriter(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
errors = []
for step in range(50):
    try:
        writer.scalars(step, {"loss": 1.0})
    except OSError as error:
        errors.append((error.errno, error.filename))
print(len((Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()), *sorted({*errors}))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.scalars(50, {"loss": 1.0})
writer.close()
"""


def test_what_a_full_disk_has_no_room_for_is_told_and_written_later(tmp_path):
    """tensorboardX's thread died of it with a traceback, and the run waited for it for ever."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    whole, error = done.stdout.strip().split(" ", 1)
    assert 3 < int(whole) < 50 and not done.stderr
    assert error.endswith(str((errno.EFBIG, str(tmp_path / "metrics.jsonl"))))
    assert [line["step"] for line in lines(tmp_path)] == [*range(51)]
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert [event.step for event in events(file) if event.summary.value] == [*range(51)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_half_a_line_is_cut_off_where_there_is_no_room(tmp_path, monkeypatch):
    """The file was written anew, and a full disk took all of it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    MetricsWriter(tmp_path).close()
    assert lines(tmp_path) == [{"step": 1}]
