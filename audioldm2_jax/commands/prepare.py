"""Recordings to a data set that is read fast: %(prog)s --source /your/recordings --out /data/prepared

--source takes what --config.data.source takes, but for mixtures and the embedded corpora. What is written are records
in ArrayRecord, which TensorFlow Datasets reads without TensorFlow, a table of the recordings with their measures, and a
report: report.md, report.json, report.png. Training reads it with --config.data.source=tfds:/data/prepared.

Where one machine is not enough, --beam has Apache Beam make the shards, by the options that follow it. All workers need
this package and see both folders under the same paths:

%(prog)s --source /your/recordings --out /data/prepared --beam --runner=FlinkRunner --flink_master=HOST:8081 …

With --cache and the flags of training it makes the features that a recipe's stages train from instead, and trains
nothing; on several hosts the same command runs on each, and each makes its share:

%(prog)s --cache --config music:base --config.data.source=tfds:/data/prepared --config.data.cache=/data/cache

It can be interrupted at any time, also by kill -9: the same command goes on where it stopped.
"""

import argparse
import contextlib
import os
import sys
import time

from audioldm2_jax.commands import train
from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import error_log, storage, warnings_once


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command_line("prepare"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", required=True, help="a folder of recordings, or whatever else holds data")
    parser.add_argument(
        "--out",
        required=True,
        help="the folder of the data set, which is new or empty, or its address on gs:// or s3://",
    )
    parser.add_argument("--sampling_rate", type=int, default=16000, help="Hz of the records (%(default)s)")
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=600.0,
        help="longer recordings are cut where they are silent, into records of at most so many seconds, which have no "
        "transcription (%(default)g; reading a record reads all of it)",
    )
    parser.add_argument("--shard_records", type=int, default=0, help="recordings a shard (by their number, 32 to 1024)")
    parser.add_argument(
        "--workers",
        type=int,
        help=f"processes (one a core, {_cores()}); 0: this one alone. What is made does not depend on it",
    )
    parser.add_argument("--audio_feature", default="", help="the feature or column that holds the sound")
    parser.add_argument("--text_feature", default="", help="the feature or column that holds the captions")
    parser.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        help="options of Apache Beam, which makes the shards in the place of --workers: all that follows it",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--cache" in arguments:
        return train.main([one for one in arguments if one != "--cache"], caches_only=True)
    options = flags().parse_args(arguments)
    if options.workers is None:
        options.workers = _cores() if options.beam is None else 0
    options.beam = None if options.beam is None else tuple(options.beam)
    error_log.escape_output()
    warnings_once.show_plainly()

    from audioldm2_jax.data.prepare import job, report
    from audioldm2_jax.data.prepare.workers import WorkerError
    from audioldm2_jax.runtime.lock import LockedError
    from audioldm2_jax.training.progress import Screen

    try:
        with Screen() as screen:
            made = job.prepare(job.Options(**vars(options)), _Speed(screen), screen.say)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what was made", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, LockedError, WorkerError) as error:
        # What opens a source names the flags of training.
        print(f"error: {error_log.describe(error).replace('--config.data.', '--')}", file=sys.stderr)
        return 1
    for line in report.summary(made):
        print(line)
    print(
        f"{os.path.join(options.out, report.TEXT)} says more. Train with --config.data.source=tfds:{_full(options.out)}"
    )
    return 0


class _Speed:
    """Shows how many recordings are done, and how many a second since this process began."""

    def __init__(self, screen) -> None:
        self._screen, self._began = screen, time.monotonic()
        self._first = self._shown = None

    def __call__(self, done: int, total: int) -> None:
        from audioldm2_jax.training.progress import Count

        if self._first is None:
            self._first = self._shown = done
        if done == self._shown:
            return
        self._shown = done
        rate = (done - self._first) / (time.monotonic() - self._began)
        self._screen.report(Count("prepare", done, total, rate, (total - done) / rate, "recording"))


def _full(path: str) -> str:
    if storage.scheme_of(path):
        return path.strip().rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


def _cores() -> int:
    with contextlib.suppress(AttributeError):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
