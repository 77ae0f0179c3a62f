"""Our pipeline against diffusers' at the paper's base size: 1.1 billion random parameters, prompt by prompt.

Tolerance 1e-3 relative in float32, as at small size. 9 GB of memory, 5 GB of disk and some minutes on two cores.
"""

import gc

import jax
import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline
from tiny_folder import CAPTIONS, random_variables

from audioldm2_jax import recipes
from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.data.text import Tokenizers, train_clap, train_t5
from audioldm2_jax.diffusion.schedule import NoiseSchedule
from audioldm2_jax.generation.pipeline import AudioLDM2

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
PROMPTS, NEGATIVES = [CAPTIONS[0], "bright drums"], ["", "a low organ drone that is longer than its prompt"]
CALL = {"num_inference_steps": 10, "guidance_scale": 3.5, "audio_length_in_s": 2.56}


def configs() -> dict:
    """What each config.json says at the paper's sizes."""
    sizes = recipes.get("base").models.to_dict()
    clap, t5, gpt2 = sizes["text_encoder"], sizes["text_encoder_2"], sizes["language_model"]
    return {
        "unet": sizes["unet"] | {"sample_size": 256},
        "vae": sizes["vae"] | {"scaling_factor": 0.4},
        "vocoder": sizes["vocoder"] | {"model_in_dim": 64, "sampling_rate": 16000},
        "language_model": gpt2 | {"max_new_tokens": 8},
        "projection_model": {
            "text_encoder_dim": clap["projection_dim"],
            "text_encoder_1_dim": t5["d_model"],
            "langauge_model_dim": gpt2["n_embd"],
        },
        "text_encoder": clap,
        "text_encoder_2": t5,
    }


def drawn(name: str, config: dict, seed: int) -> dict:
    """Random variables, under which rounding errors do not grow, and waveforms are no square waves."""
    variables = random_variables(name, config, seed, vocoder_gain=1.4)
    if name != "text_encoder_2":
        return variables
    # T5 does not divide in its attention, so its queries are born that much smaller.
    gain = np.float32(config["d_kv"] ** -0.5)
    return jax.tree_util.tree_map_with_path(lambda path, x: x * gain if path[-2].key == "q" else x, variables)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of random weights, and tokenizers that know a few hundred of the words."""
    path, recipe = tmp_path_factory.mktemp("base"), recipes.get("base")
    for number, (name, config) in enumerate(configs().items()):
        model_folder.write_component(path, name, config, drawn(name, config, number))
    model_folder.write_scheduler(path, NoiseSchedule.from_config(recipe.scheduler.to_dict()))
    model_folder.write_feature_extractor(path, **recipe.audio.clap)
    Tokenizers(train_clap(CAPTIONS, 300, 512), train_t5(CAPTIONS, 300, 128)).save(path)
    model_index.write(path)
    return path


@pytest.fixture(scope="module")
def noise():
    """The same for all prompts, so that what differs is what the prompts do."""
    return np.repeat(np.random.default_rng(0).standard_normal((1, 8, 64, 16), np.float32), len(PROMPTS), axis=0)


@pytest.fixture(scope="module")
def theirs(model, noise):
    """What diffusers makes of each prompt, a mapping each; its networks are gone before ours are read."""
    pipe = AudioLDM2Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    made = []
    for row, (prompt, negative) in enumerate(zip(PROMPTS, NEGATIVES)):
        with torch.no_grad():
            states, mask, loa = pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
            start = torch.tensor(noise[row : row + 1])
            latents = pipe(prompt, negative_prompt=negative, latents=start, output_type="latent", **CALL).audios
            mel = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            audio = pipe.mel_spectrogram_to_waveform(mel)
        found = {"text_states": states, "mask": mask.bool(), "loa": loa, "latents": latents, "mel": mel, "audio": audio}
        made.append({key: value.numpy() for key, value in found.items()})
    del pipe
    gc.collect()
    return made


def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and np.linalg.norm(theirs) > 0
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_base_size_prompt_by_prompt(model, theirs, noise):
    ours = AudioLDM2.from_pretrained(model)
    sides = jax.device_get(ours.encode(PROMPTS, NEGATIVES))
    made = ours(PROMPTS, NEGATIVES, latents=noise, **CALL)
    errors = {}
    for row, expected in enumerate(theirs):
        for half, side, of in ((1, sides[0], "prompt"), (0, sides[1], "negative prompt")):
            real = expected["mask"][half]
            errors[row, of, "text states"] = error(
                side.text_states[row][: len(real)][real], expected["text_states"][half][real]
            )
            errors[row, of, "loa"] = error(side.loa[row], expected["loa"][half])
        errors[row, "latents"] = error(made.latents[row], expected["latents"][0])
        errors[row, "mel"] = error(made.mels[row], expected["mel"][0, 0])
        samples = made.audios.shape[1]
        assert samples == 2.56 * 16000
        errors[row, "waveform"] = error(made.audios[row], expected["audio"][0, :samples])
        # Random weights that neither die nor saturate: an error would show.
        assert 0.01 < np.abs(made.audios[row]).mean() < 0.9, np.abs(made.audios[row]).mean()
    print(errors)
    # The prompts are heard, well above the tolerance.
    assert min(error(made.latents[0], made.latents[1]), error(made.audios[0], made.audios[1])) > 10 * TOLERANCE
    assert max(errors.values()) <= TOLERANCE, errors
