"""Conditioning against diffusers' AudioLDM2Pipeline and against what a prompt gives when it is alone.

Tolerance 1e-4 relative (float32 through a few layers, sums in another order).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline
from transformers import GPT2Config, GPT2LMHeadModel

from audioldm2_jax.checkpoints.parameter_names import NAMES, to_flax
from audioldm2_jax.conditioning.conditions import drop_captions
from audioldm2_jax.conditioning.loa import Prefix, encode_prompt, generate_loa, pool_loa, teacher_forced_loa
from audioldm2_jax.models.gpt2 import GPT2
from audioldm2_jax.models.network import Network
from audioldm2_jax.models.projection import ProjectionModel

TOLERANCE = 1e-4
D, TOKENS = 16, 5
RNG = np.random.default_rng(0)


def close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def twins():
    torch.manual_seed(0)
    sizes = {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 32}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=4, bos_token_id=None, eos_token_id=None, **sizes)).eval()
    theirs.config.max_new_tokens = TOKENS
    rates = {"layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
    module = GPT2(**sizes, **rates)
    ids = jnp.zeros((1, 1), jnp.int32)
    target = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1, D)), ids, ids))
    tensors = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    variables, _ = to_flax(tensors, target, NAMES["language_model"])
    return Network(module, variables), theirs


def prefix_of(embeddings, mask, slots=None):
    mask = jnp.asarray(mask)
    positions = jnp.cumsum(mask if slots is None else jnp.asarray(slots), 1) - 1
    return Prefix(jnp.asarray(embeddings), mask, jnp.maximum(positions, 0).astype(jnp.int32))


def diffusers_loa(theirs, embeddings, mask):
    class Holder:
        language_model = theirs

    with torch.no_grad():
        return AudioLDM2Pipeline.generate_language_model(
            Holder(), torch.tensor(embeddings), max_new_tokens=TOKENS, attention_mask=torch.tensor(mask)
        )


@pytest.mark.parametrize("given", [0, 3])
def test_generate_alone(twins, given):
    ours, theirs = twins
    embeddings = RNG.standard_normal((2, 7, D), np.float32)
    # A masked place that counts, as in diffusers' padded negative prompt: GPT-2 there numbers all places.
    mask = np.ones((2, 7), np.int64)
    mask[1, 4:6] = 0
    expected = diffusers_loa(theirs, embeddings, mask).numpy()
    prefix = prefix_of(embeddings, mask, np.ones_like(mask))
    first = jnp.asarray(expected[:, :given]) if given else None
    close(jax.jit(lambda n: generate_loa(n, prefix, TOKENS, given=first))(ours), expected)


def test_generation_ignores_padding(twins):
    """A prompt padded between its tokens and its EOS gives what it gives alone."""
    ours, theirs = twins
    alone = RNG.standard_normal((1, 6, D), np.float32)
    padded = np.concatenate([alone[:, :5], 9 * np.ones((1, 4, D), np.float32), alone[:, 5:]], 1)
    mask = np.array([[1] * 5 + [0] * 4 + [1]])
    expected = diffusers_loa(theirs, alone, np.ones((1, 6), np.int64))
    close(generate_loa(ours, prefix_of(padded, mask), TOKENS), expected)


def test_teacher_forcing_repeats_generation(twins):
    """Fed with what it wrote, the language model predicts what it wrote; padded or not."""
    ours, _ = twins
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]])
    prefix = prefix_of(RNG.standard_normal((2, 5, D), np.float32), mask)
    loa = generate_loa(ours, prefix, TOKENS)
    close(teacher_forced_loa(ours, prefix, loa), loa)


def test_gradient_reaches_the_prefix_through_generation(twins):
    ours, _ = twins
    embeddings = jnp.asarray(RNG.standard_normal((1, 5, D), np.float32))

    def last(x):
        return generate_loa(ours, prefix_of(x, np.ones((1, 5), int)), TOKENS)[0, -1, 0]

    direction = jnp.ones_like(embeddings)
    slope = jnp.vdot(jax.grad(last)(embeddings), direction)
    measured = (last(embeddings + 1e-2 * direction) - last(embeddings - 1e-2 * direction)) / 2e-2
    # 2e-2: the measured slope is a difference of float32 numbers and of second order.
    np.testing.assert_allclose(slope, measured, rtol=2e-2, atol=1e-3)


def test_dropout_needs_and_uses_its_key(twins):
    ours, _ = twins
    prefix = prefix_of(RNG.standard_normal((1, 5, D), np.float32), np.ones((1, 5), int))
    one, same, other = (generate_loa(ours, prefix, TOKENS, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_sequence_longer_than_the_positions(twins):
    ours, _ = twins
    prefix = prefix_of(np.zeros((1, 30, D), np.float32), np.ones((1, 30), int))
    with pytest.raises(ValueError, match="34 places, more than its 32 positions"):
        generate_loa(ours, prefix, TOKENS)
    with pytest.raises(ValueError, match="only 5 are asked for"):
        generate_loa(ours, prefix, TOKENS, given=jnp.zeros((1, 5, D)))


class Text:
    """Stand-ins for the text encoders: an embedding that depends on the unmasked ids alone."""

    @staticmethod
    def clap(ids, mask, method):
        assert method == "text_features"
        return jnp.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype(jnp.float32)

    @staticmethod
    def t5(ids, mask, **_):
        return (ids * mask)[..., None] * jnp.ones(3)


def test_encode_prompt_positions_and_masks():
    module = ProjectionModel(text_encoder_dim=2, text_encoder_1_dim=3, langauge_model_dim=D)
    one = jnp.ones((1, 1), jnp.int32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 3)), one, one)
    projection = Network(module, variables)
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    text = {"clap_ids": jnp.ones((2, 2), int), "clap_mask": jnp.ones((2, 2), int), "t5_ids": 3 * mask, "t5_mask": mask}
    prefix, states, text_mask = encode_prompt(Text.clap, {"t5": Text.t5}, projection, text)
    assert prefix.embeddings.shape == (2, 9, D) and states.shape == (2, 4, 3)
    np.testing.assert_array_equal(text_mask, mask)
    np.testing.assert_array_equal(prefix.mask[0], [1, 1, 1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(prefix.positions, [[0, 1, 2, 3, 4, 5, 6, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    alone, _, _ = encode_prompt(
        Text.clap, {"t5": Text.t5}, projection, {key: value[:1, :3] for key, value in text.items()}
    )
    np.testing.assert_array_equal(alone.positions[0], prefix.positions[0][np.asarray(prefix.mask[0]) > 0])

    dropped, which = drop_captions(
        text,
        jnp.array([0.05, 0.5]),
        0.1,
        {
            "clap_ids": jnp.zeros((1, 2), int),
            "clap_mask": jnp.ones((1, 2), int),
            "t5_ids": jnp.array([[1, 0, 0, 0]]),
            "t5_mask": jnp.array([[1, 0, 0, 0]]),
        },
    )
    np.testing.assert_array_equal(which, [True, False])
    np.testing.assert_array_equal(dropped["t5_ids"], [[1, 0, 0, 0], [3, 3, 3, 3]])
    # The empty caption stands where the caption stood: its EOS has the caption's position.
    empty, _, _ = encode_prompt(Text.clap, {"t5": Text.t5}, projection, dropped)
    np.testing.assert_array_equal(empty.mask[0], [1, 1, 1, 1, 1, 0, 0, 0, 1])
    assert empty.positions[0, -1] == prefix.positions[0, -1]


@pytest.mark.parametrize("pooling,tokens", [(1, 64), (2, 16), (4, 4), (8, 2)])
def test_pool_loa(pooling, tokens):
    features = RNG.standard_normal((2, 16, 4, 3), np.float32)
    pictures = torch.tensor(features).permute(0, 3, 1, 2)
    kernel = (pooling, min(pooling, 4))
    pooled = torch.nn.functional.avg_pool2d(pictures, kernel) + torch.nn.functional.max_pool2d(pictures, kernel)
    expected = (pooled / 2).flatten(2).transpose(1, 2)
    assert expected.shape[1] == tokens
    close(pool_loa(jnp.asarray(features), pooling), expected, 1e-6)


@pytest.mark.parametrize("pooling", [0, 17])
def test_pool_loa_out_of_range(pooling):
    with pytest.raises(ValueError, match=f"pooling is {pooling}.*between 1 and the 16"):
        pool_loa(jnp.zeros((1, 16, 4, 3)), pooling)


def test_phonemes_beside_captions(twins):
    """A unified model: GPT-2 sees of an absent transcription its two ends, and of a caption what it saw without."""
    gpt2, _ = twins
    two = ProjectionModel(text_encoder_dim=2, text_encoder_1_dim=3, langauge_model_dim=D)
    three = two.copy(text_encoder_2_dim=3, use_learned_position_embedding=True, max_seq_length=6)
    one = jnp.ones((1, 1), jnp.int32)
    inputs = (jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 3)), one, one, jnp.zeros((1, 1, 3)), one)
    variables = three.init(jax.random.key(0), *inputs)
    shared = {name: leaf for name, leaf in variables["params"].items() if "_2" not in name and "learn" not in name}
    captions = {"clap_ids": jnp.ones((2, 2), int), "clap_mask": jnp.ones((2, 2), int)}
    captions |= {"t5_ids": jnp.array([[3, 4, 0], [5, 6, 7]]), "t5_mask": jnp.array([[1, 1, 0], [1, 1, 1]])}
    said = {"phoneme_ids": jnp.array([[8, 9, 8, 2], [0, 0, 0, 0]]), "phoneme_mask": jnp.array([[1] * 4, [0] * 4])}

    def prefix_of_three(text):
        encoders = {"t5": Text.t5, "phoneme": Text.t5}
        return encode_prompt(Text.clap, encoders, Network(three, variables), {**captions, **text})

    prefix, states, mask = prefix_of_three(said)
    assert states.shape == (2, 3, 3) and prefix.embeddings.shape == (2, 14, D)  # the UNet's are T5's
    np.testing.assert_array_equal(mask, captions["t5_mask"])
    np.testing.assert_array_equal(prefix.positions[0], [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12])
    np.testing.assert_array_equal(prefix.positions[1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 9])
    # What the captions give is what they give a model without phonemes, in GPT-2, too.
    plain, _, _ = encode_prompt(Text.clap, {"t5": Text.t5}, Network(two, {"params": shared}), captions)
    for ours, theirs in zip(prefix, plain):
        np.testing.assert_array_equal(ours[:, :8], theirs)
    close(gpt2(*prefix)[:, :8], gpt2(*plain))
    # Without a transcription the LOA is that of CLAP, T5, SOS and EOS, however much padding there is between these.
    ends = prefix_of_three({key: value[:, :0] for key, value in said.items()})[0]
    loa = generate_loa(gpt2, prefix, TOKENS)
    close(loa[1], generate_loa(gpt2, ends, TOKENS)[1])
    longer = prefix_of_three({key: jnp.pad(value, ((0, 0), (0, 2))) for key, value in said.items()})[0]
    close(generate_loa(gpt2, longer, TOKENS), loa)
    assert np.linalg.norm(loa[0] - generate_loa(gpt2, ends, TOKENS)[0]) > 1e-2 * np.linalg.norm(loa[0])
    # A dropped example keeps the places of its phonemes, as the negative prompt does.
    empty = {"phoneme_ids": jnp.zeros((1, 4), int), "phoneme_mask": jnp.zeros((1, 4), int)}
    dropped = prefix_of_three(drop_captions(said, jnp.array([0.0, 1.0]), 0.5, empty)[0])[0]
    np.testing.assert_array_equal(dropped.positions, prefix.positions)
    np.testing.assert_array_equal(dropped.mask[0, 8:], [1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("given", [1, 4])
def test_a_given_loa_is_continued_as_without_a_cache(twins, given):
    """In-context speech: each token anew from all before it, the given ones among them, is what the cache gives."""
    gpt2, _ = twins
    mask = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]])
    prefix = prefix_of(RNG.standard_normal((2, 5, D), np.float32), mask)
    prompt = jnp.asarray(RNG.standard_normal((2, given, D), np.float32))
    cached, written = generate_loa(gpt2, prefix, TOKENS, given=prompt), prompt
    np.testing.assert_array_equal(cached[:, :given], prompt)
    for _ in range(TOKENS - given):
        following = jnp.concatenate([written, jnp.zeros((2, 1, D))], 1)  # whose last token nothing sees
        written = jnp.concatenate([written, teacher_forced_loa(gpt2, prefix, following)[:, -1:]], 1)
    close(cached, written)
    other = generate_loa(gpt2, prefix, TOKENS, given=-prompt)
    assert np.linalg.norm(other[:, given:] - cached[:, given:]) > 1e-2 * np.linalg.norm(cached[:, given:])
