"""What is kept of a given clip, by the latents, by the sound and by the LOA."""

import math

import numpy as np
import pytest
from tiny_folder import CAPTIONS, write_model

from audioldm2_jax.audio import files
from audioldm2_jax.generation.editing import Continuation, Inpainting, Transfer, Variation, join, loudness
from audioldm2_jax.generation.pipeline import AudioLDM2

RATE, SAMPLES = 16000, 2560
SHAPE = (4, 8, 8)  # channels, time, frequency
STEPS = {"num_inference_steps": 4}
PROMPT = CAPTIONS[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AudioLDM2.from_pretrained(write_model(tmp_path_factory.mktemp("editing")))


@pytest.fixture(scope="module")
def clip():
    """A chirp with noise, louder than the model's clips."""
    time = np.arange(SAMPLES) / RATE
    noise = np.random.default_rng(0).standard_normal(SAMPLES)
    return (0.8 * np.sin(2 * np.pi * (300 + 4000 * time) * time) + 0.02 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def latents(model, clip):
    """Those of the clip [time, frequency, channels]."""
    return np.asarray(model.clip_encoder.latents(clip, SHAPE[1])[0])


def distance(first, second):
    return np.linalg.norm(first - second) / np.linalg.norm(second)


def test_transfer_is_nearer_to_the_clip_the_weaker_it_is(model, clip, latents):
    made = [model(PROMPT, **STEPS, edit=Transfer(clip, RATE, strength)) for strength in (0.25, 0.5, 1.0)]
    away = [distance(each.latents[0].transpose(1, 2, 0), latents) for each in made]
    assert away[0] < away[1] < away[2] and away[0] < 0.6 < away[2]
    assert all(each.audios.shape == (1, SAMPLES) for each in made)


def test_inpainting_keeps_all_but_the_span(model, clip, latents):
    made = model([PROMPT, "drums"], **STEPS, edit=Inpainting(clip, RATE, span=(0.08, 0.12)))
    final = made.latents.transpose(0, 2, 3, 1)
    changed = np.abs(final - latents).max((0, 2, 3)) > 0
    # Latent frames of 20 ms, by their middle.
    np.testing.assert_array_equal(changed, [False] * 4 + [True] * 2 + [False] * 2)
    assert distance(final[0, 4:6], final[1, 4:6]) > 0.05  # two prompts, two clips
    # The recording itself, but for a window of 32 ms at either end.
    outside = np.r_[0 : int(0.06 * RATE), int(0.14 * RATE) : SAMPLES - 16]
    np.testing.assert_allclose(made.audios[0, outside], clip[outside], atol=1e-5)
    inside = slice(int(0.09 * RATE), int(0.11 * RATE))
    assert distance(made.audios[0, inside], clip[inside]) > 0.1


def test_a_band_is_made_anew(model, clip, latents):
    """Super-resolution: what lies below stays."""
    made = model(PROMPT, **STEPS, edit=Inpainting(clip, RATE, band=(4000, math.inf)))
    changed = np.abs(made.latents[0].transpose(1, 2, 0) - latents).max((0, 2)) > 0
    centres = model.clip_encoder.places(SHAPE[1])[1]
    np.testing.assert_array_equal(changed, centres >= 4000)
    window = np.hanning(512)
    spectra = [np.abs(np.fft.rfft(window * each[1024:1536])) for each in (made.audios[0], clip)]
    hertz = np.fft.rfftfreq(512, 1 / RATE)
    low, high = hertz < 3500, hertz > 4500
    assert distance(spectra[0][low], spectra[1][low]) < 0.02 < distance(spectra[0][high], spectra[1][high])


def test_variation_has_the_clips_loa(model, clip):
    """All of it, or its beginning, and GPT-2 writes the rest."""
    whole = model.clip_encoder.loa(clip, 8)
    assert whole.shape == (1, 8, 24)
    half = model.clip_encoder.loa(clip, 8, 0.33)  # two tokens of each 0.16 s
    np.testing.assert_array_equal(half, whole[:, :4])
    texts = model.prompt_encoder.tokenize([PROMPT, "drums"], "")
    given, without, _ = model.prompt_encoder.encode(texts, 8, loa=half)
    np.testing.assert_allclose(given.loa[:, :4], np.repeat(half, 2, 0), rtol=1e-6)
    assert distance(given.loa[0, 4:], given.loa[1, 4:]) > 1e-3  # the prompts go on differently
    plain, same, _ = model.prompt_encoder.encode(texts, 8)
    np.testing.assert_allclose(without.loa, same.loa, atol=1e-5)
    assert distance(given.loa[0, 4:], plain.loa[0, 4:]) > 1e-3
    made = model(PROMPT, **STEPS, edit=Variation(clip, RATE))
    assert made.audios.shape == (1, SAMPLES) and distance(made.audios[0], clip) > 0.5


def test_continuation_begins_as_the_clip(model, clip):
    made = model(PROMPT, **STEPS, edit=Continuation(clip, RATE, until=0.1))
    head = slice(0, int(0.08 * RATE))
    np.testing.assert_allclose(made.audios[0, head], clip[head], atol=1e-5)
    assert distance(made.audios[0, 2000:], clip[2000:]) > 0.5
    longer = model(PROMPT, **STEPS, audio_length_in_s=0.32, edit=Continuation(clip, RATE))
    assert longer.audios.shape == (1, 2 * SAMPLES)
    np.testing.assert_allclose(longer.audios[0, : SAMPLES - 600], clip[: SAMPLES - 600], atol=1e-5)
    assert np.abs(longer.audios[0, SAMPLES + 600 :]).max() > 1e-3


def test_another_rate_and_loudness(model, clip):
    """A clip at another rate is the same clip, and its loudness comes back."""
    import soxr

    double = soxr.resample(clip, RATE, 2 * RATE, quality="VHQ")
    edits = [Transfer(audio, rate, 0.25) for audio, rate in ((clip, RATE), (double, 2 * RATE), (0.1 * clip, RATE))]
    made = [model(PROMPT, **STEPS, edit=edit).audios[0] for edit in edits]
    assert distance(made[1], made[0]) < 0.05  # two resamplings lose the highest frequencies
    np.testing.assert_allclose(made[2], 0.1 * made[0], rtol=1e-3, atol=1e-5)
    assert loudness(np.zeros(100, np.float32)) == 1
    assert loudness(clip) == pytest.approx(2 * np.abs(clip - clip.mean()).max(), rel=1e-4)
    assert loudness(files.normalise(clip)) == pytest.approx(1, rel=1e-4)


def test_nothing_is_joined_where_nothing_is_kept(clip):
    made = np.stack([clip, -clip])
    np.testing.assert_allclose(join(Transfer(clip, RATE), made, RATE), made * loudness(clip))
    np.testing.assert_array_equal(join(Variation(clip, RATE), made, RATE), made)


def test_what_lies_behind_the_length_is_not_heard(model, clip):
    """As in training, where clips are normalised after cropping: a loud end does not make the beginning quiet."""
    longer = np.concatenate([0.1 * clip, clip])
    np.testing.assert_array_equal(*(model.clip_encoder.latents(each, SHAPE[1]) for each in (0.1 * clip, longer)))
    window = np.tile(0.1 * clip, 4)  # AudioMAE of the tiny folder hears 0.64 s
    np.testing.assert_array_equal(
        *(model.clip_encoder.loa(each, 8) for each in (window, np.concatenate([window, clip])))
    )
    cut = [join(Inpainting(each, RATE, span=(0.1, 0.12)), np.ones((1, SAMPLES)), RATE) for each in (0.1 * clip, longer)]
    np.testing.assert_array_equal(*cut)


def test_a_clip_shorter_than_the_window_of_joining(clip):
    """Nearly all of it is kept, so it comes back."""
    short = clip[:401]
    made = join(Inpainting(short, RATE, band=(7900, math.inf)), np.zeros((1, 401), np.float32), RATE)
    assert made.shape == (1, 401) and distance(made[0], short) < 0.1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda clip: Transfer(np.zeros((2, 9)), RATE), r"shape \(2, 9\); needed is one channel"),
        (lambda clip: Transfer(np.zeros(0), RATE), r"shape \(0,\)"),
        (lambda clip: Transfer(np.full(9, np.nan), RATE), "9 samples that are NaN"),
        (lambda clip: Transfer(clip, 0), "sampling rate is 0 Hz"),
        (lambda clip: Transfer(clip, math.nan), "sampling rate is nan Hz"),
        (lambda clip: Transfer((clip * 32767).astype(np.int16), RATE), "samples of int16; needed are floats"),
        (lambda clip: Variation(clip[:1], 192000), "1 samples at 192000 Hz are too few"),
        (lambda clip: Transfer(clip, RATE, 0.0), "strength of the transfer is 0.0"),
        (lambda clip: Transfer(clip, RATE, 0.2), "strength 0.2 does none of 4 denoising steps"),
        (lambda clip: Inpainting(clip, RATE), "needs a span in seconds, a band in Hz"),
        (lambda clip: Inpainting(clip, RATE, span=(2, 1)), "span to be made anew is 2 to 1 s"),
        (lambda clip: Inpainting(clip, RATE, band=(-1, 1)), "band to be made anew is -1 to 1 Hz"),
        (lambda clip: Inpainting(clip, RATE, span=(1, 2)), "begins at 1 s, but the given clip ends at 0.16 s"),
        (lambda clip: Inpainting(clip, RATE, band=(20000, 24000)), "All of the given clip would be kept"),
        (lambda clip: Variation(clip, RATE, 0.0), "until is 0.0"),
        (lambda clip: Continuation(clip, RATE, 0.2), "until is 0.2"),
        (lambda clip: Continuation(clip, RATE), "All of the given clip would be kept"),
    ],
)
def test_bad_input(model, clip, edit, message):
    with pytest.raises(ValueError, match=message):
        model(PROMPT, **STEPS, edit=edit(clip))


