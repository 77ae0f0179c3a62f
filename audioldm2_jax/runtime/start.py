"""What a process does before its first computation, and after its last: other processes, the compilation cache."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from audioldm2_jax.runtime import cluster, watch


def start(config: ConfigDict, others: cluster.Cluster | None = None) -> None:
    """Joins the other processes of the job, if `others` says how (or that JAX is to find out), and turns on the
    compilation cache.

    Raises:
        ClusterError: see `cluster.join`.
    """
    if others is not None:
        cluster.join(others)
    if config.compilation_cache != "off":
        use_compilation_cache(config.compilation_cache)


def leave() -> None:
    """Meets the other processes for the last time, before this one ends in good order. Called by all."""
    from audioldm2_jax.runtime import hosts

    hosts.wait_for_hosts("end")
    watch.stop()


def use_compilation_cache(folder: str = "") -> None:
    """Keeps what XLA compiles in a folder, for later processes; by default in ~/.cache/audioldm2_jax/xla."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    cache = Path(folder or "~/.cache/audioldm2_jax/xla").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()  # a process that has compiled before has settled on none
