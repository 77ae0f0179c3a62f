"""Has Apache Beam make shards (beam_pipeline.py): on this machine, or on several that share the folders.

The pipeline returns nothing. A shard that has its name is whole, and why records cannot be read stands in its rows; so
it makes no difference how often, or on how many machines at once, a runner tries a shard, and this process sees in the
folder how far the pipeline is, whichever runner has it.

The pipeline runs in a process of its own, as some runners return only at its end and cannot be interrupted before. What
Beam prints goes to

    OUT/parts/beam.log

which is there until the set is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pyarrow import parquet

from audioldm2_jax.data.example import Source
from audioldm2_jax.data.prepare.options import Options
from audioldm2_jax.data.prepare.shards import PARTS, Plan, digest_of, names_in
from audioldm2_jax.data.prepare.workers import CONTEXT, WorkerError
from audioldm2_jax.runtime import children
from audioldm2_jax.runtime.storage import local_path, scheme_of
from audioldm2_jax.runtime.text_files import shown

LOG = "beam.log"
_POLL = 1.0  # seconds between two looks at which shards are there
_LATE = 60.0  # seconds in which a network file system shows what another machine has written
_CANCEL = 30.0  # seconds in which a service answers that a job is cancelled


def check(arguments: Sequence[str]) -> None:
    """Looks whether Beam is here and takes these options.

    Raises:
        PrepareError: it does not; see `beam_pipeline.pipeline_options`.
        ImportError: it is not installed, or a package that its runner needs.
    """
    _beam_pipeline().pipeline_options(arguments)


def make_shards(
    source: Source, plan: Plan, numbers: Sequence[int], options: Options, told: Callable[[int], None]
) -> Iterator[list[str]]:
    """Makes shards; yields why records of one cannot be read, a line each, as shards get done.

    Args:
        source: of which they are made.
        plan: what is made.
        numbers: of the shards.
        options: by which workers open the source; those of Beam.
        told: how many records are done, every now and then.

    Raises:
        WorkerError: the pipeline failed, or its workers have other folders than this process. What was made stays.
    """
    if not numbers:
        return
    plan = dataclasses.replace(plan, out=plan.out.absolute())  # workers are in other folders
    options = dataclasses.replace(options, source=_absolute(options.source))
    log = plan.out / PARTS / LOG
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(theirs, log, options, plan, digest_of(source), numbers), name="beam")
    process.start()
    theirs.close()
    try:
        yield from _watched(plan, numbers, ours, log, told)
    finally:
        process.terminate()
        process.join(_CANCEL)
        process.kill()
        process.join()


def _beam_pipeline() -> Any:
    """The module that needs Beam.

    Raises:
        ImportError: it is not installed.
    """
    logging.disable(logging.WARNING)  # it warns of services whose packages it does not find
    try:
        from audioldm2_jax.data.prepare import beam_pipeline
    except ImportError as error:
        raise ImportError(f'Apache Beam is not installed: pip install -e ".[beam]" ({error})') from error
    finally:
        logging.disable(logging.NOTSET)
    return beam_pipeline


def _absolute(source: str) -> str:
    scheme = "tfds:" if source.strip().startswith("tfds:") else ""
    named = source.strip().removeprefix(scheme)
    if scheme_of(named):
        return source
    path = local_path(named, "--source")
    return f"{scheme}{path.absolute()}" if path.exists() else source


def _watched(
    plan: Plan, numbers: Sequence[int], ours: connection.Connection, log: Path, told: Callable[[int], None]
) -> Iterator[list[str]]:
    """Follows a pipeline to its end; as `make_shards`."""
    waiting, done, late = {*numbers}, 0, None
    while True:
        if late is None:
            if ours.poll(_POLL):
                if reason := _outcome(ours):
                    raise WorkerError(f"{reason}. {shown(log)} says more")
                late = time.monotonic() + _LATE
        elif not waiting:
            return
        elif time.monotonic() > late:
            raise WorkerError(
                f"the pipeline has ended, and {shown(plan.shard(min(waiting)))} is not there: --out has to be the same "
                "folder on all workers"
            )
        else:
            time.sleep(_POLL)
        made = waiting.difference(plan.missing(names_in(plan.out)))
        waiting -= made
        for number in sorted(made):
            rows = parquet.read_table(plan.part(number), columns=["unreadable"])
            yield [line for line in rows["unreadable"].to_pylist() if line]
            done += len(plan.range_of(number))
        told(done)


def _outcome(ours: connection.Connection) -> str | None:
    """Why the pipeline has failed; None where it has not."""
    try:
        return ours.recv()
    except (EOFError, ConnectionError):
        return "the process that runs the pipeline ended by itself"


def _run(
    theirs: connection.Connection, log: Path, options: Options, plan: Plan, listing: str, numbers: Sequence[int]
) -> None:
    """The life of the process that runs the pipeline; tells why it has failed, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it, too, decides
    children.end_with_parent()
    with log.open("ab") as file:
        for stream in (1, 2):  # also of all that this process starts
            os.dup2(file.fileno(), stream)
    logging.basicConfig(level=logging.INFO)
    pipeline, begun = _beam_pipeline(), []

    def stop(*_: object) -> None:
        for result in begun:
            with contextlib.suppress(Exception):
                result.cancel()
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    try:
        begun.append(pipeline.made(options, plan, listing, numbers).run())
        reason = pipeline.ended(begun[0])
    except Exception as error:
        logging.exception("the pipeline failed")
        reason = pipeline.reason(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    theirs.send(reason)
