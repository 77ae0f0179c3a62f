"""The projection model against diffusers' AudioLDM2ProjectionModel on the same random weights.

Tolerances: 1e-4 relative in float32 (sums in another order); 2e-2 in bfloat16, whose 8 bits round at 4e-3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.projection import ProjectionModel

SIZES = {"text_encoder_dim": 6, "text_encoder_1_dim": 10, "langauge_model_dim": 8}
SPEECH = SIZES | {"use_learned_position_embedding": True, "max_seq_length": 7}


def batch(n=1, m=7):
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((2, *shape), np.float32) for shape in ((n, 6), (m, 10)))
    mask = np.ones((2, m), np.int32)
    mask[1, 4:] = 0
    return first, second, np.ones((2, n), np.int32), mask


def pair(sizes):
    torch.manual_seed(0)
    twin = randomise(AudioLDM2ProjectionModel(**sizes))
    network = ProjectionModel(**sizes)
    return twin, network, carry_over(twin, shapes(network, *batch()), NAMES["projection_model"])


@pytest.mark.parametrize("sizes", [SIZES, SPEECH])
def test_equals_diffusers(sizes):
    twin, network, variables = pair(sizes)
    theirs = twin(*(torch.tensor(part) for part in batch()))
    states, mask = jax.jit(network.apply)(variables, *batch())
    assert relative_error(states, theirs.hidden_states) < 1e-4
    assert np.array_equal(mask, theirs.attention_mask.numpy())


def test_no_mask_means_that_all_is_real():
    _, network, variables = pair(SIZES)
    first, second, *_ = batch(n=2)
    states, mask = network.apply(variables, first, second)
    assert states.shape == (2, 13, 8) and np.array_equal(mask, np.ones((2, 13)))


def test_bfloat16():
    _, network, variables = pair(SIZES)
    half, _ = ProjectionModel(**SIZES, dtype=jnp.bfloat16).apply(variables, *batch())
    assert half.dtype == jnp.bfloat16
    assert relative_error(half, network.apply(variables, *batch())[0]) < 2e-2


def test_bad_sizes_say_what_to_do():
    with pytest.raises(ValueError, match="10 wide and text_encoder_1_dim is 9"):
        shapes(ProjectionModel(**SIZES | {"text_encoder_1_dim": 9}), *batch())
    with pytest.raises(ValueError, match="8 tokens are more than the 7 positions"):
        shapes(ProjectionModel(**SPEECH), *batch(m=8))


def test_parameters_of_the_base_model():
    network = ProjectionModel(text_encoder_dim=512, text_encoder_1_dim=1024, langauge_model_dim=768)
    inputs = np.zeros((1, 1, 512), np.float32), np.zeros((1, 3, 1024), np.float32)
    assert count(shapes(network, *inputs)) == 1_184_256


def test_a_third_text_is_behind_the_two():
    """A unified model: what two texts give is untouched, and the phonemes have their own ends and positions."""
    two = ProjectionModel(text_encoder_dim=6, text_encoder_1_dim=5, langauge_model_dim=8)
    three = two.copy(text_encoder_2_dim=4, use_learned_position_embedding=True, max_seq_length=7)
    rng = np.random.default_rng(1)
    states = [rng.standard_normal((2, n, width), np.float32) for n, width in ((1, 6), (3, 5), (4, 4))]
    masks = [np.ones((2, 1), np.int32), np.ones((2, 3), np.int32), np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.int32)]
    given = (*states[:2], *masks[:2], states[2], masks[2])
    variables = three.init(jax.random.key(0), *given)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), variables)
    of_two = {name: leaf for name, leaf in variables["params"].items() if "_2" not in name and "learn" not in name}
    joined, mask = three.apply(variables, *given)
    alone, alone_mask = two.apply({"params": of_two}, *states[:2], *masks[:2])
    np.testing.assert_array_equal(joined[:, :8], alone)
    np.testing.assert_array_equal(mask, np.concatenate([alone_mask, [[1, 1, 1, 1, 0, 1], [1, 0, 0, 0, 0, 1]]], 1))
    params = variables["params"]
    np.testing.assert_array_equal(joined[0, [8, -1]], [params["sos_embed_2"], params["eos_embed_2"]])
    moved = states[2] + params["learnable_positional_embedding"][0, :, :4].T
    third = moved @ params["projection_2"]["kernel"] + params["projection_2"]["bias"]
    np.testing.assert_allclose(joined[:, 9:-1], third, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="text_encoder_2_dim is 4: give as many"):
        three.apply(variables, *given[:4])
    with pytest.raises(ValueError, match="text_encoder_2_dim is None: give as many"):
        two.apply({"params": of_two}, *given)
