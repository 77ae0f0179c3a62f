"""Caches in real object stores: filled by several machines, each of which reads a copy."""

import numpy as np
import pytest
from smallest import SAMPLES, Said

from audioldm2_jax.data import cache
from audioldm2_jax.runtime import object_store
from audioldm2_jax.training.loop import Stopped

from .test_feature_cache import RECORDS, UNREADABLE, config, opened, parts, recordings  # noqa: F401


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this process one on the machine of that name, whose disk is its own."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def shards(address):
    return {name: entry for name, entry in object_store.listing(address).items() if name.endswith(".array_record")}


def features(found):
    """What the cache has of all records that can be read."""
    return [found.source.excerpt(i, SAMPLES, 0.0).features for i in range(RECORDS) if i != UNREADABLE]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_it_is_that_of_a_folder_and_is_made_once(request, scheme, config, machine):  # noqa: F811
    request.getfixturevalue({"gs": "google", "s3": "amazon"}[scheme])
    in_folder = features(opened(config))
    config.data.cache = f"{scheme}://bucket/caches/made/"
    machine("first")
    said = Said()
    made = features(opened(config, said=said))
    assert f" in {scheme}://bucket/caches/made" in said.lines[0]
    arrived = shards(config.data.cache.rstrip("/"))
    assert {name.split("/")[0] for name in arrived} == {"loa_2", "clap"}
    machine("second")
    said = Said()
    read = features(opened(config, said=said))
    assert not said.lines and shards(config.data.cache.rstrip("/")) == arrived
    for wanted, *others in zip(in_folder, made, read, strict=True):
        for other in others:
            for name, array in wanted.items():
                np.testing.assert_array_equal(other[name], array)


def test_what_has_arrived_is_not_made_again(google, config, machine, monkeypatch):  # noqa: F811
    """Nor is lost what was made when the machine was killed and had not arrived: it arrives with the next start."""
    monkeypatch.setattr(cache, "_SHARD", 2)
    config.data.cache = "gs://bucket/caches/stopped"
    machine("first")
    asked = iter([0, 0, 1])
    with pytest.raises(Stopped):
        opened(config, should_stop=lambda: next(asked))
    before = shards(config.data.cache)
    assert 0 < len(before) < 6
    machine("second")
    opened(config)
    after = shards(config.data.cache)
    assert len(after) == 6 and all(after[name] == entry for name, entry in before.items())
    object_store.delete(config.data.cache, ["loa_2/00001-of-00003.array_record"])
    said = Said()
    opened(config, said=said)
    assert not said.lines and shards(config.data.cache).keys() == after.keys()


def test_of_something_else_it_is_refused_until_it_is_deleted(google, config, machine):  # noqa: F811
    config.data.cache = "gs://bucket/caches/other"
    machine("first")
    opened(config)
    config.data.cache_crops = 3
    told = r"gs://bucket/caches/other/loa_2 is of something else: crops: 1 → 3.*delete gs://bucket/caches/other/loa_2"
    with pytest.raises(cache.CacheError, match=told):
        opened(config)
    object_store.delete(config.data.cache, [*object_store.listing(config.data.cache)])
    opened(config)  # and the copy of the first one is here no more
    config.data.cache_crops = 1
    with pytest.raises(cache.CacheError, match="crops: 3 → 1"):
        opened(config)
