"""The loop, on stages of a few numbers (toys.py).

Equality of a straight and an interrupted run is to the bit. Elsewhere tolerance is 1e-5 relative: float32, summed in
another order.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from smallest import same
from toys import Alternating, Duel, Line, config, rows

from audioldm2_jax.rngs import Rngs, named, of_step
from audioldm2_jax.stages.base import Objective
from audioldm2_jax.training import init_random, loop, optim, step
from audioldm2_jax.training import state as training_state
from audioldm2_jax.training.checkpoint_places import MANIFEST

TOLERANCE = 1e-5
STAGES = pytest.mark.parametrize("stage", [Line, Duel])


def close(first, second, tolerance=TOLERANCE):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-6), first, second)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@STAGES
def test_stopped_and_resumed_is_the_straight_run(tmp_path, stage):
    hparams = dict(steps=7, save_every=100, weight_decay=0.1)
    straight, _ = toys.train(stage(config(**hparams), {}), tmp_path / "straight")
    for stop_after, done in ((2, 2), (3, 5)):
        stop, _ = toys.train(stage(config(**hparams), {}), tmp_path / "parts", stop_after)
        assert str(stop) == f"{stage.name}: stopped and saved after step {done} of 7"
    resumed, said = toys.train(stage(config(**hparams), {}), tmp_path / "parts")
    assert said.lines[:-1] == [f"{stage.name}: going on after step 5 of 7"]
    same((straight.params, straight.model_state), (resumed.params, resumed.model_state))
    assert [row["step"] for row in metrics(tmp_path / "parts")] == list(range(1, 8))
    for whole, part in zip(metrics(tmp_path / "straight"), metrics(tmp_path / "parts")):
        assert {k: v for k, v in whole.items() if "/" in k} == {k: v for k, v in part.items() if "/" in k}


def test_a_finished_stage_hands_on_what_it_saved(tmp_path):
    first, _ = toys.train(Line(config(), {}), tmp_path)
    again, said = toys.train(Line(config(), {}), tmp_path)
    same(first.params, again.params)
    assert again.batch["waveform"].shape == (8, toys.WIDTH) and not said.reports


def test_a_damaged_checkpoint_costs_only_its_steps(tmp_path):
    straight, _ = toys.train(Line(config(steps=6), {}), tmp_path / "straight")
    toys.train(Line(config(steps=6), {}), tmp_path / "parts", stop_after=5)
    (tmp_path / "parts/checkpoints/5/default" / MANIFEST).unlink()
    resumed, said = toys.train(Line(config(steps=6), {}), tmp_path / "parts")
    assert "checkpoints/5 is damaged" in said.lines[0]
    assert said.lines[1] == "audiomae: going on after step 4 of 6"
    same(straight.params, resumed.params)


def test_reports_and_metrics(tmp_path):
    _, said = toys.train(Line(config(steps=6, log_every=3), {}), tmp_path)
    assert [report.step for report in said.reports] == [1, 3, 6]
    assert said.reports[-1].seconds == 0 and said.reports[-1].rate > 0
    written = metrics(tmp_path)
    assert [row["step"] for row in written] == [1, 3, 6]
    wanted = {"fit/loss", "fit/grad_norm", "examples_per_second", "data_wait", "learning_rate"}
    assert wanted <= written[0].keys()
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_records_that_could_not_be_read_are_counted(tmp_path):
    def batches(step):
        for batch in toys.data(step):
            yield batch | {"replaced": np.arange(8, dtype=np.int32)}  # 28 of them a step

    toys.train(Line(config(steps=4, log_every=2), {}), tmp_path, batches=batches)
    assert [row["replaced_records"] for row in metrics(tmp_path)] == [28.0, 28.0, 28.0]


class Breaking(Line):
    """A first slot that holds 1e9 makes a loss that is finite and whose gradient is not."""

    def _loss(self, variant, params, outputs, state, frozen, batch, rngs):
        loss, rest = super()._loss(variant, params, outputs, state, frozen, batch, rngs)
        radicand = jnp.where(
            batch["waveform"][0, 0] > 1e8, 0.0 * params["line"]["bias"], 1.0
        )  # its root's slope is inf
        return loss + jnp.sqrt(radicand).sum(), rest


def broken(*steps, value=np.nan):
    """The toys' data, whose first number is `value` in `steps`."""

    def start(step):
        for number, batch in enumerate(toys.data(step), start=step):
            if number in steps:
                batch["waveform"][0, 0] = value
            yield batch

    return start


