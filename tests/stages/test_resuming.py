"""One stage of each kind, interrupted and resumed: equal to the straight run to the bit.

Plain (audiomae), adversarial with BatchNorm and a discriminator that starts in the middle (vae), joint.
"""

import pytest
from smallest import Said, batches, build, get_config, same

from audioldm2_jax.runtime import sharding
from audioldm2_jax.training import loop


def train(name, folder, stop_after=None):
    said, asked = Said(), []

    def should_stop():
        asked.append(None)
        return len(asked) == stop_after

    stage = build(name, get_config())
    try:
        return loop.train(stage, sharding.all_devices(), batches(stage), folder, said, should_stop)
    except loop.Stopped:
        return said


# The steps after which it stops: in the second case once before and once after the discriminator's start.
@pytest.mark.parametrize("name, stops", [("audiomae", (2,)), ("vae", (1, 3)), ("joint", (2,))])
def test_stopped_and_resumed_is_the_straight_run(tmp_path, compiled_once, name, stops):
    straight = train(name, tmp_path / "straight")
    done = 0
    for stop in stops:
        train(name, tmp_path / "parts", stop - done)
        done = stop
    resumed = train(name, tmp_path / "parts")
    same((straight.params, straight.model_state), (resumed.params, resumed.model_state))
