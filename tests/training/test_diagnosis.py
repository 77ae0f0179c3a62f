"""Which layer, gradient or record is named where a step is not finite; on networks of a few numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import linen as nn
from toys import WIDTH, Line, config

from audioldm2_jax.stages.base import Objective
from audioldm2_jax.training import diagnosis


class Half(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(WIDTH, name="first")(x))
        return nn.Dense(WIDTH, name="second")(x)


class Net(nn.Module):
    """Blocks as networks have them: plain, recomputed in the backward pass, repeated by a loop, followed by a root."""

    kind: str = "plain"

    @nn.compact
    def __call__(self, x):
        if self.kind == "loop":
            cell = nn.scan(
                lambda module, carry, _: (module(carry), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            x, _ = cell(Half(name="block"), x, None)
        else:
            x = (nn.remat(Half) if self.kind == "recomputed" else Half)(name="block")(x)
        if self.kind == "rooted":
            x = x + jnp.sqrt(x * 0.0)  # whose slope is not finite
        x = Exploding(name="exploding")(x)
        return nn.Dense(1, name="last")(x)


class Exploding(nn.Module):
    """exp(1e4 x), which is inf in some examples; its name has to be told, and not that of the layers behind it."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, ())
        return x + jnp.exp(1e4 * scale * x)


class Regression(Line):
    """A network fitted to zero."""

    def __init__(self, config, kind="plain"):
        self.net = Net(kind)
        super().__init__(config, {})

    def init(self, key):
        return {"net": self.net.init(key, jnp.zeros((1, WIDTH)))["params"]}, {}

    def objectives(self, variant):
        return (Objective("fit", ("net",), self._fit),)

    def _fit(self, params, outputs, state, frozen, batch, rngs):
        out = self.net.apply({"params": params["net"]}, batch["waveform"])
        return self.penalty(params) + jnp.mean(out**2), ({}, state)

    def penalty(self, params):
        return 0.0


def found(stage, params=None, batch=None, frozen=None, number=3):
    """What is found in step 3 with these parameters."""
    made, state = stage.init(jax.random.key(0))
    state = {"params": params(made) if params else made, "model_state": state}
    batch = {"waveform": jnp.asarray(toys.rows(number)) if batch is None else batch}
    return diagnosis.find(stage, state, frozen or {}, batch, number, toys.mesh(stage))


def explodes(params):
    """In examples with a positive output of the block alone."""
    net = jax.tree.map(lambda leaf: leaf, params["net"])
    return {"net": net | {"exploding": {"scale": jnp.float32(1.0)}}}


def loops_take_effects():
    """Whether nn.scan does: in Flax 0.12.12 it refuses jax.debug.callback, too."""

    class Effect(nn.Module):
        def __call__(self, carry, _):
            jax.debug.callback(lambda value: None, carry)
            return carry, None

    try:
        nn.scan(Effect, length=1)().apply({}, jnp.zeros(1), None)
    except ValueError:
        return False
    return True


LOOP = pytest.param("loop", marks=pytest.mark.skipif(not loops_take_effects(), reason="nn.scan takes no effects"))


@pytest.mark.parametrize("kind", ["plain", "recomputed", LOOP])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_layer_that_is_not_finite_and_its_examples(kind, accumulate):
    stage = Regression(config(accumulate=accumulate), kind)
    params = explodes(stage.init(jax.random.key(0))[0])
    rows = toys.rows(3)
    rows[5] *= 0  # with the block's biases zero so is what explodes
    wanted = [
        slot
        for slot in range(8)
        if not np.isfinite(stage.net.apply({"params": params["net"]}, jnp.asarray(rows[slot : slot + 1]))).all()
    ]
    assert 0 < len(wanted) < 8 and 5 not in wanted
    finding = found(stage, explodes, rows)
    assert finding.what == "the output of Net/exploding"
    wanted = [slot for slot in wanted if accumulate == 1 or slot % 2 == finding.slots[0] % 2]
    assert list(finding.slots) == wanted


def test_what_a_network_is_given():
    """As it is where the stage's own arithmetic is at fault."""

    class Dividing(Regression):
        def _fit(self, params, outputs, state, frozen, batch, rngs):
            return super()._fit(params, outputs, state, frozen, {"waveform": batch["waveform"] / 0.0}, rngs)

    assert found(Dividing(config())).what == "what goes into Net"


def test_the_loss_itself():
    class Logarithm(Regression):
        def penalty(self, params):
            return jnp.log(0.0 * params["net"]["last"]["bias"].sum())

    assert found(Logarithm(config())).what == "fit/loss"


def test_the_gradient_where_the_backward_pass_began_to_fail():
    """Of the layers whose gradient is not finite, the one that was called last; the others are named beside it."""
    finding = found(Regression(config(), "rooted"))
    assert finding.what.startswith("the gradient of fit/loss by net/block/second/")
    assert {name.rpartition("/")[0] for name in finding.also} == {"net/block/first", "net/block/second"}


@pytest.mark.parametrize("where", ["params", "frozen"])
def test_weights(where):
    spoil = lambda params: {"net": params["net"] | {"last": {"kernel": jnp.full((WIDTH, 1), jnp.nan), "bias": 0.0}}}  # noqa: E731
    stage = Regression(config())
    if where == "params":
        finding = found(stage, spoil)
        assert finding.what == "the parameters net/last/kernel" and finding.also == ("net/last/kernel",)
    else:
        finding = found(stage, frozen=spoil(stage.init(jax.random.key(0))[0]))
        assert finding.what == "the frozen weights net/last/kernel"


def test_the_batch():
    rows = toys.rows(3)
    rows[2, 1], rows[6, 0] = np.nan, np.inf
    assert found(Regression(config()), batch=rows) == ("the field waveform of the batch", (2, 6), ())


def test_both_networks_of_a_pair_are_looked_at():
    class Duel(toys.Duel):
        def generator(self, params, outputs, state, frozen, batch, rngs):
            loss, rest = super().generator(params, outputs, state, frozen, batch, rngs)
            return loss / 0.0, rest

    assert found(Duel(config(), {})).what == "generator/loss"


def test_nothing_is_found_where_all_is_finite():
    finding = found(Regression(config()))
    assert "nothing is when that step is computed again" in finding.what and finding.slots == ()


def test_how_it_is_told():
    names = [f"{number}.wav" for number in range(5)]
    line, details = diagnosis.explain(diagnosis.Finding("the output of UNet/conv_in", (0, 1, 3, 4)), "joint", 9, names)
    assert line == "not finite first: the output of UNet/conv_in, of the records 0.wav, 1.wav, 3.wav and 1 more"
    assert "stage joint, step 10" in details and "slot 3: 3.wav *" in details and "slot 2: 2.wav" in details
    assert "2.wav *" not in details
    line, _ = diagnosis.explain(diagnosis.Finding("fit/loss"), "joint", 9, [])
    assert line == "not finite first: fit/loss"
    assert diagnosis.names_of(lambda number: 1 / 0, 3) == ["(cannot be said: ZeroDivisionError)"]