def test_a_share_of_records_that_cannot_be_read_stops_the_stage(tmp_path):
    """Where it is passed, and not for a few; the first is said."""

    def batches(failing):
        def start(step):
            for number, batch in enumerate(toys.data(step), start=step):
                yield batch | {"replaced": np.array([failing(number)] + 7 * [0], np.int32)}

        return start

    def run(name, failing, most):
        stage = Line(config(steps=12, log_every=2, save_every=4), {})
        return toys.train(stage, tmp_path / name, batches=batches(failing), max_unreadable=most)

    with pytest.raises(loop.Unreadable) as caught:
        run("too many", lambda number: 1 + (number > 5), 0.13)
    assert str(caught.value) == (
        "audiomae: 14 of 94 records drawn cannot be read (15%), more than --config.data.max_unreadable=0.13: look at "
        "the data, or raise it"
    )
    assert checkpoints(tmp_path / "too many") == [4, 8]
    _, said = run("not so many", lambda number: 1, 0.13)
    told = [line for line in said.lines if "cannot be read" in line]
    assert told == ["audiomae: 1 records that were drawn cannot be read; others replace them"]
    run("a few", lambda number: 5 * (number < 2), 0.0)


BAD = pytest.mark.parametrize("value, metric", [(np.nan, "loss"), (1e9, "grad_norm")])


@BAD
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_that_is_not_finite_is_skipped(value, metric, accumulate):
    """All but the count of the steps stays, to the bit; the next update is as if the step had not been."""
    stage = Breaking(config(clip_norm=0.0, ema=0.5, accumulate=accumulate), {})
    made, mesh = {}, toys.mesh(stage)
    places = training_state.shapes(stage, mesh)
    take = step.compiled(stage, training_state.optimizers(stage), training_state.places(places), mesh)
    state = training_state.start(stage, places)
    for number, batch in zip(range(2), broken(1, value=value)(0)):
        before = jax.device_get(state)
        state, metrics = take(state, {}, batch, variant=None)
        made[number] = jax.device_get(state), float(metrics[step.SKIPPED]), float(metrics[f"fit/{metric}"])
    assert [skipped for _, skipped, _ in made.values()] == [0.0, 1.0] and not np.isfinite(made[1][2])
    same(made[1][0], before | {"step": np.int32(2)})
    assert not np.array_equal(before["ema"]["line"]["kernel"], before["params"]["line"]["kernel"])


def test_each_objective_is_skipped_by_itself():
    """The critic's alone: its parameters and model state stay, the generator goes on against the former critic."""

    class Breaking(Duel):
        def critic(self, params, outputs, state, frozen, batch, rngs):
            loss, (parts, state) = super().critic(params, outputs, state, frozen, batch, rngs)
            return loss * jnp.nan, (parts, state)

    stage = Breaking(config(ema=0.5), {})
    mesh = toys.mesh(stage)
    places = training_state.shapes(stage, mesh)
    before = training_state.start(stage, places)
    kept = jax.device_get(before)
    take = step.compiled(stage, training_state.optimizers(stage), training_state.places(places), mesh)
    after, metrics = take(before, {}, next(toys.data(0)), variant=None)
    assert float(metrics[step.SKIPPED]) == 1 and np.isfinite(metrics["generator/loss"])
    for part in ("params", "ema"):
        same(after[part]["critic"], kept[part]["critic"])
        assert not np.array_equal(after[part]["generator"]["kernel"], kept[part]["generator"]["kernel"])
    same((after["opt"]["critic"], after["model_state"]), (kept["opt"]["critic"], kept["model_state"]))


