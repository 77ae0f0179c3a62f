"""The measures of benchmarks/listeners.py on sounds whose answer is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "listeners.py"
SPEC = importlib.util.spec_from_file_location("listeners", FILE)
listeners = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(listeners)
RATE = 16000


def notes(pitches, seconds):
    """[samples]: one decaying tone of three partials after another, of MIDI pitches."""
    time = np.arange(round(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((np.array(pitches) - 69) / 12)
    sound = [sum(np.sin(2 * np.pi * n * f * time) / n for n in (1, 2, 3)) * np.exp(-4 * time) for f in hertz]
    return 0.3 * np.concatenate(sound).astype(np.float32)


@pytest.mark.parametrize("a_second", [1, 2, 4, 6])
def test_onsets_are_counted(a_second):
    found = listeners.onset_rate(notes([60, 64] * (2 * a_second), 1 / a_second)[None], RATE)
    assert found[0] == pytest.approx(a_second, abs=0.5)


@pytest.mark.parametrize("tonic", [57, 60, 66])
def test_the_mode_of_a_cadence(tonic):
    major, minor = (
        notes([tonic + step for step in steps], 0.4)
        for steps in ([0, 4, 7, 5, 9, 12, 7, 11, 14, 0, 4, 7, 0], [0, 3, 7, 5, 8, 12, 7, 11, 14, 0, 3, 7, 0])
    )
    assert listeners.mode(np.stack([major, minor]), RATE).tolist() == ["major", "minor"]


def test_the_median_note_is_that_of_voiced_frames():
    pitches = np.array([[440.0, 440.0, 880.0, 100.0], [440.0] * 4])
    sure = np.array([[0.9, 0.9, 0.9, 0.1], [0.1] * 4])
    found = listeners.median_note(pitches, sure)
    assert found[0] == pytest.approx(69) and np.isnan(found[1])


def test_energy_between_the_partials_is_noise():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 200 * time) + 0.5 * np.sin(2 * np.pi * 400 * time)
    noise = np.random.default_rng(0).standard_normal(RATE)
    f0, voiced = np.full((2, 100), 200.0), np.ones((2, 100), bool)
    clean, noisy = listeners.harmonic_to_noise(np.stack([tone, tone + noise]).astype(np.float32), RATE, f0, voiced)
    assert clean > 30 > 10 > noisy
    assert np.isnan(listeners.harmonic_to_noise(tone[None].astype(np.float32), RATE, f0[:1], ~voiced[:1]))[0]


def test_the_interval_is_wilsons():
    """Of 10 in 20: 29.9 to 70.1 % [Wilson 1927; Newcombe 1998]."""
    assert listeners.share(np.arange(20) < 10) == "50.0% (30% to 70%)"
    assert listeners.share(np.ones(20, bool)).startswith("100.0% (84%")
