"""The VAE's losses against their definitions, on a network of random weights.

Tolerance 1e-4 relative: float32, through a network, summed in another order.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import batch, build, get_config

from audioldm2_jax.rngs import Rngs

TOLERANCE = 1e-4
KEYS = Rngs(jax.random.key(1), jax.random.split(jax.random.key(2), 2))


@pytest.fixture(scope="module")
def made(compiled_once):
    """(stage, params, state, batch, outputs of one forward pass)"""
    stage = build("vae", get_config())
    params, state = jax.jit(stage.init)(jax.random.key(0))
    given = {"waveform": batch(2)["waveform"]}
    outputs = jax.jit(lambda params: stage.forward(params, state, {}, given, KEYS, "adversarial"))(params)
    return stage, params, state, given, outputs


def test_discriminator_starts_where_the_recipe_says(made):
    stage = made[0]
    assert [stage.variant(step) for step in range(4)] == ["plain", "plain", "adversarial", "adversarial"]
    assert [objective.name for objective in stage.objectives("plain")] == ["autoencoder"]
    # The discriminator first, then the generator (facts of the released training).
    assert [objective.name for objective in stage.objectives("adversarial")] == ["discriminator", "autoencoder"]


def test_latents_are_drawn_around_the_mean(made):
    *_, outputs = made
    assert outputs["output"].shape == outputs["mel"].shape == (2, 32, 16, 1)
    assert outputs["mean"].shape == outputs["logvar"].shape == (2, 16, 8, 4)


def test_plain_loss(made):
    stage, params, state, given, outputs = made
    loss, (metrics, _) = stage._plain(params, outputs, state, {}, given, KEYS)
    mel, output, mean, logvar = (np.asarray(outputs[key], np.float64) for key in ("mel", "output", "mean", "logvar"))
    distance = np.abs(mel - output)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    # Summed over elements, averaged over examples; the KL a mean over elements.
    assert float(loss) == pytest.approx(distance.sum() / 2 + stage.hparams.kl_weight * kl.mean(), rel=TOLERANCE)
    assert float(metrics["l1"]) == pytest.approx(distance.mean(), rel=TOLERANCE)
    assert float(metrics["kl"]) == pytest.approx(kl.mean(), rel=TOLERANCE)


def logits(stage, params, state, mel):
    variables = {"params": params["discriminator"], **state["discriminator"]}
    (scores, _), after = stage.discriminator.apply(variables, mel, use_running_average=False, mutable=["batch_stats"])
    return np.asarray(scores[0], np.float64), after


def test_hinge_loss_and_running_statistics(made):
    stage, params, state, given, outputs = made
    loss, (_, after) = stage._discriminator(params, outputs, state, {}, given, KEYS)
    real, stats = logits(stage, params, state, outputs["mel"])
    fake, stats = logits(stage, params, {"discriminator": stats}, outputs["output"])
    wanted = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    assert float(loss) == pytest.approx(wanted, rel=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after["discriminator"], stats)
    changed = jax.tree.map(lambda a, b: not np.allclose(a, b), after["discriminator"], state["discriminator"])
    assert all(jax.tree.leaves(changed))


def test_adaptive_weight_is_the_ratio_of_two_gradients(made):
    """Both losses as functions of the whole VAE; their gradients at the kernel of the decoder's last convolution."""
    stage, params, state, given, _ = made

    def nll(vae):
        out = stage.forward({**params, "vae": vae}, state, {}, given, KEYS, "adversarial")
        return jnp.abs(out["mel"] - out["output"]).sum() / 2

    def adversarial(vae):
        out = stage.forward({**params, "vae": vae}, state, {}, given, KEYS, "adversarial")
        variables = {"params": params["discriminator"], **state["discriminator"]}
        (scores, _), _ = stage.discriminator.apply(
            variables, out["output"], use_running_average=False, mutable=["batch_stats"]
        )
        return -scores[0].mean()

    # The weight is a number, not a path for gradients: those of the sum are the weighted sum.
    def whole(vae):
        out = stage.forward({**params, "vae": vae}, state, {}, given, KEYS, "adversarial")
        loss, (metrics, _) = stage._adversarial({**params, "vae": vae}, out, state, {}, given, KEYS)
        return loss - stage.hparams.kl_weight * metrics["kl"], metrics

    @jax.jit
    def gradients(vae):
        parts = [jax.value_and_grad(loss)(vae) for loss in (nll, adversarial)]
        return *parts, jax.value_and_grad(whole, has_aux=True)(vae)

    (nll_value, nll_grad), (adversary, adversarial_grad), ((loss, metrics), whole_grad) = gradients(params["vae"])
    last = [np.linalg.norm(grad["decoder"]["conv_out"]["kernel"]) for grad in (nll_grad, adversarial_grad)]
    weight = stage.hparams.discriminator_weight * min(last[0] / (last[1] + 1e-4), 1e4)
    assert float(metrics["adaptive_weight"]) == pytest.approx(weight, rel=TOLERANCE)
    assert float(metrics["adversarial"]) == pytest.approx(float(adversary), rel=TOLERANCE)
    assert float(loss) == pytest.approx(float(nll_value) + weight * float(adversary), rel=TOLERANCE)
    kernel, *parts = (
        np.asarray(grad["decoder"]["conv_out"]["kernel"]) for grad in (whole_grad, nll_grad, adversarial_grad)
    )
    np.testing.assert_allclose(kernel, parts[0] + weight * parts[1], rtol=1e-3, atol=1e-4 * np.abs(parts[0]).max())


def test_latent_scale_is_stored(made):
    """1 / std of one batch's latents; 2 % for 4096 latents that are drawn here."""
    stage, params, state, given, _ = made
    part = stage.results(params, state, {}, given)["vae"]
    mel = stage.ends.compressed_mel(given["waveform"])[..., None]
    mean, logvar = jax.jit(partial(stage.module.apply, method="encode"))({"params": params["vae"]}, mel)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.key(5), (50, *mean.shape))
    assert part.config["scaling_factor"] == pytest.approx(1 / float(latents.std()), rel=0.02)
    assert isinstance(part.config["scaling_factor"], float)


@pytest.mark.parametrize("compression, middle", [(0.0, -5.0), (0.5, 0.0)])
def test_an_untrained_vae_makes_an_average_mel(compression, middle):
    """Of logarithms or of powers: to walk there is hundreds of steps for a bias."""
    config = get_config()
    config.audio.mel.compression = compression
    stage = build("vae", config)
    params, state = jax.jit(stage.init)(jax.random.key(0))
    outputs = stage.forward(params, state, {}, {"waveform": batch(2)["waveform"]}, KEYS, "plain")
    assert float(outputs["output"].mean()) == pytest.approx(middle, abs=0.5)
