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
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
failed = 0
for step in range(1000):
    try:
        writer.scalars(step, {"loss": 1.0})
    except OSError as error:
        failed += 1
        if failed == 1:
            print(error.errno, error.filename)
        if failed == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.close()
"""


def test_a_full_disk_is_told_at_once_and_leaves_whole_lines(tmp_path):
    """Also where it is full for several lines, and then no more.

    tensorboardX's thread died of it with a traceback, and the run waited for it for ever.
    """
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'metrics.jsonl'}\n" and not done.stderr
    steps = [line["step"] for line in lines(tmp_path)]
    first = next(step for step, found in enumerate(steps) if step != found)
    assert 3 < first < 100 and steps == [*range(first), *range(first + 5, 1000)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
