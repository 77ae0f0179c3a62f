"""PyTorch parameter names ↔ Flax parameter names: one rule for every network, plus a short table for each.

The modules of `audioldm2_jax.models` carry the names of their PyTorch twins, so the rule is generic:

* path parts are joined by dots, and list indices, which Flax cannot nest, hang on their list's name:
  `down_blocks.0.resnets.1.conv1` ↔ `down_blocks_0/resnets_1/conv1`;
* `kernel`, `scale` and `embedding` ↔ `weight`; `mean` and `var` of `batch_stats` ↔ `running_mean` and
  `running_var`; a leaf at the root, and any other leaf, keeps its name;
* the number of axes of a `kernel` decides its layout: [in, out] ↔ [out, in] (linear layers) and
  [*window, in, out] ↔ [out, in, *window] (convolutions). A transposed convolution is named in the network's
  table: [*window, in, out] ↔ [in, out, *window], its taps in the same order: tap j of input t lands at
  stride · t + j − padding.

Since `linear_1` may be a name or the second of a list, reading compares names with every index hung on its
list, that is, against the target's own leaves; writing asks the table which trailing digits belong to the
name. Nothing is skipped silently: see `to_flax`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from audioldm2_jax.checkpoints.tensors import agree

Pattern = str

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_LISTED = 20


@dataclass(frozen=True)
class Names:
    """The exceptions of one network to the rule above; regular expressions are searched in PyTorch's names.

    unused: tensors a file may hold that the network does not use; they are carried, and written back.
    conv_transpose: weights of transposed convolutions.
    untransposed: weights stored [in, out] in PyTorch too (GPT-2's Conv1D).
    literal: whole path parts whose trailing digits are part of the name rather than an index.
    rename: (pattern, replacement) on the Flax path joined by dots, before indices are split off.
    spellings: (pattern, replacement) from other spellings found in files to the one that is written.
    """

    unused: tuple[Pattern, ...] = ()
    conv_transpose: tuple[Pattern, ...] = ()
    untransposed: tuple[Pattern, ...] = ()
    literal: tuple[Pattern, ...] = ()
    rename: tuple[tuple[Pattern, str], ...] = ()
    spellings: tuple[tuple[Pattern, str], ...] = ()


NAMES: dict[str, Names] = {
    "unet": Names(literal=(r"linear_\d",)),
    "vae": Names(
        # Folders written before diffusers 0.17 name the attention of the mid block differently.
        spellings=(
            (r"(attentions\.0)\.query\.", r"\1.to_q."),
            (r"(attentions\.0)\.key\.", r"\1.to_k."),
            (r"(attentions\.0)\.value\.", r"\1.to_v."),
            (r"(attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
        ),
    ),
    "vocoder": Names(unused=(r"^mean$", r"^scale$"), conv_transpose=(r"^upsampler\.\d+\.weight$",)),
    "language_model": Names(
        # Written as GPT2LMHeadModel, which diffusers needs; read as that or as GPT2Model.
        # Old files hold causal masks beside the weights.
        rename=((r"^", "transformer."),),
        spellings=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
        literal=(r"ln_\d",),
        untransposed=(r"\.(c_attn|c_proj|c_fc)\.weight$",),
        unused=(r"\.wte\.weight$", r"^lm_head\.weight$", r"\.attn\.(masked_)?bias$"),
    ),
    "projection_model": Names(literal=(r"(projection|sos_embed|eos_embed)_\d",)),
    "text_encoder": Names(
        unused=(
            r"num_batches_tracked$",
            r"position_ids$",
            r"token_type_ids$",
            r"relative_position_index$",
        ),
    ),
    "text_encoder_2": Names(
        literal=(r"wi_\d",),
        spellings=((r"^encoder\.embed_tokens\.weight$", "shared.weight"),),  # one tensor under two names
        unused=(r"^decoder\.", r"^lm_head\."),
    ),
    "vits": Names(
        # A whole VitsModel, of which the text encoder is used.
        rename=((r"^", "text_encoder."),),
        literal=(r"conv_\d",),
        unused=(
            r"^text_encoder\.project\.",
            r"^(flow|decoder|duration_predictor|posterior_encoder|embed_speaker)\.",
        ),
    ),
    "audiomae": Names(
        # The positions are fixed sines and the windows' masks fixed tables: computed, not learnt.
        unused=(
            r"pos_embed$",
            r"relative_position_index$",
            r"attn_mask$",
            r"relative_coords_table$",
            # Another decoder, which files of the authors hold (upstream/parameter_names.py).
            r"^plain_decoder_blocks\.",
        ),
    ),
}


def torch_key(path: tuple[str, ...], names: Names) -> str:
    """The PyTorch name of a Flax leaf; path is (collection, module, ..., leaf)."""
    collection, *modules, leaf = path
    if modules:
        leaf = (_STATISTICS if collection == "batch_stats" else _LEAVES).get(leaf, leaf)
    key = ".".join([*modules, leaf])
    for pattern, replacement in names.rename:
        key = re.sub(pattern, replacement, key, count=1)
    return ".".join(_split_index(part, names.literal) for part in key.split("."))


def to_flax(tensors: Mapping[str, np.ndarray], target: Any, names: Names) -> tuple[Any, dict[str, np.ndarray]]:
    """Arranges a PyTorch state dict as Flax variables.

    tensors: PyTorch names to arrays, in PyTorch's layouts.
    target: variables {"params": ..., "batch_stats": ...} of arrays or of `jax.ShapeDtypeStruct`.
    Returns the variables as NumPy arrays of the target's dtypes and the unused tensors under their PyTorch names.
    Raises one ValueError that lists every tensor that is unexpected, missing, doubled or of another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    tensors, problems = _respell(tensors, names.spellings)
    by_key: dict[str, str] = {}
    for key in tensors:
        if by_key.setdefault(_normalize_key(key), key) != key:
            problems.append(f"duplicate: {key} and {by_key[_normalize_key(key)]} are one name in Flax")
    values, used = [], set()
    for path, leaf in leaves:
        path = tuple(str(part.key) for part in path)
        wanted = torch_key(path, names)
        key = by_key.get(_normalize_key(wanted))
        if key is None:
            problems.append(f"missing: {wanted} {_torch_shape(leaf, path, wanted, names)}")
        elif key in used:
            problems.append(f"duplicate: {key} is wanted by two parameters, one of them {'/'.join(path)}")
        elif tensors[key].shape != _torch_shape(leaf, path, wanted, names):
            expected = _torch_shape(leaf, path, wanted, names)
            problems.append(f"shape: {key} is {tensors[key].shape} and should be {expected}")
        else:
            axes = np.argsort(_torch_axes(path, len(leaf.shape), wanted, names))
            values.append(np.array(np.transpose(tensors[key], axes), leaf.dtype, order="C"))
        used.add(key)
    rest = {key: value for key, value in tensors.items() if key not in used}
    problems += [f"unexpected: {key} {rest[key].shape}" for key in rest if not _matches(key, names.unused)]
    _fail("These PyTorch tensors do not fit the network", problems)
    return jax.tree_util.tree_unflatten(structure, values), rest


class TorchView:
    """A Flax leaf in PyTorch's layout, read when NumPy asks for it: `shape`, `dtype`, and `numpy.asarray` of it."""

    def __init__(self, leaf: Any, axes: tuple[int, ...]):
        self._leaf, self._axes = leaf, axes
        self.shape = tuple(leaf.shape[axis] for axis in axes)
        self.dtype = np.dtype(leaf.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.transpose(np.asarray(self._leaf), self._axes), dtype, order="C")


def torch_views(variables: Any, names: Names) -> dict[str, TorchView]:
    """Arranges Flax variables as a PyTorch state dict that is not read yet, in the order of the tree's leaves.

    variables: {"params": ..., "batch_stats": ...}, of arrays or of what becomes one by `numpy.asarray`.
    Raises ValueError if two leaves have one name.
    """
    views, problems = {}, []
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        path = tuple(str(part.key) for part in path)
        key = torch_key(path, names)
        if key in views:
            problems.append(f"duplicate: {key}, again from {'/'.join(path)}")
        views[key] = TorchView(leaf, _torch_axes(path, len(leaf.shape), key, names))
    _fail("These variables have no PyTorch form", problems)
    return views


def to_torch(variables: Any, names: Names, unused: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Arranges Flax variables as a PyTorch state dict: the inverse of `to_flax`.

    variables: {"params": ..., "batch_stats": ...}; unused: what `to_flax` handed back, written as it is.
    Returns PyTorch names to contiguous NumPy arrays. Raises ValueError if two leaves have one name.
    """
    tensors = {key: np.asarray(view) for key, view in torch_views(variables, names).items()}
    unused = unused or {}
    twice = [f"duplicate: the unused tensor {key} is a parameter of the network" for key in unused if key in tensors]
    _fail("These variables have no PyTorch form", twice)
    return tensors | {key: np.asarray(value) for key, value in unused.items()}


def torch_shapes(target: Any, names: Names) -> dict[str, tuple[int, ...]]:
    """PyTorch names and shapes of variables, or of their `jax.ShapeDtypeStruct`s."""
    made = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(target)[0]:
        path = tuple(str(part.key) for part in path)
        key = torch_key(path, names)
        made[key] = _torch_shape(leaf, path, key, names)
    return made


def _split_index(part: str, literal: Iterable[Pattern]) -> str:
    """`resnets_1` → `resnets.1`, `list_0_1` → `list.0.1`; `linear_1` stays where the table says so."""
    if any(re.fullmatch(pattern, part) for pattern in literal):
        return part
    return re.sub(r"(?<=.)_(\d+)(?=$|_\d)", r".\1", part)


def _normalize_key(key: str) -> str:
    """The common form of both sides: `resnets.1.conv1` → `resnets_1.conv1`; `linear_1` is already in it."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", key)


def _torch_axes(path: tuple[str, ...], rank: int, key: str, names: Names) -> tuple[int, ...]:
    """The order of a Flax leaf's axes in PyTorch."""
    if path[-1] != "kernel" or rank < 2 or _matches(key, names.untransposed):
        return tuple(range(rank))
    window, (fan_in, fan_out) = range(rank - 2), (rank - 2, rank - 1)
    channels = (fan_in, fan_out) if _matches(key, names.conv_transpose) else (fan_out, fan_in)
    return (*channels, *window)


def _torch_shape(leaf: Any, path: tuple[str, ...], key: str, names: Names) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in _torch_axes(path, len(leaf.shape), key, names))


def _respell(
    tensors: Mapping[str, np.ndarray], spellings: Iterable[tuple[Pattern, str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Brings every key to the spelling that is written; spellings of one name must hold the same tensor."""
    respelt: dict[str, np.ndarray] = {}
    problems = []
    for original, value in tensors.items():
        key = original
        for pattern, replacement in spellings:
            key = re.sub(pattern, replacement, key)
        if key in respelt and not agree(respelt[key], value):
            problems.append(f"duplicate: {original} differs from the other tensor called {key}")
        respelt.setdefault(key, value)
    return respelt, problems


def _matches(key: str, patterns: Iterable[Pattern]) -> bool:
    return any(re.search(pattern, key) for pattern in patterns)


def _fail(title: str, problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise ValueError("\n  ".join([f"{title}: {len(problems)} problems", *problems[:_LISTED], *more]))
