"""Its place puts the helpers of this folder on the path of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# A test runs its programs a few times: to optimise them takes a CPU longer than all runs. Processes of tests inherit
# it. With XLA_FLAGS set by hand, and be it empty, programs are compiled as users have them.
_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 12):  # later versions end at this flag
    _QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICKLY)

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
