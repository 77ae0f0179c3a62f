"""The authors' files: every name of the published sizes is explained, and small files become the right tensors.

Names and shapes come from the authors' own classes (`authors.py`). What diffusers' converter makes of the same small
file was recorded as digests: scripts/convert_original_audioldm2_to_diffusers.py of diffusers at 58eb52c, its functions
convert_*_checkpoint and extract_sub_model on `authors.checkpoint(name)`, hashed by `digest`.
"""

import dataclasses
import hashlib
import json
import re
from functools import cache

import authors
import jax
import numpy as np
import pytest
import torch

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.checkpoints.model_folder import FolderError
from audioldm2_jax.checkpoints.tensors import read_tensors
from audioldm2_jax.checkpoints.torch_pickle import read_pickle
from audioldm2_jax.checkpoints.upstream import reader
from audioldm2_jax.checkpoints.upstream.configs import CONFIGS
from audioldm2_jax.checkpoints.upstream.parameter_names import ORIGINALS
from audioldm2_jax.checkpoints.upstream.reader import read_original
from audioldm2_jax.checkpoints.upstream.writer import write_original
from audioldm2_jax.models.audiomae import positions_2d

# Published sizes (facts of the networks: paper, table of the authors' repository, counted on their classes).
PARAMETERS = {
    "audioldm2-full": {
        "unet": 346_943_496,
        "vae": 55_376_873,
        "vocoder": 55_264_897,
        "text_encoder": 193_913_882,
        "t5": 341_231_104,
        "projection_model": 1_184_256,
    },
    "audioldm2-full-large-1150k": {"unet": 718_012_296},
    "audioldm2-speech-gigaspeech": {"unet": 261_926_536, "projection_model": 604_800},
    "audioldm_48k": {"unet": 262_699_152, "vae": 223_535_569, "vocoder": 190_281_889},
    "audioldm_16k_crossattn_t5": {"unet": 265_531_016},
    "audiomae": {},
    "clap_tiny": {"text_encoder": 153_492_890},
    "clap_base": {"text_encoder": 193_913_882},
    "hifigan_16k": {"vocoder": 55_264_897},
    "hifigan_48k": {"vocoder": 190_281_889},
}
CONTEXTS = {
    "audioldm2-full": [None, 768, 1024],
    "audioldm2-full-large-1150k": [None, 768, 1024, None],
    "audioldm2-speech-gigaspeech": [None, 768],
    "audioldm_48k": [None, None],
    "audioldm_16k_crossattn_t5": [None, 1024],
}
DIFFUSERS = {
    "audioldm2-full": {
        "language_model": "94ace0a202f16817",
        "projection_model": "48224af392f3a104",
        "text_encoder": "74044f80bc9b8e1e",
        "text_encoder_2": "84368e713a3308c3",
        "unet": "4f634b5a1930d536",
        "vae": "82e9242b4975a1ba",
        "vocoder": "4a7afa2c84b425b3",
    },
    "audioldm2-full-large-1150k": {"unet": "d28d48e7b18e5229"},
}
# Buffers that we compute (and diffusers copies or leaves to the class), and T5's second name of one tensor.
NOT_COMPARED = r"position_ids|token_type_ids|relative_position_index|embed_tokens"


def digest(tensors):
    """The first 16 digits of the SHA-256 of names and values, in the order of the names."""
    made = hashlib.sha256()
    for key in sorted(tensors):
        if not re.search(NOT_COMPARED, key):
            made.update(key.encode())
            made.update(np.ascontiguousarray(tensors[key]).tobytes())
    return made.hexdigest()[:16]


@cache
def base_shapes(network, config):
    """Cached, since the files share most of their networks."""
    return reader.shapes_of(network, json.loads(config))[1]


def save(path, content, wrap="state_dict"):
    torch.save({wrap: content}, path)
    return path


