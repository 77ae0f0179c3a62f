"""A run of a unified model in the smallest recipe: from three embedded corpora to a folder that sounds and speaks."""

from pathlib import Path

import numpy as np
import pytest
from smallest import PHONEMES, Said, get_config, starting_from_sound

from audioldm2_jax.audio import files
from audioldm2_jax.checkpoints.atomic_folder import read_json
from audioldm2_jax.data import encoders, sources
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.training import fine_tuning, main, run, side_by_side

CALL = {"num_inference_steps": 2, "guidance_scale": 3.5}
CAPTION, SAID = "a woman speaks slowly", "the old dog"


@pytest.fixture(scope="module")
def config(tmp_path_factory, compiled_once):
    config = starting_from_sound("unified", tmp_path_factory.mktemp("sound"))
    config.run_dir = str(tmp_path_factory.mktemp("run") / "unified")
    run.prepare(config)
    side_by_side.train_all(config, Said())
    return config


@pytest.fixture(scope="module")
def model(config):
    assert main.main(config) == 0
    return AudioLDM2.from_pretrained(Path(config.run_dir) / "model")


def test_what_is_published(config, model, capsys):
    assert main.main(config) == 0
    out = capsys.readouterr().out
    assert "--config full:unified-base" in out and '--transcription "' in out
    folder = Path(config.run_dir) / "model"
    assert read_json(folder / "model_index.json")["_class_name"] == "AudioLDM2UnifiedPipeline"
    assert model.prompts.takes_transcription and not model.prompts.needs_transcription
    # Of all kinds, with their words where there are such.
    shown = (folder.parent / "samples/captions.txt").read_text(encoding="utf-8").splitlines()
    heldout = main._heldout_examples(config)
    wanted = [f"{one.text}: {one.transcription}" if one.transcription else one.text for one in heldout]
    assert [line.split("  ", 1)[1] for line in shown] == wanted


def test_a_caption_alone_or_with_a_transcription(model):
    """Each prompt as it is alone, and the words count."""
    both = model([CAPTION, CAPTION], transcription=[None, SAID], seed=3, **CALL)
    alone = model(CAPTION, seed=3, **CALL)
    assert np.linalg.norm(both.audios[0] - alone.audios[0]) <= 1e-4 * np.linalg.norm(alone.audios[0])
    sounding, speaking = model.encode([CAPTION, CAPTION], ["", ""], transcription=[None, SAID])[0].loa
    assert np.linalg.norm(sounding - speaking) > 1e-3 * np.linalg.norm(sounding)
    with pytest.raises(ValueError, match="1 transcriptions for 2 prompts"):
        model([CAPTION, CAPTION], transcription=[SAID], **CALL)


def test_training_reads_what_generation_asks(config, model):
    """Examples of every kind have the ids in training that they have in generation."""
    wanted = ("clap_ids", "t5_ids", "phoneme_ids", "captioned", "transcribed")
    made = encoders.select(encoders.recipe_encoders(16, run._load_tokenizers(config)), wanted)
    heldout, kinds = sources.open_source(config, "heldout"), set()
    for number in range(6):
        example = heldout[heldout.draw(number, 0)]
        fields = {field: value for encoder in made for field, value in encoder(example).items()}
        asked = model.prompts.encode([example.text], [""], [example.transcription])
        assert fields["captioned"] and fields["transcribed"] == (example.transcription is not None)
        np.testing.assert_array_equal(fields["phoneme_ids"], asked["phoneme_ids"][0])
        assert fields["phoneme_ids"].shape == (PHONEMES,)
        for field in ("clap_ids", "t5_ids"):
            length = fields[field].shape[0]
            np.testing.assert_array_equal(fields[field], asked[field][0, :length])
        kinds.add(bool(fields["transcribed"]))
    assert kinds == {True, False}


def test_fine_tuning_on_sounds_alone(config, model, tmp_path):
    """What is published is gone on from; of data in which nobody speaks the captions are enough."""
    for number in range(6):
        noise = 0.3 * np.random.default_rng(number).standard_normal(16000).astype(np.float32)
        files.write(tmp_path / "sounds" / f"{number}.wav", noise, 16000)
        (tmp_path / "sounds" / f"{number}.txt").write_text("a hissing noise")
    later = get_config("unified")
    later.run_dir, later.stages = str(tmp_path / "run"), "joint"
    later.init_from.model = str(Path(config.run_dir) / "model")
    later.data.update(source=str(tmp_path / "sounds"), heldout_share=0.3)
    later, _ = fine_tuning.resolve(later)
    assert later.init_from.text_encoder_3 == later.init_from.model and later.text.phoneme_length == PHONEMES
    assert later.text.phoneme_tokenizer.endswith("model/tokenizer_3")
    run.prepare(later)
    side_by_side.train_all(later, Said())
    published = run.publish(later)
    again = AudioLDM2.from_pretrained(published)
    before, after = (one.components["text_encoder_3"].variables["params"] for one in (model, again))
    moved = np.abs(before["embed_tokens"]["embedding"] - after["embed_tokens"]["embedding"]).max()
    assert moved < 0.1 and again(CAPTION, transcription=SAID, **CALL).audios.shape[0] == 1
