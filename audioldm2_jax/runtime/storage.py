"""Paths that people type: on a command line, in a config, in a metadata file."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

# With one slash, too, as RFC 8089 and Java write it. One letter is a drive of Windows.
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(//?)")
#: A folder of this name, wherever it lies, holds what this package keeps beside a person's files.
OWN_FOLDER = ".audioldm2_jax"
#: Object stores that hold run folders, model folders and data (runtime/object_store.py).
_STORES = ("gs", "s3")


class StorageError(ValueError):
    """A text that names no place; the message says what was typed and what to do."""


def scheme_of(text: str) -> str:
    """Returns the scheme of an address in an object store, in small letters; "" of any other text."""
    scheme, found, _ = text.strip().partition("://")
    return scheme.lower() if found and scheme.lower() in _STORES else ""


def is_here(text: str, what: str) -> bool:
    """Returns whether a text, which may be a path, a hub id or an address, is a path of something on this machine.

    Raises:
      StorageError: as `local_path`, but for an address in an object store.
    """
    return not scheme_of(text) and local_path(text, what).exists()


def local_path(text: str, what: str) -> Path:
    """Returns the path that a person means by `text`.

    `~` and `~user` are expanded, `file://` is taken off. White space and line ends around a path are dropped, unless
    it exists with them. Where nothing is called as typed, but something is called the same with its accents composed
    or decomposed (macOS stores them decomposed), it is that. Nothing needs to exist. Relative paths stay relative.

    Args:
      text: as typed.
      what: what names it in the message, as typed: "--config.run_dir", "--model", "line 3 of metadata.csv".

    Raises:
      StorageError: `text` is empty, an address of storage that is not served (`gs://bucket/run`), or no path at all.
    """
    if not text.strip():
        raise StorageError(f"{what} is empty: name a path")
    url = _URL.match(text.strip())
    if url and url[1].lower() != "file":
        raise StorageError(
            f"{what}={text.strip()}: {url[0]} is not served, only paths of this machine; mount the storage "
            "(gcsfuse, mount-s3, rclone …) and name the folder where it is mounted, or copy what is there (run and "
            "model folders and data may be on gs:// and s3://)"
        )
    if url:
        rest = text.strip()[url.end() :]
        if url[2] == "//":  # a host comes next, none or this one
            rest = rest.removeprefix("localhost")
        text = "/" + unquote(rest.lstrip("/"))
    if "\0" in text:
        raise StorageError(f"{what}={text!r}: a path has no zero byte")
    try:
        path = Path(text).expanduser()
        if not path.exists() and text.strip() != text:
            path = Path(text.strip()).expanduser()
        return path if path.exists() else _with_other_accents(path)
    except RuntimeError as error:  # of expanduser
        raise StorageError(f"{what}={text}: {error}") from error
    except OSError as error:  # a name too long, a loop of symbolic links
        raise StorageError(f"{what}={text}: {error.strerror}") from error


def _with_other_accents(path: Path) -> Path:
    """Returns `path` with each part that does not exist in the Unicode form in which it does."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((form for form in forms if (found / form).exists()), part)
    return found
