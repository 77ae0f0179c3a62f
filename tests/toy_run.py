"""A run of one toy stage, which compiles at once, in as many processes as find each other; started by tests.

Arguments: the run folder, then flags of `audioldm2_jax.runtime.cluster` and `config.KEY=VALUE`. Of the variables FAIL
and HANG are `PROCESS:STEP`: with FAIL that process raises an OSError, with HANG it stands still. SLOW is
`PROCESS:SECONDS`, which it waits for each batch. NAN is `FIRST:LAST,…`: the loss of these steps is not a number.
SETTING is one more `config.KEY=VALUE`.
"""

from __future__ import annotations

import ast
import os
import sys
import time

import jax
import jax.numpy as jnp
import toys
from smallest import get_config

from audioldm2_jax.runtime import cluster, sharding
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import main, stage_data
from audioldm2_jax.training import run as training_run


class Slow(toys.Line):
    """A step takes at least 50 ms, so that a test can come between two."""

    needs = continues = makes = classmethod(lambda cls, config: ())

    def results(self, params, state, frozen, batch):
        return {}

    def variant(self, step: int) -> str:
        here = f"{jax.process_index()}:{step}"
        if here == os.environ.get("FAIL"):
            raise OSError("the disk of this host does not answer")
        if here == os.environ.get("HANG"):
            time.sleep(1e6)
        time.sleep(0.05)
        broken = [map(int, span.split(":")) for span in os.environ.get("NAN", "1:0").split(",")]
        return "broken" if any(first <= step <= last for first, last in broken) else "sound"

    def _loss(self, variant, params, outputs, state, frozen, batch, rngs):
        cut = {"waveform": batch["waveform"][:, : toys.WIDTH]}
        loss, rest = super()._loss(variant, params, outputs, state, frozen, cut, rngs)
        return loss * (jnp.nan if variant == "broken" else 1.0), rest


class SlowData(stage_data.StageData):
    """Data for which the process that SLOW names waits."""

    def train(self, *given):
        process, _, seconds = os.environ["SLOW"].partition(":")
        for batch in super().train(*given):
            if jax.process_index() == int(process):
                time.sleep(float(seconds))
            yield batch


def run(folder: str, *settings: str) -> int:
    """Runs to the end of 2000 steps, saving every 20, what can be split over `fsdp`; returns the exit code."""
    sharding.SMALLEST_SHARD = 1
    STAGES.clear()
    STAGES["audiomae"] = Slow
    if "SLOW" in os.environ:
        training_run.StageData = SlowData
    config = get_config()
    config.run_dir, config.stages = folder, "audiomae"
    config.train.audiomae.update(steps=2000, batch_size=4, save_every=20, log_every=10)
    flags = {}
    for setting in (*settings, *filter(None, [os.environ.get("SETTING")])):
        key, _, value = setting.partition("=")
        if key.startswith("config."):
            with config.unlocked():
                config.update_from_flattened_dict({key.removeprefix("config."): _value(value)})
        else:
            flags[key.removeprefix("--")] = _value(value)
    return main.main(config, cluster.Cluster(**flags))


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]))
