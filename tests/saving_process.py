"""A process that saves and restores checkpoints; started, and killed, by training/test_checkpoint.py.

Arguments: folder, `save` or `restore`, steps to save ("1,2,3"; restore ignores them), megabytes of a state. Prints a
line a finished save, or what was restored and how many bytes were read. With JAX_COORDINATOR_ADDRESS it is one process
of several; with an empty SPLIT the state lies whole on each.
"""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np


def main(folder: str, what: str, steps: str, megabytes: str) -> None:
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        count, index = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(num_processes=count, process_id=index)
    from audioldm2_jax.training.checkpoint import Checkpoints

    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(os.environ.get("SPLIT", "fsdp") or None))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    size = int(float(megabytes) * 250_000)

    def state(step: int) -> dict:
        kernel = np.random.default_rng(step).standard_normal(size, np.float32)
        return {
            "kernel": jax.make_array_from_callback(kernel.shape, split, lambda index: kernel[index]),
            "step": jax.make_array_from_callback((), whole, lambda _: np.array(step, np.int32)),
        }

    checkpoints = Checkpoints(Path(folder), keep=int(os.environ.get("KEEP", "1")))
    if what == "restore":
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0)
        )
        before = bytes_read()
        found = checkpoints.restore(abstract, lambda line: print("said:", line, flush=True))
        step = int(found["step"])
        same = all(
            np.array_equal(a.data, b.data)
            for a, b in zip(found["kernel"].addressable_shards, state(step)["kernel"].addressable_shards)
        )
        print("restored", step, same, flush=True)
        print("read", bytes_read() - before, flush=True)
        checkpoints.close()
        return
    for step in map(int, steps.split(",")):
        checkpoints.save(step, state(step))
        while not (Path(folder) / str(step)).exists():
            time.sleep(0.001)
        print("saved", step, flush=True)
    if os.environ.get("KEEP"):
        checkpoints.close()
    else:
        time.sleep(600)  # to be killed, with nothing closed


def bytes_read() -> int:
    """Bytes that this process has read from files, from whichever cache; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
