"""The tiny folders of speech and of AudioLDM 1: diffusers loads each without a complaint and makes sound of it."""

import logging

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from tiny_folder import CAPTIONS, SPEECH_CONFIGS, write_film_model, write_speech_model

from audioldm2_jax import conditioning
from audioldm2_jax.data import phonemes
from audioldm2_jax.weights import folder


@pytest.fixture
def complaints():
    """What diffusers and transformers log meanwhile, from warnings up; their loggers keep it from the root."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    for library in (diffusers, transformers):
        library.utils.logging.add_handler(handler)
    yield records
    for library in (diffusers, transformers):
        library.utils.logging.remove_handler(handler)


def heard(pipe, *prompts, **arguments):
    pipe.set_progress_bar_config(disable=True)
    made = [
        pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **arguments).audios
        for prompt in prompts
    ]
    assert all(np.isfinite(audio).all() and audio.std() > 1e-4 for audio in made)
    return made


def test_speech(tmp_path, complaints):
    pipe = diffusers.AudioLDM2Pipeline.from_pretrained(write_speech_model(tmp_path))
    assert not [record.getMessage() for record in complaints]
    phonemes.encode("hello")  # tells phonemizer, which the tokenizer calls, where espeak-ng is
    said = [heard(pipe, CAPTIONS[0], transcription=text)[0] for text in ("hello world", "good day")]
    assert not np.allclose(*said)


def test_speech_conditions_are_those_of_diffusers(tmp_path):
    """Phonemes stand in the place of T5's tokens, padded to the table's length, whose places all count.

    The negative side has none: zeros behind a mask of zeros. Tolerance 1e-5: float32, a few layers.
    """
    pipe = diffusers.AudioLDM2Pipeline.from_pretrained(write_speech_model(tmp_path))
    prompts, said = ["drums", CAPTIONS[0]], phonemes.encode("hello world")  # negative and positive, as diffusers stacks
    with torch.no_grad():
        states, mask, loa = pipe.encode_prompt(
            prompts[1], "cpu", 1, True, transcription="hello world", negative_prompt=prompts[0]
        )
    table = phonemes.read_tokenizer(tmp_path / "tokenizer_2")
    captions = pipe.tokenizer(prompts, padding="max_length", return_tensors="np")
    ids = np.zeros((2, table.length), np.int32)
    ids[1, : len(said)] = said
    text = {"clap_ids": captions.input_ids, "clap_mask": captions.attention_mask}
    text |= {"t5_ids": ids, "t5_mask": (ids > 0).astype(np.int32), "t5_slots": np.ones_like(ids)}
    names = ("text_encoder", "text_encoder_2", "projection_model", "language_model")
    *encoders, gpt2 = (folder.read_component(tmp_path, name).network for name in names)
    prefix, our_states, our_mask = jax.jit(conditioning.encode_prompt)(*encoders, text)
    assert np.array_equal(our_mask, mask) and mask.sum(1).tolist() == [0, len(said)]
    np.testing.assert_allclose(our_states, states, atol=1e-5)
    ours = jax.jit(conditioning.generate_loa, static_argnums=2)(gpt2, prefix, loa.shape[1])
    assert loa.shape[1] == SPEECH_CONFIGS["language_model"]["max_new_tokens"]
    assert np.abs(ours - loa.numpy()).max() < 1e-5 * np.abs(loa.numpy()).max()


def test_class_labels_alone(tmp_path, complaints):
    pipe = diffusers.DiffusionPipeline.from_pretrained(write_film_model(tmp_path))
    assert type(pipe).__name__ == "AudioLDMPipeline"
    messages = [record.getMessage() for record in complaints]
    assert not [message for message in messages if "AudioLDMPipeline has been deprecated" not in message]
    assert not np.allclose(*heard(pipe, CAPTIONS[0], CAPTIONS[1]))