@BAD
def test_skipped_updates_are_counted_and_told(tmp_path, value, metric):
    """Also in a run that is resumed; metrics are means of what is finite."""
    hparams = dict(steps=9, log_every=3, save_every=3, clip_norm=0.0)
    batches = broken(1, 4, 6, value=value)
    _, said = toys.train(Breaking(config(**hparams), {}), tmp_path, stop_after=6, batches=batches)
    assert said.lines == [
        f"audiomae: the update of step {number} was skipped: fit/{metric} was nan ({count} in all)"
        for number, count in ((2, 1), (5, 2))
    ]
    assert [report.skipped for report in said.reports] == [0, 1, 2] and "2 skipped" in said.reports[-1].text
    toys.train(Breaking(config(**hparams), {}), tmp_path, batches=batches)
    rows = metrics(tmp_path)
    assert [(row["step"], row["skipped_updates"]) for row in rows] == [(1, 0), (3, 1), (6, 2), (7, 3), (9, 3)]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert "fit/loss" not in rows[3] or metric == "grad_norm"  # nothing of step 7 was finite
    assert rows[1]["fit/grad_norm_max"] >= rows[1]["fit/grad_norm"]


def test_gradient_norms_of_each_group(tmp_path):
    """Together they are that of the objective."""

    class Both(Duel):
        def objectives(self, variant):
            return (Objective("both", ("generator", "critic"), self.generator),)

    toys.train(Both(config(steps=1), {}), tmp_path)
    row = metrics(tmp_path)[0]
    parts = [row[f"both/grad_norm/{group}"] for group in ("generator", "critic")]
    assert min(parts) > 0 and np.hypot(*parts) == pytest.approx(row["both/grad_norm"], rel=TOLERANCE)


@BAD
@pytest.mark.parametrize("most", [1, 3])
def test_so_many_skipped_updates_in_a_row_stop_the_stage(tmp_path, value, metric, most):
    """At step 6; logged only every fourth step, so that it has to be seen before."""
    hparams = dict(steps=8, save_every=2, log_every=4, clip_norm=0.0, max_skipped_updates=most)
    batches = broken(*range(6 - most, 6), value=value)
    names = lambda number: [f"{number}-{slot}.wav" for slot in range(8)]  # noqa: E731
    with pytest.raises(loop.NotFinite) as caught:
        toys.train(Breaking(config(**hparams), {}), tmp_path, batches=batches, records=names)
    message = str(caught.value)
    assert message.startswith("audiomae: ") and "at step 6, as fit/" in message and "\n" not in message
    assert f"fit/{metric} was" in message and "the last good checkpoint is that of step 4" in message
    assert ("3 updates in a row" in message) == (most == 3)
    at_fault = "the field waveform of the batch, of the record 5-0.wav;"
    if metric == "grad_norm":
        at_fault = "the gradient of fit/loss by line/bias, of the records 5-0.wav, 5-1.wav, 5-2.wav and 5 more;"
    assert f"not finite first: {at_fault}" in message
    (note,) = caught.value.__notes__
    assert f"skipped: {', '.join(map(str, range(7 - most, 7)))}\n" in note and "slot 7: 5-7.wav" in note
    assert ("slot 0: 5-0.wav *" in note) == (metric == "loss")
    assert checkpoints(tmp_path) == [2, 4]
    for path in (tmp_path / "checkpoints").iterdir():
        assert (path / "default" / MANIFEST).exists()

    # With the data mended, the same folder goes on to what an unbroken run gives.
    if most == 1:
        resumed, said = toys.train(Breaking(config(**hparams), {}), tmp_path)
        assert said.lines[:-1] == ["audiomae: going on after step 4 of 8"]
        straight, _ = toys.train(Breaking(config(**hparams), {}), tmp_path / "straight")
        same(straight.params, resumed.params)


def test_skipped_updates_with_others_between_do_not_stop_it(tmp_path):
    hparams = dict(steps=8, max_skipped_updates=2, log_every=100)
    toys.train(Line(config(**hparams), {}), tmp_path / "between", batches=broken(1, 3, 5, 7))
    toys.train(Line(config(**hparams | {"max_skipped_updates": 0}), {}), tmp_path / "never", batches=broken(*range(8)))


def test_not_a_number_before_the_first_checkpoint(tmp_path):
    hparams = dict(max_skipped_updates=1)
    with pytest.raises(loop.NotFinite, match="nothing of it was saved and there is no checkpoint yet"):
        toys.train(Line(config(**hparams), {}), tmp_path, batches=broken(0))
    assert checkpoints(tmp_path) == []


