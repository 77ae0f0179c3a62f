"""Model folders in object stores: converted to there and from there, and named where a model may be."""

import json

import numpy as np
import pytest
from tiny_folder import write_model

from audioldm2_jax.checkpoints import model_folder, model_index
from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.convert import convert
from audioldm2_jax.commands import generate
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.storage import StorageError
from audioldm2_jax.training import lineage


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def nothing_read():
    object_folders.cached.cache_clear()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_there_and_back(request, scheme, model, tmp_path):
    request.getfixturevalue({"gs": "google", "s3": "amazon"}[scheme])
    address = f"{scheme}://bucket/models/tiny"
    convert(model, address)
    convert(f" {address}/ ", tmp_path / "back")
    for name in model_index.parts(model):
        assert lineage.digest(str(tmp_path / "back"), name) == lineage.digest(address, name)
    before = model_folder.read_component(model, "vae").variables["params"]["decoder"]["conv_in"]["kernel"]
    after = model_folder.read_component(address, "vae").variables["params"]["decoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(before, after)
    assert model_folder.locate_model(address).name == "tiny"

    with pytest.raises(FolderError, match=f"{address} exists; choose another address, or pass --overwrite"):
        convert(model, address)
    with pytest.raises(FolderError, match="lie within each other"):
        convert(address, f"{address}/inside", overwrite=True)
    object_store.delete(address, ["model_index.json"])
    convert(model, address, overwrite=True)
    assert "model_index.json" in object_store.listing(address)


def test_what_is_no_model_is_not_replaced(google, model):
    object_store.write("gs://bucket/letters/home.txt", b"dear")
    with pytest.raises(FolderError, match="gs://bucket/letters is no model folder, so it is not replaced"):
        convert(model, "gs://bucket/letters", overwrite=True)
    assert object_store.read("gs://bucket/letters/home.txt") == b"dear"


def test_of_a_run_it_is_the_model_that_it_published(google, model):
    object_folders.upload(model, "gs://bucket/a-run/model")
    object_store.write("gs://bucket/a-run/stages/vae/checkpoints/1/big", b"never fetched")
    path = model_folder.locate_model("gs://bucket/a-run")
    assert path.name == "model" and not (path.parent / "stages").exists()
    assert model_folder.locate("gs://bucket/a-run", "vae") == path / "vae"
    object_store.write("gs://bucket/begun/stages/vae/checkpoints/1/big", b"x")
    with pytest.raises(FolderError, match="The run in gs://bucket/begun has not finished"):
        model_folder.locate_model("gs://bucket/begun")
    with pytest.raises(StorageError, match="there is nothing at gs://bucket/nowhere"):
        model_folder.locate_model("gs://bucket/nowhere")


def test_a_damaged_object_is_told(google, model):
    object_folders.upload(model, "gs://bucket/damaged")
    index = json.loads(object_store.read("gs://bucket/damaged/vae/manifest.json"))
    name = next(name for name in index["sha256"] if name.endswith(".safetensors"))
    content = object_store.read(f"gs://bucket/damaged/vae/{name}")
    object_store.write(f"gs://bucket/damaged/vae/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FolderError, match=rf"damaged/vae/{name} is damaged: its digest"):
        model_folder.read_component("gs://bucket/damaged", "vae")


def test_generation_takes_an_address_as_it_is():
    assert generate.model_folder(" GS://bucket/run/ ") == "gs://bucket/run"
    with pytest.raises(StorageError, match="--model=gs://: an address has the form"):
        generate.model_folder("gs://")
