"""What a process does before its first computation, and after its last: other processes, the compilation cache."""

from __future__ import annotations

import gc
import logging
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

from audioldm2_jax.runtime import cluster, watch
from audioldm2_jax.runtime.storage import local_path

#: Objects made, less those deleted, until Python looks for cycles; younger looks until an older one. Tracing makes
#: millions that stay: by Python's own setting, (700, 10, 10), a sixth of its time goes by with looking through them.
_COLLECT = (200_000, 20, 100)


class DeviceError(ValueError):
    """JAX has no device of the kind that the environment asks for, or is asked for what is not supported."""


def start(compilation_cache: str = "", others: cluster.Cluster | None = None) -> None:
    """Joins the other processes of the job, if `others` says how (or that JAX is to find out), opens the devices, has
    Python look for cycles less often, and turns on the compilation cache.

    Args:
        compilation_cache: its folder, "" for the usual one, "off" for none.

    Raises:
        ClusterError: see `cluster.join`.
        DeviceError: JAX is not to promote types, and see `open_devices`.
    """
    import jax

    if jax.config.jax_numpy_dtype_promotion == "strict":
        raise DeviceError(
            "JAX_NUMPY_DTYPE_PROMOTION=strict is set, with which Optax and Flax cannot train: start without it"
        )
    gc.set_threshold(*_COLLECT)
    if others is not None:
        cluster.join(others)
    open_devices()
    if compilation_cache != "off":
        use_compilation_cache(compilation_cache)


def open_devices() -> None:
    """Has JAX find its devices, so that it fails here, if it does, and in words.

    Raises:
        DeviceError: it finds none of the kind that JAX_PLATFORMS names, or is to compute in 64 bits.
    """
    import jax

    if jax.config.jax_enable_x64:
        raise DeviceError("JAX_ENABLE_X64 is set, and 64 bits are not supported: start without it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is not installed
        reason = str(error).split(" (set ")[0] or "JAX has no such device here"
        asked = os.environ.get("JAX_PLATFORMS")
        raise DeviceError(
            f"{reason}{f' (JAX_PLATFORMS={asked}; without it: what the machine has)' if asked else ''}. GPUs and TPUs "
            "need JAX's plugin: install audioldm2-jax[cuda] or audioldm2-jax[tpu]."
        ) from error


def leave() -> None:
    """Meets the other processes for the last time, before this one ends in good order. Called by all."""
    from audioldm2_jax.runtime import hosts

    hosts.wait_for_hosts("end")
    watch.stop()


def use_compilation_cache(folder: str = "") -> None:
    """Keeps what XLA compiles in a folder, for later processes.

    Where none is named it is JAX's own setting (JAX_COMPILATION_CACHE_DIR), else ~/.cache/audioldm2_jax/xla. What else
    the environment says of JAX's cache goes before our settings, too.

    Raises:
        StorageError: the name is no path.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    cache = compilation_cache_folder(folder)
    if not _is_writable(cache):
        # JAX would say so of each program that it compiles.
        logging.warning("%s cannot be written: what XLA compiles is not kept (--config.compilation_cache)", cache)
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    _say_once(cache)
    compilation_cache.reset_cache()  # a process that has compiled before has settled on none


def compilation_cache_folder(folder: str = "") -> Path:
    """Returns where `use_compilation_cache` keeps what XLA compiles.

    Raises:
        StorageError: the name is no path.
    """
    import jax

    known = folder or jax.config.jax_compilation_cache_dir
    return local_path(known or "~/.cache/audioldm2_jax/xla", "--config.compilation_cache")


# How JAX warns of each program that it cannot read from there, or write: the reason is behind the name.
_OF_CACHE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '.*?': (.*)", re.DOTALL)


def _say_once(cache: Path) -> None:
    """Has what JAX warns of entries of the cache, of every program anew, said once for all."""
    shown, said = warnings.showwarning, set()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        found = _OF_CACHE.match(str(message))
        if not found:
            shown(message, *where, **more)
        elif found[1] not in said:
            said.add(found[1])
            what = "what is damaged is compiled anew" if found[1] == "reading" else "nothing more is kept"
            logging.warning(
                "the compilation cache: %s (%s): delete %s, or name another folder with --config.compilation_cache",
                *(what, " ".join(found[2].split()), cache),
            )

    warnings.showwarning = show


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
            probe.flush()
        return True
    except OSError:
        return False
