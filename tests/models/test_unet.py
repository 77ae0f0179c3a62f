"""The UNet against diffusers' AudioLDM2UNet2DConditionModel on random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2UNet2DConditionModel
from flax import linen as nn
from twins import carry_over, count, randomise, relative_error, shapes

from audioldm2_jax.checkpoints.parameter_names import NAMES
from audioldm2_jax.models.unet import UNet, contexts_per_level

# float32 through some thirty layers; only the order of summation differs.
TOLERANCE = 1e-4
# bfloat16 rounds each of those layers to 8 bits, half a percent at most each time.
BFLOAT16_TOLERANCE = 0.05

LOA, TEXT = 12, 20
TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2, 4),
    "transformer_layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": (None, LOA, TEXT),
}
TWO_LEVELS = TINY | {
    "block_out_channels": (8, 16),
    "attention_head_dim": (1, 2),
    "down_block_types": TINY["down_block_types"][:2],
    "up_block_types": TINY["up_block_types"][1:],
}
# Attention in the middle only: for what is true of any network, quickly.
SMALLEST = TINY | {
    "block_out_channels": (8,),
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
BASE = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (128, 256, 384, 640),
    "layers_per_block": 2,
    "attention_head_dim": (4, 8, 12, 20),
    "transformer_layers_per_block": 1,
    "norm_num_groups": 32,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "cross_attention_dim": (None, 768, 1024),
}


def inputs(time: int, frequency: int, tokens: int = 5, words: int = 7) -> dict[str, np.ndarray]:
    """A batch of two whose first example sees a part of both contexts."""
    random = np.random.default_rng(0)
    return {
        "latents": random.standard_normal((2, time, frequency, 4), np.float32),
        "timesteps": np.array([3, 871]),
        "loa": random.standard_normal((2, tokens, LOA), np.float32),
        "text_states": random.standard_normal((2, words, TEXT), np.float32),
        "loa_mask": np.arange(tokens) < np.array([[tokens - 2], [tokens]]),
        "text_mask": np.arange(words) < np.array([[2], [words]]),
    }


def pair(config: dict, given: dict) -> tuple[UNet, Any, AudioLDM2UNet2DConditionModel]:
    """Our network and its twin, with one set of weights."""
    torch.manual_seed(0)
    dims = contexts_per_level(config["cross_attention_dim"], len(config["block_out_channels"]))
    reference = randomise(AudioLDM2UNet2DConditionModel(**config | {"cross_attention_dim": dims}))
    model = UNet(**config)
    return model, carry_over(reference, shapes(model, **given), NAMES["unet"]), reference


def expected(reference: AudioLDM2UNet2DConditionModel, given: dict) -> np.ndarray:
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    with torch.no_grad():
        sample = reference(
            tensors["latents"].permute(0, 3, 1, 2),
            tensors["timesteps"],
            encoder_hidden_states=tensors["loa"],
            encoder_attention_mask=tensors["loa_mask"],
            encoder_hidden_states_1=tensors["text_states"],
            encoder_attention_mask_1=tensors["text_mask"],
            class_labels=tensors.get("class_labels"),
        ).sample
    return sample.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("config", "time", "frequency"),
    [
        (TINY, 11, 6),  # 11 → 6 → 3 and 6 → 3 → 2: odd in both axes, at both levels
        (TWO_LEVELS | {"cross_attention_dim": (None, LOA)}, 8, 4),
        (TWO_LEVELS | {"cross_attention_dim": (None, LOA, TEXT, None), "transformer_layers_per_block": 2}, 6, 4),
        (TWO_LEVELS | {"cross_attention_dim": ((LOA,), (None, LOA)), "layers_per_block": (1, 2)}, 5, 4),
    ],
    ids=["odd lengths", "LOA alone", "four contexts, two layers", "lists a level"],
)
def test_equals_diffusers(config: dict, time: int, frequency: int) -> None:
    given = inputs(time, frequency)
    model, variables, reference = pair(config, given)
    got = jax.jit(model.apply)(variables, **given)
    assert relative_error(got, expected(reference, given)) < TOLERANCE


@pytest.fixture(scope="module")
def smallest() -> tuple[dict, Any, Any]:
    """Inputs of the smallest network, its parameters, and its compiled application."""
    given = inputs(4, 4)
    model, variables, _ = pair(SMALLEST, given)
    return given, variables, jax.jit(model.apply)


@pytest.mark.parametrize("kind", ["simple_projection", "projection"])
def test_class_embedding_equals_diffusers(kind: str) -> None:
    config = SMALLEST | {
        "cross_attention_dim": (None,),
        "class_embed_type": kind,
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": kind == "simple_projection",
    }
    given = inputs(4, 4) | {"class_labels": np.random.default_rng(1).standard_normal((2, 6), np.float32)}
    model, variables, reference = pair(config, given)
    assert relative_error(jax.jit(model.apply)(variables, **given), expected(reference, given)) < TOLERANCE


@pytest.mark.parametrize("heads", [(1, 2), 2])
def test_class_labels_alone_equal_diffusers_plain_unet(heads: int | tuple[int, int]) -> None:
    """AudioLDM 1: without states to attend to, each transformer attends to the latents twice."""
    labels = {
        "attention_head_dim": heads,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": True,
    }
    config, sizes = TWO_LEVELS | {"cross_attention_dim": (None,)} | labels, TWO_LEVELS["block_out_channels"]
    torch.manual_seed(0)
    reference = randomise(UNet2DConditionModel(**config | {"cross_attention_dim": sizes}))
    random = np.random.default_rng(0)
    given = {
        "latents": random.standard_normal((2, 7, 5, 4), np.float32),
        "timesteps": np.array([3, 871]),
        "class_labels": random.standard_normal((2, 6), np.float32),
    }
    model = UNet(**config)
    variables = carry_over(reference, shapes(model, **given), NAMES["unet"])
    latents, times, labels = (torch.tensor(value) for value in given.values())
    with torch.no_grad():
        theirs = reference(latents.permute(0, 3, 1, 2), times, None, class_labels=labels).sample.permute(0, 2, 3, 1)
    assert relative_error(jax.jit(model.apply)(variables, **given), theirs) < TOLERANCE


def test_masks_hide_tokens_and_no_mask_shows_all(smallest: tuple) -> None:
    given, variables, apply = smallest
    got = apply(variables, **given)
    hidden = given | {
        "loa": np.where(given["loa_mask"][..., None], given["loa"], 9.0).astype(np.float32),
        "text_states": np.where(given["text_mask"][..., None], given["text_states"], -9.0).astype(np.float32),
    }
    # exp(-10,000) is zero in float32: what is hidden cannot be seen at all.
    assert np.array_equal(got, apply(variables, **hidden))
    bare = apply(variables, **given | {"loa_mask": None, "text_mask": None})
    assert np.allclose(bare[1], got[1], atol=1e-6) and not np.allclose(bare[0], got[0], atol=1e-3)


def test_remat_changes_neither_names_nor_gradients() -> None:
    given, config = inputs(4, 4), SMALLEST | {"cross_attention_dim": (LOA,)}
    model, variables, _ = pair(config, given)
    lean = UNet(**config, remat=True)
    assert jax.tree.structure(shapes(lean, **given)) == jax.tree.structure(variables)

    def gradient(network: UNet) -> Any:
        return jax.jit(jax.grad(lambda v: jnp.square(network.apply(v, **given)).sum()))(variables)

    plain, rematerialised = gradient(model), gradient(lean)
    # XLA may fuse the second computation of a sum differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), plain, rematerialised)


def test_bfloat16_stays_close_and_returns_float32(smallest: tuple) -> None:
    given, variables, apply = smallest
    half = UNet(**SMALLEST, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half, **given))} == {jnp.dtype("float32")}
    got = jax.jit(half.apply)(variables, **given)
    assert got.dtype == jnp.float32
    assert relative_error(got, apply(variables, **given)) < BFLOAT16_TOLERANCE


def test_starts_at_zero_like_the_authors() -> None:
    network = UNet(**SMALLEST).bind({})  # the initialisers are looked at, not run: a whole init takes long to compile
    middle = network.mid_block
    last = [network.conv_out, *(attention.proj_out for attention in middle.attentions)]
    assert all(layer.kernel_init is nn.initializers.zeros for layer in last)
    assert all(resnet.last_init is nn.initializers.zeros for resnet in middle.resnets)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 346_943_496),
        ({"cross_attention_dim": (None, 768, 1024, None), "transformer_layers_per_block": 2}, 718_012_296),
        ({"cross_attention_dim": (None, 768)}, 261_926_536),
    ],
    ids=["base", "large", "speech"],
)
def test_published_sizes(changes: dict, parameters: int) -> None:
    latents, loa, text = np.zeros((1, 16, 8, 8)), np.zeros((1, 2, 768)), np.zeros((1, 2, 1024))
    assert count(shapes(UNet(**BASE | changes), latents, np.zeros(1), loa, text)) == parameters


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"loa": None}, r"loa is None; .* needs width 12"),
        ({}, {"text_states": np.zeros((2, 3, 5))}, r"text_states is \(2, 3, 5\); .* needs width 20"),
        ({"attention_head_dim": (1, 2)}, {}, r"attention_head_dim=\(1, 2\) has 2 entries; .* 1 levels"),
        ({"attention_head_dim": 3}, {}, r"3 heads .* 8 channels"),
        ({"norm_num_groups": 3}, {}, r"norm_num_groups=3 does not divide 8"),
        ({"down_block_types": ("AttnDownBlock2D",)}, {}, r"'AttnDownBlock2D' is unknown"),
        ({"class_embed_type": "timestep"}, {}, r"class_embed_type='timestep' is unknown"),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6},
            {},
            r"class_labels are None; this UNet needs \[batch, 6\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes(UNet(**SMALLEST | changes), **inputs(4, 4) | given)
