"""Our pipeline against diffusers' in the forms of AudioLDM 2 beside the one of test_pipeline.py, and with its choices.

Tolerance 1e-3 relative (float32; guided steps amplify rounding), as there; shapes are as there, too, so that most is
compiled already.
"""

import diffusers.schedulers.scheduling_ddim as their_ddim
import numpy as np
import pytest
import torch
import transformers
from diffusers import AudioLDM2Pipeline
from test_pipeline import GUIDANCE, NEGATIVES, PROMPTS, SHAPE, STEPS, close
from tiny_folder import CONFIGS, random_variables, write_model

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.generation.sampling_options import clip_keys

CALL = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
LARGE = {"cross_attention_dim": (None, 24, 16, None), "transformer_layers_per_block": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def ours(model):
    return AudioLDM2.from_pretrained(model)


def diffusers_pipeline(path):
    pipe = AudioLDM2Pipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs(model):
    return diffusers_pipeline(model)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(3).standard_normal((len(PROMPTS), *SHAPE), np.float32)


def their_clip(pipe, row, noise, **arguments):
    """(latents, waveform) of one prompt."""
    arguments = CALL | {"prompt": PROMPTS[row], "negative_prompt": NEGATIVES[row]} | arguments
    latents = pipe(latents=torch.tensor(noise[row : row + 1]), output_type="latent", **arguments).audios
    mel = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents[0].numpy(), pipe.mel_spectrogram_to_waveform(mel)[0].detach().numpy()


def replace_unet(path, changes):
    """A UNet with other fields, None for left out, in the place of the folder's."""
    config = {key: value for key, value in (CONFIGS["unet"] | changes).items() if value is not None}
    model_folder.write_component(path, "unet", config, random_variables("unet", config, 9))


@pytest.mark.parametrize(
    ("changes", "without_head"), [(LARGE, False), ({"attention_head_dim": None}, True)], ids=["large", "default heads"]
)
def test_forms(model, noise, tmp_path, changes, without_head):
    """The large form; a UNet whose config says nothing of heads beside a GPT2Model, as diffusers' converter writes.

    With other numbers of heads these weights make latents that differ by 0.77.
    """
    for part in model.iterdir():
        if part.name not in ("unet", "language_model"):
            (tmp_path / part.name).symlink_to(part)
    replace_unet(tmp_path, changes)
    (tmp_path / "language_model").symlink_to(model / "language_model")
    theirs = diffusers_pipeline(tmp_path)
    if without_head:  # which diffusers' pipeline cannot run itself
        (tmp_path / "language_model").unlink()
        bare = transformers.GPT2Model.from_pretrained(model / "language_model")
        bare.save_pretrained(tmp_path / "language_model")
    form = AudioLDM2.from_pretrained(tmp_path)
    made = form(PROMPTS, NEGATIVES, latents=noise, **CALL)
    for row in range(len(PROMPTS)):
        latents, audio = their_clip(theirs, row, noise)
        close(made.latents[row], latents)
        close(made.audios[row], audio[: made.audios.shape[1]])
    form.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(their_clip(diffusers_pipeline(tmp_path / "saved"), 0, noise)[0],
                                  their_clip(theirs, 0, noise)[0])  # fmt: skip


def test_unconditional_loa_of_zeros(ours, theirs, noise):
    """The authors' convention: GPT-2 is not asked about the negative prompt; its text is still heard."""
    made = ours(PROMPTS, NEGATIVES, latents=noise, uncond="zeros", **CALL)
    written = ours(PROMPTS, NEGATIVES, latents=noise, **CALL)
    for row, (prompt, negative) in enumerate(zip(PROMPTS, NEGATIVES)):
        with torch.no_grad():
            states, mask, loa = theirs.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
        given = {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": states[1:],
            "negative_prompt_embeds": states[:1],
            "attention_mask": mask[1:],
            "negative_attention_mask": mask[:1],
            "generated_prompt_embeds": loa[1:],
            "negative_generated_prompt_embeds": torch.zeros_like(loa[:1]),
        }
        latents, audio = their_clip(theirs, row, noise, **given)
        close(made.latents[row], latents)
        close(made.audios[row], audio[: made.audios.shape[1]])
        difference = np.linalg.norm(made.latents[row] - written.latents[row]) / np.linalg.norm(latents)
        assert difference > 10e-3  # ten times what is allowed between the two of one convention


def test_with_noise_at_each_step(ours, theirs, noise, monkeypatch):
    """DDIM with eta 1, the noise of each step being that which our keys draw."""
    made = ours(PROMPTS, NEGATIVES, latents=noise, eta=1.0, seed=5, **CALL)
    still = ours(PROMPTS, NEGATIVES, latents=noise, **CALL)
    keys = clip_keys(5, PROMPTS, 1)
    time_first = (*SHAPE[1:], SHAPE[0])
    timesteps = ours.schedule.timesteps(STEPS)
    for row in range(len(PROMPTS)):
        drawn = [sampling._step_noise(keys[row : row + 1], t, time_first).transpose(0, 3, 1, 2) for t in timesteps]
        steps = [torch.tensor(np.asarray(noise_of_step)) for noise_of_step in drawn]
        monkeypatch.setattr(their_ddim, "randn_tensor", lambda *_, left=steps, **__: left.pop(0))
        latents, audio = their_clip(theirs, row, noise, eta=1.0)
        assert not steps
        close(made.latents[row], latents)
        close(made.audios[row], audio[: made.audios.shape[1]])
    assert np.linalg.norm(made.latents - still.latents) > 0.1 * np.linalg.norm(still.latents)
