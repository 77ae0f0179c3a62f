"""What the processes of a job do together: agree on one answer, wait for each other, gather.

Every function is called by all processes, in the same order. All go through JAX's coordinator and not over the
devices, with a time-out: a process that never comes ends the wait with its name. Where one process has failed or is
lost, `runtime/watch.py` ends the others long before that.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from audioldm2_jax.runtime import watch

#: Seconds after which a process that is alive and does not come is given up: process 0 may be writing gigabytes.
TIMEOUT = 3600.0
_KEYS = "audioldm2_jax/hosts"
_CHUNK = 1 << 20  # bytes a message to the coordinator, which refuses more than a few MiB
_numbers = itertools.count()
_read: list[str] = []  # keys that all have read once they meet again


class HostsError(RuntimeError):
    """Processes of a job did not come to the same place, or differ where they must not; the message names them."""


def is_first() -> bool:
    """Whether this process is number 0: the one that decides, writes results and shows progress."""
    return jax.process_index() == 0


def gather(value: Any, what: str, timeout: float = TIMEOUT) -> list[Any]:
    """Returns every process' `value`, in their order. For little that JSON can hold, below a MiB.

    Raises:
        HostsError: not all came within `timeout` seconds.
    """
    if jax.process_count() == 1:
        return [value]
    client, prefix = _client(), f"{_KEYS}/{next(_numbers)}/{what}/"
    client.key_value_set_bytes(f"{prefix}{jax.process_index()}", _pack(value))
    try:
        client.wait_at_barrier(prefix, round(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise _timed_out(error, what, timeout, _here(client, prefix)) from error
    found = dict(client.key_value_dir_get_bytes(prefix))
    if is_first():
        while _read:
            client.key_value_delete(_read.pop())
    _read.append(prefix)
    return [_unpack(found[f"{prefix}{index}"]) for index in range(jax.process_count())]


def broadcast(value: Any, what: str, timeout: float = TIMEOUT) -> Any:
    """Returns process 0's `value`, anything that JSON can hold, on all processes: one decides, all follow.

    Raises:
        HostsError: process 0 did not come within `timeout` seconds.
    """
    if jax.process_count() == 1:
        return value
    client, prefix = _client(), f"{_KEYS}/{next(_numbers)}/{what}/"
    _read.append(prefix)
    if is_first():
        packed = _pack(value)
        chunks = [packed[first : first + _CHUNK] for first in range(0, len(packed), _CHUNK)]
        for number, chunk in enumerate(chunks):
            client.key_value_set_bytes(f"{prefix}{number}", chunk)
        client.key_value_set(f"{prefix}count", str(len(chunks)))
        return value
    try:
        count = int(client.blocking_key_value_get(f"{prefix}count", round(timeout * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise _timed_out(error, what, timeout, set(range(1, jax.process_count()))) from error
    return _unpack(b"".join(client.blocking_key_value_get_bytes(f"{prefix}{i}", 60_000) for i in range(count)))


def wait_for_hosts(what: str, timeout: float = TIMEOUT) -> None:
    """Returns once all processes have called it.

    Raises:
        HostsError: not all came within `timeout` seconds.
    """
    gather(None, what, timeout)


def wait_for_file(path: Path, what: str, timeout: float = 60.0) -> None:
    """Returns once process 0 has called it, having written `path`, and all processes see that.

    File systems over a network may show another host a new file only after a while.

    Raises:
        HostsError: a process does not see it within `timeout` seconds.
    """
    wait_for_hosts(what)
    end = time.monotonic() + timeout
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(0.5)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # has a network file system look again
    blind = [name for name, sees in zip(watch.names(), gather(seen, f"{what}, seen")) if not sees]
    if blind:
        raise HostsError(
            f"{path}, which process 0 wrote, is not there for {', '.join(blind)}: the run folder has to be the same "
            "folder on all hosts; choose one on a shared file system with --config.run_dir=PATH"
        )


def first_text(text: str, what: str = "first text") -> str:
    """Returns the text of the first process that has one, "" where none has."""
    return next(filter(None, gather(text, what)), "")


def to_host(tree: Any) -> Any:
    """Returns a tree of whole NumPy arrays on all processes, for what is small; arrays may lie on several hosts."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def give_first(tree: Any, use: Callable[[Any], Any]) -> Any:
    """Calls `use` on process 0 with the tree, and returns what that returns, None on the others; called by all.

    What `use` gets is the tree of what becomes an array by `numpy.asarray`: each leaf once, in the tree's order. A leaf
    that lies on several hosts is gathered then, so that no device and no host ever has more than one whole leaf.

    Raises:
        RuntimeError: `use` did not read the leaves in that order, or not all of them.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not is_first():
        for leaf in leaves:
            _whole(leaf)
        return None
    turn = itertools.count()
    made = use(jax.tree.unflatten(structure, [_Leaf(leaf, number, turn) for number, leaf in enumerate(leaves)]))
    if (read := next(turn)) != len(leaves):
        raise RuntimeError(f"{read} of {len(leaves)} leaves were read")
    return made


class _Leaf:
    """A leaf that is gathered when it is read."""

    def __init__(self, leaf: Any, number: int, turn: Iterator[int]):
        self._leaf, self._number, self._turn = leaf, number, turn
        self.shape, self.dtype = np.shape(leaf), np.dtype(leaf.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if (wanted := next(self._turn)) != self._number:
            raise RuntimeError(f"leaf {self._number} is read where leaf {wanted} is next")
        return np.asarray(_whole(self._leaf), dtype)


def _whole(leaf: Any) -> np.ndarray | None:
    """A leaf on process 0."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        mesh = leaf.sharding.mesh
        leaf = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))(leaf)
        jax.block_until_ready(leaf)
    return np.asarray(leaf) if is_first() else None


def _client() -> Any:
    from jax._src import distributed  # as Orbax does; JAX has no public way

    return distributed.global_state.client


def _here(client: Any, prefix: str) -> set[int]:
    return {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get_bytes(prefix)}


def _timed_out(error: Exception, what: str, timeout: float, here: set[int]) -> Exception:
    if "DEADLINE_EXCEEDED" not in str(error):
        return error
    missing = [name for index, name in enumerate(watch.names()) if index not in here]
    return HostsError(
        f"waited {timeout:.0f} s at {what!r} for {', '.join(missing) or 'another process'}: see what it is doing, end "
        "all processes, and run the same command again"
    )


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def _unpack(packed: bytes) -> Any:
    return json.loads(zlib.decompress(packed))
