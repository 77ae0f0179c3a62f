"""Models whose UNet is conditioned otherwise, against diffusers on the same folder: speech, AudioLDM 1, T5 alone.

Tolerance 1e-3 relative (float32; guided steps amplify rounding), as in test_pipeline.py.
"""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from test_pipeline import GUIDANCE, SHAPE, STEPS, close
from tiny_folder import (
    CAPTIONS,
    CONFIGS,
    FILM_CONFIGS,
    random_variables,
    write_film_model,
    write_model,
    write_speech_model,
    write_unified_model,
)

from audioldm2_jax.audio.mel import ClapMelSettings
from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.data import phonemes
from audioldm2_jax.generation.pipeline import AudioLDM2

CALL = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
SAID = ["hello world", "a good day to you"]
SPEAKERS = [CAPTIONS[0], "bright drums"]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(4).standard_normal((2, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_speech_model(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module", params=["AudioLDM 1", "48k"])
def film(tmp_path_factory, request):
    """The UNet of AudioLDM 1, and that of the authors' 48 kHz model, which attends twice as often."""
    path = write_film_model(tmp_path_factory.mktemp("film"))
    if request.param == "48k":
        config = FILM_CONFIGS["unet"] | {
            "_class_name": "AudioLDM2UNet2DConditionModel",
            "cross_attention_dim": ((None, None), (None, None)),
        }
        model_folder.write_component(path, "unet", config, random_variables("unet", config, 9))
        model_index.write(path)
    return path


def theirs(path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_speech(speech, noise, tmp_path):
    """Phonemes padded to the most there can be, whose places all count; the negative side has none."""
    phonemes.encode("hello")  # tells phonemizer, which their tokenizer calls, where espeak-ng is
    ours, pipe = AudioLDM2.from_pretrained(speech), theirs(speech)
    given, without = ours.encode(SPEAKERS, ["", "drums"], transcription=SAID)
    made = ours(SPEAKERS, ["", "drums"], transcription=SAID, latents=noise, **CALL)
    for row, (speaker, negative, said) in enumerate(zip(SPEAKERS, ["", "drums"], SAID)):
        with torch.no_grad():
            _, _, loa = pipe.encode_prompt(speaker, "cpu", 1, True, transcription=said, negative_prompt=negative)
        close(given.loa[row], loa[1], 1e-5)
        close(without.loa[row], loa[0], 1e-5)
        arguments = CALL | {"transcription": said, "negative_prompt": negative}
        clip = pipe(speaker, latents=torch.tensor(noise[row : row + 1]), **arguments).audios[0]
        close(made.audios[row], clip)
    shorter = ours(SPEAKERS[0], transcription=SAID[0], max_new_tokens=5, latents=noise[:1], **CALL)
    arguments = CALL | {"transcription": SAID[0], "max_new_tokens": 5}
    close(shorter.audios, pipe(SPEAKERS[0], latents=torch.tensor(noise[:1]), **arguments).audios)
    ours.save_pretrained(tmp_path / "saved")
    again = theirs(tmp_path / "saved")
    np.testing.assert_array_equal(
        *(each(SPEAKERS[1], latents=torch.tensor(noise[1:]), **arguments).audios for each in (again, pipe))
    )


def test_what_is_said_and_by_whom(speech, noise):
    ours = AudioLDM2.from_pretrained(speech)
    same = dict(latents=noise, **CALL)
    one, other = (ours(SPEAKERS, transcription=text, **same).latents for text in ("hello world", "good bye"))
    assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(one)
    for transcription, message in (
        (None, "give a transcription"),
        ("  ", "nothing to say"),
        (["one", "two", "three"], "3 transcriptions for 2 prompts"),
        ("word " * 40, "too long"),
        ("a ☃", "'☃' in the transcription 'a ☃' cannot be read aloud"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(SPEAKERS, transcription=transcription, **same)


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    return write_unified_model(tmp_path_factory.mktemp("unified"))


def test_unified(unified, tmp_path):
    """Captions with and without words in one batch, each as it is alone; the first places are those of two texts."""
    ours = AudioLDM2.from_pretrained(unified)
    assert ours.prompts.takes_transcription and not ours.prompts.needs_transcription
    texts = [[None, None], ["hello world", None], ["hello world", "good bye"], None]
    loas = [ours.encode(SPEAKERS, ["", "drums"], transcription=text)[0].loa for text in texts]
    close(loas[0], loas[3], 1e-6)
    close(loas[1][0], loas[2][0], 1e-5)
    close(loas[1][1], loas[0][1], 1e-5)
    for row in (0, 1):
        one = ours.encode(SPEAKERS[row], "", transcription=texts[2][row])[0].loa
        close(loas[2][row], one[0], 1e-5)
        assert np.linalg.norm(loas[2][row] - loas[0][row]) > 1e-2 * np.linalg.norm(loas[0][row])
    given = ours.encode(SPEAKERS, ["", "drums"], transcription=texts[2])[0]
    assert given.text_states.shape[-1] == 16  # of T5
    for transcription, message in (
        (["one"], "1 transcriptions for 2 prompts"),
        ([3, None], "is a int, not a text"),
        (["  ", None], "nothing to say"),
        ("word " * 40, "too long"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(SPEAKERS, transcription=transcription, **CALL)
    ours.save_pretrained(tmp_path / "saved")
    again = AudioLDM2.from_pretrained(tmp_path / "saved")
    close(again.encode(SPEAKERS, ["", "drums"], transcription=texts[1])[0].loa, loas[1], 1e-6)


def test_class_labels_alone(film, noise, tmp_path):
    """AudioLDM 1: CLAP's embedding through FiLM. Its CLAP only reads, so that clips are not sorted."""
    ours, pipe = AudioLDM2.from_pretrained(film), theirs(film)
    made = ours(SPEAKERS, ["", "drums"], latents=noise, audio_length_in_s=0.16, **CALL)
    for row, (prompt, negative) in enumerate(zip(SPEAKERS, ["", "drums"])):
        arguments = CALL | {"negative_prompt": negative, "audio_length_in_s": 0.16}
        clip = pipe(prompt, latents=torch.tensor(noise[row : row + 1]), **arguments).audios[0]
        close(made.audios[row], clip)
    ours.save_pretrained(tmp_path / "saved")
    theirs(tmp_path / "saved")
    several = ours(SPEAKERS[0], num_waveforms_per_prompt=2, num_inference_steps=2)
    alone = ours(SPEAKERS[0], num_inference_steps=2)
    close(several.latents[0], alone.latents[0], 1e-4)
    with pytest.raises(ValueError, match="not a model of speech"):
        ours(SPEAKERS[0], transcription="hello")
    with pytest.raises(ValueError, match="no language of audio: leave out uncond"):
        ours(SPEAKERS[0], uncond="zeros")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """T5's states in the place of the LOA, and a CLAP that hears for sorting the clips."""
    path = write_model(tmp_path_factory.mktemp("alone"))
    for name in ("language_model", "projection_model", "audiomae"):
        for file in (path / name).iterdir():
            file.unlink()
        (path / name).rmdir()
    config = CONFIGS["unet"] | {"cross_attention_dim": ((None, 16), (None, 16))}
    model_folder.write_component(path, "unet", config, random_variables("unet", config, 9))
    model_index.write(path)
    return path


def test_t5_alone(alone, noise, tmp_path):
    """There is no pipeline of diffusers' for it, but its UNet, its T5 and its DDIM."""
    ours = AudioLDM2.from_pretrained(alone)
    index = model_index.read(alone)
    assert index["language_model"] == [None, None] and index["projection_model"] == [None, None]
    made = ours(SPEAKERS, ["", "drums"], latents=noise, **CALL)
    unet = diffusers.pipelines.audioldm2.AudioLDM2UNet2DConditionModel.from_pretrained(alone / "unet")
    t5 = transformers.T5EncoderModel.from_pretrained(alone / "text_encoder_2")
    for row, (prompt, negative) in enumerate(zip(SPEAKERS, ["", "drums"])):
        ids = ours.prompts.t5([negative, prompt], padding=True, return_tensors="pt")
        length = len(ours.prompts.t5(prompt).input_ids)  # the negative is cut to it
        if ids.input_ids.shape[1] > length:
            ids = ours.prompts.t5(
                [negative, prompt], truncation=True, max_length=length, padding=True, return_tensors="pt"
            )
        scheduler = diffusers.DDIMScheduler.from_pretrained(alone / "scheduler")
        scheduler.set_timesteps(STEPS)
        x = torch.tensor(noise[row : row + 1])
        with torch.no_grad():
            states = t5(**ids).last_hidden_state
            for t in scheduler.timesteps:
                output = unet(torch.cat([x, x]), t, states, encoder_attention_mask=ids.attention_mask).sample
                x = scheduler.step(output[:1] + GUIDANCE * (output[1:] - output[:1]), t, x).prev_sample
        close(made.latents[row], x[0])
    sorted_clips = ours(SPEAKERS[0], num_waveforms_per_prompt=3, num_inference_steps=2)
    assert sorted_clips.audios.shape == (3, 2560) and isinstance(ours.clap_mel, ClapMelSettings)
    ours.save_pretrained(tmp_path / "saved")
    again = AudioLDM2.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(*(each(SPEAKERS, latents=noise, **CALL).latents for each in (again, ours)))
