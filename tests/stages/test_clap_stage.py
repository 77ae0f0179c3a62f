"""The contrastive loss against its definition in NumPy. Tolerance 1e-5 relative: float32 against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import Said, batches, build, get_config
from tiny_folder import CONFIGS, random_variables

from audioldm2_jax.checkpoints.model_folder import Component
from audioldm2_jax.runtime import sharding
from audioldm2_jax.stages.clap import contrast
from audioldm2_jax.training import loop


def by_hand(audio, text, scale_audio, scale_text, captioned):
    """Each captioned clip picks its caption among the captioned ones, each caption its clip; the mean of both."""
    audio, text = audio[captioned].astype(np.float64), text[captioned].astype(np.float64)
    losses, hits = [], []
    for i in range(len(audio)):
        to_text = np.array([np.exp(scale_audio) * audio[i] @ other for other in text])
        to_audio = np.array([np.exp(scale_text) * text[i] @ other for other in audio])
        losses += [np.log(np.exp(logits).sum()) - logits[i] for logits in (to_text, to_audio)]
        hits.append(to_text.argmax() == i)
    return np.mean(losses), np.mean(hits)


@pytest.mark.parametrize("captioned", [[True] * 6, [True, False, True, True, False, True]])
def test_contrast(captioned):
    rng = np.random.default_rng(0)
    audio, noise = rng.standard_normal((2, 6, 8), np.float32)
    text = audio + noise
    audio, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, text))
    loss, accuracy = contrast(audio, text, jnp.float32(1.2), jnp.float32(0.7), jnp.array(captioned))
    wanted_loss, wanted_accuracy = by_hand(audio, text, 1.2, 0.7, np.array(captioned))
    assert float(loss) == pytest.approx(wanted_loss, rel=1e-5)
    assert float(accuracy) == pytest.approx(wanted_accuracy, rel=1e-5)


def test_nothing_to_contrast():
    one = jnp.ones((3, 2))
    loss, accuracy = contrast(one, one, jnp.float32(1), jnp.float32(1), jnp.zeros(3, bool))
    assert float(loss) == 0 and float(accuracy) == 0


def test_accumulation_is_refused(tmp_path):
    config = get_config()
    config.train.clap.accumulate = 2
    with pytest.raises(ValueError, match=r"train.clap.accumulate=2: the loss compares the examples.*set it to 1"):
        loop.train(build("clap", config), sharding.all_devices(), None, tmp_path, None)


def test_starts_from_the_statistics_and_within_the_bounds_of_the_temperature(tmp_path):
    """A CLAP to go on from: its BatchNorm's mean moves a tenth of the way, and its temperature comes within bounds.

    LAION-CLAP clips the parameter; with a bound inside the loss one above it would have no gradient and stay there.
    """
    config = get_config()
    config.train.clap.update(steps=1, ema=0.0, learning_rate=0.0, weight_decay=0.0)
    stage = build("clap", config)
    fields = config.models.text_encoder.to_dict()
    variables = random_variables("text_encoder", CONFIGS["text_encoder"] | fields)
    statistics = variables["batch_stats"]["audio_model"]["audio_encoder"]["batch_norm"]
    statistics["mean"] = np.full_like(statistics["mean"], 1000.0)
    variables["params"] |= {"logit_scale_a": np.float32(7.0), "logit_scale_t": np.float32(-1.0)}
    stage.components = {"text_encoder": Component(stage.module, variables, fields)}
    trained = loop.train(stage, sharding.all_devices(), batches(stage), tmp_path, Said())

    mean = trained.model_state["text_encoder"]["batch_stats"]["audio_model"]["audio_encoder"]["batch_norm"]["mean"]
    assert np.abs(np.asarray(mean) - 900).max() < 11  # a mel in dB is within -100..100
    assert float(trained.params["text_encoder"]["logit_scale_a"]) == pytest.approx(np.log(100))
    assert float(trained.params["text_encoder"]["logit_scale_t"]) == 0
    written = stage.results(trained.params, trained.model_state, {}, None)["text_encoder"].variables
    assert jax.tree.structure(written) == jax.tree.structure(variables)


def test_temperature_has_a_gradient_everywhere():
    audio, text = np.eye(4, dtype=np.float32), np.roll(np.eye(4, dtype=np.float32), 1, 0)
    slope = jax.grad(lambda scale: contrast(audio, text, scale, scale, jnp.ones(4, bool))[0])
    assert all(float(slope(jnp.float32(scale))) > 1 for scale in (1.0, np.log(100), 5.0))
