"""Our pipeline against diffusers' on one folder that we wrote: prompt by prompt, stage by stage.

Tolerance 1e-3 relative (float32; guided steps amplify rounding). Most calls share their shapes, since compiling is
what takes time here.
"""

import logging

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline
from tiny_folder import CAPTIONS, CONFIGS, write_model

from audioldm2_jax.checkpoints import model_index
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.diffusion import sampling
from audioldm2_jax.generation import pipeline as pipeline_module
from audioldm2_jax.generation import prompt_encoder
from audioldm2_jax.generation.pipeline import AudioLDM2
from audioldm2_jax.generation.sampling_options import clip_keys

TOLERANCE = 1e-3
STEPS, GUIDANCE = 4, 3.5
PROMPTS = [CAPTIONS[0], "bright drums", CAPTIONS[3]]
NEGATIVES = ["", "a low organ drone that is much longer than its prompt", "drums"]
SHAPE = (4, 8, 8)  # channels, time, frequency


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def ours(model):
    return AudioLDM2.from_pretrained(model)


@pytest.fixture(scope="module")
def theirs(model):
    pipe = AudioLDM2Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.feature_extractor.nb_max_samples = int(pipe.feature_extractor.nb_max_samples)  # of a part of a second
    return pipe


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal((len(PROMPTS), *SHAPE), np.float32)


def close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error <= tolerance, error