@STAGES
def test_accumulated_gradients_are_those_of_the_whole_batch(stage):
    made = stage(config(), {})
    params, state = made.init(jax.random.key(0))
    batch = {"waveform": jnp.asarray(rows(0))}
    rngs = Rngs(jax.random.key(1), jax.random.split(jax.random.key(2), 8))

    def gradients(accumulate):
        made.hparams.accumulate = accumulate
        return {
            objective.name: step.gradient(made, objective, params, state, {}, batch, rngs, None, None)[:1]
            for objective in made.objectives(None)
        }

    whole = gradients(1)
    for parts in (2, 4, 8):
        close(gradients(parts), whole)


def test_accumulating_trains_alike(tmp_path):
    hparams = dict(steps=3, ema=0.0)
    whole, _ = toys.train(Line(config(**hparams), {}), tmp_path / "whole")
    parts, _ = toys.train(Line(config(**hparams, accumulate=4), {}), tmp_path / "parts")
    close(parts.params, whole.params, 1e-4)  # Adam divides by what may be small
    for a, b in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "whole")):
        assert a["fit/loss"] == pytest.approx(b["fit/loss"], rel=TOLERANCE)
        assert a["fit/grad_norm"] == pytest.approx(b["fit/grad_norm"], rel=TOLERANCE)


def test_model_state_moves_once_a_step(tmp_path):
    """As it does where the batch is not divided: spectral norm's vectors, for one, know of no batch."""
    trained, _ = toys.train(Duel(config(steps=3, accumulate=2), {}), tmp_path)
    assert trained.model_state["critic"]["updates"] == 3


def test_accumulation_refused():
    class Comparing(Line):
        def indivisible(self):
            return "the loss compares"

    with pytest.raises(ValueError, match=r"train.audiomae.accumulate=2: .*cannot be accumulated; set it to 1"):
        toys.train(Comparing(config(accumulate=2), {}), None)


@pytest.mark.parametrize(
    "hparams, message",
    [
        (dict(steps=0), "train.audiomae.steps=0: a stage takes at least one step"),
        (dict(batch_size=7, accumulate=2), "batch_size=7 in 2 microbatches does not split evenly"),
        (dict(batch_size=0), "batch_size=0"),
    ],
)
def test_impossible_sizes(hparams, message):
    with pytest.raises(ValueError, match=message):
        toys.train(Line(config(**hparams), {}), None)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_objectives_share_one_forward_and_are_updated_in_order(tmp_path, optimizer):
    """One step by hand: the critic by its own gradient, then the generator against the new critic.

    Muon's state begins with coefficients: zeros in their place, as most optimisers begin, would hold every kernel.
    """
    settings = config(steps=1, ema=0.0, warmup=0, clip_norm=0.0, learning_rate=0.5, optimizer=optimizer)
    stage = Duel(settings, {})
    start, state = stage.init(jax.random.key(3))
    stage.initial = lambda: {group: {"params": tree, **state.get(group, {})} for group, tree in start.items()}
    trained, _ = toys.train(stage, tmp_path)
    assert stage.forwards == 1

    rngs = of_step(named(jax.random.key(settings.seed), "vocoder"), 0, 8)
    batch = {"waveform": jnp.asarray(rows(0))}
    rule = optim.optimizer(stage.hparams)

    def update(objective, group, params):
        def loss(own):
            everything = {**params, group: own}
            outputs = stage.forward(everything, None, {}, batch, rngs, None)
            return objective(everything, outputs, {"critic": {"updates": 0.0}}, {}, batch, rngs)[0]

        own = {group: params[group]}
        updates, _ = rule.update({group: jax.grad(loss)(params[group])}, rule.init(own), own)
        return {**params, **optax.apply_updates(own, updates)}

    after_critic = update(stage.critic, "critic", start)
    close(trained.params, update(stage.generator, "generator", after_critic))
    # The order matters by more than the tolerance.
    other = update(stage.critic, "critic", update(stage.generator, "generator", start))
    assert not np.allclose(trained.params["generator"]["kernel"], other["generator"]["kernel"], atol=1e-5)


