"""A profile of chosen steps: as XProf's own protocol buffers have it, and never worth a training."""

import jax
import toys
from toys import Line, config


def spaces(folder):
    """The files that XProf opens."""
    return sorted(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_the_steps_that_are_asked_for(tmp_path):
    stage = Line(config(steps=8, profile=(3, 5)), {})
    _, said = toys.train(stage, tmp_path)
    (file,) = spaces(tmp_path)
    content = jax.profiler.ProfileData.from_file(str(file))
    numbers = {
        stat[1]
        for plane in content.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
        for stat in event.stats
        if stat[0] == "step_num"
    }
    assert numbers == {3, 4, 5}
    assert f"the profile of steps 3 to 5: tensorboard --logdir {tmp_path}" in said.lines


def test_a_training_that_is_stopped_meanwhile_keeps_what_there_is(tmp_path):
    stage = Line(config(steps=8, profile=(3, 7)), {})
    toys.train(stage, tmp_path, stop_after=4)
    assert len(spaces(tmp_path)) == 1
    with jax.profiler.trace(tmp_path / "another"):  # nothing is left open
        pass
    _, said = toys.train(stage, tmp_path)
    assert len(spaces(tmp_path)) == 2 and any("the profile of steps 3 to 7" in line for line in said.lines)


def test_no_profile_is_no_fault(tmp_path):
    with jax.profiler.trace(tmp_path / "another"):
        trained, said = toys.train(Line(config(steps=4, profile=(1, 2)), {}), tmp_path / "run")
    assert trained.params and [line for line in said.lines if line.startswith("no profile: ")]


def test_none_is_made_unasked(tmp_path):
    toys.train(Line(config(steps=2), {}), tmp_path)
    assert not (tmp_path / "plugins").exists()
