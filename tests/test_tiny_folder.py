"""The tiny folders of speech and of AudioLDM 1: diffusers loads each without a complaint and makes sound of it."""

import logging

import diffusers
import numpy as np
import pytest
import torch
import transformers
from tiny_folder import CAPTIONS, write_film_model, write_speech_model

from audioldm2_jax.data import phonemes


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


def test_class_labels_alone(tmp_path, complaints):
    pipe = diffusers.DiffusionPipeline.from_pretrained(write_film_model(tmp_path))
    assert type(pipe).__name__ == "AudioLDMPipeline"
    messages = [record.getMessage() for record in complaints]
    assert not [message for message in messages if "AudioLDMPipeline has been deprecated" not in message]
    assert not np.allclose(*heard(pipe, CAPTIONS[0], CAPTIONS[1]))
