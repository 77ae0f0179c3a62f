"""The renamer is exact: every comparison here is bit for bit, so no tolerance is stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax.checkpoints.parameter_names import NAMES, Names, to_flax, to_torch

TABLE = Names(
    unused=(r"counter$",),
    conv_transpose=(r"^up\.",),
    untransposed=(r"raw\.weight$",),
    literal=(r"linear_\d",),
)
WORDS = st.sampled_from(
    ["down", "attn1", "conv_in", "resnets_0", "resnets_1", "to_out_0", "linear_1", "linear_2", "raw"]
)
LEAVES = st.sampled_from(["kernel", "bias", "scale", "embedding", "table"])


@st.composite
def variables(draw):
    """A tree of arrays such as a network's: modules three deep at most, leaves of one to four axes."""
    draws = draw(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), LEAVES), min_size=1, max_size=8))
    params, taken = {}, set()
    for number, (modules, leaf) in enumerate(draws):
        name = tuple(modules)
        as_torch = (name, "weight" if leaf in ("kernel", "scale", "embedding") else leaf)
        if as_torch in taken:
            continue
        taken.add(as_torch)
        rank = draw(st.integers(2, 4)) if leaf == "kernel" else draw(st.integers(1, 2))
        shape = tuple(draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
        module = params
        for part in modules:
            module = module.setdefault(part, {})
        module[leaf] = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
    return {"params": params}


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right)


@given(variables())
@settings(max_examples=60, deadline=None)
def test_round_trip(tree):
    tensors = to_torch(tree, TABLE)
    back, rest = to_flax(tensors, tree, TABLE)
    assert same(back, tree) and not rest
    assert same(to_torch(back, TABLE), tensors)


@given(variables(), st.randoms())
@settings(max_examples=30, deadline=None)
def test_everything_wrong_is_listed(tree, random):
    tensors = to_torch(tree, TABLE)
    lost = random.choice(sorted(tensors))
    wrong = {key: value for key, value in tensors.items() if key != lost}
    wrong["nobody.weight"] = np.zeros(2, np.float32)
    misshapen = next(iter(wrong))
    wrong[misshapen] = np.zeros((7, 7, 7, 7, 7), np.float32)
    with pytest.raises(ValueError) as error:
        to_flax(wrong, tree, TABLE)
    lines = str(error.value).splitlines()[1:]
    assert any(line.strip().startswith(f"missing: {lost} ") for line in lines)
    assert any("unexpected: nobody.weight" in line for line in lines)
    if misshapen != "nobody.weight":
        assert any(line.strip().startswith(f"shape: {misshapen} is (7, 7, 7, 7, 7)") for line in lines)


def test_layouts():
    kernel = np.arange(24, dtype=np.float32)
    tree = {
        "params": {
            "linear_1": {"kernel": kernel.reshape(4, 6)},
            "convs_1": {"kernel": kernel.reshape(2, 3, 4)},
            "image": {"kernel": kernel.reshape(1, 2, 3, 4)},
            "up": {"kernel": kernel.reshape(2, 3, 4)},
            "raw": {"kernel": kernel.reshape(4, 6)},
            "logit_scale": np.float32(3.0),
            "scale": kernel,
        },
        "batch_stats": {"norm": {"mean": kernel, "var": kernel}},
    }
    tensors = to_torch(tree, TABLE)
    assert {key: value.shape for key, value in tensors.items()} == {
        "linear_1.weight": (6, 4),
        "convs.1.weight": (4, 3, 2),
        "image.weight": (4, 3, 1, 2),
        "up.weight": (3, 4, 2),
        "raw.weight": (4, 6),
        "logit_scale": (),
        "scale": (24,),
        "norm.running_mean": (24,),
        "norm.running_var": (24,),
    }
    assert tensors["image.weight"][3, 2, 0, 1] == tree["params"]["image"]["kernel"][0, 1, 2, 3]
    assert tensors["up.weight"][1, 3, 0] == tree["params"]["up"]["kernel"][0, 1, 3]
    assert same(to_flax(tensors, tree, TABLE)[0], tree)


def test_unused_tensors_are_carried_and_written_back():
    tree = {"params": {"linear": {"bias": np.ones(2, np.float32)}}}
    tensors = {"linear.bias": np.ones(2, np.float32), "norm.counter": np.array(7)}
    back, rest = to_flax(tensors, tree, TABLE)
    assert rest == {"norm.counter": 7}
    assert same(to_torch(back, TABLE, rest), tensors)
    with pytest.raises(ValueError, match=r"unused tensor linear\.bias is a parameter"):
        to_torch(tree, TABLE, {"linear.bias": np.ones(2)})


def test_duplicates_fail():
    bias = np.ones(2, np.float32)
    tree = {"params": {"blocks_1": {"bias": bias}}}
    with pytest.raises(ValueError, match=r"duplicate: .*one name in Flax"):
        to_flax({"blocks.1.bias": bias, "blocks_1.bias": bias}, tree, TABLE)
    with pytest.raises(ValueError, match=r"duplicate: blocks\.1\.weight"):
        to_torch({"params": {"blocks_1": {"kernel": bias, "scale": bias}}}, TABLE)
    with pytest.raises(ValueError, match="wanted by two parameters"):
        to_flax({"blocks.1.weight": bias}, {"params": {"blocks_1": {"kernel": bias, "scale": bias}}}, TABLE)


def test_spellings_of_one_tensor():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    tree = {"params": {"shared": {"embedding": table}}}
    names = NAMES["text_encoder_2"]
    for keys in (
        ["shared.weight"],
        ["encoder.embed_tokens.weight"],
        ["shared.weight", "encoder.embed_tokens.weight"],
    ):
        back, rest = to_flax(dict.fromkeys(keys, table), tree, names)
        assert same(back, tree) and not rest
    assert list(to_torch(tree, names)) == ["shared.weight"]
    whole = {"shared.weight": table, "decoder.block.0.layer.0.SelfAttention.q.weight": table, "lm_head.weight": table}
    assert to_flax(whole, tree, names)[1].keys() == whole.keys() - {"shared.weight"}
    with pytest.raises(ValueError, match="differs from the other tensor"):
        to_flax({"shared.weight": table, "encoder.embed_tokens.weight": table + 1}, tree, names)


def test_language_model_is_read_in_both_forms():
    tree = {"params": {"h_0": {"attn": {"c_attn": {"kernel": np.ones((2, 6), np.float32)}}}}}
    words = np.ones((5, 2), np.float32)
    written = {
        "transformer.h.0.attn.c_attn.weight": np.ones((2, 6), np.float32),
        "transformer.wte.weight": words,
    }
    for prefix in ("transformer.", ""):
        tensors = {
            prefix + "h.0.attn.c_attn.weight": np.ones((2, 6), np.float32),
            prefix + "wte.weight": words,
        }
        back, rest = to_flax(tensors, tree, NAMES["language_model"])
        assert same(to_torch(back, NAMES["language_model"], rest), written)


def test_the_target_decides_the_dtype():
    target = {"params": {"linear": {"bias": np.ones(2, np.float32)}}}
    back, _ = to_flax({"linear.bias": np.ones(2, np.float16)}, target, TABLE)
    assert same(back, target)
