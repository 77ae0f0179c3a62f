"""What is measured of recordings, of sounds of which it is known; and where long ones are cut."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax.audio import decoding, files, pieces
from audioldm2_jax.audio.measures import Meter

RATE = 44100


def sine(hertz=1000, seconds=1.0, level=1.0):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def noise(seconds=1.0, rate=RATE, level=0.1, seed=0):
    return level * np.random.default_rng(seed).standard_normal(round(seconds * rate))


def sixteen_bits(wave):
    return np.round(wave * 32767) / 32768


def measured(wave, rate=RATE, encoding="WAV PCM_16", blocks=1):
    wave = np.asarray(wave, np.float32)
    wave = wave[:, None] if wave.ndim == 1 else wave
    meter = Meter(rate, wave.shape[1], encoding)
    for block in np.array_split(wave, blocks):
        np.testing.assert_array_equal(meter.update(block), decoding.to_mono(block))
    return meter.result()


def test_a_sine_of_full_scale():
    found = measured(np.stack([sine(), sine()], 1))
    assert (found.seconds, found.rate, found.channels, found.encoding) == (1.0, RATE, 2, "WAV PCM_16")
    assert found.peak == pytest.approx(1, abs=1e-3) and found.rms == pytest.approx(-3.01, abs=0.01)
    assert abs(found.dc) < 1e-4 and not found.silent
    assert 1000 <= found.bandwidth < 1500


@pytest.mark.parametrize(
    "wave, low, high",
    [
        (noise(), 22000, 22050),
        (soxr.resample(noise(rate=8000), 8000, RATE, "HQ"), 3500, 4500),  # of a telephone
        (sixteen_bits(soxr.resample(noise(rate=8000, level=1e-3), 8000, RATE, "HQ")), 3500, 4500),  # and soft
        (sixteen_bits(soxr.resample(noise(rate=16000), 16000, RATE, "HQ")), 7500, 8500),
        (sixteen_bits(sine(5000, level=0.5) + 1e-3 * sine(15000)), 15000, 15500),
    ],
)
def test_bandwidth(wave, low, high):
    assert low <= measured(wave).bandwidth <= high


def test_of_silence_and_of_what_is_short_there_is_no_bandwidth():
    assert measured(np.zeros(RATE)).bandwidth is None and measured(np.zeros(RATE)).rms is None
    constant = measured(np.full(RATE, 0.25))
    assert constant.silent and constant.bandwidth is None and constant.dc == pytest.approx(0.25)
    assert measured(noise(0.01)).bandwidth is None


def test_channels_that_cancel_out_are_silent():
    found = measured(np.stack([noise(), -noise()], 1))
    assert found.silent and found.rms == pytest.approx(-20, abs=0.1)


def test_the_channel_with_the_largest_mean_counts():
    assert measured(np.stack([noise(), noise() - 0.3], 1)).dc == pytest.approx(-0.3, abs=0.01)


def counted(wave, full):
    """The share of samples in runs of three, the plain way."""
    total = 0
    for channel in wave.T:
        run = 0
        for sample in [*channel, 0.0]:
            if abs(sample) >= full:
                run += 1
            else:
                total += run if run >= 3 else 0
                run = 0
    return total / wave.size


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=2, max_size=2), min_size=1, max_size=60),
    st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_clipped_samples_are_counted_across_blocks(rows, blocks):
    wave = np.array(rows, np.float32)
    assert measured(wave, blocks=min(blocks, len(wave))).clipped == pytest.approx(counted(wave, 1.0))


def test_full_scale_of_eight_bits_is_less():
    wave = np.clip(2 * sine(), -1, 127 / 128)
    assert measured(wave, encoding="WAV PCM_U8").clipped > 0.5 > measured(wave).clipped > 0.2


@pytest.mark.parametrize(
    "form, subtype", [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16")]
)
def test_the_same_sound_has_one_digest_in_any_container(form, subtype):
    wave = np.round(noise() * 32768).clip(-32768, 32767) / 32768
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, subtype, format=form)
    stored = files.original(file.getvalue(), "it")
    meter = Meter(stored.rate, stored.channels, stored.encoding)
    for block in stored.blocks():
        meter.update(block)
    assert meter.result().digest == measured(wave, blocks=7).digest
    assert stored.encoding == f"{form} {subtype}" and (stored.rate, stored.channels) == (RATE, 1)
    assert meter.result().digest != measured(wave, rate=48000).digest != measured(wave[:-1], rate=48000).digest


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=8), st.integers(40, 3000), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_whole(lengths, most, seed):
    wave = noise(1, sum(lengths), seed=seed).astype(np.float32)
    wave[np.random.default_rng(seed).random(len(wave)) < 0.2] = 0
    made = [*pieces.cut(np.split(wave, np.cumsum(lengths)[:-1]), most, 1000)]
    np.testing.assert_array_equal(np.concatenate(made), wave)
    assert all(len(piece) <= most for piece in made)
    assert len(made) == 1 or all(len(piece) >= most // 4 - 1 for piece in made)
    assert [len(piece) for piece in pieces.cut([wave], most, 1000)] == [len(piece) for piece in made]
