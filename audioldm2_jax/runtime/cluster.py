"""How the processes of one job find each other: by flags, by JAX's variables, or by what JAX knows of the cluster.

JAX itself knows Slurm, Open MPI, TPU pods (GCE and GKE) and Kubernetes; what it knows is asked, not repeated here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

_WHAT_TO_DO = (
    "give each --coordinator=HOST:PORT of the first, --num_processes and --process_id, or --num_processes=1 where this "
    "process is to run alone"
)


class ClusterError(ValueError):
    """The processes of a job cannot find each other; the message says what to do."""


class Cluster(NamedTuple):
    """What a launcher is told of the other processes; "" and -1: nothing, so that JAX finds out."""

    coordinator: str = ""
    num_processes: int = -1
    process_id: int = -1
    join_seconds: int = 300
    heartbeat_seconds: int = 100
    shutdown_seconds: int = 300


#: The flags of every launcher that computes: name of a field of `Cluster` → help.
FLAGS = {
    "coordinator": "Address (host:port) of the first of several processes. Without it, what JAX_COORDINATOR_ADDRESS "
    "or the cluster (Slurm, Open MPI, a TPU pod, Kubernetes) says.",
    "num_processes": "Number of processes, as JAX_NUM_PROCESSES; 1: this one alone, whatever the cluster says.",
    "process_id": "Number of this process, from 0, as JAX_PROCESS_ID.",
    "join_seconds": "How long a process waits for the others when it starts.",
    "heartbeat_seconds": "After so long without a sign of life a process counts as lost, and the others end.",
    "shutdown_seconds": "How long a process that has finished waits for the others.",
}


def join(cluster: Cluster, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this job, if there are any; called before JAX's first computation.

    What the flags do not say, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say, and what those do
    not, the cluster. A process that is its cluster's only one keeps all devices of its host and joins nothing.

    Raises:
        ClusterError: they are named in part or wrongly, or cannot be reached.
    """
    import jax

    from audioldm2_jax.runtime import watch

    # absl.app lets through what JAX says of every backend that a machine does not have.
    if "JAX_LOGGING_LEVEL" not in environment:
        logging.getLogger("jax").setLevel(logging.WARNING)
    known = {
        "coordinator_address": cluster.coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None,
        "num_processes": _number(cluster.num_processes, "num_processes", "JAX_NUM_PROCESSES", environment),
        "process_id": _number(cluster.process_id, "process_id", "JAX_PROCESS_ID", environment),
    }
    if known["num_processes"] == 1:
        return
    count = None if known["coordinator_address"] else _processes()
    if count == 1:
        return _alone(known["num_processes"])
    # The loop asks for signals itself, and stops on all hosts at one step; JAX's own handler would only swallow them.
    jax.config.update("jax_enable_preemption_service", False)
    watch.delay_abort()
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=cluster.join_seconds,
            heartbeat_timeout_seconds=cluster.heartbeat_seconds,
            shutdown_timeout_seconds=cluster.shutdown_seconds,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ValueError) and count is None and not known["coordinator_address"]:
            return _alone(known["num_processes"])  # so JAX refuses where it detects no cluster
        raise ClusterError(f"cannot join the other processes ({_first_line(error)}): {_WHAT_TO_DO}") from error
    watch.start(cluster.heartbeat_seconds)


def _number(flag: int, name: str, variable: str, environment: Mapping[str, str]) -> int | None:
    """A count or number from the flag or, without one, the variable."""
    if flag != -1:
        if flag < 0:
            raise ClusterError(f"--{name}={flag}: it cannot be negative")
        return flag
    value = environment.get(variable, "").strip()
    if not value:
        return None
    if not value.isdecimal():
        raise ClusterError(f"{variable}={value}: it has to be a number")
    return int(value)


def _alone(wanted: int | None) -> None:
    """Raises ClusterError where more processes are wanted and there is no cluster that would say where they meet."""
    if wanted is not None:
        raise ClusterError(f"{wanted} processes are asked for and nothing says where they meet: {_WHAT_TO_DO}")


def _processes() -> int | None:
    """How many processes the cluster has that JAX detects; 1 where it detects none, None where it keeps that to itself.

    Raises:
        ClusterError: there is a cluster, and it does not tell.
    """
    try:
        from jax._src.clusters import ClusterEnv

        kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    except (ImportError, AttributeError):  # no part of JAX's public interface
        return None
    for kind in kinds:
        try:
            if kind.is_env_present():
                return kind.get_process_count()
        except Exception as error:  # of a metadata server, an API, a variable that is no number
            raise ClusterError(
                f"this seems to be a cluster ({kind.__name__}), but its processes cannot be found "
                f"({_first_line(error)}): {_WHAT_TO_DO}"
            ) from error
    return 1


def _first_line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
