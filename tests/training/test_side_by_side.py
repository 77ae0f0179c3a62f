"""Which stage starts when, and on which cores; the processes themselves are tested in test_train_command.py."""

import os
import signal
from types import SimpleNamespace

import pytest
from smallest import Said, get_config

from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import profiler, run, side_by_side
from audioldm2_jax.training.loop import Stopped


class Connection:
    """The end of a pipe on which one message waits."""

    def __init__(self, message):
        self.message = message

    def recv(self):
        return self.message

    def close(self):
        pass


class Crew(side_by_side.WorkerPool):
    """A crew whose stages end when told to; it writes down who started on which cores."""

    def __init__(self, config, cores, stopped=lambda: False, fails=()):
        super().__init__(config, run.plan(config), Said(), stopped)
        self.cores, self.size, self.started, self.fails = cores, min(config.side_by_side, len(cores)), [], fails

    def _start(self, name):
        self.left.remove(name)
        taken = {core for _, _, cores in self.at_work.values() for core in cores}
        self.started.append((name, tuple(other for other, _, _ in self.at_work.values())))
        free = [core for core in self.cores if core not in taken][: len(self.cores) // self.size]
        assert free, "a stage started without a core"
        process = SimpleNamespace(terminate=lambda: None, join=lambda: None, exitcode=0, pid=name)
        failure = ("failed", side_by_side.StageFailed(name))
        self.at_work[Connection(failure if name in self.fails else ("done", 0.25))] = (name, process, free)


@pytest.fixture
def first_ends(monkeypatch):
    """Of the stages at work, the one that began first ends first."""
    monkeypatch.setattr(side_by_side, "wait", lambda connections, timeout: connections[:1])


def config(**changes):
    made = get_config()
    made.update({"stages": "audiomae,vae,diffusion,clap,language_model,vocoder,joint", "side_by_side": 2, **changes})
    return made


def test_a_stage_starts_as_soon_as_its_inputs_are_there(first_ends):
    crew = Crew(config(), [0, 1])
    assert crew.work() == dict.fromkeys(STAGES, 0.25)
    assert crew.started == [
        ("audiomae", ()),
        ("vae", ("audiomae",)),
        ("clap", ("vae",)),  # diffusion waits for vae, language_model for clap
        ("diffusion", ("clap",)),
        ("language_model", ("diffusion",)),
        ("vocoder", ("language_model",)),
        ("joint", ("vocoder",)),
    ]


def test_never_more_stages_than_cores(first_ends):
    crew = Crew(config(side_by_side=4), [0])
    crew.work()
    assert all(beside == () for _, beside in crew.started)


def test_a_profile_is_taken_of_all_stages_at_work(first_ends, monkeypatch):
    sent = []
    monkeypatch.setattr(side_by_side.os, "kill", lambda *given: sent.append(given))
    profiler._asked.set()
    Crew(config(), [0, 1]).work()
    assert sent == [("audiomae", signal.SIGUSR2), ("vae", signal.SIGUSR2)]


def test_a_failure_ends_the_others_and_starts_none(first_ends):
    crew = Crew(config(), [0, 1], fails=("vae",))
    with pytest.raises(side_by_side.StageFailed, match="vae"):
        crew.work()
    assert [name for name, _ in crew.started] == ["audiomae", "vae", "clap"]
    assert not crew.at_work


def test_stopped_before_the_first():
    with pytest.raises(Stopped, match="what was trained is saved"):
        Crew(config(), [0, 1], stopped=lambda: True).work()


def test_a_signal_is_acknowledged_once_with_what_it_waits_for(first_ends):
    """A stage that compiles may take minutes to leave."""
    crew = Crew(config(), [0, 1], stopped=lambda: len(crew.started) == 2)
    with pytest.raises(Stopped):
        crew.work()
    assert [line for line in crew.progress.lines if line.startswith("stopping")] == [
        "stopping: audiomae, vae will save and leave, once what is being compiled is compiled"
    ]


def test_cores_and_environment_are_given_back():
    cores = sorted(os.sched_getaffinity(0))
    before = dict(os.environ)
    with side_by_side._on_cores(cores[:1]):
        assert os.sched_getaffinity(0) == {cores[0]}
        assert "--xla_backend_optimization_level=1" in os.environ["XLA_FLAGS"]
        assert os.environ["XLA_FLAGS"].endswith(before.get("XLA_FLAGS", ""))  # the last one holds
    assert sorted(os.sched_getaffinity(0)) == cores and dict(os.environ) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_flag(number):
    before = signal.getsignal(number)
    with side_by_side.stop_flag() as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        assert stopped()
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
