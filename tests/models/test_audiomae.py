"""AudioMAE against PyTorch's own layers, wired from the papers' equations, with the same weights.

The reference masks by picking patches in their natural order and windows the decoder by a mask on attention over the
whole grid, so that it shares neither the shuffling nor the rolling with the network. Tolerance: 1e-4 of the largest
value, the project's bound for equal networks in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audioldm2_jax.checkpoints.parameter_names import NAMES, to_flax, to_torch
from audioldm2_jax.models.audiomae import AudioMAE, positions_2d, unused_tensors

SMALL = dict(
    img_size=(32, 16),  # 16 × 8 patches of 2 × 2: four windows along time, two along frequency
    patch_size=2,
    embed_dim=16,
    depth=4,
    num_heads=2,
    decoder_embed_dim=12,
    decoder_depth=2,
    decoder_num_heads=3,
)
GRID = (16, 8)
RNG = np.random.default_rng(0)
FBANK = RNG.normal(size=(2, 32, 16)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(3), len(FBANK))  # a mask's


@pytest.fixture(scope="module")
def model():
    return AudioMAE(**SMALL)


@pytest.fixture(scope="module")
def variables(model):
    shapes = jax.eval_shape(lambda key: model.init(key, FBANK, 0.5, KEYS), jax.random.key(0))
    return jax.tree.map(lambda leaf: RNG.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def state(model, variables):
    arrays = to_torch(variables, NAMES["audiomae"], unused_tensors(model))
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def part(state, prefix):
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def encode(state, fbank, mask=None):
    """Normed outputs of all blocks, each [batch, 1 + seen patches, dim]."""
    x = F.conv2d(fbank[:, None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=2)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    if mask is not None:
        x = torch.stack([example[hidden == 0] for example, hidden in zip(x, mask)])
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    outputs = []
    for i in range(SMALL["depth"]):
        block = torch.nn.TransformerEncoderLayer(
            16, 2, 64, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        theirs = {"attn.qkv.": "self_attn.in_proj_", "attn.proj": "self_attn.out_proj", "mlp.fc": "linear"}
        weights = {}
        for name, value in part(state, f"blocks.{i}.").items():
            for ours, torch_name in theirs.items():
                name = name.replace(ours, torch_name)
            weights[name] = value
        block.load_state_dict(weights)
        x = block(x)
        outputs.append(norm(x, state, "norm"))
    return outputs


def swin_attention(x, weights, shift):
    """Attention over the whole grid, allowed where two patches fall into one (unrolled) window."""
    time, frequency = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, GRID), indexing="ij"))
    apart = torch.stack([time[:, None] - time, frequency[:, None] - frequency], dim=-1).float()
    bias = linear(F.relu(linear(apart.sign() * apart.abs().log1p(), weights, "meta_mlp.fc1")), weights, "meta_mlp.fc2")
    window = torch.stack([torch.floor((time - shift) / 4), torch.floor(frequency / 4)])
    together = (window[:, :, None] == window[:, None, :]).all(0)
    query, key, value = linear(x, weights, "qkv").chunk(3, dim=-1)
    heads = []
    for i, (q, k, v) in enumerate(zip(*(part.split(4, dim=-1) for part in (query, key, value)))):
        cosine = F.cosine_similarity(q[:, :, None], k[:, None], dim=-1)
        scores = cosine / weights["tau"][i].clamp(min=0.01) + bias[..., i]
        heads.append(scores.masked_fill(~together, -torch.inf).softmax(-1) @ v)
    return linear(torch.cat(heads, dim=-1), weights, "proj")


def decode(state, seen, mask):
    """Prediction [batch, patches, 4] from the encoder's normed output."""
    x = state["mask_token"].expand(len(seen), mask.shape[1], -1).clone()
    x[mask == 0] = linear(seen, state, "decoder_embed")[:, 1:].flatten(0, 1)
    x = x + state["decoder_pos_embed"][:, 1:]
    for i in range(SMALL["decoder_depth"]):
        weights = part(state, f"decoder_blocks.{i}.")
        x = x + norm(swin_attention(x, part(weights, "attn."), 2 * (i % 2)), weights, "norm1")
        x = x + norm(linear(F.gelu(linear(x, weights, "mlp.fc1")), weights, "mlp.fc2"), weights, "norm2")
    return linear(norm(x, state, "decoder_norm"), state, "decoder_pred")


