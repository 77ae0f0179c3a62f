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
from audioldm2_jax.training import init_random, loop, optim, step
from audioldm2_jax.training.checkpoint import MANIFEST

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
    assert said.lines == [f"{stage.name}: going on after step 5 of 7"]
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


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_a_number(tmp_path, where):
    """At step 6, where a checkpoint is due; logged only every fourth step, so the guard has to look by itself."""

    class Breaking(Line):
        def _loss(self, variant, params, outputs, state, frozen, batch, rngs):
            loss, rest = super()._loss(variant, params, outputs, state, frozen, batch, rngs)
            # The root of zero times a parameter: a loss that is finite and whose gradient is not.
            radicand = jnp.where(batch["waveform"][0, 0] > 1e8, 0.0 * params["line"]["bias"], 1.0)
            return loss + jnp.sqrt(radicand).sum(), rest

    def broken(step):
        for batch in toys.data(step):
            if step == 5:
                batch["waveform"][0, 0] = np.nan if where == "loss" else 1e9
            yield batch
            step += 1

    hparams = dict(steps=8, save_every=2, log_every=4, clip_norm=0.0)
    with pytest.raises(loop.NotFinite) as caught:
        toys.train(Breaking(config(**hparams), {}), tmp_path, batches=broken)
    message = str(caught.value)
    assert message.startswith("audiomae: fit/") and "at step 6;" in message and "\n" not in message
    assert ("loss" if where == "loss" else "grad_norm") in message
    assert "the last good checkpoint is that of step 4" in message and "train.audiomae.learning_rate" in message
    assert checkpoints(tmp_path) == [2, 4]
    for path in (tmp_path / "checkpoints").iterdir():
        assert (path / "default" / MANIFEST).exists()

    # With the data mended, the same folder goes on to what an unbroken run gives.
    resumed, said = toys.train(Breaking(config(**hparams), {}), tmp_path)
    assert said.lines == ["audiomae: going on after step 4 of 8"]
    straight, _ = toys.train(Breaking(config(**hparams), {}), tmp_path / "straight")
    same(straight.params, resumed.params)


def test_not_a_number_before_the_first_checkpoint(tmp_path):
    def broken(step):
        yield {"waveform": np.full((8, toys.WIDTH), np.inf, np.float32)}

    with pytest.raises(loop.NotFinite, match="at step 1; nothing of it was saved and there is no checkpoint yet"):
        toys.train(Line(config(), {}), tmp_path, batches=broken)
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
    assert late.data_wait > 0.5 > ready.data_wait
