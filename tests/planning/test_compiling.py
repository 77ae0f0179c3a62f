"""What is kept of a compilation, and what the compiler's message about memory says."""

import importlib.metadata
import json
import threading

import jax
import pytest

from audioldm2_jax.planning import compiling, topology

FOUR = topology.parse("v5e:2x2")


@pytest.mark.parametrize(
    "message, needed",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 3.75G.",
            {"needed": 19.5 * 2**30},
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (192.00G) "
            "exceeds available HBM (15.75G).",
            {"temporaries": 192 * 2**30},
        ),
        ("RESOURCE_EXHAUSTED: something else", {}),
    ],
)
def test_memory_that_is_missing(message, needed):
    assert compiling.needed(message) == needed


class Lowered:
    """Stands for a step that does not fit; counts how often it is compiled."""

    def __init__(self, text: str = "step", message: str = "RESOURCE_EXHAUSTED: Used 17.00G of 15.75G hbm."):
        self.text, self.message, self.compiled = text, message, 0

    def as_text(self) -> str:
        return self.text

    def compile(self):
        self.compiled += 1
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.fixture(autouse=True)
def _versions(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "libtpu" else real(name))


def test_a_step_is_compiled_once(tmp_path):
    lowered, said = Lowered(), []
    first = compiling.figures(lowered, FOUR, tmp_path / "plans", said.append)
    assert first["fits"] is False and first["needed"] == 17 * 2**30
    assert compiling.figures(lowered, FOUR, tmp_path / "plans", said.append) == first and lowered.compiled == 1
    assert said[-1].startswith("compiled before: ")
    for other, where in ((Lowered("another step"), FOUR), (lowered, topology.parse("v5e:2x4"))):
        before = other.compiled
        compiling.figures(other, where, tmp_path / "plans", said.append)
        assert other.compiled == before + 1
    assert {path.suffix for path in (tmp_path / "plans").iterdir()} == {".json"}


def test_damaged_figures_are_made_again(tmp_path):
    lowered = Lowered()
    compiling.figures(lowered, FOUR, tmp_path, print)
    (file,) = tmp_path.iterdir()
    file.write_text('{"fits"')
    compiling.figures(lowered, FOUR, tmp_path, print)
    assert lowered.compiled == 2 and json.loads(file.read_text())["fits"] is False


def test_other_refusals_are_told_in_a_line():
    with pytest.raises(compiling.CompileError, match=r"^libtpu does not compile the step for v5e:2x2: INTERNAL: no$"):
        compiling.figures(Lowered(message="INTERNAL: no\nmore"), FOUR, None, lambda line: None)


def test_progress_while_it_works(monkeypatch):
    monkeypatch.setattr(compiling, "_INTERVAL", 0.01)
    said, enough = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 4:
            enough.set()

    assert compiling.with_progress(lambda: enough.wait(20) and "made", "compiling", say) == "made"
    assert said[0] == "compiling …" and said[1] == "compiling: 0:00" and said[-1].endswith(", done")
