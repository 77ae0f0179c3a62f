"""The pipeline of Apache Beam that makes shards:

    Create(numbers of shards) → Reshuffle → make

On a worker, a process beside Beam's own reads the recordings: a decoder that crashes would take Beam's process with it,
for which its local runner waits forever.
"""

from __future__ import annotations

import contextlib
import io
import platform
import re
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, StandardOptions
from apache_beam.runners import create_runner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from audioldm2_jax.data import prepared
from audioldm2_jax.data.prepare import report
from audioldm2_jax.data.prepare.options import Options, PrepareError, open_all
from audioldm2_jax.data.prepare.shards import Plan, digest_of
from audioldm2_jax.data.prepare.workers import CONTEXT, Worker, WorkerError
from audioldm2_jax.runtime.text_files import shown

#: How the error of a worker stands in the text that runners make of it: as the last line of a stack.
_ERROR = re.compile(rf"{WorkerError.__name__}: (.+?)(?: \[while running .*)?$", re.MULTILINE)


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options, as typed.

    Raises:
        PrepareError: one of them is not known, or has no such value; there is no such runner.
        ImportError: the runner needs a package that is not installed.
    """
    parsers: list[Any] = []
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            options = PipelineOptions([*arguments])
            options.get_all_options(add_extra_args_fn=parsers.append)
    except SystemExit:
        *_, last = said.getvalue().strip().splitlines() or ["?"]
        raise PrepareError(f"--beam: {last.partition('error: ')[2] or last}") from None
    try:
        runner = create_runner(options.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER)
    except ValueError as error:
        raise PrepareError(f"--beam: {error}") from error
    _, unknown = parsers[0].parse_known_args([*arguments])
    if unknown and not isinstance(runner, PortableRunner):  # whose job servers have options of their own
        raise PrepareError(f"--beam: {' '.join(unknown)} is no option of Beam; all that follows --beam has to be one")
    # Decoding takes a core: more shards at a time than Beam has processes would take memory alone.
    debug = options.view_as(DebugOptions)
    debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or 1
    return options


def made(options: Options, plan: Plan, listing: str, numbers: Sequence[int]) -> apache_beam.Pipeline:
    """A pipeline that makes shards.

    Args:
        options: by which workers open the source; those of Beam.
        plan: what is made; its folder is the same on all workers.
        listing: `digest_of` the source that the process that began has opened.
        numbers: of the shards.
    """
    pipeline = apache_beam.Pipeline(options=pipeline_options(options.beam or ()))
    spread = pipeline | "numbers" >> apache_beam.Create([*numbers]) | "spread" >> apache_beam.Reshuffle()
    _ = spread | "make shards" >> apache_beam.ParDo(MakeShard(options, plan, listing))
    return pipeline


def ended(result: PipelineResult) -> str | None:
    """Waits for the end of a pipeline; why it has failed, or None.

    Raises:
        RuntimeError, and whatever else runners raise: it has failed; see `reason`.
    """
    state = result.wait_until_finish() or result.state
    return None if state == PipelineState.DONE else f"the pipeline ended as {state}"


def reason(error: Exception) -> str:
    """The error of a worker, or of a runner, as one line. Runners give the former on as text, with its stack."""
    text = str(error)
    if found := _ERROR.search(text):
        return found[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"the pipeline failed: {lines[-1] if lines else type(error).__name__}"


class MakeShard(apache_beam.DoFn):
    """The number of a shard → the shard, in the folder, and nothing in the pipeline."""

    def __init__(self, options: Options, plan: Plan, listing: str) -> None:
        """Args: as of `made`."""
        super().__init__()
        self._options, self._plan, self._listing = options, plan, listing
        self._worker: Worker | None = None
        self._recordings = Metrics.counter("prepare", "recordings")
        self._unreadable = Metrics.counter("prepare", "unreadable")

    def setup(self) -> None:
        """Opens the source, which has to be the one that the process that began has opened."""
        with _in_one_line():
            report.check_libraries()
            if not (self._plan.out / prepared.STATE).is_file():
                raise WorkerError(
                    f"{shown(self._plan.out)} is not there: --out has to be the same folder on all workers"
                )
            source = open_all(self._options)
            if digest_of(source) != self._listing:
                raise WorkerError(
                    f"{shown(self._options.source)} holds other recordings or texts there: --source has to be the same "
                    "on all workers, and not to change"
                )
            self._worker = Worker(source, self._plan, CONTEXT.Value("q", 0))

    def process(self, number: int) -> None:
        """Makes a shard unless another try has made it."""
        if self._plan.is_made(number):
            return
        with _in_one_line():
            self._worker.ours.send(number)
            problems = self._worker.answer()
        self._recordings.inc(len(self._plan.range_of(number)))
        self._unreadable.inc(len(problems))

    def teardown(self) -> None:
        """Lets the process beside go."""
        if self._worker is not None:
            self._worker.end()


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Gives errors that a person can do something about the form that `reason` finds.

    Raises:
        WorkerError: in their place, with the machine's name.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, WorkerError) as error:
        raise WorkerError(f"{' '.join(str(error).split())} (on {platform.node()})") from error
