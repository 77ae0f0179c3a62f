"""HiFi-GAN's losses against their definitions (arXiv 2010.05646, eq. 1 to 4).

Tolerance 1e-4 relative: float32, through a network, summed in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import batch, build, get_config

from audioldm2_jax.audio.mel import MelSettings, log_mel
from audioldm2_jax.audio.sinusoids import frame_locked
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.generation.clip_encoder import mel_settings
from audioldm2_jax.rngs import Rngs

TOLERANCE = 1e-4
WEIGHTS = {"mel_weight": 45.0, "convergence_weight": 0.5, "partials_weight": 3.0}
KEYS = Rngs(jax.random.key(1), jax.random.split(jax.random.key(2), 2))


@pytest.fixture(scope="module")
def made(compiled_once):
    """(stage, params, state, outputs of a forward pass, function to (logits, features) by discriminator)"""
    config = get_config()
    config.train.vocoder.update(WEIGHTS)
    stage = build("vocoder", config)
    params, state = jax.jit(stage.init)(jax.random.key(0))
    given = {"waveform": batch(2)["waveform"]}
    outputs = jax.jit(lambda params: stage.forward(params, state, {}, given, KEYS, "adversarial"))(params)

    def discriminate(state, waveform):
        return {
            name: discriminator.apply({"params": params[name], **state[name]}, waveform)
            for name, discriminator in stage.discriminators.items()
        }

    return stage, params, state, outputs, jax.jit(discriminate)


def distance(stage, outputs):
    """With the scales of the tiny recipe, and all weights, written out."""

    def mels(n_fft, hop_length, n_mels):
        settings = MelSettings(16000, n_fft, hop_length, n_mels, 0.0, 8000.0)
        real, fake = (np.asarray(log_mel(outputs[key], settings), np.float64) for key in ("real", "fake"))
        return np.abs(real - fake).mean()

    def apart(made, wanted):
        return np.mean(np.linalg.norm(made - wanted, axis=1) / np.linalg.norm(wanted, axis=1))

    assert stage.ends.mel == MelSettings(16000, 1024, 160, 16, 0.0, 8000.0, 0.5)
    own = [np.exp(np.asarray(log_mel(outputs[key], stage.ends.mel), np.float64)) for key in ("real", "fake")]
    convergence = np.mean([np.linalg.norm(real - fake) / np.linalg.norm(real) for real, fake in zip(*own)])
    others = mels(2048, 512, 128) + mels(512, 128, 40) + mels(256, 64, 20)
    wanted, made = frame_locked(outputs["real"], 160)[:, 512:-512], outputs["fake"][:, 512:-512]
    emphasised = [one[:, 1:] - 0.95 * one[:, :-1] for one in (made, wanted)]
    return {
        "mel": mels(1024, 160, 16) + others + WEIGHTS["convergence_weight"] * convergence,
        "partials": apart(made, wanted) + apart(*emphasised),
    }


def weighted(distances):
    return WEIGHTS["mel_weight"] * distances["mel"] + WEIGHTS["partials_weight"] * distances["partials"]


def test_forward_gives_segments(made):
    outputs = made[3]
    assert outputs["real"].shape == outputs["fake"].shape == (2, 3200)


def test_plain_loss(made):
    stage, params, state, outputs, _ = made
    loss, (metrics, _) = jax.jit(stage._plain)(params, outputs, state, {}, {}, KEYS)
    assert float(loss) == pytest.approx(weighted(distance(stage, outputs)), rel=TOLERANCE)
    assert float(metrics["partials"]) == pytest.approx(distance(stage, outputs)["partials"], rel=TOLERANCE)


def test_silence_has_a_gradient(made):
    """A silent clip that is met by silence moves nothing, and above all is no NaN."""
    stage, params, state, outputs, _ = made
    silence = jnp.zeros_like(outputs["real"])
    loss = lambda fake: stage._plain(params, {"real": silence, "fake": fake}, state, {}, {}, KEYS)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(silence)
    assert value < 1e-3 and not np.asarray(gradient).any()


def test_generator_loss(made):
    stage, params, state, outputs, discriminator = made
    loss, (metrics, after) = jax.jit(stage._generator)(params, outputs, state, {}, {}, KEYS)
    real, fake = discriminator(state, outputs["real"]), discriminator(state, outputs["fake"])
    adversarial = sum(np.mean((np.asarray(x) - 1) ** 2) for name in fake for x in fake[name][0])
    pairs = [(r, f) for name in real for rs, fs in zip(real[name][1], fake[name][1]) for r, f in zip(rs, fs)]
    matching = sum(np.abs(np.asarray(r) - np.asarray(f)).mean() for r, f in pairs)
    assert len(pairs) == 4 * 3  # four discriminators of two layers and their logits
    assert float(metrics["adversarial"]) == pytest.approx(adversarial, rel=TOLERANCE)
    assert float(metrics["feature_matching"]) == pytest.approx(matching, rel=TOLERANCE)
    wanted = weighted(distance(stage, outputs)) + 2 * matching + adversarial
    assert float(loss) == pytest.approx(wanted, rel=TOLERANCE)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_discriminator_loss(made):
    """Least squares, with the singular vectors as they are when each waveform is adversarial."""
    stage, params, state, outputs, _ = made
    loss, (_, after) = jax.jit(stage._discriminator)(params, outputs, state, {}, {}, KEYS)
    wanted, spectral = 0.0, dict(state["scales"])
    for waveform, target in ((outputs["real"], 1), (outputs["fake"], 0)):
        logits, _ = stage.discriminators["periods"].apply({"params": params["periods"]}, waveform)
        (more, _), spectral = stage.discriminators["scales"].apply(
            {"params": params["scales"], **spectral}, waveform, update_stats=True, mutable=["spectral"]
        )
        wanted += sum(np.mean((np.asarray(x) - target) ** 2) for x in (*logits, *more))
    assert float(loss) == pytest.approx(wanted, rel=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after["scales"], spectral)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, after["scales"], state["scales"])
    assert sum(jax.tree.leaves(moved)) > len(jax.tree.leaves(moved)) / 2


def test_discriminators_first(made):
    stage = made[0]
    assert [stage.variant(step) for step in (0, 1, 2)] == ["plain", "plain", "adversarial"]
    assert [(o.name, o.groups) for o in stage.objectives("adversarial")] == [
        ("discriminator", ("periods", "scales")),
        ("generator", ("vocoder",)),
    ]


def test_segment_of_no_whole_frames():
    config = get_config()
    config.train.vocoder.segment_samples = 8192
    with pytest.raises(ValueError, match=r"segment_samples=8192 is no multiple of the hop of 160"):
        build("vocoder", config)


def test_segment_that_is_all_ends():
    config = get_config()
    config.train.vocoder.segment_samples = 960
    with pytest.raises(ValueError, match="segment_samples=960 is too short for partials_weight"):
        build("vocoder", config)


def test_what_it_publishes_says_which_mel_it_plays(made):
    stage, params, state, *_ = made
    config = stage.results(params, state, {}, {})["vocoder"].config
    assert mel_settings(config) == stage.ends.mel
    for wrong in ("log", 1.5):
        with pytest.raises(FolderError, match=r"vocoder/config\.json describes no mel"):
            mel_settings(config | {"compression": wrong})
