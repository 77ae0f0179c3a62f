"""What stages share: front ends from a recipe, and crops.

Crops are exact; only their draw is random.
"""

import jax
import numpy as np
import pytest
from smallest import SAMPLES, batch, build, get_config

from audioldm2_jax import recipes
from audioldm2_jax.audio.front_ends import FrontEnds, crop
from audioldm2_jax.recipe_components import recipe_parts
from audioldm2_jax.rngs import of_step
from audioldm2_jax.stages import STAGES


@pytest.mark.parametrize("name, mel", [("tiny", (64, 64)), ("base", (1024, 64)), ("48k", (1024, 256))])
def test_front_ends_give_the_frames_of_the_recipe(name, mel):
    config = recipes.get(name)
    ends = FrontEnds(config.audio)
    clip = jax.ShapeDtypeStruct((1, round(config.audio.seconds * config.audio.sampling_rate)), np.float32)
    assert jax.eval_shape(ends.compressed_mel, clip).shape == (1, *mel)
    assert jax.eval_shape(ends.kaldi_fbank, clip).shape == (1, *config.models.audiomae.img_size)
    bands = config.models.text_encoder.audio_config.num_mel_bins
    frames = config.models.text_encoder.audio_config.spec_size**2 // bands
    shape = jax.eval_shape(ends.clap_mel, clip).shape
    assert shape[0] == 1 and shape[1] <= frames and shape[2] == bands


def test_crops_are_pieces_of_the_clip_and_of_its_mel():
    ends, waveform = FrontEnds(get_config().audio), batch(3)["waveform"]
    keys = jax.random.split(jax.random.key(0), 3)
    pieces, mels = jax.jit(lambda w: crop(w, ends, 20, 4, keys))(waveform)
    assert pieces.shape == (12, 20 * 160) and mels.shape == (12, 20, 16)
    whole, starts = np.asarray(jax.jit(ends.compressed_mel)(waveform)), set()
    for i, (piece, mel) in enumerate(zip(np.asarray(pieces), np.asarray(mels))):
        clip = waveform[i // 4]
        (start,) = (s for s in range(SAMPLES // 160 - 19) if np.array_equal(clip[s * 160 : (s + 20) * 160], piece))
        np.testing.assert_allclose(mel, whole[i // 4, start : start + 20], rtol=1e-5, atol=1e-5)
        starts.add(start)
    assert len(starts) > 6


def test_a_crop_as_long_as_the_clip_is_the_clip():
    ends, waveform = FrontEnds(get_config().audio), batch(2)["waveform"]
    pieces, _ = crop(waveform, ends, 64, 3, jax.random.split(jax.random.key(0), 2))
    assert pieces is waveform


@pytest.mark.parametrize("recipe", ["tiny", "base", "large", "48k", "unified-tiny", "unified-base"])
def test_what_stages_read_is_made_before_or_given(recipe):
    config, made = recipes.get(recipe), set()
    for stage in STAGES.values():
        needed = {*stage.needs(config), *stage.continues(config)}
        assert not {name for name in needed - made if not config.init_from[name]}, stage.name
        made |= set(stage.makes(config))
        assert made <= set(recipe_parts(config))
    assert not {name for name in set(recipe_parts(config)) - made if not config.init_from[name]}


@pytest.mark.parametrize(
    "kind, name", [*(("music", name) for name in STAGES), ("unified", "language_model"), ("unified", "joint")]
)
def test_declared_keys_and_groups_are_those_of_the_stage(kind, name):
    """Allocates nothing: every objective of the last variant is traced on the declared keys alone."""
    stage = build(name, get_config(kind))
    params, state = jax.eval_shape(stage.init, jax.random.key(0))
    variant = stage.variant(stage.hparams.steps)
    given = {key: value for key, value in batch(4).items() if key in stage.batch_fields}
    trained = set()
    for objective in stage.objectives(variant):

        def loss(params, state, objective=objective):
            rngs = of_step(jax.random.key(0), 0, 4)
            outputs = stage.forward(params, state, stage.frozen, given, rngs, variant)
            return objective.loss(params, outputs, state, stage.frozen, stage.weigh(given), rngs)

        value, (metrics, after) = jax.eval_shape(loss, params, state)
        assert value.shape == () and all(metric.shape == () for metric in metrics.values())
        assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
        trained |= set(objective.groups)
    assert trained == params.keys()
