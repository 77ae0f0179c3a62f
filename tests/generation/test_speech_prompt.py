"""In-context speech: what GPT-2 and the UNet are given of a recording, what comes back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import SPEECH_CONFIGS, random_variables, write_model, write_speech_model

from audioldm2_jax.audio import files
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.commands import generate
from audioldm2_jax.generation.editing import SpeechPrompt
from audioldm2_jax.generation.pipeline import AudioLDM2

RATE, SECONDS, USED = 16000, 0.64, 0.33  # two of the four tokens in time that AudioMAE has lie within
CALL = {"num_inference_steps": 2, "guidance_scale": 1.0, "audio_length_in_s": SECONDS, "seed": 1}
BEFORE, AFTER, SPEAKER = "good day", "how are you", "a man"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_speech_model(tmp_path_factory.mktemp("model"))
    gpt2 = SPEECH_CONFIGS["language_model"] | {"max_new_tokens": 8}  # as many as AudioMAE's grid has
    model_folder.write_component(path, "language_model", gpt2, random_variables("language_model", gpt2, 3))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return AudioLDM2.from_pretrained(folder)


@pytest.fixture(scope="module")
def voice():
    time = np.arange(round(USED * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * (200 + 900 * time) * time)).astype(np.float32)


def test_gpt2_goes_on_from_the_recording(model, voice, monkeypatch):
    """Phonemes of both texts and the true LOA of the recording go in; what follows is the model's."""
    seen = {}
    encode = model.prompt_encoder.encode

    def spy(texts, tokens, *rest):
        seen.update(texts.ids, loa=rest[-1])
        made = encode(texts, tokens, *rest)
        seen["made"] = np.asarray(made[0].loa)
        return made

    monkeypatch.setattr(model.prompt_encoder, "encode", spy)
    model(SPEAKER, transcription=AFTER, edit=SpeechPrompt(voice, RATE, transcription=BEFORE), **CALL)
    both = model.prompts.encode([SPEAKER], [""], [f"{BEFORE} {AFTER}"])
    for field in ("phoneme_ids", "phoneme_mask"):
        np.testing.assert_array_equal(seen[field], both[field])
    own = model.clip_encoder.loa(voice, 8)
    np.testing.assert_array_equal(seen["loa"], own[:, :4])
    np.testing.assert_allclose(seen["made"][:, :4], own[:, :4], rtol=1e-6)
    assert np.linalg.norm(seen["made"][:, 4:] - own[:, 4:]) > 1e-2 * np.linalg.norm(own[:, 4:])


def test_what_comes_back(model, voice):
    """The new words alone, or behind the recording itself; several prompts, and of a recording its beginning."""
    prompt = SpeechPrompt(voice, RATE, transcription=BEFORE)
    whole = model(SPEAKER, transcription=AFTER, edit=SpeechPrompt(voice, RATE, None, BEFORE, True), **CALL)
    new = model(SPEAKER, transcription=AFTER, edit=prompt, **CALL)
    assert whole.audios.shape == (1, round(SECONDS * RATE))
    np.testing.assert_array_equal(new.audios, whole.audios[:, len(voice) :])
    np.testing.assert_array_equal(new.latents, whole.latents)
    assert abs(new.mels.shape[1] * 160 - new.audios.shape[1]) <= 160
    np.testing.assert_allclose(whole.audios[0, : len(voice) - 600], voice[:-600], atol=1e-5)
    longer = np.concatenate([voice, 0.9 * np.ones(9000, np.float32)])
    of_longer = model(SPEAKER, transcription=AFTER, edit=SpeechPrompt(longer, RATE, USED, BEFORE), **CALL)
    np.testing.assert_allclose(of_longer.audios, new.audios, atol=1e-5)  # what lies behind is not heard
    two = model([SPEAKER, "a woman"], transcription=[AFTER, "thank you"], edit=prompt, **CALL)
    np.testing.assert_allclose(two.audios[0], new.audios[0], atol=1e-4)
    assert np.abs(two.audios[1] - two.audios[0]).max() > 1e-3


def test_what_is_refused(model, voice, tmp_path):
    for edit, text, message in (
        (lambda: SpeechPrompt(voice, RATE), AFTER, "has no transcription"),
        (lambda: SpeechPrompt(voice, RATE, None, "  "), AFTER, "has no transcription"),
        (lambda: SpeechPrompt(0 * voice, RATE, None, BEFORE), AFTER, "is silence"),
        (lambda: SpeechPrompt(voice, RATE, 0.5, BEFORE), AFTER, "until is 0.5"),
        (lambda: SpeechPrompt(voice, RATE, None, BEFORE), None, "no new words"),
        (lambda: SpeechPrompt(voice, RATE, None, BEFORE), " ", "no new words"),
        (lambda: SpeechPrompt(voice, RATE, None, BEFORE), [AFTER, None], "no new words"),
        (lambda: SpeechPrompt(voice, RATE, None, "word " * 12), AFTER, "too long"),
        (lambda: SpeechPrompt(np.tile(voice, 2), RATE, None, BEFORE), AFTER, "takes 0.66 s of the 0.64 s"),
        (lambda: SpeechPrompt(np.tile(voice, 2), RATE, 0.4, BEFORE), AFTER, "no room for new words: use its first 0.3"),
    ):
        with pytest.raises(ValueError, match=message):
            model(SPEAKER, transcription=text, edit=edit(), **CALL)
    music = AudioLDM2.from_pretrained(write_model(tmp_path / "music"))
    with pytest.raises(ValueError, match="not a model of speech"):
        music(SPEAKER, transcription=AFTER, edit=SpeechPrompt(voice, RATE, None, BEFORE), **CALL)


def test_more_words_than_there_is_time_for(voice):
    prompt = SpeechPrompt(voice, RATE, transcription="ten chars.")
    assert prompt.remarks(0.7, ["ten chars. 0123456789"]) == []
    (said,) = prompt.remarks(0.7, ["ten chars. 0123456789", "ten chars. 0123456789 and more"])
    assert "take 0.7 s, and 0.4 s are left" in said


def test_the_command(folder, voice, tmp_path, capsys):
    files.write(tmp_path / "voice.wav", voice, RATE)
    common = ["--model", folder, "-s", tmp_path / "out", "-f", tmp_path / "voice.wav", "--ddim_steps", 2, "-n", 1]
    common += ["-dur", SECONDS, "-gs", 1.0]

    def run(*more):
        code = generate.main([str(argument) for argument in (*common, *more)])
        said = capsys.readouterr()
        return Path(said.out.strip()) if code == 0 else said.err

    path = run("--prompt_transcription", BEFORE, "--transcription", AFTER)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["edit"]["kind"] == "SpeechPrompt" and record["edit"]["transcription"] == BEFORE
    assert (
        record["transcription"] == AFTER and record["prompt"] == generate.SOMEONE and path.name == "how-are-you-0.wav"
    )
    behind = run("--prompt_transcription", BEFORE, "--transcription", AFTER, "--mode", "continuation")
    assert len(files.read(behind, RATE)) - len(files.read(path, RATE)) == len(voice)
    assert "no new words" in run("-t", "a man", "--prompt_transcription", BEFORE)
    assert "is for a sound file (-f) with --mode" in run(
        "-t", "x", "--prompt_transcription", BEFORE, "--mode", "transfer"
    )