def test_what_the_folder_lacks(model, clip):
    without = AudioLDM2(
        {name: part for name, part in model.components.items() if name != "audiomae"},
        model.schedule,
        model.prompts,
        model.clap_mel,
    )
    with pytest.raises(ValueError, match="has no audiomae/"):
        without(PROMPT, **STEPS, edit=Variation(clip, RATE))
    vocoder = model.components["vocoder"]
    strange = vocoder._replace(config=vocoder.config | {"sampling_rate": 12345})
    odd = AudioLDM2(model.components | {"vocoder": strange}, model.schedule, model.prompts, model.clap_mel)
    with pytest.raises(ValueError, match="No mel is known for 12345 Hz"):
        odd(PROMPT, **STEPS, edit=Transfer(clip, RATE))


SOUND = np.sin(np.arange(16000) * 0.1).astype(np.float32)


@pytest.mark.parametrize(
    "edit, seconds, remarks",
    [
        (lambda: Transfer(SOUND, 16000), 1.0, []),
        (lambda: Transfer(SOUND, 16000), 2.0, ["behind its end it is silence"]),
        (lambda: Transfer(0 * SOUND, 16000), 1.0, ["the given clip is silence"]),
        (lambda: Inpainting(SOUND, 16000, (0.5, 0.7)), 2.0, ["behind its end it is silence"]),
        (lambda: Inpainting(SOUND, 16000, (0.5, 2.0)), 2.0, []),
        (lambda: Inpainting(SOUND, 16000, (0.5, 2.0), (100.0, 200.0)), 2.0, ["behind its end it is silence"]),
        (lambda: Inpainting(SOUND, 16000, (0.5, 3.0)), 1.0, ["the span ends at 3.00 s, and 1.00 s are made"]),
        (lambda: Inpainting(SOUND, 16000, (0.5, np.inf)), 1.0, []),
        (lambda: Variation(SOUND, 16000), 2.0, []),
        (lambda: Variation(SOUND, 16000, 3.0), 2.0, ["until is 3.00 s, but the given clip ends at 1.00 s"]),
        (lambda: Continuation(SOUND, 16000), 2.0, []),
    ],
)
def test_what_becomes_silence_is_said(edit, seconds, remarks):
    said = edit().remarks(seconds)
    assert len(said) == len(remarks) and all(wanted in text for wanted, text in zip(remarks, said))
