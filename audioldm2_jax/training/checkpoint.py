"""Checkpoints of one stage: saved asynchronously, verified by digest before they are trusted.

Orbax writes and reads; it does not notice flipped bits in its data files, so each finished checkpoint gets a manifest
of SHA-256 digests beside its data, and one without a manifest that agrees is passed over for the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from audioldm2_jax.runtime import hosts

MANIFEST = "digests.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or none could be read; the message says what to do."""


class Checkpoints:
    """The checkpoints below `folder`, at most `keep` of them."""

    def __init__(self, folder: Path, keep: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )
        self._unsigned: int | None = None

    def save(self, step: int, state: Any) -> None:
        """Starts saving `state` as the checkpoint of `step` steps done; returns while it is being written.

        Raises:
            CheckpointError: this save or the one before it failed, for instance for want of space.
        """
        self._guard(step, lambda: self._finish())
        if step in self._manager.all_steps():
            return
        self._guard(step, lambda: self._manager.save(step, args=ocp.args.StandardSave(state)))
        self._unsigned = step

    def restore(self, abstract_state: Any, say: Callable[[str], None]) -> Any | None:
        """Returns the newest undamaged state, laid out as `abstract_state`, or None where there are no checkpoints.

        Damaged checkpoints are reported through `say` and removed, so that their steps can be saved again.

        Raises:
            CheckpointError: there are checkpoints and none is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            damage = find_damage(self.folder / str(step))
            if not damage:
                return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
            say(f"checkpoint {self.folder / str(step)} is damaged ({damage}); trying the one before it")
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} is whole; delete that folder to train the stage anew"
            )
        return None

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of more than `step` steps: those that `restore` passed over."""
        for newer in [saved for saved in self._manager.all_steps() if saved > step]:
            if jax.process_index() == 0:
                shutil.rmtree(self.folder / str(newer))
        hosts.wait_for_hosts("damaged checkpoints removed")
        self._manager.reload()

    def latest(self) -> int | None:
        """Returns the step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for the save in progress and signs it.

        Raises:
            CheckpointError: that save failed.
        """
        self._guard(self._unsigned, self._finish)
        self._manager.close()

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        if self._unsigned is not None and jax.process_index() == 0:
            sign(self.folder / str(self._unsigned))
        self._unsigned = None
        hosts.wait_for_hosts("checkpoint signed")

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        """Runs `action`; turns what goes wrong with the disk into one line that says what to do."""
        try:
            action()
        except Exception as error:
            unfinished, self._unsigned = self._unsigned, None
            for temporary in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(temporary, ignore_errors=True)
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "no space left on the disk: free some" if full else f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"could not save step {step if unfinished is None else unfinished} to {self.folder} ({reason}); "
                "the checkpoint before it is untouched and the same command goes on from there"
            ) from error


def sign(folder: Path) -> None:
    """Writes the manifest of all files below `folder`, through a temporary name."""
    digests = {str(path.relative_to(folder)): digest(path) for path in _files(folder)}
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(digests, indent=1))
    os.replace(temporary, folder / MANIFEST)


def find_damage(folder: Path) -> str:
    """Returns what is wrong with a signed folder, "" if it is whole."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable: the save did not finish"
    for name, value in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if digest(path) != value:
            return f"{name} has changed since it was written"
    return ""


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


# Orbax tells every save and restore at INFO and warns of its own defaults.
logging.getLogger("absl").setLevel(logging.ERROR)
