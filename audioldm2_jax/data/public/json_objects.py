"""The objects in a list of a JSON file, one after the other, without the whole of it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from audioldm2_jax.runtime.text_files import shown

_READ = 2**20  # characters at a time
_BEFORE = 2**26  # characters within which the list begins
_BETWEEN = re.compile(r"[\s,]*")


def objects_of(file: Path, key: str) -> Iterator[tuple[str, dict]]:
    """The objects in a list, which is all of a file or what the object in the file has under `key`.

    Returns:
        What messages call an object, and the object.

    Raises:
        ValueError: the file is no JSON, or has no such list; says where.
    """
    try:
        with file.open(encoding="utf-8-sig") as text:
            for count, found in enumerate(_values(text, file, key), 1):
                where = f'{shown(file)}, number {count} of "{key}"'
                if not isinstance(found, dict):
                    raise ValueError(f"{where} is no object")
                yield where, found
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown(file)} cannot be read: {error}") from error


def _values(text: TextIO, file: Path, key: str) -> Iterator[object]:
    decode, count = json.JSONDecoder().raw_decode, 0
    buffer, place = _after_bracket(text, file, key), 0
    while True:
        place = _BETWEEN.match(buffer, place).end()
        if buffer.startswith("]", place):
            return
        try:
            found, place = decode(buffer, place)
        except (json.JSONDecodeError, RecursionError) as error:
            more = text.read(max(_READ, len(buffer) - place))  # so that a long object is not begun too often
            if not more:
                raise ValueError(f'{shown(file)} is damaged after number {count} of "{key}": {error}') from error
            buffer, place = buffer[place:] + more, 0
            continue
        count += 1
        yield found


def _after_bracket(text: TextIO, file: Path, key: str) -> str:
    """The text that follows the bracket with which the list begins, as far as it is read."""
    begin = re.compile(rf'\A\s*\[|"{re.escape(key)}"\s*:\s*\[')
    buffer = ""
    while len(buffer) < _BEFORE and (more := text.read(_READ)):
        buffer += more
        if start := begin.search(buffer):
            return buffer[start.end() :]
    raise ValueError(f'{shown(file)} has no list "{key}"')
