"""When a process joins others, and when it stays alone; real processes are in tests/test_several_processes.py."""

import os

import jax
import pytest

from audioldm2_jax.runtime import cluster, watch
from audioldm2_jax.runtime.cluster import Cluster, ClusterError, join

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:3",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """The arguments of `jax.distributed.initialize`, which is not carried out; the environment is that of no job."""
    for name in list(os.environ):
        if name.startswith(("JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS_ID", "SLURM_", "OMPI_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(watch, "start", lambda seconds: None)
    monkeypatch.setattr(watch, "delay_abort", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    return calls


@pytest.mark.parametrize(
    "environment, flags, wanted",
    [
        (VARIABLES, Cluster(), ("a:1", 2, 0)),
        (SLURM, Cluster(), (None, None, None)),  # JAX fills in
        (OPEN_MPI, Cluster(), (None, None, None)),
        ({}, Cluster("b:2", 3, 2), ("b:2", 3, 2)),
        (VARIABLES, Cluster("b:2", 3, 2), ("b:2", 3, 2)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "c:3"}, Cluster(), ("c:3", None, None)),
    ],
)
def test_joins(joined, monkeypatch, environment, flags, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join(flags._replace(heartbeat_seconds=7))
    (call,) = joined
    assert (call["coordinator_address"], call["num_processes"], call["process_id"]) == wanted
    assert call["heartbeat_timeout_seconds"] == 7 and call["shutdown_timeout_seconds"] == 300


@pytest.mark.parametrize(
    "environment, flags",
    [
        ({}, Cluster()),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Cluster()),  # joined, it would see one GPU of its node
        (SLURM, Cluster(num_processes=1)),
        (VARIABLES | {"JAX_NUM_PROCESSES": "1"}, Cluster()),
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Cluster()),  # a batch script, no step of it
    ],
)
def test_stays_alone(joined, monkeypatch, environment, flags):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join(flags)
    assert not joined


@pytest.mark.parametrize(
    "environment, flags, message",
    [
        ({}, Cluster(num_processes=2), "2 processes are asked for and nothing says where they meet"),
        (VARIABLES | {"JAX_NUM_PROCESSES": "two"}, Cluster(), "JAX_NUM_PROCESSES=two: it has to be a number"),
        ({}, Cluster("a:1", -2, 0), "--num_processes=-2: it cannot be negative"),
        (SLURM | {"SLURM_NTASKS": "2(x4)"}, Cluster(), r"SlurmCluster.*--num_processes=1 where this process"),
    ],
)
def test_refuses(joined, monkeypatch, environment, flags, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=message) as caught:
        join(flags)
    assert not joined and "\n" not in str(caught.value)


def test_jaxs_own_refusal_is_one_line_that_says_what_to_do(monkeypatch):
    def initialize(**_):
        raise ValueError("Number of processes must be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        ClusterError, match=r"\(Number of processes must be defined.\): give each --coordinator"
    ) as told:
        join(Cluster("a:1"))
    assert "\n" not in str(told.value)


def test_without_jaxs_list_of_clusters_jax_is_tried(joined, monkeypatch):
    """A JAX that keeps its list elsewhere still decides: `initialize` without arguments raises where there is none."""
    monkeypatch.delattr("jax._src.clusters.ClusterEnv._cluster_types")
    asked = []

    def initialize(**arguments):
        asked.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    join(Cluster())
    (arguments,) = asked
    assert arguments["coordinator_address"] is arguments["num_processes"] is arguments["process_id"] is None


def test_every_field_is_a_flag():
    assert tuple(cluster.FLAGS) == Cluster._fields
