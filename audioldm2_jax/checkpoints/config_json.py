"""What config.json of a component says: whether it is of the right types, and two of them merged or compared."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn


class Scale(float):
    """The type of a number that others are multiplied and divided by."""


# Whole numbers that may be 0; others count something that has to be there.
_MAY_BE_ZERO = {"decoder_depth", "pad_token_id", "steps_offset", "window_size"}
_WORDS = {
    int: "a whole number above 0",
    float: "a number",
    Scale: "a number above 0",
    bool: "true or false",
    str: "a text in quotation marks",
    types.NoneType: "null",
}
_OBJECT = "an object of names and values"
_QUOTED = 80  # characters of what is there instead


def types_of(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass by name; of a module, those that each module has among them."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def mistyped(config: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields, for each key that has a value of another type than expected, a line that says so.

    Args:
      config: what is there; keys that nothing is expected of may have any value.
      expected: key → type: int (above 0, as far as it counts something), float (an int is one, too), Scale, bool, str,
        None, Sequence of such, unions of such, or a mapping, whose keys are looked at in turn.
      prefix: of the keys, in the lines.
    """
    for key, kind in expected.items():
        if key not in config:
            continue
        value = config[key]
        if isinstance(kind, Mapping) and isinstance(value, Mapping):
            yield from mistyped(value, kind, f"{prefix}{key}.")
        elif not _fits(value, kind, key in _MAY_BE_ZERO):
            said = repr(value)
            said = said if len(said) <= _QUOTED else f"{said[:_QUOTED]}…"
            yield f"{prefix}{key}={said}; it has to be {_described(kind)}"


def _fits(value: Any, kind: Any, zero: bool) -> bool:
    if kind is Any:
        return True
    if isinstance(kind, Mapping):
        return isinstance(value, Mapping)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one, zero) for one in of)
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, of[0], zero) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if isinstance(value, bool | np.bool_):
        return kind is bool
    if kind is int:
        return isinstance(value, int | np.integer) and value >= (0 if zero else 1)
    if kind in (float, Scale):
        return isinstance(value, int | float | np.number) and math.isfinite(value) and (kind is float or value > 0)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_described, of))
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each of it {_described(of[0])}"
    return _OBJECT if isinstance(kind, Mapping) else _WORDS.get(kind, _OBJECT)


def differences(fixed: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, wanted, found) where `config` contradicts `fixed`; nested."""
    for key, wanted in fixed.items():
        found = config.get(key, wanted)
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            yield from ((f"{key}.{below}", *rest) for below, *rest in differences(wanted, found))
        elif found != wanted:
            yield key, wanted, found


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings in one; of two values the second's, of two mappings both."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def without(keys: set[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping, and those in it, without some keys."""
    return {
        key: without(keys, value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in keys
    }


def frozen(value: Any) -> Any:
    """Lists as tuples and mappings as FrozenDict, so that a module with such fields is hashable."""
    if isinstance(value, Mapping):
        return nn.FrozenDict({key: frozen(item) for key, item in value.items()})
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Mappings as dict and sequences as list: what JSON knows."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