def test_pretraining_equals_the_equations(model, variables, state):
    loss, prediction, mask = jax.jit(model.apply, static_argnums=2)(variables, FBANK, 0.8, KEYS)
    assert mask.shape == (2, 128) and (np.asarray(mask).sum(1) == 128 - int(128 * (1 - 0.8))).all()
    assert (mask[0] != mask[1]).any()
    mask = torch.tensor(np.asarray(mask))
    expected = decode(state, encode(state, torch.from_numpy(FBANK), mask)[-1], mask)
    close(prediction, expected)
    patches = F.unfold(torch.from_numpy(FBANK)[:, None], 2, stride=2).transpose(1, 2)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    close(loss, (expected - target).pow(2).mean(-1)[mask == 1].mean())


def test_features_are_the_mean_of_the_last_three_blocks(model, variables, state):
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode_features"))(variables, FBANK)
    expected = torch.stack(encode(state, torch.from_numpy(FBANK))[1:]).mean(0)[:, 1:]
    close(features, expected.unflatten(1, GRID))


def test_names_both_ways(model, variables, state):
    names = {"patch_embed.proj.weight", "blocks.3.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "norm.weight", "cls_token"}
    names |= {"decoder_blocks.1.attn.tau", "decoder_blocks.0.attn.meta_mlp.fc1.weight", "decoder_blocks.1.norm2.bias"}
    assert names | {"mask_token", "decoder_embed.weight", "pos_embed", "decoder_pos_embed"} <= state.keys()
    assert state["patch_embed.proj.weight"].shape == (16, 1, 2, 2)
    back, carried = to_flax({name: value.numpy() for name, value in state.items()}, variables, NAMES["audiomae"])
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert carried.keys() == {"pos_embed", "decoder_pos_embed"}


def test_published_size():
    """ViT-B: 85,254,912 in twelve blocks and the last norm, 197,376 in the patches, 768 in the class token."""
    base = AudioMAE((1024, 128), 16, 768, 12, 12, 512, 16, 16)
    shapes = jax.eval_shape(lambda key: base.init(key, jnp.zeros((1, 1024, 128)), 0.8, key[None]), jax.random.key(0))[
        "params"
    ]
    encoder = [
        leaf for name, leaf in shapes.items() if name.startswith(("blocks_", "norm", "patch_embed", "cls_token"))
    ]
    with torch.device("meta"):
        block = torch.nn.TransformerEncoderLayer(768, 12, 3072)
    expected = 12 * sum(p.numel() for p in block.parameters()) + 2 * 768 + 257 * 768 + 768
    assert sum(leaf.size for leaf in jax.tree.leaves(encoder)) == expected
    assert sum(name.startswith("decoder_blocks") for name in shapes) == 16


def test_positions():
    table = positions_2d(8, (3, 2))
    np.testing.assert_allclose(table[0], [0, 0, 1, 1, 0, 0, 1, 1])
    # Patch 3 is time 1, frequency 1; patch 4 is time 2, frequency 0. The rates are 1 and 1/100.
    np.testing.assert_allclose(table[4][4:], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], rtol=1e-6)
    np.testing.assert_allclose(table[3][:2], [np.sin(1), np.sin(0.01)], rtol=1e-6)
    with pytest.raises(ValueError, match="that 4 divides, not 6"):
        positions_2d(6, (3, 2))


def test_dropout_needs_a_key_and_changes_the_prediction(model, variables):
    def predict(**options):
        return jax.jit(lambda v: model.apply(v, FBANK, 0.5, KEYS, **options)[1])(variables)

    noisy = predict(deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert float(jnp.abs(noisy - predict()).max()) > 1e-3


@pytest.mark.parametrize(
    "change, size, ratio, message",
    [
        ({"img_size": (24, 12)}, (24, 12), 0.5, "do not fill a grid of 12 × 6"),
        ({"img_size": (33, 16)}, (33, 16), 0.5, "multiple of patch_size 2"),
        ({}, (30, 16), 0.5, r"wants an fbank \[batch, 32, 16\]"),
        ({}, (32, 16), 0.999, "keeps 0 of 128"),
        ({}, (32, 16), 0.0, "keeps 128 of 128"),
    ],
)
def test_sizes_that_do_not_fit(change, size, ratio, message):
    model = AudioMAE(**(SMALL | change))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, *size)), ratio, key[None]), jax.random.key(0))


def test_vanished_vectors_keep_the_gradient_finite(model, variables):
    zeros = jax.tree.map(np.zeros_like, variables)
    gradient = jax.jit(jax.grad(lambda v: model.apply(v, FBANK, 0.5, KEYS)[0]))(zeros)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
