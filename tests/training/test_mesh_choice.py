"""The mesh of a stage, where the recipe leaves it open."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from smallest import Said, build, get_config

from audioldm2_jax.runtime import sharding
from audioldm2_jax.training import mesh_choice, state

OPEN = {"data": -1, "fsdp": 0}
EIGHT = [types.SimpleNamespace(platform="gpu", slice_index=number // 4) for number in range(8)]


@pytest.fixture(scope="module")
def stage():
    return build("vae", get_config())


@pytest.fixture(autouse=True)
def small_leaves(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARD", 8)  # those of the smallest networks are shared out, too


def bytes_of_a_device(stage, fsdp):
    """What lies on each device of a mesh of eight, as JAX places it."""
    mesh = AbstractMesh((8 // fsdp, fsdp), ("data", "fsdp"))
    leaves = jax.tree.leaves(state.shapes(stage, mesh))
    return sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_as_few_devices_as_hold_it(stage, fsdp):
    axes, why = mesh_choice.choose(OPEN, stage, EIGHT, 2 * bytes_of_a_device(stage, fsdp))
    assert axes == {"data": -1, "fsdp": fsdp}
    assert f"mesh data {8 // fsdp} × fsdp {fsdp}; --config.mesh.fsdp" in why and "may not fit" not in why
    if fsdp > 1:
        axes, _ = mesh_choice.choose(OPEN, stage, EIGHT, 2 * bytes_of_a_device(stage, fsdp // 2) - 8)
        assert axes["fsdp"] == fsdp


def test_what_no_sharing_holds_is_said(stage):
    axes, why = mesh_choice.choose(OPEN, stage, EIGHT, 1000)
    assert axes["fsdp"] == 8 and "it may not fit" in why


def test_slices_do_not_share_weights(stage):
    """Of two slices of four chips at most four: between slices is the slow network."""
    chips = [types.SimpleNamespace(platform="tpu", slice_index=one.slice_index) for one in EIGHT]
    assert mesh_choice.choose(OPEN, stage, chips, 1000)[0]["fsdp"] == 4


@pytest.mark.parametrize(
    ("axes", "memory"),
    [
        ({"data": -1, "fsdp": 2}, 1000),  # set by hand
        ({"data": 2, "fsdp": 0}, 1000),  # what is left
        (OPEN, 0),  # CPUs do not say how much they have
    ],
)
def test_nothing_to_choose(stage, axes, memory):
    assert mesh_choice.choose(axes, stage, EIGHT, memory) == (axes, "")


@pytest.mark.parametrize("data", [1, -1])
def test_what_is_left_open_makes_a_mesh(data):
    assert dict(sharding.make_mesh({"data": data, "fsdp": 0}).shape) == {"data": 1, "fsdp": 1}


def test_one_device_has_nothing_to_share(stage):
    said = Said()
    assert mesh_choice.make_mesh(get_config(), stage, said.say).size == 1 and not said.lines
