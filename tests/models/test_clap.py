"""CLAP against transformers' ClapModel on the same random weights.

Tolerances: 1e-4 relative in float32 (sums in another order); 5e-2 in bfloat16, whose 8 bits round at 4e-3 and whose
errors add up over the layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ClapConfig, ClapModel, ClapTextConfig, ClapTextModelWithProjection
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.clap import Clap, ClapText
from audioldm2_jax.models.htsat import bicubic

TEXT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "type_vocab_size": 2,
}
AUDIO = {
    "spec_size": 32,
    "num_mel_bins": 16,
    "window_size": 4,
    "patch_size": 4,
    "patch_stride": (4, 4),
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "depths": (2, 2),
    "num_attention_heads": (2, 4),
    "drop_path_rate": 0.1,
}
SIZES = {"text_config": TEXT, "audio_config": AUDIO, "projection_dim": 12, "logit_scale_init_value": 14.3}
NETWORK = Clap(**SIZES)
RUN = jax.jit(NETWORK.apply, static_argnames=("method",))
TRAIN = jax.jit(partial(NETWORK.apply, use_running_average=False, mutable=["batch_stats"], method="audio_features"))
NAMES = NAMES["text_encoder"]


def text(length):
    ids = np.random.default_rng(length).integers(2, 40, (2, length)).astype(np.int32)
    ids[1, length // 2 + 1 :] = 1  # padding
    return ids, (ids != 1).astype(np.int32)


def mel(frames, batch=2):
    return 20 * np.random.default_rng(frames).standard_normal((batch, frames, 16), np.float32) - 30


def twin_of(sizes):
    torch.manual_seed(0)
    return randomise(ClapModel(ClapConfig(**sizes)))


@pytest.fixture(scope="module")
def pair():
    twin = twin_of(SIZES)
    return twin, carry_over(twin, shapes(NETWORK, *text(3), mel(64)), NAMES)


def test_the_text_tower_alone_equals_transformers():
    """As diffusers' AudioLDMPipeline has it, which makes the embedding one long by itself."""
    torch.manual_seed(0)
    sizes = TEXT | {"projection_dim": 12}
    twin = randomise(ClapTextModelWithProjection(ClapTextConfig(**sizes)))
    network = ClapText(**sizes)
    variables = carry_over(twin, shapes(network, *text(9)), NAMES)
    ids, mask = (torch.tensor(part) for part in text(9))
    theirs = torch.nn.functional.normalize(twin(ids, attention_mask=mask).text_embeds, dim=-1)
    assert relative_error(network.apply(variables, *text(9), method="text_features"), theirs) < 1e-4


@pytest.mark.parametrize("length", [1, 9])
def test_text_equals_transformers(pair, length):
    twin, variables = pair
    ids, mask = (torch.tensor(part) for part in text(length))
    theirs = twin.get_text_features(ids.long(), mask).pooler_output
    assert relative_error(RUN(variables, *text(length), method="text_features"), theirs) < 1e-4


@pytest.mark.parametrize("frames", [64, 41])
def test_audio_equals_transformers(pair, frames):
    twin, variables = pair
    theirs = twin.get_audio_features(torch.tensor(mel(frames))[:, None]).pooler_output
    assert relative_error(RUN(variables, mel(frames), method="audio_features"), theirs) < 1e-4


def test_overlapping_patches_and_stretched_bands():
    """Patches wider than their stride, and spec_size 40 for 16 bands: two pieces of 20 rows."""
    audio = AUDIO | {"spec_size": 40, "patch_size": (7, 5), "patch_stride": (5, 5), "depths": (2,), "hidden_size": 8}
    sizes = SIZES | {"audio_config": audio | {"num_attention_heads": (2,), "qkv_bias": False}}
    twin, network = twin_of(sizes), Clap(**sizes)
    variables = carry_over(twin, shapes(network, *text(3), mel(80)), NAMES)
    theirs = twin.get_audio_features(torch.tensor(mel(80))[:, None]).pooler_output
    assert relative_error(network.apply(variables, mel(80), method="audio_features"), theirs) < 1e-4


def test_training_updates_the_statistics(pair):
    """PyTorch averages the unbiased variance, Flax the biased one: of n values, they differ by (n − 1) / n."""
    _, variables = pair
    twin = twin_of(SIZES).train()
    before = twin.audio_model.audio_encoder.batch_norm.running_var.clone()
    twin.audio_model.audio_encoder.batch_norm(torch.tensor(mel(64)).permute(0, 2, 1)[..., None])
    theirs = twin.audio_model.audio_encoder.batch_norm
    _, updated = TRAIN(variables, mel(64))
    ours = updated["batch_stats"]["audio_model"]["audio_encoder"]["batch_norm"]
    n = 2 * 64
    assert relative_error(ours["mean"], theirs.running_mean) < 1e-4
    biased = 0.9 * before + (theirs.running_var - 0.9 * before) * (n - 1) / n
    assert relative_error(ours["var"], biased) < 1e-4


