"""Which files of a component's folder are read, in all the forms in which transformers and diffusers write them."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.pipelines.audioldm2.modeling_audioldm2 import AudioLDM2ProjectionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.tensors import choose, read_tensors, write_tensors

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3) / 3,
    "b.bias": torch.tensor([1.0, -2.5]),
    "c.ids": torch.arange(4)[None],
}


def same(found, expected=TENSORS):
    """Bit by bit, fractions as float32."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        assert found[key].dtype == wanted.numpy().dtype
        np.testing.assert_array_equal(found[key], wanted.numpy())


def write_shards(folder, ending="safetensors", places=None, variant=""):
    """The tensors in two shards; returns the index."""
    places = places or {"a.weight": 1, "b.bias": 2, "c.ids": 2}
    dotted = f".{variant}" if variant else ""
    names = {number: f"model{dotted}-0000{number}-of-00002.{ending}" for number in (1, 2)}
    for number, name in names.items():
        shard = {key: TENSORS[key] for key in TENSORS if places[key] == number}
        (save_file if ending == "safetensors" else torch.save)(shard, folder / name)
    index = folder / f"{'pytorch_' if ending == 'bin' else ''}model.{ending}.index{dotted}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {key: names[n] for key, n in places.items()}}))
    return index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_precisions_become_float32(tmp_path, dtype, ending):
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in TENSORS.items()}
    if ending == "safetensors":
        save_file(stored, tmp_path / "model.safetensors")
    else:
        torch.save(stored, tmp_path / "pytorch_model.bin")
    same(read_tensors(tmp_path), stored)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards(tmp_path, ending, variant):
    write_shards(tmp_path, ending, variant=variant)
    # Neither a stray shard nor another file is looked at.
    (tmp_path / f"model-00003-of-00003.{ending}").write_bytes(b"stray")
    (tmp_path / "flax_model.msgpack").write_bytes(b"stray")
    same(read_tensors(tmp_path))
    same(read_tensors(tmp_path, variant=variant))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_what_diffusers_writes(tmp_path, safe, variant):
    twin = AudioLDM2ProjectionModel(12, 16, 24)
    for size in ("5GB", "1KB"):
        place = tmp_path / size
        twin.save_pretrained(place, max_shard_size=size, safe_serialization=safe, variant=variant)
        assert (len(list(place.glob("diffusion_pytorch_model*"))) > 2) == (size == "1KB")
        same(read_tensors(place), twin.state_dict())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_transformers_writes(tmp_path, variant):
    twin = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for size in ("5GB", "1KB"):
        place = tmp_path / size
        twin.save_pretrained(place, max_shard_size=size, variant=variant)
        assert (len(list(place.glob("model*"))) > 2) == (size == "1KB")
        tied = {"encoder.embed_tokens.weight"}  # one tensor with shared.weight, and written once
        same(read_tensors(place), {key: value for key, value in twin.state_dict().items() if key not in tied})


def test_several_forms_in_one_folder(tmp_path):
    """Each file holds its own number, so that what was read shows."""
    files = {
        "model.fp16.safetensors": 1,
        "model.safetensors": 2,
        "pytorch_model.bin": 3,
        "pytorch_model.bf16.bin": 4,
        "model.non_ema.safetensors": 5,
    }
    for name, number in files.items():
        tensors = {"x": torch.tensor([float(number)])}
        (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)

    def number(variant=None):
        return int(read_tensors(tmp_path, variant)["x"][0])

    assert number() == 2 and number("fp16") == 1 and number("bf16") == 4 and number("non_ema") == 5
    (tmp_path / "model.safetensors").unlink()
    assert number() == 3  # without a variant still goes before one
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(FolderError, match=r"as bf16, fp16, non_ema: choose one with variant="):
        read_tensors(tmp_path)
    with pytest.raises(FolderError, match=r"no variant 'fp8'; there are: bf16, fp16, non_ema"):
        read_tensors(tmp_path, "fp8")
    for name in ("model.fp16.safetensors", "model.non_ema.safetensors"):
        (tmp_path / name).unlink()
    assert number() == 4
    (tmp_path / "pytorch_model.bf16.bin").unlink()
    with pytest.raises(FolderError, match="has no weights"):
        read_tensors(tmp_path)


def test_the_same_weights_twice():
    both = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    with pytest.raises(FolderError, match=r"twice, as model\.safetensors and model\.safetensors\.index\.json"):
        choose(both, None, "here")


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FolderError, match=r"model-00002-of-00002\.safetensors is missing, a shard that model\.safe"):
        read_tensors(tmp_path)
    # Shards alone are no weights: without the index nobody knows which belong together.
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FolderError, match="has no weights"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": 1, "b.bias": 1, "c.ids": 2}, r"00001-of-00002\.safetensors lacks b\.bias, against model\.safe"),
        ({"a.weight": 1, "b.bias": 2}, r"00002-of-00002\.safetensors has c\.ids, against"),
        ({"a.weight": 1, "b.bias": 2, "c.ids": 2, "d": 2}, r"00002-of-00002\.safetensors lacks d, against"),
        ({}, "names no shards"),
        ({"a.weight": "../model.safetensors"}, r"names '\.\./model\.safetensors', which is no file beside it"),
        ({"a.weight": None}, "names None, which is no file"),
    ],
)
def test_an_index_that_contradicts_its_shards(tmp_path, weight_map, message):
    index = write_shards(tmp_path)
    names = {1: "model-00001-of-00002.safetensors", 2: "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": {key: names.get(place, place) for key, place in weight_map.items()}}))
    with pytest.raises(FolderError, match=message):
        read_tensors(tmp_path)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    whole = file.read_bytes()
    for length in (0, 4, 60, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FolderError, match=r"model\.safetensors cannot be read.*copy or download it again"):
            read_tensors(tmp_path)
    save_file({"x": torch.ones(2, dtype=torch.float8_e4m3fn)}, file)
    with pytest.raises(FolderError, match="holds x as F8_E4M3; supported are BF16"):
        read_tensors(tmp_path)
    file.unlink()
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FolderError, match=r"pytorch_model\.bin is cut short"):
        read_tensors(tmp_path)


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from(["f4", "f2", "f8", "i8", "i4", "i2", "i1", "u1", "?", ">f4", ml_dtypes.bfloat16]).map(np.dtype)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.tuples(SHAPES, DTYPES), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_is_that_of_safetensors_byte_by_byte(tmp_path, wanted):
    random = np.random.default_rng(0)
    tensors = {name: random.integers(0, 100, shape).astype(dtype) for name, (shape, dtype) in wanted.items()}
    write_tensors(tensors, tmp_path / "ours")
    # It writes the bytes of a big-endian array as they are.
    native = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in tensors.items()}
    safetensors.numpy.save_file(native, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_tensor_is_read_when_it_is_written_and_once(tmp_path):
    class Read:
        shape, dtype = (1 << 18,), np.dtype("f4")

        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            sizes.append((self.number, (tmp_path / "file").stat().st_size >> 20))
            return np.full(self.shape, self.number, self.dtype)

    sizes = []
    write_tensors({"c": Read(0), "b": Read(1), "a": Read(2)}, tmp_path / "file")
    assert [number for number, _ in sizes] == [0, 1, 2] and sizes[-1][1] == 3  # "c" stands last in the file
    read = safetensors.numpy.load_file(tmp_path / "file")
    assert {name: value[0] for name, value in read.items()} == {"a": 2, "b": 1, "c": 0}
