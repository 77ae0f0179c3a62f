"""Messages name commands as the user started this one."""

import sys

import pytest

from audioldm2_jax.invocation import command_line


@pytest.mark.parametrize(
    "started, convert",
    [
        ("launch/train.py", "python launch/convert.py --to x"),
        ("../checkout/launch/generate.py", "python ../checkout/launch/convert.py --to x"),
        ("/venv/bin/audioldm2-jax", "audioldm2-jax convert --to x"),
        ("/site-packages/ipykernel_launcher.py", "audioldm2-jax convert --to x"),
        ("-c", "audioldm2-jax convert --to x"),
        ("", "audioldm2-jax convert --to x"),
    ],
)
def test_by_what_was_started(monkeypatch, started, convert):
    monkeypatch.setattr(sys, "argv", [started, "--config", "music"])
    assert command_line("convert", "--to x") == convert


def test_inside_launch(monkeypatch, tmp_path):
    (tmp_path / "launch").mkdir()
    monkeypatch.chdir(tmp_path / "launch")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert command_line("generate") == "python generate.py"