def test_moving_average_is_what_is_handed_on(tmp_path):
    """The average of three steps, by its definition, from the checkpoints of a run without one."""
    params = []
    for steps in (1, 2, 3):
        hparams = dict(steps=steps, ema=0.0, warmup=0, decay="constant")
        params.append(toys.train(Line(config(**hparams), {}), tmp_path / str(steps))[0].params["line"]["kernel"])
    averaged, _ = toys.train(Line(config(steps=3, ema=0.99, warmup=0, decay="constant"), {}), tmp_path / "averaged")
    seed = named(init_random.key(config().seed), "audiomae")
    wanted = Line(config(), {}).init(seed)[0]["line"]["kernel"]
    for n, value in enumerate(params, start=1):
        decay = min(0.99, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * value
    close(averaged.params["line"]["kernel"], wanted)


def test_starts_from_what_is_given(tmp_path):
    stage = Line(config(steps=1, learning_rate=0.0, weight_decay=0.0), {})
    given = {"line": {"kernel": np.eye(toys.WIDTH, dtype=np.float32), "bias": np.ones(toys.WIDTH, np.float32)}}
    stage.initial = lambda: {"line": {"params": given["line"]}}
    close(toys.train(stage, tmp_path)[0].params, given)

    stage.initial = lambda: {"line": {"params": given["line"] | {"kernel": np.eye(3, dtype=np.float32)}}}
    with pytest.raises(ValueError, match=r"audiomae.line/kernel: the recipe has shape \(6, 6\).*start from \(3, 3\)"):
        toys.train(stage, tmp_path / "shape")
    stage.initial = lambda: {"line": {"params": {"kernel": given["line"]["kernel"]}}}
    with pytest.raises(ValueError, match="only the recipe's network has 'bias'"):
        toys.train(stage, tmp_path / "keys")


def test_model_state_starts_from_what_is_given(tmp_path):
    """That of any group, and of those alone that are given something."""
    stage = Duel(config(steps=1), {})
    params, _ = stage.init(jax.random.key(3))
    stage.initial = lambda: {"critic": {"params": params["critic"], "updates": np.float32(40)}}
    assert toys.train(stage, tmp_path)[0].model_state["critic"]["updates"] == 41
    stage.initial = lambda: {"critic": {"params": params["critic"]}}
    with pytest.raises(ValueError, match=r"vocoder.critic: only the recipe's network has 'updates'"):
        toys.train(stage, tmp_path / "without")


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_parameters_stay_within_their_bounds(tmp_path, ema):
    """From the first on, and so does their average."""

    class Bounded(Line):
        def constrain(self, params):
            return {"line": params["line"] | {"bias": jnp.clip(params["line"]["bias"], 1.0, 1.5)}}

    for steps in (1, 2, 3):
        trained, _ = toys.train(
            Bounded(config(steps=steps, learning_rate=10.0, warmup=0, ema=ema), {}), tmp_path / str(steps)
        )
        bias = np.asarray(trained.params["line"]["bias"])
        assert bias.min() >= 1.0 and bias.max() <= 1.5


def test_one_executable_a_variant(tmp_path):
    stage = Alternating(config(steps=8), {})
    toys.train(stage, tmp_path)
    # jit traces each once; gradients trace the loss once for each.
    assert stage.traced == ["even", "odd"]


class Recorder:
    """An evaluator that notes when it was called."""

    name = "notes"

    def __init__(self, every):
        self.every, self.steps = every, []

    def __call__(self, snapshot):
        assert snapshot.averaged["line"]["kernel"].shape == (6, 6)
        self.steps.append(snapshot.step)
        return {"recorded": float(snapshot.step)}


def test_evaluators_run_at_intervals_and_at_the_end(tmp_path):
    often, seldom, never = (Recorder(every) for every in (2, 100, 0))
    stage = Line(config(steps=7), {})
    toys.train(stage, tmp_path, evaluators=(often, seldom, never))
    assert (often.steps, seldom.steps, never.steps) == ([2, 4, 6, 7], [7], [])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "recorded" in line] == [2, 4, 6, 7]


def test_waiting_for_data_is_measured(tmp_path):
    def slow(step):
        for batch in toys.data(step):
            time.sleep(0.2)  # much longer than a step, also on a machine that is busy
            yield batch

    late, _ = toys.train(Line(config(steps=8, save_every=0), {}), tmp_path / "slow", batches=slow)
    ready, _ = toys.train(Line(config(steps=200, save_every=0, log_every=50), {}), tmp_path / "ready")
    assert late.data_wait > 0.4 > ready.data_wait
