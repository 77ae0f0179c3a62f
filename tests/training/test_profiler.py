"""A profile of chosen or of the next steps: as XProf's own protocol buffers have it, and never worth a training."""

import os
import signal
import subprocess
import sys

import jax
import toys
from toys import Line, config

from audioldm2_jax.training import profiler


def spaces(folder):
    """The files that XProf opens."""
    return sorted(folder.glob("plugins/profile/*/*.xplane.pb"))


def steps(file):
    """The steps that a profile is of."""
    content = jax.profiler.ProfileData.from_file(str(file))
    return {
        stat[1]
        for plane in content.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
        for stat in event.stats
        if stat[0] == "step_num"
    }


def signalled(after):
    """Batches; this process gets the signal while it reads that of the step `after`."""

    def batches(step):
        for number, batch in enumerate(toys.data(step), start=step + 1):
            if number == after:
                os.kill(os.getpid(), signal.SIGUSR2)
            yield batch

    return batches


def test_the_steps_that_are_asked_for(tmp_path):
    stage = Line(config(steps=8, profile=(3, 5)), {})
    _, said = toys.train(stage, tmp_path)
    (file,) = spaces(tmp_path)
    assert steps(file) == {3, 4, 5}
    assert f"the profile of steps 3 to 5: tensorboard --logdir {tmp_path}" in said.lines


def test_a_training_that_is_stopped_meanwhile_keeps_what_there_is(tmp_path):
    stage = Line(config(steps=8, profile=(3, 7)), {})
    toys.train(stage, tmp_path, stop_after=4)
    assert len(spaces(tmp_path)) == 1
    with jax.profiler.trace(tmp_path / "another"):  # nothing is left open
        pass
    _, said = toys.train(stage, tmp_path)
    assert len(spaces(tmp_path)) == 2 and any("the profile of steps 5 to 7" in line for line in said.lines)


def test_no_profile_is_no_fault(tmp_path):
    with jax.profiler.trace(tmp_path / "another"):
        trained, said = toys.train(Line(config(steps=4, profile=(1, 2)), {}), tmp_path / "run")
    assert trained.params and [line for line in said.lines if line.startswith("no profile: ")]


def test_none_is_made_unasked(tmp_path):
    toys.train(Line(config(steps=2), {}), tmp_path)
    assert not (tmp_path / "plugins").exists()


def test_the_next_steps_by_signal(tmp_path):
    """Once for each signal, until the stage ends; a range that was chosen stays."""
    before = signal.getsignal(signal.SIGUSR2)
    stage = Line(config(steps=18, profile=(2, 3)), {})
    with profiler.listening():
        _, said = toys.train(stage, tmp_path, batches=signalled(after=6))
        assert steps(max(spaces(tmp_path))) == set(range(7, 17))
        assert "asked for a profile: it is taken of steps 7 to 16" in said.lines
        told = [line.partition(":")[0] for line in said.lines if "tensorboard" in line]
        assert told == ["the profile of steps 2 to 3", "the profile of steps 7 to 16"]
        _, said = toys.train(Line(config(steps=6), {}), tmp_path / "short", batches=signalled(after=4))
        assert [steps(file) for file in spaces(tmp_path / "short")] == [{5, 6}]
        assert f"the profile of steps 5 to 6: tensorboard --logdir {tmp_path / 'short'}" in said.lines
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_signal_before_the_first_step_is_remembered(tmp_path):
    with profiler.listening():
        os.kill(os.getpid(), signal.SIGUSR2)
        toys.train(Line(config(steps=2), {}), tmp_path)
    assert [steps(file) for file in spaces(tmp_path)] == [{1, 2}]
    assert not profiler.take_request()


def test_a_process_that_is_started_ignores_the_signal_until_it_listens():
    """Not listening, it would be ended by it."""
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)"]
    with profiler.listening():
        with profiler.ignoring():
            assert subprocess.run(command, check=False).returncode == 0
        assert subprocess.run(command, check=False).returncode == -signal.SIGUSR2
        os.kill(os.getpid(), signal.SIGUSR2)
        assert profiler.take_request() and not profiler.take_request()
