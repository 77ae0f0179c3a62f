"""Checkpoints of one stage: saved asynchronously, verified by digest before they are trusted.

Orbax writes and reads; it does not notice flipped bits in its data files. So a checkpoint gets a manifest of SHA-256
digests before Orbax renames it to its final name: one that has that name is whole and signed, whenever the process
dies. Every host digests the files that it wrote, in parallel, and on reading its share of them; all hosts take the
same checkpoint. One with a file that does not agree is passed over for the one before.

In a store, `gs://…`, there is no rename: Orbax writes an object `COMMITTED` last, and a checkpoint without it
counts for nothing. The digests are those that the store has computed of what arrived.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from audioldm2_jax.runtime import error_log, hosts, object_store, sharding
from audioldm2_jax.runtime.storage import scheme_of

MANIFEST = "digests.json"
UNSIGNED = f"{MANIFEST} is missing"
#: In a store, Orbax's name for the object that it writes last.
COMMITTED = "commit_success.txt"
_ITEM = "default"  # Orbax's name for the only thing that a checkpoint of ours holds
_HOST = "ocdbt.process_"  # Orbax's name for the folder of what one host wrote, its index behind it
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or none could be read; the message says what to do."""


class Checkpoints:
    """The checkpoints below `folder`, at most `keep` of them.

    Args:
        folder: a path, or an address.
        keep: how many.

    Raises:
        CheckpointError: in a store lie checkpoints that were copied there from a disk.
        StoreError: the store does not answer, or there is no permission.
    """

    def __init__(self, folder: Path | str, keep: int):
        self.folder, self._keep = epath.Path(folder), keep
        self._is_remote = bool(scheme_of(str(folder)))
        # Orbax tells every save and restore at INFO and warns of its own defaults. Here, since absl's app.run sets the
        # level, too, and what a config imports is imported before that.
        logging.getLogger("absl").setLevel(logging.ERROR)
        if self._is_remote:
            object_store.prepare(str(folder))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
        if hosts.is_first():
            self._remove_unfinished()  # of a process that was killed while it saved
        hosts.wait_for_hosts("unfinished checkpoints removed")
        self._manager = self._open()
        self._saving: int | None = None
        self._say: Callable[[str], None] | None = None  # of the save in progress
        self._full = False  # whether it has been said that there is no space

    def save(self, step: int, state: Any, say: Callable[[str], None] | None = None) -> None:
        """Starts saving `state` as the checkpoint of `step` steps done; returns while it is being written.

        Older checkpoints are deleted once it is there.

        Args:
            say: of a save that can be done without. Where there is no space for it this is said, once, and nothing
                else happens. Of several hosts one may still fail where the space only just seemed enough.

        Raises:
            CheckpointError: this save failed, or the one before it.
        """
        self._finish_before()
        if step in self._manager.all_steps():
            return
        if say and not self._has_space(state):
            self._tell_full(step, say)
            return
        try:
            self._guard(step, lambda: self._manager.save(step, args=ocp.args.StandardSave(state)))
        except CheckpointError as error:
            if not (say and self._can_go_on(error)):
                raise
            self._tell_full(step, say)
            return
        self._saving, self._say = step, say

    def restore(self, abstract_state: Any, say: Callable[[str], None]) -> Any | None:
        """Returns the newest undamaged state, laid out as `abstract_state`, or None where there are no checkpoints.

        Damaged checkpoints are reported through `say`. One without digests, as earlier versions left it when they
        were killed, is used where no other is whole, if it can be read, and that is said.

        Raises:
            CheckpointError: there are checkpoints and none is whole, or it is of another network.
        """
        steps, unsigned = self._steps(), []
        for step in steps:
            mine = find_damage(self.folder / str(step), jax.process_index(), jax.process_count())
            damage = hosts.first_text(mine, f"damage of checkpoint {step}")
            if not damage:
                return self._read(step, abstract_state)
            unsigned += [step] * (damage == UNSIGNED)
            say(f"checkpoint {self.folder / str(step)} is damaged ({damage}); trying the one before it")
        for step in unsigned:
            try:
                state = self._read(step, abstract_state)
            except CheckpointError as error:
                say(str(error))
                continue
            say(f"checkpoint {self.folder / str(step)} can be read and is used, though not verified: no other is whole")
            return state
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} is whole; delete that folder to train the stage anew"
            )
        return None

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of more than `step` steps: those that `restore` passed over."""
        for newer in [saved for saved in self._manager.all_steps() if saved > step]:
            if hosts.is_first():
                self._remove(newer)
        hosts.wait_for_hosts("damaged checkpoints removed")
        self._manager.reload()

    def latest(self) -> int | None:
        """Returns the step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Waits for the save in progress.

        Raises:
            CheckpointError: that save failed.
        """
        self._guard(self._saving, self._finish)
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        handlers, signing = ocp.handlers.DefaultCheckpointHandlerRegistry(), _Signing()
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add(_ITEM, arguments, signing)
        return ocp.CheckpointManager(
            self.folder if self._is_remote else self.folder.resolve(),
            handler_registry=handlers,
            options=ocp.CheckpointManagerOptions(
                # Orbax would ask for the kind of a bucket first, which takes more than the right to write there.
                max_to_keep=None if self._is_remote else self._keep,
                enable_async_checkpointing=True,
            ),
        )

    def _finish_before(self) -> None:
        """Waits for the save in progress, which may be one that can be done without."""
        step = self._saving
        if step is None:
            return
        try:
            self._guard(step, self._finish)
        except CheckpointError as error:
            if not (self._say and self._can_go_on(error)):
                raise
            self._tell_full(step, self._say)
        else:
            self._full = False

    def _can_go_on(self, error: CheckpointError) -> bool:
        """Whether it is for want of space, and this process alone, so that others do not wait; with a new manager."""
        if jax.process_count() > 1 or not error_log.is_full(error):
            return False
        with contextlib.suppress(Exception):  # it says once more what is known
            self._manager.close()
        self._manager = self._open()
        return True

    def _has_space(self, state: Any) -> bool:
        """Whether the disk, as every host sees it, has space for the state; a store has. Called by all."""
        if self._is_remote:
            return True
        shards = [shard for leaf in jax.tree.leaves(state) for shard in getattr(leaf, "addressable_shards", ())]
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        needed, free = zip(*hosts.gather((needed, shutil.disk_usage(self.folder).free), "space for a checkpoint"))
        return sum(needed) <= min(free)

    def _tell_full(self, step: int, say: Callable[[str], None]) -> None:
        if not self._full:
            kept = self.latest()
            say(
                f"no space left for the checkpoint of step {step} in {self.folder}: "
                f"{f'that of step {kept} stays, ' if kept is not None else ''}training goes on and tries again at the "
                "next one; free some space"
            )
        self._full = True

    def _steps(self) -> list[int]:
        """Returns the steps of the checkpoints, the newest first, as process 0 sees them."""
        return hosts.broadcast(sorted(map(int, self._manager.all_steps()), reverse=True), "steps of the checkpoints")

    def _read(self, step: int, abstract_state: Any) -> Any:
        # Of several hosts each reads its share, and the devices send each other what more they need: else every host
        # would read all that lies whole on its devices.
        several = jax.process_count() > 1
        wanted = sharding.shared_out(abstract_state) if several else abstract_state
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
            places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
            return jax.jit(lambda tree: tree, out_shardings=places)(found) if several else found
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be read into this stage ({reason}); delete {self.folder} "
                "to train the stage anew, or train with the version and the settings that wrote it"
            ) from error

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._saving = None
        if self._is_remote:
            old = sorted(self._manager.all_steps())[: -self._keep]
            for step in old if hosts.is_first() else ():
                self._remove(step)
            if old:
                self._manager.reload()

    def _remove(self, step: int) -> None:
        if not self._is_remote:
            shutil.rmtree(self.folder / str(step))
            return
        # What says that it is whole goes first, so that half of it never counts.
        address = str(self.folder / str(step))
        object_store.delete(address, [COMMITTED])
        object_store.delete(address, object_store.listing(address))

    def _remove_unfinished(self) -> None:
        if not self._is_remote:
            for temporary in self.folder.glob(_TEMPORARY):
                shutil.rmtree(temporary, ignore_errors=True)
            return
        names = object_store.listing(str(self.folder))
        for step in sorted({name.partition("/")[0] for name in names}):
            if not step.isdecimal() or f"{step}/{COMMITTED}" in names:
                continue
            manifest = object_store.read(f"{self.folder}/{step}/{_ITEM}/{MANIFEST}") or b"{}"
            with contextlib.suppress(ValueError):
                if any(map(_of_a_disk, json.loads(manifest).values())):
                    raise CheckpointError(
                        f"{self.folder / step} was copied from a disk without its {COMMITTED}, and may be a part of a "
                        "checkpoint: copy it again, go on in the folder from which it comes, or delete it here"
                    )
            object_store.delete(str(self.folder), [name for name in names if name.startswith(f"{step}/")])

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        """Runs `action`; turns what goes wrong with the disk into one line that says what to do."""
        try:
            action()
        except Exception as error:
            unfinished, self._saving = self._saving, None
            self._remove_unfinished()
            full = error_log.is_full(error)
            reason = "no space left on the disk: free some" if full else f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"could not save step {step if unfinished is None else unfinished} to {self.folder} ({reason}); "
                "the checkpoint before it is untouched and the same command goes on from there"
            ) from error


class _Signing(ocp.StandardCheckpointHandler):
    """Orbax's handler, which writes digests beside the data, before the checkpoint gets its final name.

    `async_save` ends, on every host, with the digests of what that host wrote; `finalize`, which Orbax calls on
    process 0 once all hosts have ended, adds those of the rest and makes one manifest of all. A store has the digests
    of everything at once.
    """

    async def async_save(self, directory: Path, *args: Any, **kwargs: Any) -> list[Any]:
        written = await super().async_save(directory, *args, **kwargs)
        if scheme_of(str(directory)):
            return written
        host, folder = jax.process_index(), Path(directory)
        return [
            ocp.future.ChainedFuture(written, lambda: _write_digests(folder, f"{MANIFEST}.{host}", _of(folder, host)))
        ]

    def finalize(self, directory: Path) -> None:
        super().finalize(directory)
        if scheme_of(str(directory)):
            digests = {name: entry.digest for name, entry in object_store.listing(str(directory)).items()}
            object_store.write(f"{directory}/{MANIFEST}", json.dumps(digests, indent=1).encode())
            return
        folder, known = Path(directory), {}
        for part in folder.glob(f"{MANIFEST}.*"):
            known |= json.loads(part.read_text())
            part.unlink()
        _write_digests(folder, MANIFEST, _files(folder), known)


def _of(folder: Path, host: int) -> list[Path]:
    """Returns the files that one host wrote; those that describe the whole are counted to none."""
    return _files(folder / f"{_HOST}{host}")


def _write_digests(folder: Path, manifest: str, files: Iterable[Path], known: dict[str, str] | None = None) -> None:
    """Writes the digests of `files` as `folder/manifest`; those `known` by the files' names are not computed."""
    known = known or {}
    names = {path: path.relative_to(folder).as_posix() for path in files}
    digests = {name: known.get(name) or digest(path) for path, name in names.items()}
    temporary = folder / f".{manifest}.tmp"
    temporary.write_text(json.dumps(digests, indent=1))
    os.replace(temporary, folder / manifest)


