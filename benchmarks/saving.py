"""What saving costs: how long a save holds training up, and what it takes of the processor beside it.

    python benchmarks/saving.py --megabytes 400

Saves a state of that size three times, as training does, and prints the seconds in which the loop waits, those until
the checkpoint has its name, and the processor's: medians. Then what the state of music:base's diffusion stage takes at
this rate, saved by one host, as a share of the time between two saves at the defaults: waiting, and of one processor,
beside the steps. A step takes what the compiler estimates for four clips a chip on v5e:2x2 (--seconds: something else).
On an accelerator the copy of 5.6 GB to the host comes to the waiting.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from audioldm2_jax import recipes
from audioldm2_jax.runtime import sharding
from audioldm2_jax.training.checkpoint import Checkpoints

_MEGABYTES = flags.DEFINE_integer("megabytes", 400, "Size of the state.")
_SECONDS = flags.DEFINE_float("seconds", 0.151, "A step of the diffusion stage of music:base.")
_FOLDER = flags.DEFINE_string("folder", "", "On the disk to be measured; empty: for temporary files.")
_PARAMETERS = 346_943_496  # of the UNet of music:base
_COPIES = 4  # parameters, their average, Adam's two moments; 4 bytes each


def main(argv: list[str]) -> None:
    """Measures and prints as said above."""
    logging.set_verbosity(logging.ERROR)
    mesh = sharding.make_mesh(recipes.get("base").mesh)
    place = jax.NamedSharding(mesh, jax.P())
    rng, leaves = np.random.default_rng(0), max(_MEGABYTES.value // 8, 1)
    rows = []
    with tempfile.TemporaryDirectory(dir=_FOLDER.value or None) as folder:
        checkpoints = Checkpoints(Path(folder), keep=2)
        for step in range(1, 4):
            arrays = {f"{i}": rng.standard_normal((1000, 2000), np.float32) for i in range(leaves)}
            state = jax.block_until_ready(jax.device_put(arrays, place))
            begin, worked = time.perf_counter(), time.process_time()
            checkpoints.save(step, state)
            waited = time.perf_counter() - begin
            while not (Path(folder) / str(step)).exists():
                time.sleep(0.005)
            rows.append((waited, time.perf_counter() - begin, time.process_time() - worked))
        checkpoints.close()
    waited, whole, worked = np.median(rows, axis=0)
    size = leaves * 8e6
    print(
        f"{size / 1e6:.0f} MB: training waits {waited:.2f} s, whole after {whole:.2f} s, {worked:.2f} processor seconds"
    )
    hparams = recipes.get("base").train.diffusion
    factor, between = 4 * _COPIES * _PARAMETERS / size, hparams.save_every * _SECONDS.value
    print(
        f"music:base, diffusion, {factor * size / 1e9:.1f} GB every {hparams.save_every} steps ({between:.0f} s): "
        f"waiting {factor * waited / between:.2%} of the time; {factor * worked / between:.1%} of one processor"
    )


if __name__ == "__main__":
    app.run(main)
