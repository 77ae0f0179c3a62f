"""Where recordings sound."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from audioldm2_jax.audio.front_ends import FrontEnds
from audioldm2_jax.audio.silence import LEAD, trim_silence

RATE = 16000
ENDS = FrontEnds(ConfigDict({"sampling_rate": RATE}))


@pytest.mark.parametrize("length", [0, 1, 100, 1000])
def test_of_silence_nothing_is_known(length):
    assert trim_silence(np.zeros(length, np.float32), RATE).tolist() == [0.0] * length
    if length >= RATE // 100:
        assert ENDS.sounding_span(jnp.zeros((2, length))).tolist() == [[0.0, 0.0]] * 2


@settings(max_examples=30, deadline=None)
@given(before=st.integers(0, 6000), after=st.integers(0, 6000), seed=st.integers(0, 99))
def test_ends_are_those_of_librosa(before, after, seed):
    draw = np.random.default_rng(seed)
    sound = 0.3 * draw.standard_normal(8000) * np.sin(np.pi * (np.arange(8000) + 0.5) / 8000) ** 0.5
    wave = np.concatenate([np.zeros(before), sound, np.zeros(after)]).astype(np.float32)
    wave += 1e-4 * draw.standard_normal(len(wave)).astype(np.float32)
    _, (begin, end) = librosa.effects.trim(wave, top_db=30, frame_length=160, hop_length=160)
    trimmed = trim_silence(wave, RATE)
    assert abs(len(trimmed) - (end - begin) - LEAD * RATE) <= 320
    span = np.asarray(ENDS.sounding_span(jnp.asarray(wave)[None]))[0] * len(wave)
    assert np.abs(span - [begin, end]).max() <= 320
    np.testing.assert_array_equal(trim_silence(trimmed, RATE), trimmed)
