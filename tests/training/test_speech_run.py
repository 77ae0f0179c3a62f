"""A whole run of speech in the smallest recipe, from the embedded corpus to a folder that diffusers speaks with.

Tolerance 1e-3 relative (float32; guided steps amplify rounding), as in tests/generation.
"""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from smallest import PHONEMES, Said, starting_from_sound

from audioldm2_jax.checkpoints.atomic_folder import read_json
from audioldm2_jax.data import encoders
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.training import main, run, side_by_side

CALL = {"num_inference_steps": 2, "guidance_scale": 3.5}
SPEAKER, SAID = "a woman speaks slowly", "the old dog"


@pytest.fixture(scope="module")
def config(tmp_path_factory, compiled_once):
    config = starting_from_sound("speech", tmp_path_factory.mktemp("sound"))
    config.run_dir = str(tmp_path_factory.mktemp("run") / "speech")
    run.prepare(config)
    side_by_side.train_all(config, Said())
    return config


def test_the_model_is_one_of_speech(config, capsys):
    assert main.main(config) == 0
    out = capsys.readouterr().out
    assert "--config speech:base" in out and '--transcription "' in out
    index = read_json(Path(config.run_dir) / "model/model_index.json")
    assert index["text_encoder_2"] == ["transformers", "VitsModel"]
    assert index["tokenizer_2"] == ["transformers", "VitsTokenizer"]
    shown = (Path(config.run_dir) / "samples/captions.txt").read_text(encoding="utf-8").splitlines()
    heldout = main._heldout_examples(config)
    assert [line.split("  ", 1)[1] for line in shown] == [f"{one.text}: {one.transcription}" for one in heldout]


def test_diffusers_says_the_same(config):
    main.main(config)
    folder = Path(config.run_dir) / "model"
    ours, pipe = AudioLDM2.from_pretrained(folder), diffusers.AudioLDM2Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).standard_normal((1, 4, 128, 8), np.float32)
    made = ours(SPEAKER, transcription=SAID, latents=noise, **CALL).audios
    wanted = pipe(SPEAKER, transcription=SAID, latents=torch.tensor(noise), **CALL).audios
    assert made.shape == wanted.shape
    assert np.linalg.norm(made - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_what_is_said_is_what_training_reads(config):
    """A transcription has the ids in training that it has in generation."""
    tokenizers = run._load_tokenizers(config)
    prompts = AudioLDM2.from_pretrained(Path(config.run_dir) / "model").prompt_encoder.prompts
    heldout = main._heldout_examples(config)[0]
    (second,) = encoders.select(encoders.recipe_encoders(16, tokenizers), ("phoneme_ids",))
    read, asked = second(heldout), prompts.encode([heldout.text], [""], [heldout.transcription])
    for field in ("phoneme_ids", "phoneme_mask"):
        assert read[field].shape == (PHONEMES,)
        np.testing.assert_array_equal(read[field], asked[field][0])
        np.testing.assert_array_equal(second.empty()[field], asked[field][1])
