"""Since when the devices have had nothing to do: what hides behind a step is no waiting."""

import threading
import time

import pytest

from audioldm2_jax.training.idle import Idle


class Step:
    """Results of a step that is done when the test says so, or fails."""

    def __init__(self, error=None):
        self._done, self._error = threading.Event(), error

    def block_until_ready(self):
        self._done.wait()
        if self._error:
            raise self._error

    def finish(self):
        self._done.set()
        time.sleep(0.05)  # the thread notes it


@pytest.fixture
def idle():
    made = Idle()
    yield made
    made.close()


def test_only_what_is_left_after_the_step_counts(idle):
    """Data that take 0.3 s beside a step that takes 0.2 s."""
    step, begin = Step(), time.monotonic()
    idle.begun(step)
    time.sleep(0.2)
    assert idle.seconds(begin) == 0
    step.finish()
    time.sleep(0.05)
    waited = idle.seconds(begin)
    assert 0.05 <= waited <= time.monotonic() - begin - 0.2
    assert idle.seconds(time.monotonic() - 0.01) < waited  # what was idle before is not of this batch


def test_the_devices_work_until_the_last_step_is_done(idle):
    first, second = Step(error=RuntimeError("the device is lost")), Step()
    idle.begun(first)
    idle.begun(second)
    first.finish()
    assert idle.seconds(0.0) == 0
    second.finish()
    assert idle.seconds(0.0) > 0
