"""The language model's loss against its definition, and what the stage trains.

Tolerance 1e-5 relative: float32 against float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import batch, build, get_config

from audioldm2_jax.conditioning.conditions import caption_weight
from audioldm2_jax.conditioning.loa import loa_distance
from audioldm2_jax.rngs import heldout_rngs
from audioldm2_jax.stages.language_model import LanguageModelStage


@pytest.mark.parametrize("kind, power", [("mse", 2), ("l1", 1)])
def test_distance_counts_captioned_clips(kind, power):
    made, loa = np.random.default_rng(0).standard_normal((2, 4, 3, 5), np.float32)
    captioned = np.array([True, False, True, True])
    wanted = (np.abs(made - loa).astype(np.float64) ** power)[captioned].mean()
    assert float(loa_distance(made, loa, kind, caption_weight(jnp.asarray(captioned)))) == pytest.approx(
        wanted, rel=1e-5
    )
    assert float(loa_distance(made, loa, kind, caption_weight(jnp.zeros(4, bool)))) == 0


def test_unknown_loss():
    with pytest.raises(ValueError, match="loss='l2' of the language model: choose mse or l1"):
        loa_distance(jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1)), "l2", jnp.ones(1, bool))


def test_a_pretrained_t5_stays_frozen():
    config = get_config()
    assert LanguageModelStage.needs(config) == ("audiomae", "text_encoder")
    assert LanguageModelStage.makes(config) == ("language_model", "projection_model", "text_encoder_2")
    config.train.language_model.train_text_encoder_2 = False
    assert LanguageModelStage.needs(config) == ("audiomae", "text_encoder", "text_encoder_2")
    assert LanguageModelStage.makes(config) == ("language_model", "projection_model")


def test_published_language_model_knows_the_length_of_a_loa():
    stage = build("language_model", get_config())
    params = {name: {} for name in stage.modules}
    # 64 × 32 in patches of 16 is a grid of 4 × 2, pooled by 2.
    assert stage.results(params, {}, {}, {})["language_model"].config["max_new_tokens"] == 2


def test_speech_trains_the_encoder_of_phonemes():
    """With the places of padding counted, as in generation; a clip without a transcription has no weight."""
    config = get_config("speech")
    assert LanguageModelStage.text_kinds(config) == ("clap", "phoneme")
    stage = build("language_model", config)
    params, state = stage.init(stage.key)
    stage.hparams.guidance_dropout = 0.0
    given = stage.weigh({field: jnp.asarray(batch(4)[field]) for field in stage.batch_fields})
    rngs = heldout_rngs(stage.key, 0, 4)

    @jax.jit
    def loss(params, given):
        return stage.objectives(None)[0].loss(params, (), state, stage.frozen, given, rngs)[0]

    slopes = jax.grad(loss)(params, given)
    for part in (slopes["text_encoder_2"], slopes["projection_model"]["learnable_positional_embedding"]):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) > 0
    said = {**given, "phoneme_ids": given["phoneme_ids"].at[3].set(7)}  # the clip without one
    assert float(loss(params, said)) == float(loss(params, given))
    said = {**given, "phoneme_ids": given["phoneme_ids"].at[0].set(7)}
    assert float(loss(params, said)) != float(loss(params, given))
