"""What a process does before its first computation: several hosts, the compilation cache, the compiler's options."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ml_collections import ConfigDict


def start(config: ConfigDict) -> None:
    """Joins the other hosts, and turns on the compilation cache."""
    join_hosts()
    if config.compilation_cache != "off":
        use_compilation_cache(config.compilation_cache)


def join_hosts() -> None:
    """Joins the other hosts, where the environment names them.

    JAX finds the hosts of a TPU pod, of Slurm, Open MPI and Kubernetes by itself; elsewhere set JAX_COORDINATOR_ADDRESS
    (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    import jax

    # absl.app lets through what JAX says of every backend that a machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("TPU_WORKER_HOSTNAMES", "").count(","):
        count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(num_processes=count and int(count), process_id=index and int(index))


def use_compilation_cache(folder: str = "") -> None:
    """Keeps what XLA compiles in a folder, for later processes; by default in ~/.cache/audioldm2_jax/xla."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    cache = Path(folder or "~/.cache/audioldm2_jax/xla").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()  # a process that has compiled before has settled on none
