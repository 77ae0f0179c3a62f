"""What opening a source of very many records takes, in seconds and memory.

    python benchmarks/sources.py files --records 100000 --folder /tmp/recordings
    python benchmarks/sources.py index --records 10000000 --folder /tmp/index

`files` writes that many recordings of a second with captions in metadata.jsonl, where they are not there yet, and opens
them without an index, with one, and after one file has changed. `index` writes the index of that many records, without
the recordings, opens it as a worker process does, and draws records from it. Each opening is a process of its own.
Seconds are of the clock and of the processor. Memory is what the process has at most beyond that of its imports, with
the pages of files that are mapped into it, and then what is its own.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags

from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.records import Records
from audioldm2_jax.data.table import Row, Table, batches_of
from audioldm2_jax.runtime.storage import OWN_FOLDER

_RECORDS = flags.DEFINE_integer("records", 100_000, "How many.")
_DATA = flags.DEFINE_string("folder", "", "Where they are written.")
_A_FOLDER = 1000  # recordings


def main(argv: list[str]) -> None:
    """Measures one thing, or in a process of its own one opening."""
    what = {"files": _files, "index": _index, "open": _open, "draw": _draw}.get(argv[1] if argv[1:] else "")
    if what is None or not _DATA.value:
        raise app.UsageError("name files or index, and --folder")
    what(Path(_DATA.value))


def _files(folder: Path) -> None:
    if not (folder / "metadata.jsonl").exists():
        _write_recordings(folder, _RECORDS.value)
        time.sleep(3)  # or the index would not trust times of modification that are as young as itself
    shutil.rmtree(folder / OWN_FOLDER, ignore_errors=True)
    _apart("open", folder, "without an index")
    _apart("open", folder, "with its index")
    first = next(folder.glob("*/*.wav"))
    os.utime(first, (time.time() - 60, time.time() - 60 + np.random.default_rng().random()))
    _apart("open", folder, "one file has changed")


def _write_recordings(folder: Path, count: int) -> None:
    wave, file = 0.3 * np.random.default_rng(0).standard_normal(16000), io.BytesIO()
    soundfile.write(file, wave, 16000, format="WAV", subtype="PCM_U8")
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl.partial").open("w") as metadata:
        for number in range(count):
            name = f"{number // _A_FOLDER:05d}/{number:08d}.wav"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(file.getvalue())
            metadata.write(json.dumps({"file_name": name, "text": _caption(number)}) + "\n")
    os.rename(folder / "metadata.jsonl.partial", folder / "metadata.jsonl")


def _caption(number: int) -> str:
    return f"noise number {number % 1000} of kind {number // 1000}, recorded in a room"


def _index(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_RECORDS.value}.arrow"
    if not path.exists():
        rows = (
            Row(f"{n // _A_FOLDER:05d}/{n:08d}.wav", [16000, 16000], Texts((_caption(n),)), None, n + 1, n + 1)
            for n in range(_RECORDS.value)
        )
        with path.with_suffix(".partial").open("wb") as file:
            Table.write(file, batches_of(rows), {})
        os.rename(path.with_suffix(".partial"), path)
    print(f"{path.stat().st_size / _RECORDS.value:.0f} bytes a record in the file")
    _apart("draw", path, "its index alone")


def _apart(what: str, place: Path, title: str) -> None:
    arguments = [sys.executable, __file__, what, f"--folder={place}"]
    print(
        f"{title}: {subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()}", flush=True
    )


def _open(folder: Path) -> None:
    before, clock, cpu = _memory(), time.perf_counter(), time.process_time()
    source = Folder(folder, "train", 16000, 0.02)
    print(
        f"{len(source)} records, {time.perf_counter() - clock:.1f} s (processor {time.process_time() - cpu:.1f} s), "
        f"{_beyond(before)}, {len(pickle.dumps(source))} bytes to a worker"
    )


def _draw(path: Path) -> None:
    before, clock = _memory(), time.perf_counter()
    source = Records(path.parent, Table.read(path), "train", 16000, 0.02)
    opening, clock = time.perf_counter() - clock, time.perf_counter()
    draws = 10_000
    for number in range(draws):
        index = source.draw(number, 0)
        source.names[index], source.text(index), source._places[index]
    drawing = (time.perf_counter() - clock) / draws
    clock = time.perf_counter()
    source.listing_digest()
    print(
        f"{len(source)} records, opened in {opening:.1f} s, a draw with name, caption and place "
        f"{drawing * 1e6:.0f} µs, the digest for other hosts {time.perf_counter() - clock:.1f} s, {_beyond(before)}, "
        f"{len(pickle.dumps(source))} bytes to a worker"
    )


def _memory() -> tuple[int, int]:
    """What this process has at most, and its own memory without that of files now, both in KiB."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]), int(status["RssAnon"].split()[0])


def _beyond(before: tuple[int, int]) -> str:
    most, own = ((now - then) / 1024 for now, then in zip(_memory(), before))
    return f"{most:.0f} MB more at most, {own:.0f} MB of its own in the end"


if __name__ == "__main__":
    app.run(main)
