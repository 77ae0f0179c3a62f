"""Pictures and sounds of a run: whatever a caption holds, and never at the cost of the run."""

import logging
import warnings

import numpy as np
import pytest

from audioldm2_jax.evaluation import show

MELS = {"real": np.zeros((1, 20, 8)), "generated": np.ones((1, 20, 8))}


@pytest.mark.parametrize(
    "caption",
    [
        "Ba$$a",
        "$\\frac{1}{$",
        "100 % \\alpha $x^2$ {x} \\n_",
        "雨 🌧 in Ba\u0301r",
        "half \ud83d",
        "a\0b",
        "\t",
        "",
        "x" * 500,
    ],
)
def test_any_caption_is_drawn_as_it_is_written(tmp_path, caption, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        show.draw_mels(tmp_path / "mels.png", MELS, [caption])
    assert [path.name for path in tmp_path.iterdir()] == ["mels.png"]
    assert not caplog.records


def test_a_formula_is_no_formula(tmp_path):
    """Two captions that mean the same formula look different."""
    for name, caption in (("a", "$x$"), ("b", "$ x $")):
        show.draw_mels(tmp_path / f"{name}.png", MELS, [caption])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("error", [ValueError("no font"), OSError(28, "No space left on device"), MemoryError()])
def test_a_picture_that_fails_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def fail(self, file, **_):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with caplog.at_level(logging.WARNING):
        show.draw_mels(tmp_path / "mels.png", MELS, ["a"])
    assert not list(tmp_path.iterdir())
    assert "mels.png is not drawn" in caplog.text
