"""What processes do together, checked in each of them; started by test_several_processes.py.

Argument: a folder with a subfolder of recordings for each process.
"""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from smallest import get_config

from audioldm2_jax.runtime import cluster, hosts, sharding, start
from audioldm2_jax.training import stage_data


def agree(index: int) -> None:
    assert hosts.gather({"index": index}, "a") == [{"index": 0}, {"index": 1}]
    long = [index, "ä" * 3_000_000, *range(400_000)]  # more than the coordinator takes in one message
    assert hosts.broadcast(long, "b")[0] == 0
    assert hosts.first_text("" if index == 0 else "second") == "second"


def name_who_is_missing(index: int) -> None:
    if index == 0:
        try:
            hosts.wait_for_hosts("nobody else", timeout=1)
        except hosts.HostsError as error:
            assert "waited 1 s at 'nobody else' for process 1 (" in str(error), error
        else:
            raise AssertionError("the wait did not end")
    else:
        next(hosts._numbers)  # it is somewhere else
        time.sleep(2)
    hosts.wait_for_hosts("both again")


def place(index: int) -> None:
    """Each host puts its part on its devices: nothing is compiled, and nothing comes from the other host."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    config = get_config()
    config.mesh.update(data=1, fsdp=2)
    mesh = sharding.make_mesh(config.mesh)
    mine = {"wide": np.full((4, 4096), index, np.float32), "small": np.arange(3.0)}
    placed = sharding.place(mine, sharding.state_sharding(mine, mesh))
    rows = sharding.spread(np.arange(10.0).reshape(5, 2), mesh)
    assert not [name for name in compiled if "compile" in name], compiled
    assert all(shard.data.shape == (2, 4096) for shard in placed["wide"].addressable_shards)
    assert placed["small"].is_fully_replicated and rows.shape == (6, 2)

    whole = hosts.give_first(placed, partial(jax.tree.map, np.asarray))
    assert (whole is None) == (index == 1)
    if index == 0:
        assert whole["wide"][:, 0].tolist() == whole["wide"][:, -1].tolist() == [0.0, 0.0, 1.0, 1.0]


def follow_the_first(index: int, folder: Path) -> None:
    """One recording cannot be read by the second process; both have the same records in the same order."""
    config = get_config()
    config.data.source, config.data.heldout_share = str(folder / str(index)), 0.1
    names = list(stage_data.open_source(config, "train").source.names)
    assert hosts.gather(names, "names") == [names] * 2 and len(names) > 8


def main(folder: Path) -> None:
    cluster.join(cluster.Cluster(heartbeat_seconds=60))
    index = jax.process_index()
    assert jax.process_count() == 2
    agree(index)
    name_who_is_missing(index)
    place(index)
    follow_the_first(index, folder)
    hosts.wait_for_file(folder / "0", "both see it")
    start.leave()
    print("all is well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
