"""The loss on held-out data: the same question each time, asked of averaged and of current parameters."""

import json

import jax
import numpy as np
import pytest
import smallest
import toys
from toys import Line, config

from audioldm2_jax.audio.sinusoids import frame_locked
from audioldm2_jax.evaluation.base import Snapshot, of_few_runs
from audioldm2_jax.evaluation.heldout_loss import HeldoutLoss, read
from audioldm2_jax.rngs import heldout_rngs
from audioldm2_jax.runtime import sharding


def heldout(seed=1000):
    return toys.data(seed)


def evaluator(stage):
    return HeldoutLoss(stage, lambda: read(stage.hparams, lambda size: heldout()), toys.mesh(stage))


def snapshot(params, averaged=None, step=2):
    return Snapshot(step, params, params if averaged is None else averaged, {}, {})


def test_it_is_the_mean_over_whole_batches_with_fixed_randomness():
    """17 clips are three batches of eight; relative 1e-5, since jit adds up in another order."""
    stage = Line(config(heldout_clips=17), {})
    params, _ = stage.init(jax.random.key(0))
    ask = evaluator(stage)
    wanted = []
    for number in range(3):
        batch = {"waveform": toys.rows(1000 + number)}
        wanted.append(float(stage.heldout_loss(params, {}, {}, batch, heldout_rngs(stage.key, number, 8))[0]))
    assert len(set(wanted)) == 3
    assert ask(snapshot(params))["heldout/loss"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert ask(snapshot(params)) == ask(snapshot(params))  # to the bit, whatever was trained between


def test_what_is_read():
    """Whole batches of a microbatch's size; nothing where there is no such loss; the data is closed, faults or not."""
    closed = []

    def batches(size):
        try:
            yield from ({"size": size, "number": number} for number in range(3))
            raise OSError("no fourth")
        finally:
            closed.append(size)

    hparams = config(batch_size=16, accumulate=2, heldout_clips=17).train.audiomae
    assert read(hparams, batches) == [{"size": 8, "number": number} for number in range(3)] and closed == [8]
    hparams.heldout_clips = 25
    with pytest.raises(OSError, match="no fourth"):
        read(hparams, batches)
    hparams.heldout_every = 0
    assert read(hparams, batches) == [] and closed == [8, 8]


def test_averaged_and_current_parameters():
    stage = Line(config(heldout_clips=8), {})
    first, second = (stage.init(jax.random.key(seed))[0] for seed in range(2))
    ask = evaluator(stage)
    both = ask(snapshot(first, second))
    assert both == {
        "heldout/loss": ask(snapshot(second))["heldout/loss"],
        "heldout/current_loss": ask(snapshot(first))["heldout/loss"],
    }


def train(folder, **hparams):
    stage = Line(config(log_every=1, heldout_clips=8, **hparams), {})
    return toys.train(stage, folder, evaluators=(evaluator(stage),))[1]


def test_it_is_logged_shown_and_summed_up(tmp_path):
    said = train(tmp_path, steps=6, heldout_every=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["heldout/loss"] for line in lines if "heldout/loss" in line}
    assert list(losses) == [2, 4, 6]
    assert all("heldout/current_loss" in line for line in lines if "heldout/loss" in line)
    assert [report.heldout for report in said.reports] == [None, None, losses[2], losses[2], losses[4], losses[4]]
    best = min(losses, key=losses.get)
    (line,) = (line for line in said.lines if "held-out loss" in line)
    wanted = f"audiomae: held-out loss {losses[6]:.4g}; the best was {losses[best]:.4g} after step {best}; of the time "
    assert line.startswith(wanted)
    shares = [part.split("% ") for part in line.removeprefix(wanted).split(", ")]
    assert 0 < {what: float(share) for share, what in shares}["held-out loss"] < 100


def test_the_best_is_remembered_when_training_goes_on(tmp_path):
    """The best value of the first process, written as less than any, is named by the second."""
    train(tmp_path, steps=4, heldout_every=2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 2, "heldout/loss": -5.0}) + '\n{"step": 3, "heldo')
    said = train(tmp_path, steps=6, heldout_every=2)
    assert any("the best was -5 after step 2" in line for line in said.lines)


def loss_with_dropout(rate):
    made = smallest.get_config()
    made.models.text_encoder.text_config.update(hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)
    stage = smallest.build("clap", made)
    params, state = jax.jit(stage.init)(jax.random.key(0))
    batch = {field: smallest.batch(4)[field] for field in stage.batch_fields}
    return jax.jit(stage.heldout_loss)(params, state, {}, batch, heldout_rngs(stage.key, 0, 4))[0]


def test_nothing_is_dropped_out(compiled_once):
    assert loss_with_dropout(0.5) == loss_with_dropout(0.0)


def test_programs_that_run_seldom_compute_the_same():
    """A third option, which compiles sooner, made partials of other levels."""
    options = of_few_runs(sharding.make_mesh(smallest.get_config().mesh))
    assert options["xla_backend_optimization_level"] == 0
    time = np.arange(16000) / 16000
    clip = (0.3 * np.sin(880 * np.pi * time) + 0.1 * np.sin(1760 * np.pi * time)).astype(np.float32)[None]
    made, wanted = (
        jax.jit(lambda clip: frame_locked(clip, 640), compiler_options=each)(clip)
        for each in (options, {"xla_backend_optimization_level": 2})
    )
    np.testing.assert_allclose(made, wanted, atol=1e-5)
