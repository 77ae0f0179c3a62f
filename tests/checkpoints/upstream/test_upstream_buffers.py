"""What the authors' classes compute or never use, in files written from a model folder.

Every value here was compared once with the authors' own classes (haoheliu/AudioLDM2 at b5786c5, transformers 4.30.2,
torchlibrosa 0.1.0, torchaudio 2.5.1): a small file of each pipeline loads strictly into `LatentDiffusion`; schedule,
masks and index tables are its own to the bit, filters to 6e-6 of 1.
"""

import authors
import jax
import librosa
import numpy as np
import pytest
import tiny_folder

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.model_folder import Component, build
from audioldm2_jax.checkpoints.upstream import buffers as upstream_buffers
from audioldm2_jax.checkpoints.upstream.reader import read_original
from audioldm2_jax.checkpoints.upstream.writer import upstream_pipeline, write_original
from audioldm2_jax.models.audiomae import positions_2d

# At timesteps 0, 1, 499 and 999, by `DDPM.register_schedule` with the betas of their configs.
SCHEDULE = {
    "betas": (0.00150000001, 0.00150783465, 0.00794515666, 0.0195000004),
    "alphas_cumprod": (0.99849999, 0.996994436, 0.115844488, 0.000142303979),
    "alphas_cumprod_prev": (1, 0.99849999, 0.116772264, 0.000145134094),
    "sqrt_alphas_cumprod": (0.999249697, 0.998496056, 0.34035936, 0.0119291227),
    "sqrt_one_minus_alphas_cumprod": (0.0387298353, 0.0548231043, 0.940295458, 0.999928832),
    "log_one_minus_alphas_cumprod": (-6.50229025, -5.80728722, -0.12312232, -0.000142314108),
    "sqrt_recip_alphas_cumprod": (1.0007509, 1.00150621, 2.93807125, 83.8284607),
    "sqrt_recipm1_alphas_cumprod": (0.0387589149, 0.0549056791, 2.76265478, 83.8224945),
    "posterior_variance": (0, 0.000752519409, 0.00793681946, 0.0194999445),
    "posterior_log_variance_clipped": (-46.0517006, -7.19208384, -4.83624268, -3.9373436),
    "posterior_mean_coef1": (1, 0.501303196, 0.00307074445, 0.00023495307),
    "posterior_mean_coef2": (0, 0.498696506, 0.994974315, 0.990199208),
    "logvar": (0, 0, 0, 0),
}
WAVE = np.random.default_rng(0).standard_normal(1024)
EPSILON = tiny_folder.NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear", "epsilon")


@pytest.fixture(scope="module")
def clap():
    """The tables of a CLAP with four stages and two shifted blocks."""
    audio = tiny_folder.CONFIGS["text_encoder"]["audio_config"] | {
        "num_mel_bins": 64,
        "spec_size": 256,
        "window_size": 8,
        "depths": (2, 4, 1, 2),
        "num_attention_heads": (1, 1, 1, 1),
        "hidden_size": 64,
    }
    config = tiny_folder.CONFIGS["text_encoder"] | {"audio_config": audio}
    return upstream_buffers.clap(build("text_encoder", config), {})


def components(configs):
    return {
        name: Component(build(name, config), tiny_folder.random_variables(name, config), config)
        for name, config in configs.items()
    }


def test_the_tables_of_the_schedule():
    made = upstream_buffers.schedule_tables(EPSILON.betas)
    assert made.keys() == SCHEDULE.keys()
    for key, values in SCHEDULE.items():
        assert made[key].dtype == np.float32 and made[key].shape == (1000,)
        np.testing.assert_allclose(made[key][[0, 1, 499, 999]], values, rtol=3e-7)  # two roundings of float32


def test_the_spectrogram_is_a_fourier_transform_under_a_hann_window(clap):
    real, imaginary = (
        clap[f"audio_branch.spectrogram_extractor.stft.conv_{part}.weight"][:, 0] for part in ("real", "imag")
    )
    window = librosa.filters.get_window("hann", 1024)
    # 1024 products of float32.
    np.testing.assert_allclose(real @ WAVE + 1j * (imaginary @ WAVE), np.fft.rfft(window * WAVE), atol=1e-4)
    np.testing.assert_allclose(upstream_buffers.clap_filters()["spectrogram.window"], window, atol=1e-7)


def test_the_mel_filters_are_librosas(clap):
    """HTSAT's on Slaney's scale with areas of one, the wrapper's on the HTK scale with heights of one."""
    settings = {"sr": 48000, "n_fft": 1024, "n_mels": 64, "fmin": 50, "fmax": 14000}
    slaney, htk = (librosa.filters.mel(**settings, **kind).T for kind in ({}, {"htk": True, "norm": None}))
    np.testing.assert_allclose(clap["audio_branch.logmel_extractor.melW"], slaney, atol=1e-8)
    np.testing.assert_allclose(upstream_buffers.clap_filters()["mel_scale.fb"], htk, atol=1e-6)


def test_masks_stand_in_every_second_block_that_has_several_windows(clap):
    masks = {key: value for key, value in clap.items() if key.endswith("attn_mask")}
    assert {key: value.shape for key, value in masks.items()} == {
        "audio_branch.layers.0.blocks.1.attn_mask": (64, 64, 64),
        "audio_branch.layers.1.blocks.1.attn_mask": (16, 64, 64),
        "audio_branch.layers.1.blocks.3.attn_mask": (16, 64, 64),
    }
    # After the roll, tokens of a window belong together if they were less than a window apart before it.
    rows, columns = (
        np.roll(at, (-4, -4), (0, 1)).reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
        for at in np.indices((32, 32))
    )
    apart = [abs(at[:, :, None] - at[:, None, :]) >= 8 for at in (rows, columns)]
    expected = np.where(apart[0] | apart[1], -100, 0)
    np.testing.assert_array_equal(masks["audio_branch.layers.1.blocks.1.attn_mask"], expected)


