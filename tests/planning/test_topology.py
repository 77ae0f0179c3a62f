"""Names of slices."""

import pytest

from audioldm2_jax.planning import topology


def test_known_slices():
    assert topology.parse("v5e:16x16").chips == 256
    assert topology.parse("v5p:2x2x4", 3).chips == 48 and str(topology.parse("v5p:2x2x4", 3)) == "3 × v5p:2x2x4"
    for chip, shapes in topology.KNOWN.items():
        for shape in shapes:
            assert topology.parse(f"{chip}:{shape}").chip is topology.CHIPS[chip]


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v5e:2x2x2", "h100:2x2", "", "v5e:2x2 v5e"])
def test_unknown_slices_list_the_known(name):
    with pytest.raises(topology.TopologyError, match=r"no such slice; choose from .*v5e:16x16"):
        topology.parse(name)


def test_no_slices():
    with pytest.raises(topology.TopologyError, match="--slices=0"):
        topology.parse("v5e:2x2", 0)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(topology.TopologyError, match=r"pip install '\.\[tpu\]'"):
        topology.devices(topology.parse("v5e:2x2"))
