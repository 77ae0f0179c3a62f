"""What holds for the losses of all stages: accumulation, dropout, precision.

Accumulated gradients equal those of the whole batch to 1e-3 of a group's norm: float32, summed in another order through
some thirty layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import Var, jaxprs_in_params
from smallest import batch, build, get_config

from audioldm2_jax.models.network import Network
from audioldm2_jax.rngs import of_step
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import loop, step

SIZE = 8
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("audiomae", "vae", "vocoder", "diffusion", "joint")]
# By two and by four microbatches (slots m, m + parts, ...), some with all captions, some with some, some with none.
CAPTIONED = np.array([True, False, True, False, True, True, False, False])


def settings():
    """The smallest recipe without what is drawn for a microbatch as a whole, and with captions for the UNet."""
    config = get_config()
    config.models.text_encoder_2.dropout_rate = 0.0
    config.models.language_model.update(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
    config.train.diffusion.text = "captions"
    config.train.vae.discriminator_start = 10**9  # with it there is no accumulation
    return config


def examples(stage) -> dict:
    made = batch(SIZE) | {"captioned": CAPTIONED}
    return {key: jnp.asarray(value) for key, value in made.items() if key in stage.batch_fields}


def start(stage):
    params, state = jax.jit(stage.init)(jax.random.key(0))
    return params | {group: variables["params"] for group, variables in stage.initial().items()}, state


@pytest.mark.parametrize("name", ["language_model", *SLOW])
def test_accumulated_gradients_are_those_of_the_whole_batch(name, monkeypatch):
    # Dropout of the decoder's position biases, the one rate that is no field.
    monkeypatch.setattr("audioldm2_jax.models.audiomae._META_DROPOUT", 0.0)
    stage = build(name, settings())
    params, state = start(stage)
    variant = stage.variant(stage.hparams.steps - 1)
    rngs = of_step(jax.random.key(1), 0, SIZE)

    def run(parts):
        stage.hparams.accumulate = parts

        @jax.jit
        def gradients(params, frozen, given):
            given = stage.weigh(given)
            return {
                objective.name: step.gradient(stage, objective, params, state, frozen, given, rngs, variant, None)
                for objective in stage.objectives(variant)
            }

        return jax.device_get(gradients(params, stage.frozen, examples(stage)))

    whole = run(1)
    for parts in (2, 4):
        for objective, (grads, (loss, metrics, after)) in run(parts).items():
            wanted_grads, (wanted, wanted_metrics, wanted_after) = whole[objective]
            assert loss == pytest.approx(wanted, rel=1e-4)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), metrics, wanted_metrics)
            for group in grads:
                pairs = list(zip(jax.tree.leaves(grads[group]), jax.tree.leaves(wanted_grads[group])))
                error, norm = (
                    sum(float((x**2).sum()) for x in side) ** 0.5
                    for side in ([a - b for a, b in pairs], [b for _, b in pairs])
                )
                assert error < 1e-3 * norm and norm > 0, (group, error, norm)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after, wanted_after)


def test_what_cannot_be_divided_is_refused(tmp_path):
    config = get_config()
    config.train.vae.update(accumulate=2, discriminator_start=3)
    with pytest.raises(ValueError, match=r"accumulate=2: from step 3 \(discriminator_start\).*BatchNorm.*set it to 1"):
        loop.train(build("vae", config), sharding.all_devices(), None, tmp_path, None)


def traced(stage, make):
    """`make` of every objective of the stage's last variant, with the shapes of everything and without computing."""
    params, state = jax.eval_shape(stage.init, jax.random.key(0))
    variant = stage.variant(stage.hparams.steps)
    found = []
    for objective in stage.objectives(variant):

        def loss(params, state, frozen, given, objective=objective):
            rngs, given = of_step(jax.random.key(1), 0, SIZE), stage.weigh(given)
            outputs = stage.forward(params, state, frozen, given, rngs, variant)
            value, (metrics, _) = objective.loss(params, outputs, state, frozen, given, rngs)
            return value, metrics

        found.append(make(loss)(params, state, stage.frozen, examples(stage)))
    return found


@pytest.mark.parametrize("name", STAGES)
def test_dropout_is_where_training_is(name, monkeypatch):
    """None in a frozen network (the authors call `eval()` on theirs), and on in a trained one that has it."""
    config = get_config()
    config.train.diffusion.text = "captions"
    config.train.language_model.train_text_encoder_2 = config.train.joint.train_text_encoder_2 = False
    stage = build(name, config)
    call, dropout = Network.__call__, nn.Dropout.__call__
    frozen, active = [False], {True: 0, False: 0}

    def watch(self, *arguments, **more):
        before, frozen[0] = frozen[0], any(self.module is stage.components[part].module for part in stage.frozen)
        try:
            return call(self, *arguments, **more)
        finally:
            frozen[0] = before

    def count(self, inputs, deterministic=None, rng=None):
        off = self.deterministic if deterministic is None else deterministic
        active[frozen[0]] += not off and self.rate > 0
        return dropout(self, inputs, deterministic=deterministic, rng=rng)

    monkeypatch.setattr(Network, "__call__", watch)
    monkeypatch.setattr(nn.Dropout, "__call__", count)
    traced(stage, lambda loss: partial(jax.eval_shape, loss))
    assert active[True] == 0
    assert (active[False] > 0) == (name in ("audiomae", "clap", "language_model", "joint"))


def sums(jaxpr):
    """The numbers that arrays are summed up to and what is made of these, as (operation, dtype); inner ones too."""
    summed = set()
    for equation in jaxpr.eqns:
        variables = [variable for variable in equation.invars if isinstance(variable, Var)]
        inner = list(jaxprs_in_params(equation.params))
        if not inner and any(variable in summed or getattr(variable.aval, "size", 0) > 1 for variable in variables):
            numbers = [out for out in equation.outvars if out.aval.shape == ()]
            summed.update(numbers)
            yield from ((equation.primitive.name, out.aval.dtype) for out in numbers)
        for called in inner:
            yield from sums(called)


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_float32(name):
    """With networks in bfloat16 no sum or mean of a loss is a bfloat16 number on its way."""
    config = get_config()
    config.dtype = "bfloat16"
    config.train.diffusion.text = "captions"
    stage = build(name, config)
    for loss in traced(stage, jax.make_jaxpr):
        assert all(out.dtype == jnp.float32 for out in loss.out_avals)
        found = set(sums(loss.jaxpr))
        assert found and not [operation for operation, dtype in found if dtype == jnp.bfloat16]
