"""GPT-2 over embeddings against transformers' GPT2LMHeadModel on the same random weights.

Tolerances: 1e-4 relative in float32 (sums in another order), 1e-5 between our own ways to the same result; 5e-2
in bfloat16, whose 8 bits round at 4e-3 and whose errors add up over the layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.gpt2 import ATTENTION, GPT2

SIZES = {
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 20,
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
}
NETWORK = GPT2(**SIZES)
RUN = jax.jit(NETWORK.apply)


def batch(length):
    random = np.random.default_rng(length)
    embeds = random.standard_normal((2, length, 24), np.float32)
    mask = np.ones((2, length), np.int32)
    mask[1, length // 3 : length // 2] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0).astype(np.int32)
    return embeds, mask, positions


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    twin = randomise(GPT2LMHeadModel(GPT2Config(vocab_size=11, **SIZES)))
    return twin, carry_over(twin, shapes(NETWORK, *batch(3)), NAMES["language_model"])


@pytest.mark.parametrize("length", [1, 6, 13])
def test_equals_transformers(pair, length):
    twin, variables = pair
    embeds, mask, positions = (torch.tensor(part) for part in batch(length))
    theirs = twin.transformer(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    assert relative_error(RUN(variables, *batch(length)), theirs) < 1e-4


def test_what_is_attended_to_equals_transformers(pair):
    twin, variables = pair
    embeds, mask, positions = (torch.tensor(part) for part in batch(13))
    twin.set_attn_implementation("eager")  # the only one that tells
    theirs = twin.transformer(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, output_attentions=True
    ).attentions
    states, kept = NETWORK.apply(variables, *batch(13), mutable=[ATTENTION])
    assert relative_error(states, RUN(variables, *batch(13))) < 1e-5
    for index, weights in enumerate(theirs):
        assert relative_error(kept[ATTENTION][f"h_{index}"]["attn"]["weights"][0], weights) < 1e-4


def test_step_by_step_equals_one_pass(pair):
    length, prompt, slots = 9, 5, 12
    embeds, mask, positions = batch(length)
    whole = RUN(pair[1], embeds, mask, positions)
    mask = np.pad(mask, ((0, 0), (0, slots - length)), constant_values=1)  # slots not filled are not seen
    states, cache = RUN(pair[1], embeds[:, :prompt], mask, positions[:, :prompt], cache=NETWORK.init_cache(2, slots))
    pieces = [states]
    for t in range(prompt, length):
        states, cache = RUN(pair[1], embeds[:, t : t + 1], mask, positions[:, t : t + 1], cache=cache)
        pieces.append(states)
    assert int(cache.length) == length
    assert relative_error(np.concatenate(pieces, axis=1), whole) < 1e-5


def test_the_future_and_masked_tokens_are_not_seen(pair):
    embeds, mask, positions = batch(9)
    changed = embeds.copy()
    changed[:, 6:] += 1
    changed[1, 3] += 1
    assert mask[1, 3] == 0
    before, after = RUN(pair[1], embeds, mask, positions), RUN(pair[1], changed, mask, positions)
    seen = mask[:, :6].astype(bool)
    assert np.array_equal(before[:, :6][seen], after[:, :6][seen])
    assert not np.allclose(before[:, 6:], after[:, 6:])


def test_bfloat16(pair):
    half = jax.jit(GPT2(**SIZES, dtype=jnp.bfloat16).apply)(pair[1], *batch(7))
    assert half.dtype == jnp.float32
    assert relative_error(half, RUN(pair[1], *batch(7))) < 5e-2


def test_dropout_draws(pair):
    draw = jax.jit(partial(NETWORK.apply, deterministic=False))
    dropped = [draw(pair[1], *batch(4), rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    assert np.array_equal(dropped[0], dropped[1]) and not np.allclose(dropped[0], dropped[2])


def test_bad_sizes_say_what_to_do(pair):
    embeds, mask, positions = batch(4)
    with pytest.raises(ValueError, match="n_head=5 does not divide n_embd=24"):
        shapes(GPT2(**SIZES | {"n_head": 5}), embeds, mask, positions)
    with pytest.raises(ValueError, match="covers 4 tokens and should cover 6"):
        NETWORK.apply(pair[1], embeds, mask, positions, cache=NETWORK.init_cache(2, 6))


def test_parameters_of_gpt2():
    network = GPT2(**SIZES | {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024})
    ids = np.zeros((1, 2), np.int32)
    own = count(shapes(network, np.zeros((1, 2, 768), np.float32), ids, ids))
    word_table = 50257 * 768  # the unused tensor wte
    assert own + word_table == 124_439_808
