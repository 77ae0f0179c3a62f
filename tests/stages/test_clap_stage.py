"""The contrastive loss against its definition in NumPy. Tolerance 1e-5 relative: float32 against float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from smallest import build, get_config

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
        loop.train(build("clap", config), None, tmp_path, None)
