"""Text files as people, spreadsheets and other programs write them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

# The longer marks first: UTF-32's begins like UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class TextFileError(ValueError):
    """A file that is no text, or not in an encoding that can be told; the message names it, the line and what to do."""


def read_text(path: Path) -> str:
    r"""The text of a file, whatever its byte order mark and line ends, which become "\n".

    Without a mark it is UTF-8.

    Raises:
        TextFileError: not there, not to be read, in another encoding, or with zero bytes.
    """
    try:
        return decode_text(path.read_bytes(), shown(path))
    except OSError as error:
        raise TextFileError(f"{shown(path)} cannot be read: {error.strerror or error}") from error


def decode_text(content: bytes, where: str) -> str:
    """The text that the bytes of a file are; see `read_text`. `where` is what messages call it."""
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    encoding, body = _MARKS.get(mark, "utf-8"), content[len(mark) :]
    if encoding == "utf-8" and b"\0" in body:
        # In UTF-16, every other byte of Latin text is zero.
        zero = body.index(0)
        guess = "it looks like UTF-16 without a byte order mark" if body[:400].count(0) > len(body[:400]) // 4 else ""
        line = body[:zero].count(b"\n") + 1
        raise TextFileError(f"{where}, line {line}: a zero byte, so this is no text{guess and f'; {guess}'}: {_SAVE}")
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n" if encoding == "utf-8" else "\n".encode(encoding)) + 1
        raise TextFileError(
            f"{where}, line {line}: not {encoding.upper()} (byte 0x{body[error.start]:02x}: {error.reason}); {_SAVE}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


#: All that ends a line for somebody (str.splitlines), and what a terminal obeys, the direction of writing included.
_OBEYED = (*range(9), *range(10, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: repr(chr(code))[1:-1] for code in _OBEYED}
_SAVE = "save it as UTF-8"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TextFileError: as `read_text`, or not one JSON object; with the line.
    """
    return json_object(read_text(path), shown(path))


def json_object(text: str, where: str) -> dict[str, Any]:
    """The object that a text is in JSON; see `read_json_object`. `where` is what messages call it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise TextFileError(f"{where} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise TextFileError(f"{where} holds a {type(content).__name__} and no object of names and values")
    return content


def shown(path: object) -> str:
    """A path as it can be printed: in one line, and what is not UTF-8 or ends a line with escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode().translate(_ESCAPES)


def shown_lines(text: str) -> str:
    """A text of several lines as it can be printed: each as `shown`."""
    return "\n".join(map(shown, text.split("\n")))


def printable(text: str) -> str:
    """A text with "?" for halves of characters (lone surrogates), which neither tokenizers nor files take."""
    return text.encode("utf-8", "replace").decode()