def test_a_folder_without_audiomae_gets_zeros_of_the_published_size():
    """And its word table, which is empty here, the published number of words."""
    parts = components({name: config for name, config in tiny_folder.CONFIGS.items() if name != "audiomae"})
    tensors, notes = upstream_pipeline(parts, EPSILON)
    place = "cond_stage_models.0.cond_stage_models.2.audiomae.model."
    found = {key: value for key, value in tensors.items() if key.startswith(place)}
    listed = {key: shape for key, shape in authors.shapes("audioldm2-full", "base").items() if key.startswith(place)}
    assert {key: value.shape for key, value in found.items()} == listed
    assert all(not value.any() for key, value in found.items() if "pos_embed" not in key)
    assert any("no audiomae/: in its place the file holds zeros" in note for note in notes)
    assert tensors["cond_stage_models.0.model.wte.weight"].shape == (50257, 24)


def test_an_audiomae_trained_here_keeps_its_encoder_and_gets_the_pipelines_decoder():
    parts = components(tiny_folder.CONFIGS)
    tensors, notes = upstream_pipeline(parts, EPSILON)
    place = "cond_stage_models.0.cond_stage_models.2.audiomae.model."
    names = {key.removeprefix(place) for key in tensors if key.startswith(place)}
    listed = {key.removeprefix(place) for key in authors.shapes("audioldm2-full", "base") if key.startswith(place)}
    depth = tiny_folder.CONFIGS["audiomae"]["depth"]
    assert names == {key for key in listed if not key.startswith("blocks.") or int(key.split(".")[1]) < depth}
    assert not tensors[f"{place}decoder_blocks.7.mlp.fc2.weight"].any()
    ours = parts["audiomae"].variables["params"]["norm"]["scale"]
    np.testing.assert_array_equal(tensors[f"{place}norm.weight"], ours)
    positions = tensors[f"{place}pos_embed"]
    np.testing.assert_array_equal(positions[0, 1:], positions_2d(24, (4, 2)))
    assert any("encoder goes over" in note for note in notes) and not any("no audiomae/" in note for note in notes)


def test_a_text_tower_alone_gets_an_audio_tower_of_zeros():
    parts = components(tiny_folder.FILM_CONFIGS)
    tensors, notes = upstream_pipeline(parts, EPSILON)
    listed = authors.shapes("audioldm_48k", "base")
    for place in ("clap.", "cond_stage_models.0."):
        audio = {key: value for key, value in tensors.items() if key.startswith(f"{place}model.audio_branch.")}
        assert {key: value.shape for key, value in audio.items()} == {
            key: shape for key, shape in listed.items() if key.startswith(f"{place}model.audio_branch.")
        }
        words = parts["text_encoder"].variables["params"]["text_model"]["embeddings"]["word_embeddings"]["embedding"]
        np.testing.assert_array_equal(tensors[f"{place}model.text_branch.embeddings.word_embeddings.weight"], words)
    assert any("no audio tower" in note for note in notes)


def test_a_speech_folder_gets_the_projection_behind_its_encoder(tmp_path):
    """What transformers' class keeps in that place, made of nothing, is not it."""
    path = tiny_folder.write_networks(tmp_path, tiny_folder.SPEECH_CONFIGS)
    parts = {name: model_folder.read_component(path, name) for name in tiny_folder.SPEECH_CONFIGS}
    tensors, _ = upstream_pipeline(parts, EPSILON)
    place = "cond_stage_models.0.cond_stage_models.1.text_encoder.proj."
    assert tensors[f"{place}weight"].shape == (32, 16, 1) and tensors[f"{place}bias"].shape == (32,)


def test_one_clap_holds_what_its_class_holds(tmp_path):
    """LAION's class knows no wrapper, and so no filters of it."""
    from audioldm2_jax.checkpoints.torch_pickle import read_pickle

    config = tiny_folder.CONFIGS["text_encoder"]
    # As the authors' class has what its file does not say: heads of 64, and pictures of 256 × 256.
    text = config["text_config"] | {"num_attention_heads": 1, "layer_norm_eps": 1e-12}
    config = config | {"text_config": text, "audio_config": config["audio_config"] | {"spec_size": 256}}
    parts = components({"text_encoder": config})
    write_original(tmp_path / "clap.pt", parts)
    written = read_pickle(tmp_path / "clap.pt")
    listed = authors.shapes("clap_base", "small").keys()
    assert {key for key in written if "blocks" not in key} == {key for key in listed if "blocks" not in key}
    again = read_original(tmp_path / "clap.pt").components["text_encoder"]
    jax.tree.map(np.testing.assert_array_equal, again.variables, parts["text_encoder"].variables)


def test_what_would_be_read_back_otherwise_is_not_written(tmp_path):
    """The authors' classes have heads of 64; a file does not say how many a network has."""
    config = {**tiny_folder.CONFIGS["language_model"], "n_embd": 128, "n_head": 8}
    part = Component(build("language_model", config), tiny_folder.random_variables("language_model", config, 0), config)
    with pytest.raises(FolderError, match=r"not written.*\n  language_model: n_head is 8, and would be 2"):
        write_original(tmp_path / "gpt2.pth", {"language_model": part}, None)
    assert not list(tmp_path.iterdir())
    config = {**config, "n_head": 2}
    part = part._replace(module=build("language_model", config), config=config)
    write_original(tmp_path / "gpt2.pth", {"language_model": part}, None)