def write(path, name, part):
    model_folder.write_component(path, name, part.config, part.variables, part.unused)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The small file of audioldm2-full, read."""
    path = tmp_path_factory.mktemp("full") / "audioldm2-full.pth"
    return read_original(save(path, authors.checkpoint("audioldm2-full")))


@pytest.mark.parametrize(
    "name",
    # To trace networks of the published size takes seconds each.
    [
        "audioldm2-full",
        *(pytest.param(name, marks=pytest.mark.slow) for name in authors.PIPELINES[1:]),
        *authors.SINGLES,
    ],
)
def test_every_name_of_the_published_file_is_explained(name):
    """At base size, without its numbers: found, configured, and its names those of our network, one for one."""
    empty = {
        key: authors.tensor(key, shape) if key.endswith("pos_embed") else np.broadcast_to(np.float32(1), shape)
        for key, shape in authors.shapes(name, "base").items()
    }
    kept = {key: value for key, value in empty.items() if not any(re.match(p, key) for _, p in reader.LEFT_OUT)}
    parts, rest = reader._cut(kept, reader.find_places(kept))
    assert rest.keys() == ({"betas", "scale_factor"} if name in authors.PIPELINES else set())
    counted = {}
    for (network, _), part in parts.items():
        part = ORIGINALS[network].from_upstream(part)
        config = CONFIGS[network](part)
        if network == "unet":
            assert config["cross_attention_dim"] == [CONTEXTS[name]] * 4
            assert config["attention_head_dim"] == [4, 8, 12, 20]  # channels / 32
        target = base_shapes(network, json.dumps(config))
        names = reader.upstream_names(network, target, config)
        carried = {key for key in part if key not in names}
        assert names.keys() <= part.keys(), names.keys() - part.keys()
        assert all(ORIGINALS[network].unused_name(key) for key in carried), carried
        counted[network] = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(target["params"]))
    assert counted.items() >= PARAMETERS[name].items()


@pytest.mark.parametrize("name", DIFFUSERS)
def test_the_tensors_are_those_of_diffusers_converter(name, full, tmp_path):
    read = full if name == "audioldm2-full" else read_original(save(tmp_path / "x.pth", authors.checkpoint(name)))
    for part, expected in DIFFUSERS[name].items():
        write(tmp_path, part, read.components[part])
        assert digest(read_tensors(tmp_path / part)) == expected, part


def test_audiomae_takes_the_positions_of_its_file(tmp_path):
    """Theirs count bands before frames, though the patches come frame by frame."""
    state = authors.checkpoint("audiomae")
    read = read_original(save(tmp_path / "x.pth", state)).components["audiomae"]
    np.testing.assert_array_equal(read.module.table(64), state["pos_embed"][0, 1:])
    own = torch.from_numpy(positions_2d(64, (64, 8)))  # as a folder trained here has them
    state["pos_embed"] = torch.nn.functional.pad(own, (0, 0, 1, 0))[None]
    again = read_original(save(tmp_path / "y.pth", state)).components["audiomae"]
    np.testing.assert_array_equal(again.module.table(64), own)
    fbank = np.random.default_rng(0).standard_normal((1, 1024, 128), np.float32)
    first, second = (part.module.apply(part.variables, fbank, method="encode_features") for part in (read, again))
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()
    with pytest.raises(FolderError, match="pos_embed is not of fixed sines"):
        read_original(save(tmp_path / "z.pth", state | {"pos_embed": torch.ones(1, 513, 64)}))


def test_what_the_file_says_beside_its_weights(full):
    assert full.schedule.num_train_timesteps == 1000 and full.schedule.beta_schedule == "scaled_linear"
    assert (full.schedule.beta_start, full.schedule.beta_end) == (0.0015, 0.0195)
    assert full.components["vae"].config["scaling_factor"] == authors.SCALE
    assert full.components["unet"].config["sample_size"] == 512  # 1024 frames, halved once in the small VAE
    assert full.components["language_model"].config["max_new_tokens"] == 8
    # What a CLAP holds twice over is left out, with its reason, and so are the moving averages.
    assert sum(full.left_out.values()) == 12 + 10 + 10 + 24 + 418
    assert len(full.notes) == 1 and "only the encoder works" in full.notes[0]


def test_the_published_weights_are_kept_and_not_their_moving_average(full):
    """As the authors' tool, which loads both and samples outside `ema_scope`."""
    kernel = full.components["unet"].variables["params"]["conv_in"]["kernel"]
    key = "model.diffusion_model.input_blocks.0.0.weight"
    theirs = authors.tensor(key, authors.shapes("audioldm2-full", "small")[key])
    np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("name", authors.SINGLES)
def test_files_of_one_network(name, tmp_path):
    state = authors.checkpoint(name)
    if name.startswith("clap"):  # as saved under data parallelism
        state = {f"module.{key}": value for key, value in state.items()}
    read = read_original(save(tmp_path / "x.pt", state, "generator" if "gan" in name else "state_dict"))
    part = authors.SINGLES[name]
    assert read.components.keys() == {part} and read.schedule is None
    write(tmp_path, part, read.components[part])
    again = model_folder.read_component(tmp_path, part)
    for ours, theirs in zip(jax.tree.leaves(again.variables), jax.tree.leaves(read.components[part].variables)):
        np.testing.assert_array_equal(ours, theirs)


