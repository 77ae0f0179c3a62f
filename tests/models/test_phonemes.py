"""The VITS text encoder against transformers' on the same random weights.

Tolerances: 1e-4 relative in float32 (sums in another order); 5e-2 in bfloat16, whose 8 bits round at 4e-3 and
whose errors add up over the layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import VitsConfig, VitsModel
from transformers.models.vits.modeling_vits import VitsTextEncoder as VitsTextTwin
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.phonemes import VitsTextEncoder

SIZES = {
    "vocab_size": 30,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "window_size": 4,
    "use_bias": True,
    "ffn_dim": 32,
    "ffn_kernel_size": 3,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "layer_norm_eps": 1e-5,
}
# What VITS has behind the encoder, small: unused.
REST = {
    "flow_size": 4,
    "spectrogram_bins": 3,
    "upsample_initial_channel": 4,
    "upsample_rates": [2],
    "upsample_kernel_sizes": [4],
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
    "duration_predictor_num_flows": 1,
}


def batch(length):
    """Two rows, the second shorter."""
    ids = np.random.default_rng(length).integers(1, 30, (2, length)).astype(np.int32)
    mask = np.ones((2, length), np.int32)
    mask[1, length // 2 + 1 :] = 0
    return ids * mask, mask


def pair(**changes):
    torch.manual_seed(0)
    twin = randomise(VitsModel(VitsConfig(**SIZES | REST | changes)))
    network = VitsTextEncoder(**SIZES | changes)
    target = shapes(network, *batch(3))
    return twin.text_encoder, network, carry_over(twin, target, NAMES["vits"])


@pytest.fixture(scope="module")
def plain():
    return pair()


def expected(twin, ids, mask):
    """As diffusers calls it (pipeline_audioldm2.py, encode_prompt)."""
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    with torch.no_grad():
        return twin(ids, attention_mask=mask, padding_mask=mask.unsqueeze(-1))[0]


@pytest.mark.parametrize("length", [1, 3, 5, 40])
def test_equals_transformers_within_the_window_and_beyond(plain, length):
    twin, network, variables = plain
    ids, mask = batch(length)
    ours = jax.jit(network.apply)(variables, ids, mask)
    assert relative_error(ours, expected(twin, ids, mask)) < 1e-4
    assert not np.asarray(ours)[mask == 0].any()


def test_equals_transformers_with_other_sizes():
    """An even kernel, which is padded unevenly, another window and no biases."""
    twin, network, variables = pair(ffn_kernel_size=4, window_size=2, use_bias=False, num_attention_heads=3)
    ids, mask = batch(9)
    assert relative_error(network.apply(variables, ids, mask), expected(twin, ids, mask)) < 1e-4


def test_padding_changes_nothing(plain):
    _, network, variables = plain
    ids, mask = batch(9)
    long = np.pad(ids, ((0, 0), (0, 24))), np.pad(mask, ((0, 0), (0, 24)))
    assert relative_error(network.apply(variables, *long)[:, :9], network.apply(variables, ids, mask)) < 1e-5


def test_bfloat16(plain):
    _, network, variables = plain
    half = jax.jit(VitsTextEncoder(**SIZES, dtype=jnp.bfloat16).apply)(variables, *batch(9))
    assert half.dtype == jnp.bfloat16
    assert relative_error(half, network.apply(variables, *batch(9))) < 5e-2


def test_dropout_draws_and_gradients_flow(plain):
    _, network, variables = plain

    def loss(params, seed):
        rngs = {"dropout": jax.random.key(seed)}
        # The cube, since the last norm fixes the sum of squares.
        return (network.apply({"params": params}, *batch(9), deterministic=False, rngs=rngs) ** 3).mean()

    gradients = [jax.jit(jax.grad(loss))(variables["params"], seed) for seed in (1, 2)]
    leaves = [jax.tree.leaves(gradient) for gradient in gradients]
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in leaves[0])
    assert any(not np.allclose(*both) for both in zip(*leaves))


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="5 heads do not divide hidden_size=24"):
        shapes(VitsTextEncoder(**SIZES | {"num_attention_heads": 5}), *batch(3))


def test_parameters_of_the_published_encoder():
    """As transformers has it, without the projection to means and variances."""
    sizes = {"vocab_size": 183, "hidden_size": 192, "num_hidden_layers": 6, "ffn_dim": 768}
    with torch.device("meta"):
        twin = VitsTextTwin(VitsConfig(vocab_size=183))
    parameters = sum(value.numel() for name, value in twin.named_parameters() if not name.startswith("project."))
    assert parameters == 6_253_632 == count(shapes(VitsTextEncoder(**SIZES | sizes), *batch(3)))
