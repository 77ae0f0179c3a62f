"""Starts a command as a scheduler would: several processes of this machine, each with an environment of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_variables(count: int) -> list[dict[str, str]]:
    """What the user exports on each host."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [shared | {"JAX_PROCESS_ID": str(index)} for index in range(count)]


def by_slurm(count: int) -> list[dict[str, str]]:
    """What Slurm tells the tasks of a step on one node. JAX makes the coordinator's port of the number of the job."""
    while True:
        job = random.randrange(1 << 20)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", job % 4096 + 61440))
                break
            except OSError:
                continue
    shared = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
    }
    return [shared | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]


def alone() -> list[dict[str, str]]:
    """A process of which nothing is said."""
    return [{}]


def children(pid: int) -> list[int]:
    """The numbers of the processes that a process has started, and of those that they have."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(line) for line in found.stdout.split()]
    return own + [number for child in own for number in children(child)]


class Job:
    """Processes of one command, each with its own environment; ended, whatever happens, when the block is left."""

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]], **more: str):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_", "OMPI_"))}
        ours = {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "PYTHONUNBUFFERED": "1",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        }
        self.lines: list[list[str]] = [[] for _ in environments]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=kept | ours | more | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            for environment in environments
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(index,), daemon=True) for index in range(len(environments))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _read(self, index: int) -> None:
        for line in self.processes[index].stdout:
            self.lines[index].append(line.rstrip("\n"))

    def said(self, index: int) -> str:
        """Everything that a process has printed so far."""
        return "\n".join(self.lines[index])

    def wait_for(self, index: int, found: Callable[[str], bool] | str, timeout: float = 120) -> None:
        """Waits until a process has printed a line."""
        test = found if callable(found) else lambda line: found in line
        end = time.monotonic() + timeout
        while not any(test(line) for line in self.lines[index]):
            ended = self.processes[index].poll() is not None
            assert time.monotonic() < end and not ended, f"process {index} never said it:\n{self.said(index)}"
            time.sleep(0.05)

    def send(self, index: int, number: signal.Signals) -> None:
        """Sends a signal to one process."""
        self.processes[index].send_signal(number)

    def codes(self, timeout: float) -> list[int]:
        """The exit codes, once all processes have ended by themselves."""
        end = time.monotonic() + timeout
        for index, process in enumerate(self.processes):
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                told = "\n\n".join(f"== process {i} ==\n{self.said(i)[-3000:]}" for i in range(len(self.processes)))
                raise AssertionError(f"process {index} had not ended after {timeout} s\n{told}") from None
        for reader in self._readers:
            reader.join(5)
        return [process.returncode for process in self.processes]


def train(run_dir: Path, *settings: str, config: str = "tests/smallest.py") -> list[str]:
    """The command that trains the smallest recipe into a folder."""
    return ["launch/train.py", "--config", config, f"--config.run_dir={run_dir}", *settings]
