"""What the package gives at its top, and that processes which only read data do without JAX."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import audioldm2_jax
from audioldm2_jax import recipes
from audioldm2_jax.data import sources

HEAVY = ("jax", "flax", "optax", "orbax", "torch", "tensorflow")


def python(code: str, *arguments: str, folder: Path | None = None) -> str:
    """What `code` prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_pipeline_is_at_the_top():
    from audioldm2_jax import AudioLDM2
    from audioldm2_jax.generation import pipeline

    assert AudioLDM2 is pipeline.AudioLDM2
    assert {"AudioLDM2", "recipes"} <= set(dir(audioldm2_jax)) and audioldm2_jax.__all__ == ["AudioLDM2"]
    with pytest.raises(AttributeError, match="module 'audioldm2_jax' has no attribute 'AudioLDM3'"):
        audioldm2_jax.AudioLDM3  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, audioldm2_jax; dir(audioldm2_jax); print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_a_process_that_reads_data_does_without_jax(tmp_path):
    """As Grain's workers do: a source arrives pickled, and is read."""
    config = recipes.get("tiny")
    config.unlock()
    config.data.source = "builtin:music"
    (tmp_path / "source").write_bytes(pickle.dumps(sources.open_source(config, "train")))
    code = f"""
import pickle, sys
source = pickle.load(open("source", "rb"))
print(source[3].text)
print([name for name in {HEAVY} if name in sys.modules])
"""
    caption, loaded = python(code, folder=tmp_path).splitlines()
    assert caption and loaded == "[]"


@pytest.mark.parametrize("command", ["main", "train", "generate", "convert", "prepare", "plan"])
def test_commands_import_jax_when_they_run(command):
    """Processes of stages and of data import what started the program once more."""
    code = f"import sys, audioldm2_jax.commands.{command}; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).strip() == "[]"
