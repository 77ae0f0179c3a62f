"""Schedules, weight decay, clipping and the moving average against their definitions.

Tolerance 1e-6 relative: float32 against float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from audioldm2_jax.training import optim

BASE = dict(
    steps=100,
    optimizer="adamw",
    learning_rate=0.01,
    warmup=10,
    decay="constant",
    decay_rate=0.5,
    decay_every=20,
    b1=0.9,
    b2=0.99,
    weight_decay=0.0,
    clip_norm=0.0,
)


def hparams(**changes) -> ConfigDict:
    return ConfigDict(BASE | changes)


@pytest.mark.parametrize(
    "decay, after",
    [
        ("constant", lambda n: 1.0),
        ("cosine", lambda n: 0.5 * (1 + np.cos(np.pi * n / 90))),
        ("exponential", lambda n: 0.5 ** (n // 20)),
    ],
)
def test_learning_rate(decay, after):
    rate = optim.learning_rate(hparams(decay=decay))
    for step in range(101):
        wanted = 0.01 * ((step + 1) / 10 if step < 10 else after(step - 10))
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_no_warmup():
    assert float(optim.learning_rate(hparams(warmup=0))(0)) == pytest.approx(0.01)


def test_unknown_decay():
    with pytest.raises(ValueError, match=r"decay='linear'.*constant, cosine or exponential"):
        optim.learning_rate(hparams(decay="linear"))


def test_weight_decay_spares_biases_norms_and_tables():
    params = {
        "dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "table": {"embedding": jnp.ones((5, 4))},
        "critic": {"weight_v": jnp.ones((3, 2, 2)), "weight_g": jnp.ones(2)},
        "logit_scale": jnp.ones(()),
    }
    adamw = optim.optimizer(hparams(weight_decay=0.1, warmup=0))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = adamw.update(still, adamw.init(params), params)
    moved = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(updates) if leaf.any()}
    assert moved == {"['dense']['kernel']", "['critic']['weight_v']"}
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.01 * 0.1, rtol=1e-6)


def test_muon_turns_kernels_by_orthogonal_steps_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    gradients = {
        "dense": {"kernel": draw(20, 30), "bias": draw(30)},
        "conv": {"kernel": draw(3, 3, 4, 8)},
        "table": {"embedding": draw(5, 4)},
    }
    params = jax.tree.map(jnp.zeros_like, gradients)
    muon = optim.optimizer(hparams(optimizer="muon", warmup=0))
    made, _ = muon.update(gradients, muon.init(params), params)
    for name in ("dense", "conv"):
        gradient = gradients[name]["kernel"].reshape(-1, gradients[name]["kernel"].shape[-1])
        step = -np.asarray(made[name]["kernel"]).reshape(gradient.shape)
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        # The Newton-Schulz steps bring the singular values to 0.7..1.2, not to 1.
        wanted = 0.01 * 0.2 * np.sqrt(max(gradient.shape)) * left @ right
        assert np.linalg.norm(step - wanted) < 0.3 * np.linalg.norm(wanted)
    for name, leaf in (("dense", "bias"), ("table", "embedding")):  # Adam's first step is the sign of the gradient
        np.testing.assert_allclose(np.sign(made[name][leaf]), -np.sign(gradients[name][leaf]))
        assert np.ptp(np.abs(made[name][leaf])) < 1e-6


def test_muon_decays_the_same_leaves():
    params = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "table": {"embedding": jnp.ones((5, 4))}}
    muon = optim.optimizer(hparams(optimizer="muon", weight_decay=0.1, warmup=0))
    updates, _ = muon.update(jax.tree.map(jnp.zeros_like, params), muon.init(params), params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.01 * 0.1, rtol=1e-6)
    assert not updates["dense"]["bias"].any() and not updates["table"]["embedding"].any()


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer='sgd': choose adamw or muon"):
        optim.optimizer(hparams(optimizer="sgd"))


def test_gradients_are_clipped_by_their_common_norm():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    small = {"a": jnp.full((2, 2), 0.1), "b": jnp.full(3, -0.2)}
    large = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(3, -4.0)}
    norm = float(np.sqrt(4 * 9 + 3 * 16))
    clipping, plain = optim.optimizer(hparams(clip_norm=1.0)), optim.optimizer(hparams())

    def second(transformation, first_gradient):
        # Adam forgets the length of its first gradient, so the second step shows it.
        _, state = transformation.update(small, transformation.init(params), params)
        return transformation.update(first_gradient, state, params)[0]

    wanted = second(plain, jax.tree.map(lambda leaf: leaf / norm, large))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), second(clipping, large), wanted)
    assert not np.allclose(second(plain, large)["a"], wanted["a"], rtol=1e-2)


def test_moving_average_warms_up():
    ema, wanted = {"x": jnp.zeros(2)}, np.zeros(2)
    for step in range(400):
        value = np.array([np.sin(step), 1.0])
        decay = min(0.97, (1 + step + 1) / (10 + step + 1))
        wanted = decay * wanted + (1 - decay) * value
        ema = optim.update_ema(ema, {"x": jnp.asarray(value, jnp.float32)}, 0.97, jnp.int32(step))
    np.testing.assert_allclose(ema["x"], wanted, rtol=1e-5, atol=1e-6)