def find_damage(folder: Path, host: int = 0, count: int = 1) -> str:
    """Returns what is wrong with host `host`'s share of a checkpoint, "" if that is whole.

    A host's share is what the host of the same index wrote; what more hosts than there are now wrote goes round. In a
    store, where nothing has to be read for it, the first host's is everything.
    """
    if scheme_of(str(folder)):
        return _damage_in_store(f"{folder}/{_ITEM}") if host == 0 else ""
    root = folder / _ITEM if (folder / _ITEM / MANIFEST).exists() else folder  # earlier versions: beside Orbax's item
    try:
        wanted = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        return UNSIGNED
    except (OSError, ValueError):
        return f"{MANIFEST} is unreadable"
    for name, value in wanted.items():
        writer = next((part[len(_HOST) :] for part in Path(name).parts if part.startswith(_HOST)), "0")
        if int(writer) % count != host:
            continue
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if digest(path) != value:
            return f"{name} has changed since it was written"
    return ""


def _damage_in_store(address: str) -> str:
    content = object_store.read(f"{address}/{MANIFEST}")
    if content is None:
        return UNSIGNED
    try:
        wanted = json.loads(content)
    except ValueError:
        return f"{MANIFEST} is unreadable"
    there = object_store.listing(address)
    for name, value in wanted.items():
        if name not in there:
            return f"{name} is missing"
        if _of_a_disk(value):  # copied into the store
            now = hashlib.sha256(object_store.read(f"{address}/{name}") or b"").hexdigest()
        else:
            now = there[name].digest
        if now != value:
            return f"{name} has changed since it was written"
    return ""


def _of_a_disk(value: str) -> bool:
    """Whether a digest of a manifest is a SHA-256 and not a store's own."""
    return ":" not in value


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
