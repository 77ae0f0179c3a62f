"""Checkpoints of one stage: saved asynchronously, verified by digest before they are trusted.

Orbax writes and reads; it does not notice flipped bits in its data files. So a checkpoint gets a manifest of digests
as it is written (training/checkpoint_places.py), which all hosts check before it is read, each its share; all take the
same checkpoint. One with a file that does not agree is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from audioldm2_jax.runtime import error_log, hosts, sharding
from audioldm2_jax.training.checkpoint_places import ITEM, UNSIGNED, CheckpointError, CheckpointPlace, place


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
        self.folder, self._keep = folder, keep
        # Orbax tells every save and restore at INFO and warns of its own defaults. Here, since absl's app.run sets the
        # level, too, and what a config imports is imported before that.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._place = place(folder)
        if hosts.is_first():
            self._place.remove_unfinished()  # of a process that was killed while it saved
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
            mine = self._place.find_damage(step, jax.process_index(), jax.process_count())
            damage = hosts.first_text(mine, f"damage of checkpoint {step}")
            if not damage:
                return self._read(step, abstract_state)
            unsigned += [step] * (damage == UNSIGNED)
            say(f"checkpoint {self.folder}/{step} is damaged ({damage}); trying the one before it")
        for step in unsigned:
            try:
                state = self._read(step, abstract_state)
            except CheckpointError as error:
                say(str(error))
                continue
            say(f"checkpoint {self.folder}/{step} can be read and is used, though not verified: no other is whole")
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
                self._place.remove(newer)
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
        handlers, signing = ocp.handlers.DefaultCheckpointHandlerRegistry(), _Signing(self._place)
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add(ITEM, arguments, signing)
        return ocp.CheckpointManager(
            self._place.root,
            handler_registry=handlers,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep if self._place.orbax_deletes else None,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._place.deliver),
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
        """Whether there is space for the state, as every host sees it. Called by all."""
        shards = [shard for leaf in jax.tree.leaves(state) for shard in getattr(leaf, "addressable_shards", ())]
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        needed, free = zip(*hosts.gather((needed, self._place.free()), "space for a checkpoint"))
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
                f"checkpoint {self.folder}/{step} cannot be read into this stage ({reason}); delete {self.folder} "
                "to train the stage anew, or train with the version and the settings that wrote it"
            ) from error

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._saving = None
        if not self._place.orbax_deletes:
            old = sorted(self._manager.all_steps())[: -self._keep]
            for step in old if hosts.is_first() else ():
                self._place.remove(step)
            if old:
                self._manager.reload()

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        """Runs `action`; turns what goes wrong with the disk into one line that says what to do."""
        try:
            action()
        except Exception as error:
            unfinished, self._saving = self._saving, None
            self._place.remove_unfinished()
            full = error_log.is_full(error)
            reason = "no space left on the disk: free some" if full else f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"could not save step {step if unfinished is None else unfinished} to {self.folder} ({reason}); "
                "the checkpoint before it is untouched and the same command goes on from there"
            ) from error


class _Signing(ocp.StandardCheckpointHandler):
    """Orbax's handler, which signs a checkpoint before it gets its final name.

    `async_save` ends, on every host, with the signature of what that host wrote; `finalize`, which Orbax calls on
    process 0 once all hosts have ended, signs the whole.
    """

    def __init__(self, place: CheckpointPlace):
        super().__init__()
        self._place = place

    async def async_save(self, directory: epath.Path, *args: Any, **kwargs: Any) -> list[Any]:
        written, host = await super().async_save(directory, *args, **kwargs), jax.process_index()
        return [ocp.future.ChainedFuture(written, lambda: self._place.sign_share(directory, host))]

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        self._place.sign(directory)
