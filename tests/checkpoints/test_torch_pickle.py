"""PyTorch's pickles are read without running anything, and every kind of damage is named."""

import argparse
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.torch_pickle import read_pickle

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((3, 4), np.float32)


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def state_dict():
    return {"a.weight": torch.from_numpy(WEIGHT), "count": torch.tensor(3)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"generator": state},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {0: torch.ones(2)}}},
        lambda state: {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {"a": {"weight": state["a.weight"]}, "count": state["count"]},
    ],
)
def test_the_state_dict_is_found(tmp_path, wrap, zipped):
    tensors = read_pickle(save(tmp_path / "x.pth", wrap(state_dict()), zipped))
    assert sorted(tensors) == ["a.weight", "count"]
    np.testing.assert_array_equal(tensors["a.weight"], WEIGHT)
    assert tensors["count"].dtype == np.int64 and tensors["count"] == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_exactly(tmp_path, dtype):
    half = torch.from_numpy(WEIGHT).to(dtype)
    read = read_pickle(save(tmp_path / "x.bin", {"a": half}))["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, half.float().numpy())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_trainers_save_beside_the_weights_is_no_obstacle(tmp_path, monkeypatch, zipped):
    """NumPy numbers (LAION-CLAP), an argparse.Namespace (AudioMAE), Lightning's callbacks and settings (VAE)."""
    module = types.ModuleType("pytorch_lightning.callbacks")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", module)
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    settings = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.ModelCheckpoint, module.AttributeDict = callback, settings
    content = {
        "state_dict": state_dict(),
        "epoch": np.float64(3),
        "best": np.arange(3, dtype=np.int32),
        "args": argparse.Namespace(lr=1e-3, blocks=[1, 2]),
        "callbacks": {callback: {"best_model_score": torch.tensor(1.0)}},
        "hyper_parameters": settings(lr=0.1),
    }
    path = save(tmp_path / "x.ckpt", content, zipped)
    monkeypatch.delitem(sys.modules, "pytorch_lightning.callbacks")  # nothing of it is needed for reading
    np.testing.assert_array_equal(read_pickle(path)["a.weight"], WEIGHT)


class Runs:
    """A pickle of this one makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, how):
    content, path = {"state_dict": state_dict(), "extra": Runs(tmp_path / "made")}, tmp_path / "x.pth"
    if how == "plain":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        save(path, content, how == "zip")
    with pytest.raises(
        FolderError, match=r"would run code.*mkdir.*state_dict" if how != "plain" else "damaged|refused"
    ):
        read_pickle(path)
    assert not (tmp_path / "made").exists()


def test_a_file_that_is_cut_short_is_named(tmp_path):
    for rest in (0.3, 0.99):
        whole = save(tmp_path / "whole.pth", state_dict()).read_bytes()
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[: int(len(whole) * rest)])
        with pytest.raises(FolderError, match=r"cut\.pth is .*cut short"):
            read_pickle(path)


def test_an_old_file_is_told_to_be_cut_short_wherever_it_is(tmp_path):
    """Also within the name of a function, which by itself looks like one that is refused."""
    whole = save(tmp_path / "whole.pth", state_dict() | {"epoch": np.float64(3)}, zipped=False).read_bytes()
    path = tmp_path / "cut.pth"
    for rest in range(1, len(whole)):
        path.write_bytes(whole[:rest])
        with pytest.raises(FolderError, match=rf"cut\.pth is cut short \({rest} bytes\)"):
            read_pickle(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(FolderError, match=r"x\.pth is no PyTorch file"):
        read_pickle(tmp_path / "x.pth")


def test_files_without_weights_and_files_that_are_not_there(tmp_path):
    with pytest.raises(FolderError, match=r"no tensors.*it holds steps"):
        read_pickle(save(tmp_path / "x.pth", {"steps": 3}))
    with pytest.raises(FolderError, match="no file"):
        read_pickle(tmp_path / "absent.pth")
    with pytest.raises(FolderError, match="holds a twice"):
        read_pickle(save(tmp_path / "x.pth", {"a": torch.ones(1), "module.a": torch.ones(1)}))


def test_without_pytorch_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", state_dict())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FolderError, match="pip install torch"):
        read_pickle(path)
