"""Trains stages on a mesh of this process' devices and writes what came out; started by test_sharding.py.

Arguments: folder, data axis, fsdp axis, stages.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from smallest import Said, batches, build, get_config

from audioldm2_jax.runtime import sharding
from audioldm2_jax.training import loop


def train(name: str, folder: Path, data: int, fsdp: int) -> loop.Trained:
    """Trains the stage `name` on batches of eight, publishing the parameters themselves."""
    config = get_config()
    config.mesh.update(data=data, fsdp=fsdp)
    config.train[name].update(batch_size=8, ema=0.0)
    stage = build(name, config)
    return loop.train(stage, sharding.make_mesh(config.mesh), batches(stage), folder / name, Said())


def main(folder: str, data: str, fsdp: str, *stages: str) -> None:
    sharding.SMALLEST_SHARD = 8  # the networks are small; all that can be split is to be
    for name in stages:
        trained = train(name, Path(folder), int(data), int(fsdp))
        leaves = {
            jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params)
        }
        np.savez(Path(folder) / f"{name}.npz", **{key: np.asarray(leaf) for key, leaf in leaves.items()})
        shares = {key: leaf.addressable_shards[0].data.size / leaf.size for key, leaf in leaves.items()}
        (Path(folder) / f"{name}.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main(*sys.argv[1:])
