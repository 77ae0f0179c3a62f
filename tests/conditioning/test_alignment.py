"""GPT-2 is told where in the transcription the sound of a moment stands."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax.conditioning.alignment import phonemes_away

GRID, PHONEMES, LAYERS, HEADS = (16, 2), 20, 4, 3


def weights(row):
    """Of each layer [2, heads, tokens, phonemes] from one [tokens, phonemes] for all."""
    return [jnp.broadcast_to(jnp.asarray(row, jnp.float32), (2, HEADS, *row.shape)) for _ in range(LAYERS)]


def looking_at(share, phonemes=PHONEMES):
    """Attention of each token to the phoneme at a share of them."""
    row = np.zeros((32, PHONEMES))
    row[np.arange(32), np.clip((np.asarray(share) * phonemes).astype(int), 0, phonemes - 1)] = 1
    return row


TIME = np.repeat((np.arange(16) + 0.5) / 16, 2)
ALL, WHOLE = np.ones((2, PHONEMES), np.int32), np.array([[0.0, 1.0]] * 2, np.float32)


def test_along_the_diagonal_costs_nothing_and_against_it_most():
    along, against = (np.asarray(phonemes_away(weights(looking_at(t)), ALL, WHOLE, GRID)) for t in (TIME, 1 - TIME))
    # A phoneme's middle is at most half a phoneme away: 1 − exp(−0.025² / 2 · 0.15²) = 0.014.
    assert along.shape == (2,) and along.max() < 0.014 and against.min() > 0.7
    elsewhere = phonemes_away(weights(np.zeros((32, PHONEMES))), ALL, WHOLE, GRID)  # to what is no phoneme
    np.testing.assert_allclose(elsewhere, 1.0)


def test_one_weight_by_the_formula():
    row = np.zeros((32, PHONEMES))
    row[:, 3] = 0.5
    cost = 1 - 0.5 * np.exp(-((TIME - 3.5 / PHONEMES) ** 2) / (2 * 0.15**2))
    np.testing.assert_allclose(phonemes_away(weights(row), ALL, WHOLE, GRID), cost.mean(), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(begin=st.floats(0.0, 0.4), end=st.floats(0.5, 1.0), phonemes=st.integers(1, PHONEMES))
def test_what_counts_is_the_time_of_speaking_and_the_phonemes_there_are(begin, end, phonemes):
    mask = (np.arange(PHONEMES) < phonemes).astype(np.int32)[None].repeat(2, 0)
    span, share = np.array([[begin, end]] * 2, np.float32), (TIME - begin) / (end - begin)
    row = looking_at(share, phonemes)
    most = 1 - np.exp(-((0.5 / phonemes) ** 2) / (2 * 0.15**2)) + 1e-4
    assert np.asarray(phonemes_away(weights(row), mask, span, GRID)).max() <= most
    row[(share < 0) | (share > 1)] = 0  # where nothing is said one may look anywhere
    assert np.asarray(phonemes_away(weights(row), mask, span, GRID)).max() <= most


def test_where_nothing_is_said_nothing_is_asked():
    none = np.asarray(phonemes_away(weights(looking_at(1 - TIME)), ALL * np.array([[1], [0]]), WHOLE, GRID))
    assert none[0] > 0.7 and none[1] == 0
    silent = phonemes_away(weights(looking_at(1 - TIME)), ALL, np.zeros((2, 2), np.float32), GRID)
    assert np.asarray(silent).tolist() == [0, 0]


@pytest.mark.parametrize(("layers", "guided"), [(1, [0]), (2, [0, 1]), (4, [1, 2]), (12, [5, 6])])
def test_two_heads_of_the_layers_in_the_middle_are_guided(layers, guided):
    along, against = (np.broadcast_to(looking_at(t), (2, HEADS, 32, PHONEMES)) for t in (TIME, 1 - TIME))
    good = [np.concatenate([along[:, :2], against[:, 2:]], 1) if n in guided else against for n in range(layers)]
    assert np.asarray(phonemes_away([jnp.asarray(one) for one in good], ALL, WHOLE, GRID)).max() < 0.014
