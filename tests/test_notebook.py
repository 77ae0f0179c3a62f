"""The notebook runs from its first cell to its last."""

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def book():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(book) -> dict[str, str]:
    return {cell.id: cell.source for cell in book.cells if cell.cell_type == "code"}


def test_it_is_clean(book):
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    for name, source in code(book).items():
        compile(source, name, "exec")


def test_its_settings_are_the_recipes(book, tmp_path, monkeypatch):
    """A recipe is locked: the cells fail where they set what it does not have."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setenv("AUDIOLDM2_SMOKE", str(tmp_path))
    cells, names = code(book), {}
    exec(cells["config"], names)
    assert names["config"].recipe == "tiny" and names["config"].train.diffusion.steps > 100
    exec(cells["smoke"], names)
    assert names["config"].run_dir == str(tmp_path)
    assert {stage.steps for stage in names["config"].train.values()} == {2}


@pytest.mark.slow
def test_it_runs(book, tmp_path, monkeypatch):
    """Trains every stage for two steps: a minute or two, nearly all of it compiling."""
    run = tmp_path / "run"
    monkeypatch.setenv("AUDIOLDM2_SMOKE", str(run))
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    NotebookClient(
        book, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()

    assert (run / "model" / "model_index.json").is_file()
    for number in range(2):
        waveform, rate = soundfile.read(run / "samples" / f"{number}.wav")
        assert rate == 16000 and len(waveform) == 40960 and np.abs(waveform).max() > 0
    shown = {
        cell.id: [kind for output in cell.outputs for kind in output.get("data", {})]
        for cell in book.cells
        if cell.cell_type == "code"
    }
    assert "image/png" in shown["picture"]
    assert shown["listen"].count("text/html") == 2 and "text/html" in shown["generate"]