def test_training_mode_equals_transformers(pair):
    """With the batch's statistics and no dropout."""
    _, variables = pair
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = SIZES | {"audio_config": AUDIO | still | {"drop_path_rate": 0.0}}
    theirs = twin_of(sizes).train().get_audio_features(torch.tensor(mel(64))[:, None]).pooler_output
    ours, _ = TRAIN(variables, mel(64))
    assert relative_error(ours, theirs) < 1e-4


def test_gradients_reach_every_parameter(pair):
    ids, mask = text(5)

    @jax.jit
    def gradient(variables):
        def loss(params):
            (words, sounds), _ = NETWORK.apply(
                {**variables, "params": params},
                ids,
                mask,
                mel(64),
                use_running_average=False,
                mutable=["batch_stats"],
            )
            logits = words @ sounds.T * jnp.exp(params["logit_scale_a"] + params["logit_scale_t"])
            return logits[0, 0] + 2 * logits[1, 1] - logits[0, 1]

        return jax.grad(loss)(variables["params"])

    # Keys' biases shift all scores of a query alike, so softmax takes no notice of them.
    flat = jax.tree_util.tree_leaves_with_path(gradient(pair[1]))
    still = [jax.tree_util.keystr(path) for path, leaf in flat if not np.abs(leaf).max() > 0]
    assert all(np.isfinite(leaf).all() for _, leaf in flat)
    assert all("['key']['bias']" in path for path in still), still


def test_dropout_draws(pair):
    draw = jax.jit(partial(NETWORK.apply, deterministic=False))
    drawn = [draw(pair[1], *text(9), mel(64), rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)]
    for tower in (0, 1):
        assert np.array_equal(drawn[0][tower], drawn[1][tower])
        assert not np.allclose(drawn[0][tower], drawn[2][tower])


def test_bfloat16(pair):
    half = Clap(**SIZES, dtype=jnp.bfloat16)
    exact = RUN(pair[1], *text(9), method="text_features"), RUN(pair[1], mel(64), method="audio_features")
    for coarse, fine in zip(jax.jit(half.apply)(pair[1], *text(9), mel(64)), exact):
        assert coarse.dtype == jnp.float32 and relative_error(coarse, fine) < 5e-2
        assert np.allclose(np.linalg.norm(coarse, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(("length", "size"), [(5, 12), (11, 64), (1, 4)])
def test_bicubic_equals_torch(length, size):
    signal = np.random.default_rng(0).standard_normal((1, 1, length, 3), np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(signal), (size, 3), mode="bicubic", align_corners=True)
    assert relative_error(bicubic(length, size) @ signal[0, 0], theirs[0, 0]) < 1e-5


@pytest.mark.parametrize(
    ("change", "inputs", "message"),
    [
        ({}, (*text(15), mel(64)), "15 tokens; max_position_embeddings allows 14"),
        ({}, (*text(3), mel(65)), "65 frames × 16 bands does not fit"),
        ({"window_size": 3}, (*text(3), mel(64)), r"multiple of .* = 24"),
        ({"hidden_size": 17}, (*text(3), mel(64)), "hidden_size=17 should be .* = 16"),
        ({"enable_fusion": True}, (*text(3), mel(64)), "without fusion"),
    ],
)
def test_what_does_not_fit_is_refused(change, inputs, message):
    network = Clap(**SIZES | {"audio_config": AUDIO | change})
    with pytest.raises(ValueError, match=message):
        shapes(network, *inputs)


@pytest.mark.parametrize(
    ("width", "depths", "parameters"), [(128, [2, 2, 12, 2], 193_913_882), (96, [2, 2, 6, 2], 153_492_890)]
)
def test_parameters_of_published_models(width, depths, parameters):
    """HTSAT-base and HTSAT-tiny, from config.json as the hub has it: defaults written out, lists for tuples."""
    config = ClapConfig(
        audio_config={"patch_embeds_hidden_size": width, "hidden_size": 8 * width, "depths": depths}
    ).to_dict()
    keys = "text_config", "audio_config", "projection_dim", "logit_scale_init_value"
    network = Clap(**{key: config[key] for key in keys})
    ids = np.zeros((1, 3), np.int32)
    assert count(shapes(network, ids, ids, np.zeros((1, 1001, 64), np.float32))) == parameters