def test_against_diffusers_prompt_by_prompt(ours, theirs, noise):
    """One batch of ours, one call of theirs for each prompt, since theirs lets the prompts of a batch interact."""
    given, without = ours.encode(PROMPTS, NEGATIVES)
    assert min(np.linalg.norm(given.loa[i] - given.loa[i - 1]) / np.linalg.norm(given.loa[i]) for i in range(3)) > 0.01
    made = ours(PROMPTS, NEGATIVES, STEPS, GUIDANCE, latents=noise)
    for row, (prompt, negative) in enumerate(zip(PROMPTS, NEGATIVES)):
        with torch.no_grad():
            states, mask, loa = theirs.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative)
        for mine, half in ((without, 0), (given, 1)):
            close(mine.loa[row], loa[half])
            real = mask[half].bool().numpy()
            np.testing.assert_array_equal(mine.text_mask[row][: len(real)], real)
            assert not mine.text_mask[row][len(real) :].any()
            close(mine.text_states[row][: len(real)][real], states[half][real])
        arguments = dict(negative_prompt=negative, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
        start = torch.tensor(noise[row : row + 1])
        latents = theirs(prompt, latents=start, output_type="latent", **arguments).audios
        close(made.latents[row], latents[0])
        with torch.no_grad():
            mel = theirs.vae.decode(latents / CONFIGS["vae"]["scaling_factor"]).sample
        close(made.mels[row], mel[0, 0])
        close(made.audios[row], theirs(prompt, latents=start, **arguments).audios[0])
    assert made.sampling_rate == 16000 and made.audios.shape == (3, 2560) and made.audios.dtype == np.float32


@pytest.mark.parametrize(
    ("solver", "scheduler"),
    [
        ("plms", "PNDMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("dpmsolver++", "DPMSolverMultistepScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
    ],
)
def test_another_solver(ours, model, noise, solver, scheduler, tmp_path):
    """By name for one call, and as the scheduler that a folder brings along."""
    pipe = AudioLDM2Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, skip_prk_steps=True)
    arguments = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    expected = pipe(PROMPTS[0], latents=torch.tensor(noise[:1]), **arguments).audios
    close(ours(PROMPTS[0], latents=noise[:1], solver=solver, **arguments).audios, expected)
    pipe.save_pretrained(tmp_path / "theirs")
    brought = AudioLDM2.from_pretrained(tmp_path / "theirs")
    close(brought(PROMPTS[0], latents=noise[:1], **arguments).audios, expected)


def test_without_guidance_and_another_length(ours, theirs):
    start = np.random.default_rng(1).standard_normal((1, 4, 12, 8)).astype(np.float32)
    arguments = dict(num_inference_steps=STEPS, guidance_scale=1.0, audio_length_in_s=0.233)
    made = ours(PROMPTS[0], latents=start, **arguments)
    expected = theirs(PROMPTS[0], latents=torch.tensor(start), **arguments).audios
    close(made.audios, expected)


def test_saved_again_diffusers_hears_the_same(ours, theirs, noise, tmp_path):
    ours.save_pretrained(tmp_path / "saved")
    again = AudioLDM2Pipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    arguments = dict(latents=torch.tensor(noise[:1]), num_inference_steps=2)
    np.testing.assert_array_equal(again(PROMPTS[0], **arguments).audios, theirs(PROMPTS[0], **arguments).audios)
    assert (tmp_path / "saved" / "audiomae").is_dir()
    # diffusers' own copy of the folder, which has no audiomae and no manifests, reads too.
    theirs.save_pretrained(tmp_path / "theirs")
    copy = AudioLDM2.from_pretrained(tmp_path / "theirs")
    made = [pipe(PROMPTS, num_inference_steps=STEPS, latents=noise).audios for pipe in (ours, copy)]
    np.testing.assert_array_equal(*made)


def test_same_seed_same_sound_in_any_batch(ours):
    together = ours(PROMPTS, num_inference_steps=STEPS, seed=7, eta=1.0)
    again = ours(PROMPTS, num_inference_steps=STEPS, seed=7, eta=1.0)
    np.testing.assert_array_equal(together.audios, again.audios)
    alone = ours(PROMPTS[1], num_inference_steps=STEPS, seed=7, eta=1.0, num_waveforms_per_prompt=3)
    distances = [np.abs(latents - together.latents[1]).max() for latents in alone.latents]
    same = int(np.argmin(distances))  # CLAP has sorted the three
    close(alone.latents[same], together.latents[1], 1e-4)
    close(alone.audios[same], together.audios[1], 1e-3)
    assert sorted(distances)[1] > 0.1
    other = ours(PROMPTS, num_inference_steps=STEPS, seed=8, eta=1.0)
    assert not np.allclose(together.latents, other.latents)


def test_clips_of_a_prompt_are_sorted_by_clap(ours, theirs):
    """Prompt by prompt, as diffusers sorts those of one; theirs sorts a batch over all prompts.

    The noise is such that scores are 0.02 apart or more; theirs resamples otherwise, which moves them by 0.001.
    """
    noise = np.random.default_rng(10).standard_normal((6, *SHAPE)).astype(np.float32)
    arguments = dict(num_inference_steps=2, guidance_scale=GUIDANCE, num_waveforms_per_prompt=3)
    made = ours(PROMPTS[:2], latents=noise, **arguments)
    for row, prompt in enumerate(PROMPTS[:2]):
        start = torch.tensor(noise[3 * row : 3 * row + 3])
        close(made.audios[3 * row : 3 * row + 3], theirs(prompt, latents=start, **arguments).audios)
    unsorted = ours([prompt for prompt in PROMPTS[:2] for _ in range(3)], None, 2, GUIDANCE, latents=noise)
    order = [int(np.argmin(np.abs(unsorted.latents - latents).max((1, 2, 3)))) for latents in made.latents]
    assert sorted(order[:3]) == [0, 1, 2] and sorted(order[3:]) == [3, 4, 5] and order != [0, 1, 2, 3, 4, 5]
    close(made.audios, unsorted.audios[order])
    close(made.mels, unsorted.mels[order])


def test_a_repeated_prompt_gives_other_clips():
    keys = jax.random.key_data(clip_keys(0, ["a", "b", "a"], 2))
    assert len({tuple(key) for key in np.asarray(keys)}) == 6
    np.testing.assert_array_equal(keys[2:4], jax.random.key_data(clip_keys(0, ["b"], 2)))


def test_named_choices_of_the_conditions(ours):
    plain, negative = ours.encode(PROMPTS[:1], [""])
    _, zeros = ours.encode(PROMPTS[:1], [""], "zeros")
    assert not zeros.loa.any() and negative.loa.any()
    np.testing.assert_array_equal(zeros.text_states, negative.text_states)
    silent, silent_negative = ours.encode(PROMPTS[:1], [""], use_loa=False)
    assert not silent.loa.any() and not silent_negative.loa.any()
    np.testing.assert_array_equal(silent.text_states, plain.text_states)
    wordless, _ = ours.encode(PROMPTS[:1], ["drums"], use_text_states=False)
    close(wordless.loa, plain.loa, 1e-5)
    assert wordless.text_mask.sum() == 1
    close(wordless.text_states[0, 0], negative.text_states[0, 0], 1e-5)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": ["drums", " "]}, "Prompt 2 is empty"),
        ({"prompt": ["drums", 3]}, "Prompt 2 is a int"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"negative_prompt": []}, "0 negative prompts for 1"),
        ({"negative_prompt": [None]}, "Among the negative prompts is a NoneType"),
        ({"num_inference_steps": 0}, "0 denoising steps"),
        ({"num_inference_steps": -5}, "-5 denoising steps"),
        ({"num_inference_steps": 10**6}, "between 1 and 1000"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"audio_length_in_s": 0.0}, "audio_length_in_s is 0.0; it has to be at least"),
        ({"audio_length_in_s": float("inf")}, "audio_length_in_s is inf"),
        ({"num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt is 0"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"solver": "heun"}, "solver is 'heun'; choose among ddim, "),
        ({"solver": "euler", "eta": 1.0}, "eta is 1.0, but euler has none"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"uncond": "nothing"}, "uncond is 'nothing'"),
        ({"latents": np.zeros((1, 8, 8, 4))}, r"latents have the shape \(1, 8, 8, 4\); needed is \(1, 4, 8, 8\)"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, "latents have values that are NaN"),
    ],
)
def test_bad_input(ours, arguments, message):
    with pytest.raises(ValueError, match=message):
        ours(**{"prompt": "drums", "num_inference_steps": 1} | arguments)


def test_conditions_of_an_unknown_kind(ours):
    with pytest.raises(ValueError, match="uncond is 'nothing'"):
        ours.encode(["drums"], [""], "nothing")


