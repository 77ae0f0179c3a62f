"""T5 encoder against transformers' T5EncoderModel on the same random weights.

Tolerances: 1e-4 relative in float32 (sums in another order); 5e-2 in bfloat16, whose 8 bits round at 4e-3 and
whose errors add up over the layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.t5 import T5Encoder, relative_buckets

SIZES = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
}

RUN = jax.jit(T5Encoder(**SIZES).apply)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    twin = randomise(T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **SIZES)))
    target = shapes(T5Encoder(**SIZES), np.zeros((1, 3), np.int32), np.ones((1, 3), np.int32))
    return twin, carry_over(twin, target, NAMES["text_encoder_2"], tied=("encoder.embed_tokens.weight",))


def batch(length):
    ids = np.random.default_rng(length).integers(0, 60, (2, length)).astype(np.int32)
    mask = np.ones((2, length), np.int32)
    mask[1, length // 2 + 1 :] = 0
    return ids, mask


@pytest.mark.parametrize("length", [1, 33])
def test_equals_transformers(pair, length):
    twin, variables = pair
    ids, mask = batch(length)
    theirs = twin(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    ours = RUN(variables, ids, mask)
    assert relative_error(ours, theirs) < 1e-4


def test_padding_changes_nothing(pair):
    ids, mask = batch(9)
    long = np.pad(ids, ((0, 0), (0, 24))), np.pad(mask, ((0, 0), (0, 24)))
    assert relative_error(RUN(pair[1], *long)[:, :9], RUN(pair[1], ids, mask)) < 1e-5


def test_bfloat16(pair):
    ids, mask = batch(9)
    half = jax.jit(T5Encoder(**SIZES, dtype=jnp.bfloat16).apply)(pair[1], ids, mask)
    assert half.dtype == jnp.bfloat16
    assert relative_error(half, RUN(pair[1], ids, mask)) < 5e-2


def test_dropout_draws_and_gradients_flow(pair):
    ids, mask = batch(5)

    def loss(params):
        states = T5Encoder(**SIZES).apply(
            {"params": params}, ids, mask, deterministic=False, rngs={"dropout": jax.random.key(1)}
        )
        return (states**2).mean()

    gradient = jax.jit(jax.grad(loss))(pair[1]["params"])
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("length", "buckets", "distance"), [(300, 32, 128), (40, 16, 20)])
def test_buckets(length, buckets, distance):
    relative = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    theirs = T5Attention._relative_position_bucket(relative, True, buckets, distance)
    assert np.array_equal(relative_buckets(length, buckets, distance), theirs.numpy())


def test_parameters_of_flan_t5_large():
    network = T5Encoder(
        vocab_size=32128,
        d_model=1024,
        d_kv=64,
        d_ff=2816,
        num_layers=24,
        num_heads=16,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.1,
        layer_norm_epsilon=1e-6,
    )
    ids = np.zeros((1, 2), np.int32)
    assert count(shapes(network, ids, ids)) == 341_231_104
