"""What a training on two processes loses when they are killed, and whether it ends where an undisturbed one does.

    python benchmarks/chaos.py --kills 20

Two processes of this machine, which find each other over the loopback as hosts do, train a stage of a few numbers
(tests/toy_run.py) on a folder of recordings, one of which is damaged, with every weight split over both. One after the
other they get

- SIGKILL, one or both, at random moments: at work, in the middle of a save, while they start;
- SIGTERM, as on preemption;
- a newest checkpoint of which a file is cut short, gone, or has a bit that is flipped;
- a full disk, where this is root and may mount a small one;
- SIGSTOP, and a process that hangs in its own code.

After each they are started again by the same command, as a scheduler would. In the end all numbers of the state, those
of the optimiser and the average too, have to be those of the undisturbed run, to the bit. A line an event: how often,
the steps that had to be done again (most and mean), the seconds from the event to the first new step, and whether exit
codes and messages were as they should be. Exits with 1 where one was not.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from processes import Job, by_variables

from audioldm2_jax.audio import files
from audioldm2_jax.runtime.watch import RESTART

_KILLS = flags.DEFINE_integer("kills", 20, "How often processes are killed.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_FOLDER = flags.DEFINE_string("folder", "", "Where the runs are; empty: a temporary folder, deleted at the end.")
_HEARTBEAT = 12  # seconds
_STALL = 6
_SAVE = 10  # steps between two saves


class Wrong(AssertionError):
    """Something was not as it should be."""


class Run:
    """A run folder, and the job that is at work there."""

    def __init__(self, folder: Path, data: Path, steps: int):
        self.folder, self._stage = folder, folder / "stages/audiomae"
        self._command = ["tests/toy_run.py", str(folder), f"--heartbeat_seconds={_HEARTBEAT}"]
        self._command += ["--join_seconds=30", f"config.data.source={data}", "config.mesh.data=1", "config.mesh.fsdp=2"]
        for key, value in {"steps": steps, "save_every": _SAVE, "log_every": 1, "keep": 3}.items():
            self._command.append(f"config.train.audiomae.{key}={value}")
        self.steps = steps
        self.job: Job | None = None

    def start(self, *settings: str, **variables: str) -> None:
        """Starts both processes; those of before have ended."""
        self.job = Job([*self._command, *settings], by_variables(2), **variables)

    def shown(self) -> int:
        """The last step of the metrics, which have all."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return json.loads((self._stage / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def saved(self) -> list[Path]:
        """The finished checkpoints."""
        found = [path for path in (self._stage / "checkpoints").glob("*") if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))

    def is_saving(self) -> bool:
        """Whether a save is on its way."""
        return any((self._stage / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def said(self) -> str:
        """All that both processes have printed."""
        return self.job.said(0) + "\n" + self.job.said(1)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 90, every: float = 0.02) -> None:
        """Waits until something is so.

        Raises:
            Wrong: it never was, or a process ended.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or any(process.poll() is not None for process in self.job.processes):
                raise Wrong(f"never: {what}; it said\n{self.said()[-3000:]}")
            time.sleep(every)

    def wait_for_a_step(self) -> tuple[int, float]:
        """Waits until a started job has gone on; returns the step that it went on after, and when that was seen."""
        self.wait(lambda: "going on after step" in self.job.said(0) or self._began(), "it goes on")
        told = self.job.said(0).rpartition("going on after step ")[2]
        begin = int(told.split()[0]) if told[:1].isdecimal() and "going on" in self.job.said(0) else 0
        rows = self._rows()
        self.wait(lambda: self._rows() > rows, "a new step", 120)
        return begin, time.monotonic()

    def _began(self) -> bool:
        return not self.saved() and self._rows() > 0

    def _rows(self) -> int:
        with contextlib.suppress(OSError):
            return (self._stage / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def ends(self, *codes: int | None, seconds: float = 90) -> None:
        """Waits for both processes to end with these codes; None: with whichever.

        Raises:
            Wrong: they do not.
        """
        try:
            found = self.job.codes(seconds)
        except AssertionError as error:
            raise Wrong(f"{error}") from None
        finally:
            self.job.__exit__()
        if any(code not in (None, wanted) for code, wanted in zip(codes, found)):
            raise Wrong(f"exit codes {found}, not {codes}; it said\n{self.said()[-3000:]}")

    def state(self) -> dict[str, np.ndarray]:
        """The numbers of the last checkpoint, by path."""
        last, checkpointer = self.saved()[-1] / "default", ocp.PyTreeCheckpointer()
        tree = checkpointer.metadata(last).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(last, ocp.args.PyTreeRestore(restore_args=as_numpy))
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


class Table:
    """What became of the events."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._faults: dict[str, str] = {}

    def add(self, event: str, lost: int, seconds: float) -> None:
        """Adds an event: steps to be done again, and seconds to the first new step."""
        self._rows[event].append((lost, seconds))
        print(f"  {event}: {lost} steps again, going on after {seconds:.1f} s", flush=True)

    @contextlib.contextmanager
    def judged(self, event: str) -> Iterator[None]:
        """Notes what goes wrong with an event instead of raising it."""
        try:
            yield
        except Wrong as error:
            self._rows.setdefault(event, [])
            self._faults[event] = str(error).splitlines()[0]
            print(f"  {event}: WRONG: {error}", flush=True)

    def show(self) -> bool:
        """Prints all; returns whether nothing was wrong."""
        print("\n| event | times | steps lost: most, mean | seconds to be going again: most, mean | outcome |")
        print("|---|---|---|---|---|")
        for event, rows in self._rows.items():
            lost, seconds = zip(*rows) if rows else ((0,), (0.0,))
            print(
                f"| {event} | {len(rows)} | {max(lost)}, {np.mean(lost):.1f} | {max(seconds):.0f}, "
                f"{np.mean(seconds):.0f} | {self._faults.get(event, 'as it should be')} |"
            )
        return not self._faults


def kill(run: Run, table: Table, rng: random.Random) -> None:
    """Kills one process or both at a random moment, and starts them again."""
    when, victims = rng.choice(("at work", "in a save", "in a save", "starting")), rng.choice(((0,), (1,), (0, 1)))
    wanted = run.shown() + rng.randrange(5, 2 * _SAVE + 5)  # so that it comes past a save, and not always to the same
    run.wait(lambda: run.shown() >= wanted, f"step {wanted}")
    if when == "starting":
        run.job.send(0, signal.SIGTERM)
        run.ends(RESTART, RESTART)
        run.start()
        time.sleep(rng.uniform(0.5, 12))
    elif when == "in a save":
        run.wait(lambda: not run.is_saving(), "no save", every=0.001)
        run.wait(run.is_saving, "a save", every=0.0005)
        time.sleep(rng.uniform(0, 0.05))
    else:
        time.sleep(rng.uniform(0, 2))
    shown, begin = run.shown(), time.monotonic()
    for index in victims:
        run.job.send(index, signal.SIGKILL)
    run.ends(*(-signal.SIGKILL if index in victims else None for index in (0, 1)))
    survivors = [index for index in (0, 1) if index not in victims]
    for index in survivors:
        code = run.job.processes[index].returncode
        # While they still look for each other there is none yet that could be named, and JAX gives up with 1.
        if code != RESTART and when != "starting":
            raise Wrong(f"the other process ended with {code}: {run.job.said(index)[-2000:]}")
    run.start()
    step, end = run.wait_for_a_step()
    who = "both" if len(victims) == 2 else "one"
    table.add(f"SIGKILL to {who}, {when}", max(shown - step, 0), end - begin)
    if shown - step > 2 * _SAVE:
        raise Wrong(f"{shown - step} steps were lost: more than a save and what was trained while it was written")


def preempt(run: Run, table: Table, rng: random.Random) -> None:
    """SIGTERM to one: both save the same step, and end with the code to restart on."""
    begin = time.monotonic()
    run.job.send(rng.randrange(2), signal.SIGTERM)
    run.ends(RESTART, RESTART)
    shown = run.shown()
    run.start()
    step, end = run.wait_for_a_step()
    table.add("SIGTERM to one", shown - step, end - begin)
    if step != shown:
        raise Wrong(f"it went on after step {step}, not {shown}")


def damage(run: Run, table: Table, rng: random.Random) -> None:
    """Damages the newest checkpoint in each of three ways: the one before it is taken, and that is said."""
    for how in ("cut short", "deleted", "flipped"):
        run.wait(lambda: len(run.saved()) > 1, "two checkpoints")
        begin = time.monotonic()
        for index in (0, 1):
            run.job.send(index, signal.SIGKILL)
        run.ends(-signal.SIGKILL, -signal.SIGKILL)
        shown, (before, newest) = run.shown(), run.saved()[-2:]
        named = {*json.loads((newest / "default/digests.json").read_text())}
        path = newest / "default" / rng.choice(sorted(named))
        content = bytearray(path.read_bytes())
        if how == "deleted":
            path.unlink()
        elif how == "cut short":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        run.start()
        step, end = run.wait_for_a_step()
        table.add(f"a file of the newest checkpoint {how}", shown - step, end - begin)
        if step != int(before.name) or f"checkpoint {newest} is damaged" not in run.said():
            raise Wrong(f"it went on after step {step}, not {before.name}: {run.said()[-2000:]}")


def fill(run: Run, table: Table, rng: random.Random) -> None:
    """Fills the disk during training: it goes on, says so once, and saves again once there is space."""
    event = "a full disk"
    if not run.folder.is_mount():
        print(f"  {event}: not tried, since this is not root or may not mount a small disk", flush=True)
        return
    last, begin = run.saved()[-1], time.monotonic()
    ballast = run.folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    said = "no space left for the checkpoint of step"
    run.wait(lambda: said in run.said(), "it says that there is no space")
    time.sleep(5)  # several more saves
    newest = run.saved()[-1]
    count, warned = run.said().count(said), run.said().count("metrics wait till then")
    ballast.unlink()
    run.wait(lambda: int(run.saved()[-1].name) > int(newest.name), "it saves again")
    table.add(event, 0, 0.0)
    print(f"  ({time.monotonic() - begin:.0f} s of it; the checkpoint of step {newest.name} stayed)", flush=True)
    if count != 1 or warned > 1 or int(newest.name) < int(last.name):
        raise Wrong(f"said {count} times and {warned} times: {run.said()[-2000:]}")


def stop(run: Run, table: Table, rng: random.Random) -> None:
    """SIGSTOP to each in turn: the other ends within the heartbeat's time with its stacks; so does this one later."""
    for index in (0, 1):
        shown, begin = run.shown(), time.monotonic()
        run.job.send(index, signal.SIGSTOP)
        other = 1 - index
        run.job.processes[other].wait(_HEARTBEAT + _STALL + 30)
        seconds = time.monotonic() - begin
        run.job.send(index, signal.SIGCONT)
        run.ends(None, None)
        codes = [process.returncode for process in run.job.processes]
        said, stacks = run.job.said(other), run.folder / f"stacks-{other}.txt"
        run.start()
        step, end = run.wait_for_a_step()
        table.add(f"SIGSTOP to process {index} (found after {seconds:.0f} s)", max(shown - step, 0), end - begin)
        if codes[other] != RESTART or not codes[index] or "Thread" not in stacks.read_text():
            raise Wrong(f"exit codes {codes}: {said[-2000:]}")


def hang(run: Run, table: Table, rng: random.Random) -> None:
    """One process hangs in its own code: it is found within the time set, its stacks say where."""
    run.job.send(0, signal.SIGTERM)
    run.ends(RESTART, RESTART)
    index, shown, begin = rng.randrange(2), run.shown(), time.monotonic()
    run.start(f"config.stall_seconds={_STALL}", HANG=f"{index}:{shown + 5}")
    run.ends(RESTART, RESTART, seconds=90)
    stacks = [(run.folder / f"stacks-{number}.txt").read_text() for number in (0, 1)]
    said, shown = run.said(), run.shown()
    run.start()
    step, end = run.wait_for_a_step()
    table.add("a process hangs", max(shown - step, 0), end - begin)
    if "in variant" not in stacks[index] or f"no step was finished in {_STALL} s" not in said:
        raise Wrong(f"it said {said[-2000:]}")


def spoil(folder: Path, data: Path, table: Table) -> None:
    """A damaged record is replaced and counted; where a share is set that it passes, the run stops and says so."""
    run = Run(folder, data, 400)
    begin = time.monotonic()
    run.start("config.data.max_unreadable=0.001")
    run.ends(None, None, seconds=180)
    codes = [process.returncode for process in run.job.processes]
    table.add("a share of damaged records that is too large", 0, time.monotonic() - begin)
    told = "more than --config.data.max_unreadable=0.001" in run.said()
    if not told or sorted(codes) not in ([1, 1], [1, RESTART]):
        raise Wrong(f"exit codes {codes}: {run.said()[-2000:]}")


def compare(run: Run, undisturbed: Run) -> None:
    """Raises Wrong unless both have the same numbers, and drew the same damaged records."""
    first, second = undisturbed.state(), run.state()
    different = [name for name in first | second if not np.array_equal(first.get(name), second.get(name))]
    if different:
        raise Wrong(f"{len(different)} of {len(first)} arrays differ: {', '.join(different[:5])}")
    rows = [
        {row["step"]: row["replaced_records"] for row in map(json.loads, lines) if "replaced_records" in row}
        for lines in (
            (each.folder / "stages/audiomae/metrics.jsonl").read_text().splitlines() for each in (undisturbed, run)
        )
    ]
    differing = [step for step, count in rows[1].items() if count != rows[0][step]]
    if differing or not sum(rows[0].values()):
        raise Wrong(f"damaged records were not the same at the steps {differing[:5]}, or never drawn")


def write_recordings(folder: Path) -> Path:
    """Writes thirty recordings, one of which has zeros in its middle."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(30):
        files.write(folder / f"{number}.flac", 0.1 * rng.standard_normal(16000).astype(np.float32), 16000)
    content = bytearray((folder / "7.flac").read_bytes())
    content[len(content) // 4 : -len(content) // 4] = bytes(len(content[len(content) // 4 : -len(content) // 4]))
    (folder / "7.flac").write_bytes(content)
    return folder


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 24 MB at `folder` where this is root and may mount one, else the folder."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def main(argv: list[str]) -> int:
    """Disturbs a run as said above, and prints what became of it."""
    logging.set_verbosity(logging.ERROR)
    rng, table = random.Random(_SEED.value), Table()
    root = Path(_FOLDER.value or tempfile.mkdtemp(prefix="chaos-"))
    data = write_recordings(root / "recordings")
    steps = 300 + 25 * _KILLS.value
    begin = time.monotonic()
    undisturbed = Run(root / "undisturbed", data, steps)
    undisturbed.start()
    undisturbed.ends(0, 0, seconds=steps)
    print(f"undisturbed: {steps} steps in {time.monotonic() - begin:.0f} s", flush=True)
    with small_disk(root / "disturbed") as folder, contextlib.ExitStack() as ended:
        run = Run(folder, data, steps)
        ended.callback(lambda: run.job and run.job.__exit__())
        run.start()
        run.wait_for_a_step()
        events = [(f"kill {number}", kill) for number in range(_KILLS.value)]
        events += [(one.__name__, one) for one in (preempt, damage, fill, stop, hang)]
        for name, event in events:
            with table.judged(name):
                event(run, table, rng)
            if all(process.poll() is not None for process in run.job.processes):
                run.start()  # after something that was wrong
                run.wait_for_a_step()
        with table.judged("the state at the end"):
            run.ends(0, 0, seconds=steps)
            compare(run, undisturbed)
            table.add("the state at the end, compared to the bit", 0, 0.0)
    with table.judged("damaged records"):
        spoil(root / "spoiled", data, table)
    right = table.show()
    if not _FOLDER.value:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if right else 1


if __name__ == "__main__":
    app.run(main)