def test_seeds_of_any_width(ours):
    """Whatever NumPy draws them as; a negative one is one like any other."""
    keys = [jax.random.key_data(clip_keys(seed, ["drums"], 1)) for seed in (3, np.uint8(3), np.int64(3), -3)]
    np.testing.assert_array_equal(keys[0], keys[1])
    np.testing.assert_array_equal(keys[0], keys[2])
    assert (keys[0] != keys[3]).any()


def test_a_clip_is_as_long_as_was_asked_for(ours):
    """Also where that is no whole number of mel frames; what is asked for in latents is what diffusers makes of it."""
    (time, *_), samples = ours.latent_shape(0.165)
    assert samples == 2640 <= time * 2 * 160
    assert ours.latent_shape(0.165, exact=True)[0][0] == 8
    # 1001 / 16000 × 16000 is below 1001.
    assert [ours.latent_shape(n / 16000)[1] for n in range(1001, 1010)] == list(range(1001, 1010))


def test_another_length_does_not_compile_the_ranking_anew(ours):
    rng = np.random.default_rng(0)
    meant = jnp.asarray(rng.standard_normal((1, 12)), jnp.float32)
    before = pipeline_module._similarity._cache_size()
    for samples in (2560, 2559, 1000, 20000):
        ours._best_first(rng.standard_normal((3, samples), np.float32), meant)
    assert pipeline_module._similarity._cache_size() - before <= 1


def test_an_overlong_prompt_warns_and_quotes_what_was_cut(ours, caplog):
    long = " ".join(CAPTIONS) + " and then a last oboe"
    with caplog.at_level(logging.WARNING):
        ids = ours.prompts.encode([long], [""])
    assert ids["t5_mask"].sum(1)[0] == ours.prompts.t5_limit
    assert {"T5", "CLAP"} == {record.args[2] for record in caplog.records}
    assert all("last oboe" in record.getMessage() for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ours.prompts.encode(["a"], [long])
    assert caplog.messages[0].startswith("The negative prompt is longer")


def test_other_scripts(ours):
    made = ours(["小提琴 🎻", "мелодия на скрипке", "half a character \ud800"], num_inference_steps=STEPS)
    assert np.isfinite(made.audios).all()


def test_nothing_compiles_anew_for_another_request(model):
    """Another prompt, number of steps, length within a sixteenth of the model's own, guidance or seed."""
    pipe = AudioLDM2.from_pretrained(model)
    pipe.components["unet"].config["sample_size"] = 32 * 8  # a bucket is 16 latent frames then
    jitted = [prompt_encoder._encode, sampling._prepare, sampling._step, pipeline_module._decode]
    pipe("a low organ drone", num_inference_steps=2, audio_length_in_s=0.3)
    compiled = [each._cache_size() for each in jitted]
    pipe("drums", "violin", num_inference_steps=3, audio_length_in_s=0.31, guidance_scale=2.0, seed=9)
    pipe("bright drums", num_inference_steps=40, audio_length_in_s=0.17)
    assert [each._cache_size() for each in jitted] == compiled
    pipe("drums", num_inference_steps=2, audio_length_in_s=0.34)
    assert sampling._step._cache_size() == compiled[2] + 1


@pytest.mark.slow
def test_half_precision(model, ours, noise):
    half = AudioLDM2.from_pretrained(model, dtype=jnp.bfloat16)
    made = [pipe(PROMPTS, num_inference_steps=STEPS, latents=noise).latents for pipe in (half, ours)]
    # 8 bits of mantissa through some guided steps.
    close(*made, 0.1)


def test_unknown_scheduler(ours):
    with pytest.raises(FolderError, match="HeunDiscreteScheduler; supported are DDIMScheduler"):
        AudioLDM2(ours.components, ours.schedule, ours.prompts, ours.clap_mel, scheduler_class="HeunDiscreteScheduler")


def test_nothing_is_saved_without_tokenizers(ours, model, tmp_path):
    parts = (ours.components, ours.schedule, ours.prompts, ours.clap_mel)
    for source, message in ((None, "was not read from a folder"), (tmp_path / "source", "no longer has tokenizer_2")):
        if source:
            for name in ("model_index.json", "tokenizer", "feature_extractor"):
                source.mkdir(exist_ok=True)
                (source / name).symlink_to(model / name)
        with pytest.raises(FolderError, match=message):
            AudioLDM2(*parts, source=source).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_unknown_scheduler_of_a_folder(model, tmp_path):
    """Refused before a weight is read."""
    for name in ("model_index.json", "tokenizer"):
        (tmp_path / name).symlink_to(model / name)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "HeunDiscreteScheduler"}')
    with pytest.raises(FolderError, match="The scheduler is a HeunDiscreteScheduler"):
        AudioLDM2.from_pretrained(tmp_path)


def test_folder_without_tokenizer(model, tmp_path):
    for name in (*CONFIGS, "scheduler"):
        (tmp_path / name).symlink_to(model / name)
    model_index.write(tmp_path)
    with pytest.raises(FolderError, match="has no tokenizer/"):
        AudioLDM2.from_pretrained(tmp_path)
