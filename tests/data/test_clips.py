"""Segments of long recordings and what short ones are filled up with."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipe_check, recipes
from audioldm2_jax.data import clips, encoders, pipeline
from audioldm2_jax.data.clips import Clips
from audioldm2_jax.data.example import Example, Source


class Waves(Source):
    """Recordings in memory."""

    def __init__(self, *waves, said=None):
        self.waves, self.said = [np.asarray(wave, np.float32) for wave in waves], said

    def __len__(self):
        return len(self.waves)

    def __getitem__(self, index):
        return Example(self.waves[index], "rain", transcription=self.said)


def bursts(seconds=100, rate=100, share=0.1):
    """A long recording that is silent but for its middle."""
    wave = np.zeros(seconds * rate)
    begin, length = len(wave) // 2, int(share * len(wave))
    wave[begin : begin + length] = 0.5 * np.sin(np.arange(length))
    return wave


def test_silent_segments_are_drawn_again():
    source = Waves(bursts())
    positions = np.linspace(0, 0.999, 200)

    def share_silent(policy):
        chosen = Clips(source, 100, policy, "pad")
        return np.mean([np.abs(chosen.excerpt(0, 200, p).waveform).max() < 1e-4 for p in positions])

    # Of the recording 12 % is heard in an excerpt; ten draws miss that with 0.88^10 = 0.28.
    assert share_silent("random") > 0.8 and 0.15 < share_silent("sounding") < 0.4
    for position in positions:
        first = source.excerpt(0, 200, position).waveform
        if np.abs(first).max() > 1e-4:  # what is heard stays where it was drawn
            np.testing.assert_array_equal(
                Clips(source, 100, "sounding", "pad").excerpt(0, 200, position).waveform, first
            )


def test_a_recording_of_nothing_but_silence_is_taken_as_it_is():
    source = Clips(Waves(np.zeros(1000)), 100, "sounding", "repeat")
    assert source.excerpt(0, 100, 0.5).waveform.tolist() == [0.0] * 100
    assert source.excerpt(0, 2000, 0.5).waveform.tolist() == [0.0] * 2000


@given(st.integers(1, 40), st.integers(1, 100))
def test_short_recordings(length, samples):
    wave = np.arange(1, length + 1) / 64
    padded, repeated = (
        Clips(Waves(wave), 100, "sounding", short).excerpt(0, samples, 0.0) for short in ("pad", "repeat")
    )
    assert len(padded.waveform) == min(length, samples) and len(repeated.waveform) == samples
    np.testing.assert_array_equal(repeated.waveform, wave[np.arange(samples) % length].astype(np.float32))


def test_what_is_said_once_is_not_repeated():
    said = Clips(Waves(np.ones(10), said="hello"), 100, "sounding", "repeat").excerpt(0, 25, 0.0)
    assert len(said.waveform) == 10 and said.transcription == "hello"


def test_examples_depend_on_seed_step_and_slot_alone():
    source = pickle.loads(pickle.dumps(Clips(Waves(*[bursts(20 + i) for i in range(7)]), 100, "sounding", "repeat")))
    encoder = [encoders.Waveform(300)]
    whole = pipeline.ExampleIndex(source, encoder, 6, 300, seed=3)
    parts = [pipeline.ExampleIndex(source, encoder, 6, 300, 3, 2, host, 2) for host in range(2)]
    for slot in range(6):
        expected = whole.example(2, slot)["waveform"]
        np.testing.assert_array_equal(parts[slot // 3][slot % 3]["waveform"], expected)
    assert np.any(whole.example(2, 0)["waveform"] != whole.example(3, 0)["waveform"])


RATE = 16000


@settings(deadline=None)
@given(
    before=st.floats(0.0, 0.5),
    after=st.floats(0.0, 0.5),
    hiss=st.floats(0.0, 1e-3),
    pause=st.floats(0.0, 0.3),
    seed=st.integers(0, 99),
)
def test_what_is_said_begins_a_tenth_of_a_second_after_the_beginning(before, after, hiss, pause, seed):
    draw = np.random.default_rng(seed)
    word = 0.3 * np.sin(0.2 * np.arange(RATE // 5))
    speech = np.concatenate([word, np.zeros(round(pause * RATE)), word])
    parts = (np.zeros(round(before * RATE)), speech, np.zeros(round(after * RATE)))
    wave = np.concatenate(parts) + hiss * draw.standard_normal(sum(map(len, parts)))
    example = Clips(Waves(wave, said="hello hello"), RATE, "sounding", "repeat", "trim").excerpt(0, 2 * RATE, 0.0)
    trimmed, frame = example.waveform, RATE // 100
    # The words stay whole, and lie where they should within a frame.
    at = int(np.argmax(np.correlate(trimmed, speech.astype(np.float32), "valid")))
    assert RATE // 10 <= at + frame and at <= RATE // 10 + frame
    assert len(speech) <= len(trimmed) <= len(speech) + RATE // 10 + 2 * frame
    assert example.transcription == "hello hello"


def test_of_a_clip_that_is_filled_with_words_the_silence_before_them_gives_way():
    wave = 0.5 * np.sin(0.2 * np.arange(RATE))
    said = Clips(Waves(wave, said="hello"), RATE, "sounding", "pad", "trim").excerpt(0, RATE, 0.0)
    np.testing.assert_array_equal(said.waveform, wave.astype(np.float32))


def test_what_nobody_wrote_down_is_not_trimmed():
    wave = np.concatenate([np.zeros(RATE), np.ones(RATE)]).astype(np.float32)
    np.testing.assert_array_equal(
        Clips(Waves(wave), RATE, "sounding", "pad", "trim").excerpt(0, 2 * RATE, 0.0).waveform, wave
    )


@pytest.mark.parametrize("key, value", [("segment", "loud"), ("short", "loop"), ("silence", "cut")])
def test_other_words_are_refused(key, value):
    config = recipes.get("tiny")
    config.data[key] = value
    with pytest.raises(recipe_check.RecipeError, match=f"data.{key}='{value}': choose from"):
        recipe_check.check(config, ["vae"])
    with pytest.raises(ValueError, match=f"data.{key}='{value}': choose from"):
        Clips(Waves([0.0]), 100, **{"segment": "random", "short": "pad", key: value})
    assert recipe_check._CHOICES_OF_DATA == {
        "segment": clips.SEGMENTS,
        "short": clips.SHORT,
        "silence": clips.SILENCE,
    }
