"""Who is said to keep the others waiting, by what all have told; on real processes in test_several_processes.py."""

import pytest

from audioldm2_jax.runtime import watch
from audioldm2_jax.training.stragglers import OwnTime, Stragglers


@pytest.fixture
def judged(monkeypatch):
    """Judges the seconds of ten steps, of an interval of ten seconds; returns what is logged and what is said."""
    monkeypatch.setattr(watch, "names", lambda: [f"process {index} (host)" for index in range(9)])
    said = []
    stragglers = Stragglers(said.append)

    def judge(*seconds, data=0.0):
        return stragglers.judge([OwnTime(each, data, 10, 10.0) for each in seconds]), said

    return judge


def test_one_of_four(judged):
    logged, said = judged(1.0, 1.2, 6.0, 1.1, data=0.5)
    assert said == [
        "process 2 (host) keeps the others waiting: 0.6 s a step of its own, 0.05 of them for data, where others take "
        "0.11 (median)"
    ]
    assert logged == pytest.approx({"slowest_host": 2, "slowest_host_seconds": 0.6, "median_host_seconds": 0.115})
    _, said = judged(1.0, 1.2, 6.0, 1.1)
    assert len(said) == 1  # once


def test_one_of_two(judged):
    _, said = judged(0.0, 3.0)
    assert said[0].startswith("process 1 (host) keeps the others waiting: 0.3 s a step")


def test_several_are_named_together(judged):
    _, (said,) = judged(0.1, 4.0, 0.1, 0.1, 5.0)
    assert "process 1" in said and "; process 4" in said


@pytest.mark.parametrize(
    "seconds",
    [
        (5.0, 5.5, 4.5),  # all alike
        (1.0, 1.9),  # below the factor
        (0.001, 0.9, 0.002),  # below a tenth of the time
        (0.0, 0.0),
    ],
)
def test_nobody_is_named_without_need(judged, seconds):
    logged, said = judged(*seconds)
    assert not said and logged["slowest_host_seconds"] == max(seconds) / 10


def test_a_process_alone_has_no_others(judged):
    assert judged(5.0) == ({}, [])


def test_counting():
    stragglers = Stragglers(print)
    stragglers.entered(2.0, 1.5)
    stragglers.entered(0.0, 0.0)
    assert stragglers.take()[:3] == (2.0, 1.5, 2)
    assert stragglers.take()[:3] == (0.0, 0.0, 0)
