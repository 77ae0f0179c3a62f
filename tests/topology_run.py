"""Trains stages on a mesh of the devices of one process or several, and writes what came out; see test_sharding.py.

Arguments: folder, data axis, fsdp axis, steps (0: the recipe's), steps after which it stops (0: at the end), stages.
With JAX_COORDINATOR_ADDRESS it is one process of several.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from smallest import Said, batches, build, get_config

from audioldm2_jax.runtime import cluster, hosts, sharding, start
from audioldm2_jax.training import loop


def train(name: str, folder: Path, data: int, fsdp: int, steps: int = 0, stop: int = 0) -> loop.Trained:
    """Trains the stage `name` on batches of eight, publishing the parameters themselves."""
    config = get_config()
    config.mesh.update(data=data, fsdp=fsdp)
    config.train[name].update(batch_size=8, ema=0.0)
    if steps:
        config.train[name].update(steps=steps, save_every=10, heldout_every=0, keep=9)
    stage, taken = build(name, config), iter(range(1, 1000))

    def own(step: int) -> Iterator[dict[str, np.ndarray]]:
        share = 8 // jax.process_count()
        first = share * jax.process_index()
        for batch in batches(stage)(step):
            yield {field: array[first : first + share] for field, array in batch.items()}

    return loop.train(
        stage, sharding.make_mesh(config.mesh), own, folder / name, Said(), lambda: int(next(taken) == stop)
    )


def main(folder: str, data: str, fsdp: str, steps: str, stop: str, *stages: str) -> None:
    cluster.join(cluster.Cluster())
    sharding.SMALLEST_SHARD = 8  # the networks are small; all that can be split is to be
    for name in stages:
        with contextlib.suppress(loop.Stopped):
            trained = train(name, Path(folder), int(data), int(fsdp), int(steps), int(stop))
            write(trained, Path(folder), name)
    start.leave()


def write(trained: loop.Trained, folder: Path, name: str) -> None:
    """Writes the parameters, and which share of each a device has."""
    whole = hosts.give_first(trained.params, partial(jax.tree.map, np.asarray))
    leaves = jax.tree_util.tree_leaves_with_path(trained.params)
    shares = {jax.tree_util.keystr(path): leaf.addressable_shards[0].data.size / leaf.size for path, leaf in leaves}
    if hosts.is_first():
        named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}
        np.savez(folder / f"{name}.npz", **named)
        (folder / f"{name}.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main(*sys.argv[1:])
