"""The language model's loss against its definition, and what the stage trains.

Tolerance 1e-5 relative: float32 against float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smallest import batch, build, get_config

from audioldm2_jax.conditioning.conditions import caption_weight
from audioldm2_jax.conditioning.loa import generate_loa, hide_tokens, loa_distance, teacher_forced_loa
from audioldm2_jax.rngs import heldout_rngs, of_step
from audioldm2_jax.stages import texts
from audioldm2_jax.stages.language_model import OWN_TOKENS, LanguageModelStage


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


def test_of_each_clip_another_share_of_the_tokens_is_hidden():
    """Bounds: five standard errors of 200 clips of 200 tokens."""
    loa = jnp.ones((200, 200, 3))
    rngs = of_step(jax.random.key(0), jnp.asarray(5), 200)
    read = np.asarray(hide_tokens(loa, rngs, 0.8))
    assert set(np.unique(read)) == {0, 1}
    assert (read == read[..., :1]).all(), "a token is hidden as a whole"
    hidden = 1 - read[..., 0].mean(1)
    assert abs(hidden.mean() - 0.4) < 5 * 0.8 / np.sqrt(12 * 200)
    assert 0.7 < hidden.max() < 0.9 and hidden.min() < 0.05
    assert hide_tokens(loa, rngs, 0.0) is loa
    assert hide_tokens(loa, heldout_rngs(jax.random.key(0), 0, 200), 0.8) is loa


def test_scheduled_sampling_rises_from_nothing():
    config = get_config()
    config.train.language_model.update(steps=1000, scheduled_sampling=0.8)
    stage = build("language_model", config)
    own = [stage.variant(step) == OWN_TOKENS for step in range(1000)]
    assert not any(own[:250]) and 20 < sum(own[300:400]) < 60  # on its way to four fifths
    assert abs(sum(own[500:]) - 400) < 5 * 9
    other = build("language_model", config)
    assert own == [other.variant(step) == OWN_TOKENS for step in range(1000)]
    assert stage.heldout_variant == OWN_TOKENS
    config.train.language_model.scheduled_sampling = 0.0
    stage = build("language_model", config)
    assert {stage.variant(step) for step in range(1000)} == {stage.heldout_variant} == {None}


def test_what_it_wrote_itself_says_nothing_of_the_clip():
    """The loss is that of what GPT-2 writes freely, and only the last pass through it has a gradient."""
    config = get_config()
    config.loa.pooling = 1
    config.train.language_model.guidance_dropout = 0.0
    stage = build("language_model", config)
    params, state = stage.init(stage.key)
    given = stage.weigh({field: jnp.asarray(batch(4)[field]) for field in stage.batch_fields})
    rngs = heldout_rngs(stage.key, 0, 4)

    def loss(variant, params):
        return stage.objectives(variant)[0].loss(params, (), state, stage.frozen, given, rngs)[0]

    (loa,) = stage.made("loa_1", stage.frozen, given)
    prefix, _, _ = texts.encode(stage, params, stage.frozen, given)
    written = generate_loa(stage.network("language_model", stage.frozen, params), prefix, loa.shape[1])

    def reading(params):
        prefix, _, _ = texts.encode(stage, params, stage.frozen, given)
        made = teacher_forced_loa(stage.network("language_model", stage.frozen, params), prefix, written)
        return loa_distance(made, loa, "mse", given["caption_weight"])

    value, slopes = jax.jit(jax.value_and_grad(functools.partial(loss, OWN_TOKENS)))(params)
    assert float(value) == pytest.approx(float(loa_distance(written, loa, "mse", given["caption_weight"])), rel=1e-4)
    assert float(value) != pytest.approx(float(jax.jit(functools.partial(loss, None))(params)), rel=1e-3)
    for slope, direct in zip(jax.tree.leaves(slopes), jax.tree.leaves(jax.jit(jax.grad(reading))(params)), strict=True):
        np.testing.assert_allclose(slope, direct, rtol=1e-3, atol=1e-5)


def test_guided_attention():
    """Its share of the loss, of clips with a transcription alone, and its gradient, from sound and from the cache."""
    config = get_config("speech")
    config.train.language_model.update(guided_attention=10.0, guidance_dropout=0.0)
    stage = build("language_model", config)
    params, state = stage.init(stage.key)
    given = stage.weigh({field: jnp.asarray(batch(4)[field]) for field in stage.batch_fields})
    rngs = heldout_rngs(stage.key, 0, 4)

    @jax.jit
    def loss(params, given):
        value, (parts, _) = stage.objectives(None)[0].loss(params, (), state, stage.frozen, given, rngs)
        return value, parts

    value, parts = loss(params, given)
    assert float(value) == pytest.approx(float(parts["loa"] + 10 * parts["away"]), rel=1e-5)
    assert 0.1 < float(parts["away"]) < 1
    (span,) = stage.made("span", stage.frozen, given)
    assert stage.reads_features(config)[:2] == ("loa_1", "span") and span.shape == (4, 2)
    (loa,) = stage.made("loa_1", stage.frozen, given)
    cached = {key: field for key, field in given.items() if key != "waveform"} | {"span": span, "loa_1": loa}
    assert float(loss(params, cached)[0]) == pytest.approx(float(value), rel=1e-5)
    unsaid = {**given, "phoneme_mask": jnp.zeros_like(given["phoneme_mask"])}
    assert float(loss(params, unsaid)[1]["away"]) == 0
    slopes = jax.jit(jax.grad(lambda params: loss(params, given)[1]["away"]))(params)["text_encoder_2"]
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes)) > 0


def test_guided_attention_needs_phonemes():
    config = get_config()
    config.train.language_model.guided_attention = 1.0
    with pytest.raises(ValueError, match=r"guided_attention is for phonemes, and this model reads none: set it to 0"):
        build("language_model", config)
