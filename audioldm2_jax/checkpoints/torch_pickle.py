"""Checkpoints that PyTorch pickled (.pth, .pt, .ckpt, .bin), read without running what is in them.

A pickle may name any function and have it called. PyTorch's restricted reader (`weights_only`) knows tensors and
plain containers and refuses all else. What trainers put beside the weights, settings and callbacks, becomes objects
without behaviour here; nothing that the file names is imported.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_jax.checkpoints.atomic_folder import FolderError

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
"""How the names of such files end."""

# Under one of these keys trainers keep the state dict; HiFi-GAN's is called `generator`.
_STATE_DICTS = ("state_dict", "model", "generator")
# What data parallelism, PyTorch Lightning's compilation and torch.compile hang before every name.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# Settings and callbacks of trainers: read as `_Inert`.
_SETTINGS = re.compile(r"^(argparse\.Namespace|(pytorch_)?lightning(_fabric)?\..+|omegaconf\..+|typing\.Any)$")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
# How PyTorch's format before version 1.6 begins: a number in a pickle of its own. Four more follow, then the tensors.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 4


class _Inert:
    """Takes the place of an object of which nothing is needed: its making gives a plain mapping."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return OrderedDict()


def read_pickle(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch file, flat.

    It is looked for under `state_dict`, `model` and `generator`, also nested, and else is the file's whole content.
    What stands beside it (optimiser, epoch, settings) is left out, and so are `module.` and `_orig_mod.`, with which
    wrappers begin names. bfloat16 and float16 become float32, which holds them exactly; other dtypes stay. The arrays
    lie in the file, where its format allows it, and are read when they are used.

    Args:
      path: the file.

    Returns:
      names, nested ones joined by dots, to arrays.

    Raises:
      FolderError: for a file that is missing, cut short, no PyTorch file, without tensors, or that would run code.
    """
    path = Path(path)
    content = _load(path)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in _flat(_state_dict(content)):
        key = _WRAPPERS.sub("", name)
        if key in tensors:
            raise FolderError(f"{path} holds {key} twice, once as {name}; it is no checkpoint of one network.")
        tensors[key] = _array(tensor)
    if not tensors:
        found = f"it holds {', '.join(map(str, list(content)[:10]))}" if isinstance(content, Mapping) else "it is empty"
        raise FolderError(f"{path} has no tensors under {', '.join(_STATE_DICTS)} or at its top: {found}.")
    return tensors


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FolderError(f"{path} is no file; give the path of a checkpoint.")
    try:
        import torch
    except ImportError:
        raise FolderError(f"Reading {path} takes PyTorch: pip install torch (the build for CPU will do).") from None
    zipped = zipfile.is_zipfile(path)
    if not zipped:
        _check_beginning(path)
    allowed = _numpy_names()
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            if _is_cut(path):
                raise FolderError(_cut_short(path)) from None
            name = _named_in(error)
            if name is None or not _SETTINGS.match(name) or any(name in pair for pair in allowed):
                raise FolderError(_refusal(path, name)) from None
            # A class each, since the reader tells them apart by the class.
            allowed.append((type("Inert", (_Inert,), {}), name))
        except (
            RuntimeError,
            EOFError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            OSError,
            struct.error,
        ) as error:
            if _is_cut(path) or "unexpected EOF" in str(error):
                raise FolderError(_cut_short(path)) from None
            raise FolderError(f"{path} is damaged or cut short; copy or download it again. ({error})") from None


def _check_beginning(path: Path) -> None:
    """What is no whole archive may still be a plain pickle, as PyTorch wrote before version 1.6."""
    with path.open("rb") as file:
        beginning = file.read(len(_ZIP))
    if beginning == _ZIP:
        raise FolderError(_cut_short(path))
    if not beginning.startswith(_PICKLE):
        raise FolderError(f"{path} is no PyTorch file: it begins with {beginning!r}.")


def _is_cut(path: Path) -> bool:
    """Whether a file of PyTorch's old format ends within its pickles, of which nothing is run here."""
    with path.open("rb") as file:
        beginning = file.read(len(_LEGACY))
        try:
            for _ in range(_LEGACY_PICKLES if beginning == _LEGACY else 0):
                for _ in pickletools.genops(file):
                    pass
        except ValueError:
            return True
    return len(beginning) < len(_LEGACY) and _LEGACY.startswith(beginning)


def _cut_short(path: Path) -> str:
    return f"{path} is cut short ({path.stat().st_size} bytes); copy or download it again."


def _numpy_names() -> list[tuple[Any, str]]:
    """NumPy's numbers and arrays, under the names of its versions 1 and 2."""
    pairs = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    for function in (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]):
        pairs += [(function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core")]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
    return pairs + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds]


def _named_in(error: Exception) -> str | None:
    """The function or class that the reader refused."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found and found[1]


def _refusal(path: Path, name: str | None) -> str:
    return (
        f"{path} is refused: reading it would run code ({name or 'it holds more than weights'}). If you trust where it "
        "comes from, load it there and save the weights alone: "
        'torch.save({"state_dict": model.state_dict()}, "weights.pth").'
    )


def _state_dict(content: Any) -> Any:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _STATE_DICTS if isinstance(content.get(key), Mapping)), None)
        if inner is None or not any(True for _ in _flat(inner)):
            break
        content = inner
    return content


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, tensor) of nested mappings; what is no tensor is left out."""
    import torch

    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}{name}", value
            else:
                yield from _flat(value, f"{prefix}{name}.")


def _array(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.detach().numpy()