def test_weight_norm_is_fused_as_pytorch_computes_it(tmp_path):
    state = authors.checkpoint("hifigan_16k")
    read = read_original(save(tmp_path / "g.pth", state, "generator"))
    params = read.components["vocoder"].variables["params"]
    for ours, key, axes in (
        (params["conv_pre"]["kernel"], "conv_pre", (2, 1, 0)),
        (params["upsampler_0"]["kernel"], "ups.0", (2, 0, 1)),
    ):
        length, direction = (state[f"{key}.weight_{part}"] for part in "gv")
        fused = torch._weight_norm(direction, length, 0).numpy().transpose(axes)
        np.testing.assert_allclose(ours, fused, rtol=1e-6)  # a few roundings of a sum of squares


def test_a_misshapen_weight_under_weight_norm_is_named_as_in_the_file(tmp_path):
    state = authors.checkpoint("hifigan_16k") | {"resblocks.0.convs1.1.weight_v": torch.ones(32, 32, 5)}
    with pytest.raises(FolderError, match=r"shape: resblocks\.0\.convs1\.1\.weight_v is \(32, 32, 5\) and should be"):
        read_original(save(tmp_path / "g.pth", state, "generator"))


def test_new_style_weight_norm_is_the_same(tmp_path):
    old = authors.checkpoint("hifigan_16k")
    new = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in old.items()
    }
    first, second = (
        read_original(save(tmp_path / f"{i}.pth", state, "generator")).components["vocoder"].variables
        for i, state in enumerate((old, new))
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_vae_of_its_own_training(tmp_path):
    """Lightning's file: the VAE and its vocoder, beside losses and discriminator, and no latent scale."""
    prefix = "first_stage_model."
    state = {k.removeprefix(prefix): v for k, v in authors.checkpoint("audioldm2-full").items() if k.startswith(prefix)}
    state |= {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 1, 4, 4)}
    read = read_original(save(tmp_path / "vae.ckpt", state))
    assert read.components.keys() == {"vae", "vocoder"}
    assert read.components["vae"].config["scaling_factor"] == 1.0 and "scale of the latents" in read.notes[0]
    assert read.left_out == {"discriminator and losses of the VAE's training": 2}


def changed(**changes):
    state = authors.checkpoint("audioldm2-full")
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


UNET, CLAP = "model.diffusion_model.", "cond_stage_models.0.cond_stage_models.0.model."


@pytest.mark.parametrize(
    "changes, message",
    [
        ({UNET + "out.0.weight": None}, r"missing: model\.diffusion_model\.out\.0\.weight"),
        ({UNET + "out.9.weight": torch.ones(2)}, r"unexpected: model\.diffusion_model\.out\.9\.weight \(2,\)"),
        (
            {UNET + "out.0.weight": torch.ones(7), UNET + "out.2.bias": torch.ones(2)},
            r"shape: model\.diffusion_model\.out\.0\.weight is \(7,\) and should be \(32,\)\n"
            r"  shape: model\.diffusion_model\.out\.2\.bias is \(2,\) and should be \(8,\)",
        ),
        (
            {f"{CLAP}audio_branch.layers.1.blocks.1.attn.qkv.weight": torch.ones(95, 32)},
            r"shape: cond_stage\S+blocks\.1\.attn\.qkv\.weight is \(95, 32\) and should be \(96, 32\)",
        ),
        (
            {"first_stage_model.decoder.mid.attn_1.q.weight": torch.ones(2, 2, 1, 1)},
            r"shape: \S+\.decoder\.mid\.attn_1\.q\.weight is \(2, 2, 1, 1\) and should be \(64, 64, 1, 1\)",
        ),
        ({"elsewhere": torch.ones(3)}, r"unexpected: elsewhere \(3,\)"),
        (
            {"cond_stage_models.1.model.shared.weight": torch.ones(300, 32)},
            r"duplicate: cond_stage_models\.1\.model\.shared\.weight differs from cond_stage_models\.0",
        ),
        ({"betas": torch.linspace(0.001, 0.02, 1000)}, r"betas are not linear in their square root"),
        ({"first_stage_model.vocoder.ups.0.weight": torch.ones(64, 32, 11)}, r"kernels \[11, 16, 8, 4, 4\]; known are"),
        ({"betas": None, "scale_factor": None}, r"missing: betas\n  missing: scale_factor"),
        ({"cond_stage_models.0.model.wpe.weight": None}, r"missing: the language_model"),
        ({"first_stage_model.post_quant_conv.weight": None}, r"the vae at first_stage_model\.\*: missing: post_quant"),
    ],
    ids=[
        "missing",
        "unexpected",
        "misshapen",
        "misshapen-joined",
        "misshapen-convolution",
        "homeless",
        "copies",
        "betas",
        "vocoder",
        "schedule",
        "network",
        "config",
    ],
)
def test_a_file_that_does_not_fit_stops_with_the_list(tmp_path, changes, message):
    with pytest.raises(FolderError, match=message) as caught:
        read_original(save(tmp_path / "x.pth", changed(**changes)))
    assert "x.pth" in str(caught.value)


