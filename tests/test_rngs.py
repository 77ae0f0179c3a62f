"""Random streams: what they depend on, and what they do not."""

import jax
import numpy as np
import pytest

from audioldm2_jax.rngs import Rngs, named, of_step
from audioldm2_jax.stages import STAGES

SEED = jax.random.key(0)


def numbers(keys):
    return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_every_stream_differs():
    """Over stages, steps, slots and names: no key twice."""
    found = []
    for stage in (*STAGES, "vae2", "vocoder_48k", "vocoder_16k"):  # alike in their first letters
        for step in range(3):
            rngs = of_step(named(SEED, stage), step, 4)
            for name in ("noise", "timestep", "noise 2"):
                found += [numbers(rngs.step(name)), numbers(rngs.examples(name))]
    found = np.concatenate(found)
    assert len(np.unique(found, axis=0)) == len(found)


def test_a_name_says_which_stream():
    rngs, again = (of_step(named(SEED, "vae"), 7, 4) for _ in range(2))
    assert np.array_equal(numbers(rngs.examples("noise")), numbers(again.examples("noise")))
    assert named(SEED, "noise") == named(jax.random.key(0), "noise") != named(jax.random.key(1), "noise")
    # To the bit, in every process and version: a resumed run goes on with the numbers that it began with.
    assert numbers(named(SEED, "noise")).tolist() == [[3283203589, 942647089]]


def test_an_examples_stream_knows_its_slot_alone():
    """Not the size of the batch, so not the hosts, devices and microbatches that it is divided among."""
    small, large = (numbers(of_step(named(SEED, "vae"), 7, size).examples("noise")) for size in (3, 8))
    assert np.array_equal(small, large[:3])


@pytest.mark.parametrize("draw", [Rngs.uniform, lambda rngs, name: rngs.normal(name, (5, 2))])
def test_draws_are_the_examples_own(draw):
    rngs = of_step(SEED, 0, 4)
    whole = np.asarray(draw(rngs, "noise"))
    part = np.asarray(draw(rngs._replace(example_keys=rngs.example_keys[1:3]), "noise"))
    assert np.array_equal(whole[1:3], part) and len(np.unique(whole)) == whole.size
