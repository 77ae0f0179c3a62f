"""The run folder: where the files of a run are for this process, and how they come to where the run keeps them.

`config.run_dir` is a folder that all hosts see, or an address, `gs://bucket/run`, of a run of one host also
`s3://bucket/run`. Of an address, each process has a working folder of its own below ~/.cache, and there is nothing in
it that the run could not do without:

- checkpoints are written to gs:// by Orbax, each host its part, and copied to s3:// (training/checkpoint_places.py);
- a folder that appears as a whole, a stage's result or the model, is uploaded by process 0 once it is there, and counts
  from then on (runtime/object_folders.py); the other processes fetch it;
- metrics and samples follow every few seconds.

A start makes the working folder what the store has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from audioldm2_jax.runtime import hosts, object_folders, object_store
from audioldm2_jax.runtime.storage import StorageError, scheme_of
from audioldm2_jax.training.checkpoint_places import COMMITTED

CHECKPOINTS = "checkpoints"
_RESULT = "result"
#: Seconds between two uploads of metrics and samples.
UPLOAD_EVERY = 10.0


def is_remote(config: ConfigDict) -> bool:
    """Returns whether the run folder is an address."""
    return bool(scheme_of(config.run_dir))


def path(config: ConfigDict) -> Path:
    """Returns the folder of the run's files for this process."""
    if not is_remote(config):
        return Path(config.run_dir)
    name = f"{config.run_dir.rpartition('/')[2]}-{hashlib.sha256(config.run_dir.encode()).hexdigest()[:12]}"
    return object_folders.cache_folder() / "runs" / name / f"process-{jax.process_index()}"


def place(config: ConfigDict, where: Path | None = None) -> Path | str:
    """Returns where a part of the run folder, by default all of it, is kept: a path, or an address."""
    where = where or path(config)
    if not is_remote(config):
        return where
    return f"{config.run_dir}/{where.relative_to(path(config)).as_posix()}".removesuffix("/.")


def shown(config: ConfigDict, text: str) -> str:
    """Returns a message with the run folder named as its user knows it."""
    return text.replace(str(path(config)), config.run_dir) if is_remote(config) else text


def make(config: ConfigDict) -> None:
    """Makes the run folder, and makes sure that this process can write there.

    Raises:
        StoreError: there is no such bucket, no permission, or no answer, or it is on s3:// and there are several hosts.
        OSError: the folder cannot be made or written.
    """
    if scheme_of(config.run_dir) == "s3" and jax.process_count() > 1:
        raise object_store.StoreError(
            f"--config.run_dir={config.run_dir}: several hosts write a checkpoint together, and Orbax has them do that "
            "on gs:// and on a file system that all see, but not on s3://; name a folder there"
        )
    name = f".writable-{jax.process_index()}"  # one for each host
    path(config).mkdir(parents=True, exist_ok=True)
    (path(config) / name).touch()
    (path(config) / name).unlink()
    if is_remote(config):
        object_store.write(f"{config.run_dir}/{name}", b"")
        object_store.delete(config.run_dir, [name])


def fetch(config: ConfigDict) -> None:
    """Makes the working folder what the store has; of a folder that is none, does nothing. Called by all processes.

    Checkpoints stay where they are, and so does what is only written: TensorBoard's files and samples.

    Raises:
        StoreError, OSError: see `object_folders.fetch`.
    """
    if is_remote(config):
        object_folders.fetch(config.run_dir, path(config), _is_read)
    hosts.wait_for_hosts("run folder fetched")


def share(config: ConfigDict, where: Path, what: str, last: str = "") -> None:
    """Returns once all processes have the folder `where`, which process 0 has written as a whole. Called by all.

    Args:
        last: the file in it that was written last.

    Raises:
        StoreError, OSError: it cannot be uploaded or fetched.
        HostsError: a process does not see it.
    """
    upload(config, where)
    wait_for(config, where / last if last else where, what)
    if is_remote(config) and not hosts.is_first():
        object_folders.fetch(place(config, where), where)


def wait_for(config: ConfigDict, where: Path, what: str) -> None:
    """Returns once process 0 has called it; where the run folder is one that all see, all see `where` by then.

    Raises:
        HostsError: see `hosts.wait_for_file`.
    """
    if is_remote(config):
        hosts.wait_for_hosts(what)
    else:
        hosts.wait_for_file(where, what)


def upload(config: ConfigDict, where: Path) -> None:
    """Has process 0 bring a file or a folder of the run to the store, if the run is there.

    Raises:
        StoreError, OSError: see `object_folders.upload`.
    """
    if is_remote(config) and hosts.is_first():
        object_folders.upload(where, place(config, where))


def has_checkpoints(config: ConfigDict, stage: Path) -> bool:
    """Returns whether a stage, by its folder, has a finished checkpoint."""
    folder = stage / CHECKPOINTS
    if is_remote(config):
        names = object_folders.whole(object_store.listing(place(config, folder)))
        finished = {step for step, _, rest in (name.partition("/") for name in names) if rest == COMMITTED}
        copied = scheme_of(config.run_dir) == "s3"
        return any(step.isdecimal() for step in ({name.partition("/")[0] for name in names} if copied else finished))
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


class LogUploads(contextlib.AbstractContextManager):
    """Uploads metrics, samples and settings of a run as they are written, while the block lasts; in process 0.

    What cannot be uploaded is tried again; the run goes on meanwhile.

    Args:
        say: told when uploads begin to fail.
    """

    def __init__(self, config: ConfigDict, say: Callable[[str], None]):
        self._config, self._say = config, say
        self._known: dict[str, tuple[int, int]] = {}
        self._failing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log uploads", daemon=True)

    def __enter__(self) -> LogUploads:
        if is_remote(self._config) and hosts.is_first():
            self._known = self._files()
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            self._upload()

    def _work(self) -> None:
        while not self._ended.wait(UPLOAD_EVERY):
            self._upload()

    def _upload(self) -> None:
        root = path(self._config)
        for name, status in self._files().items():
            if self._known.get(name) == status:
                continue
            try:
                # Of a file that grows, what there is of it now.
                object_store.write(f"{self._config.run_dir}/{name}", (root / name).read_bytes(), patience=0)
            except FileNotFoundError:  # a temporary one
                continue
            except (StorageError, OSError) as error:
                if not self._failing:
                    self._say(f"{error}; metrics and samples will follow, training goes on")
                self._failing = True
                return
            self._known[name] = status
        self._failing = False

    def _files(self) -> dict[str, tuple[int, int]]:
        """Returns {name: time and size} of the files that are no part of a folder that appears as a whole."""
        root, found = path(self._config), {}
        for folder, _, names in os.walk(root):  # passes over folders that are renamed meanwhile
            for file in (Path(folder) / name for name in names):
                name = file.relative_to(root).as_posix()
                if _is_loose(name):
                    with contextlib.suppress(OSError):  # gone
                        found[name] = (file.stat().st_mtime_ns, file.stat().st_size)
        return found


def _is_loose(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") or "partial" in part for part in parts):
        return False
    if parts[0] == "stages":
        return len(parts) > 2 and parts[2] not in (_RESULT, CHECKPOINTS)
    return len(parts) == 1


def _is_read(name: str) -> bool:
    parts = name.split("/")
    if parts[0] == "stages":
        return len(parts) > 2 and parts[2] not in (CHECKPOINTS, "samples") and not parts[2].startswith("events.")
    return len(parts) > 1