def test_the_clap_of_the_conditions_wins_and_the_user_is_told(tmp_path, full):
    key = "clap.model.text_projection.0.bias"
    read = read_original(save(tmp_path / "x.pth", changed(**{key: torch.full((32,), 5.0)})))
    assert re.search(r"CLAP at clap\.model\.\* differs", read.notes[0])
    projection = read.components["text_encoder"].variables["params"]["text_projection"]
    jax.tree.map(
        np.testing.assert_array_equal,
        projection,
        full.components["text_encoder"].variables["params"]["text_projection"],
    )


def test_a_file_of_something_else(tmp_path):
    with pytest.raises(FolderError, match=r"x\.pth: no network of AudioLDM 2 is in it; it begins with fc\.weight"):
        read_original(save(tmp_path / "x.pth", {"fc.weight": torch.ones(2, 2)}))


def test_configs_are_json(full):
    for part in full.components.values():
        assert json.loads(json.dumps(part.config)) == part.config


@pytest.mark.parametrize(
    "name",
    # The large one, slow in proportion to its layers, and the T5 one hold nothing that the others do not.
    [
        pytest.param(name, marks=pytest.mark.slow if "large" in name or "t5" in name else ())
        for name in authors.PIPELINES
    ],
)
def test_there_and_back_is_bit_identical(name, tmp_path):
    """From the authors' file to our variables, back to their file, and again: every tensor that counts, bit by bit.

    The file has exactly the tensors that the authors' classes load strictly; test_original_beside.py has the values of
    those that they compute.
    """
    state = authors.checkpoint(name)
    read = read_original(save(tmp_path / "x.pth", state))
    write_original(tmp_path / "back.pth", read.components, read.schedule)
    back = read_pickle(tmp_path / "back.pth")
    assert {key: (value.shape, value.dtype) for key, value in back.items()} == {
        key: (value.shape, value.numpy().dtype) for key, value in state.items()
    }
    for key, value in state.items():
        if key.endswith("of_sequence_tokens.weight"):
            assert np.array_equal(back[key][:2], value[:2]) and not back[key][2:].any()  # of 32 rows two are in use
        elif not any(re.match(pattern, key) for _, pattern in reader.LEFT_OUT):
            assert np.array_equal(back[key], value), key
        if key.startswith("model."):
            average = back["model_ema." + key.removeprefix("model.").replace(".", "")]
            np.testing.assert_array_equal(average, value)
    again = read_original(tmp_path / "back.pth")
    assert again.schedule == read.schedule and again.components.keys() == read.components.keys()
    for part, component in read.components.items():
        assert again.components[part].config == component.config
        jax.tree.map(np.testing.assert_array_equal, again.components[part].variables, component.variables)


def test_what_has_no_place_in_a_file_of_the_authors(full, tmp_path):
    velocity = dataclasses.replace(full.schedule, prediction_type="v_prediction")
    with pytest.raises(FolderError, match="predict epsilon, and this one predicts v_prediction"):
        write_original(tmp_path / "x.pth", full.components, velocity)
    with pytest.raises(FolderError, match="one network or a whole pipeline, not unet, vae"):
        write_original(tmp_path / "x.pth", full.components)
    with pytest.raises(FolderError, match="hold a UNet only in a whole pipeline"):
        write_original(tmp_path / "x.pth", {"unet": full.components["unet"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_are_read(tmp_path, stored):
    """Schedule, fixed positions and copies are compared as exactly as they were stored."""
    content = {
        key: value.to(stored) if value.is_floating_point() else value
        for key, value in authors.checkpoint("audioldm2-full").items()
    }
    # A second copy of T5 may have been left in full precision.
    second = {key for key in content if key.startswith("cond_stage_models.1.")}
    assert second
    whole = authors.checkpoint("audioldm2-full")
    mixed = {key: whole[key] if key in second else value for key, value in content.items()}
    for number, part in enumerate((content, mixed)):
        read = read_original(save(tmp_path / f"{number}.pth", part))
        assert (read.schedule.beta_start, read.schedule.beta_end) == (0.0015, 0.0195)
        assert "audiomae" in read.components
    other = {**content, "betas": torch.linspace(0.0015, 0.0195, 1000).to(stored)}
    with pytest.raises(FolderError, match="betas are not linear in their square root"):
        read_original(save(tmp_path / "other.pth", other))
