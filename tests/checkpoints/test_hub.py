"""Models by their hub id: out of a cache that was laid out by hand, and from a hub that is a folder."""

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from hub_cache import COMMIT, cache
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file
from tiny_folder import CONFIGS, write_model, write_networks

from audioldm2_jax.checkpoints import hub, model_folder, model_index
from audioldm2_jax.checkpoints.atomic_folder import FolderError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


class Hub:
    """A hub that holds the folder `path` as the repository `name`, and remembers which files were fetched."""

    def __init__(self, monkeypatch, path, cache, name="someone/music"):
        self.path, self.cache, self.name, self.fetched = path, cache, name, set()
        monkeypatch.setattr(hub, "hub_reachable", lambda: True)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.list)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def list(self, repository):
        assert repository == self.name
        return sorted(str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file())

    def download(self, repository, allow_patterns):
        for name in self.list(repository):
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.path / name, self.cache / name)
                self.fetched.add(name)
        return str(self.cache)


def test_a_whole_model_offline(model, tmp_path):
    """In a process of its own, with the variables that a user sets."""
    cache(tmp_path, "someone/music", model)
    script = (
        "from audioldm2_jax.generation.pipeline import AudioLDM2; pipe = AudioLDM2.from_pretrained('someone/music');"
        "print(len(pipe.components))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(len(CONFIGS)), done.stderr


def test_a_component_offline(model, offline):
    """Of a model's repository, and of one that holds nothing else."""
    cache(offline, "someone/music", model)
    cache(offline, "vae", model / "vae")
    wanted = model_folder.read_component(model, "vae").variables
    for repository in ("someone/music", "vae"):
        found = model_folder.read_component(repository, "vae").variables
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(FolderError, match=r"vae has no unet/config\.json"):
        (offline / "models--vae/snapshots" / COMMIT / "config.json").unlink()
        model_folder.read_component("vae", "unet")


def test_nothing_in_the_cache(offline):
    for read in (lambda name: model_folder.read_component(name, "vae"), model_folder.locate_model):
        with pytest.raises(
            FolderError,
            match=r"^runs/none is no folder here \(/.*/runs/none does not exist\); as the id of a repository on the "
            r"hub \(owner/name\): it is not in the hub's cache.*HF_HUB_OFFLINE is set",
        ):
            read("runs/none")
        with pytest.raises(FolderError, match=r"^runs/a/b is no folder here .*, nor is that the id of a repository"):
            read("runs/a/b")


def test_a_repository_that_is_no_model(offline, tmp_path_factory):
    pictures, words = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("words")
    (pictures / model_index.FILE).write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (words / "config.json").write_text("{}")
    cache(offline, "someone/pictures", pictures)
    cache(offline, "someone/words", words)
    with pytest.raises(FolderError, match="holds a FluxPipeline, not an AudioLDM2Pipeline"):
        model_folder.locate_model("someone/pictures")
    with pytest.raises(FolderError, match=r"^someone/words on the hub has no model_index\.json: it is no AudioLDM 2"):
        model_folder.locate_model("someone/words")


def test_a_repository_that_the_hub_does_not_know(monkeypatch):
    def unknown(*_, **__):
        raise RepositoryNotFoundError("404", response=types.SimpleNamespace(headers={}, request=None))

    def broken(*_, **__):
        raise OSError("the disk is full\nand more")

    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", unknown)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(
        FolderError, match=r"^no/body is no folder here .*: there is no such repository on the hub; for"
    ):
        model_folder.locate_model("no/body")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(
        FolderError, match=r"^no/body is no folder here .*: the hub does not give it \(the disk is full\)"
    ):
        model_folder.locate_model("no/body")


def test_only_what_is_read_is_fetched(model, tmp_path, monkeypatch):
    """Of three forms of the UNet and two of the VAE one each, and no file that nothing reads."""
    remote = shutil.copytree(model, tmp_path / "remote")
    stray = ["README.md", "config.json", "unet/flax_model.msgpack", "onnx/model.safetensors", "onnx/config.json"]
    extra = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
    extra += ["vae/diffusion_pytorch_model.fp16.safetensors"]
    for name in stray + extra:
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_bytes(b"{}")
    hub_of = Hub(monkeypatch, remote, tmp_path / "cache")
    model_folder.locate_model(hub_of.name)
    everything = {name for name in hub_of.list(hub_of.name)}
    assert everything - hub_of.fetched == {*stray, *extra}
    alone = Hub(monkeypatch, remote, tmp_path / "alone")
    model_folder.read_component(alone.name, "projection_model")
    assert {Path(name).parent.name for name in alone.fetched} == {"projection_model"}
    with pytest.raises(FolderError, match=r"someone/music/vocoder has no variant 'fp16'"):
        model_folder.locate_model(alone.name, "fp16")


def test_shards_are_fetched_by_their_index(tmp_path, monkeypatch):
    remote = write_networks(tmp_path / "remote", {"projection_model": CONFIGS["projection_model"]}) / "projection_model"
    tensors = model_folder.read_tensors(remote)
    for file in ("manifest.json", "diffusion_pytorch_model.safetensors"):
        (remote / file).unlink()
    places = {}
    for number, (key, value) in enumerate(tensors.items()):
        places[key] = f"model-{number}.fp16.safetensors"  # as older versions named them: only the index knows
        save_file({key: torch.tensor(value)}, remote / places[key])
    (remote / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": places}))
    save_file({}, remote / "model-9.safetensors")
    lone = Hub(monkeypatch, remote, tmp_path / "cache")
    found = model_folder.read_component(lone.name, "projection_model")
    assert {name for name in lone.fetched if name.startswith("model-")} == set(places.values())
    assert len(jax.tree.leaves(found.variables)) == len(tensors)
