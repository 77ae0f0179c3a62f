"""The tensors of one component's folder: as safetensors or as PyTorch pickled them, in one file or in shards.

A folder may hold its weights several times: as variants (`model.fp16.safetensors` is the variant fp16, a name without
one is float32 by custom) and in both formats. `choose` says which are read, and no other file is opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # with it NumPy knows bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from audioldm2_jax.checkpoints.atomic_folder import FolderError, read_json
from audioldm2_jax.checkpoints.torch_pickle import read_pickle

# As transformers and diffusers name them: model.safetensors, model.fp16.safetensors, pytorch_model.bin, and the indices
# of shards, model.safetensors.index.json and model.safetensors.index.fp16.json. Shards themselves have a hyphen.
_WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)(\.(?P<variant>\w+))?\.(?P<format>safetensors|bin)"
    r"(\.index(\.(?P<index_variant>\w+))?\.json)?"
)
_STORED = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
# From the last to the first they stand in a file.
_KINDS = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")


def choose(names: Iterable[str], variant: str | None, where: object) -> str:
    """The file, or the index of shards, among the files of a component's folder that is to be read.

    Args:
      names: of the folder's files.
      variant: which one; None takes the weights without a variant, and else the only variant there is.
      where: the folder, for messages.

    Raises:
      FolderError: where there are none, or it is not clear which.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            formats = found.setdefault(match["variant"] or match["index_variant"] or "", {})
            formats.setdefault(match["format"], []).append(name)
    if not found:
        raise FolderError(f"{where} has no weights (such as model.safetensors); copy or download it again.")
    if variant is None and "" not in found and len(found) > 1:
        raise FolderError(f"{where} has its weights as {', '.join(sorted(found))}: choose one with variant=.")
    wanted = ("" if "" in found else next(iter(found))) if variant is None else variant
    if wanted not in found:
        there = ", ".join(name or "weights without a variant" for name in sorted(found))
        raise FolderError(f"{where} has no variant {wanted!r}; there are: {there}.")
    files = found[wanted].get("safetensors") or found[wanted]["bin"]
    if len(files) > 1:
        raise FolderError(f"{where} holds its weights twice, as {' and '.join(files)}; delete what is not meant.")
    return files[0]


def read_tensors(folder: Path, variant: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of a component's folder, by their PyTorch names; whatever is a fraction comes as float32.

    Args:
      folder: the component's.
      variant: as in `choose`.

    Raises:
      FolderError: where they are missing, damaged, or not clear; names the file.
    """
    chosen = folder / choose((file.name for file in folder.iterdir()), variant, folder)
    return _read_shards(chosen) if chosen.suffix == ".json" else _read_file(chosen)


def shard_names(index: Path) -> dict[str, str]:
    """What an index of shards says: names of tensors to names of files beside the index.

    Raises:
      FolderError: where it is missing, damaged, or names files elsewhere.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FolderError(f"{index} names no shards (weight_map); copy or download it again.")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise FolderError(f"{index} names {name!r}, which is no file beside it; copy or download it again.")
    return places


def precision(values: np.ndarray) -> float:
    """How exact float32 numbers are that were read from a file: half a unit in the last place, relative to each.

    A file in half precision has fewer digits, so what is compared with a formula or another file has to be as near as
    that and no nearer.
    """
    values = np.asarray(values, np.float32)
    for stored in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            if np.array_equal(values, values.astype(stored).astype(np.float32), equal_nan=True):
                return float(ml_dtypes.finfo(stored).eps) / 2
    return float(np.finfo(np.float32).eps) / 2


def agree(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two tensors are one, stored in the same or in different precision."""
    if first is None or second is None or first.shape != second.shape:
        return False
    if np.array_equal(first, second):
        return True
    if first.dtype.kind != "f" or second.dtype.kind != "f":
        return False
    coarse = max(precision(first), precision(second))
    # In full precision the same tensor is the same bits. The smallest numbers of half precision have fewer digits.
    return coarse > 1e-6 and np.allclose(first, second, rtol=2 * coarse, atol=1e-7)


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Writes one safetensors file, a tensor at a time, so that no more than one need be in memory.

    The file is that of `safetensors.numpy.save_file`, byte by byte (huggingface/safetensors, README.md, Format).

    Args:
      tensors: what has `shape` and `dtype` and becomes an array by `numpy.asarray`, by their names; they are read once
        each, in their order.
      path: of the file.

    Raises:
      OSError: for want of space, say.
    """
    kinds = {key: _kind(tensor.dtype) for key, tensor in tensors.items()}
    places, end = {}, 0
    for key in sorted(tensors, key=lambda key: (-_KINDS.index(kinds[key]), key)):
        begin, end = end, end + math.prod(tensors[key].shape) * np.dtype(tensors[key].dtype).itemsize
        places[key] = {"dtype": kinds[key], "shape": list(tensors[key].shape), "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}} | places, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key, tensor in tensors.items():
            file.seek(8 + len(header) + places[key]["data_offsets"][0])
            value = np.asarray(tensor)
            if value.dtype.byteorder == ">":
                value = value.astype(value.dtype.newbyteorder("<"))
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def _kind(dtype: Any) -> str:
    """Returns the name that safetensors has for a dtype."""
    dtype = np.dtype(dtype)
    if dtype == ml_dtypes.bfloat16:
        return "BF16"
    return "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of all shards that the index names: each once, and none that it does not name."""
    places = shard_names(index)
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        file = index.parent / name
        if not file.is_file():
            raise FolderError(f"{file} is missing, a shard that {index.name} names; copy or download it again.")
        part = _read_file(file)
        if odd := sorted(part.keys() ^ {key for key, place in places.items() if place == name}):
            there = "has" if odd[0] in part else "lacks"
            raise FolderError(f"{file} {there} {odd[0]}, against {index.name}; copy or download both again.")
        tensors |= part
    return tensors


def _read_file(file: Path) -> dict[str, np.ndarray]:
    tensors = read_pickle(file) if file.suffix == ".bin" else _read_safetensors(file)
    return {key: value.astype(np.float32) if _is_fraction(value) else value for key, value in tensors.items()}


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            for name in names:
                if (dtype := opened.get_slice(name).get_dtype()) not in _STORED:
                    raise FolderError(f"{file} holds {name} as {dtype}; supported are {', '.join(sorted(_STORED))}.")
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise FolderError(f"{file} cannot be read ({error}); copy or download it again.") from None


def _is_fraction(value: np.ndarray) -> bool:
    return value.dtype != np.float32 and (value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16)
