"""Folders that appear whole or not at all, with a manifest of SHA-256 digests that is checked on reading."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audioldm2_jax.runtime.text_files import TextFileError, read_json_object

MANIFEST = "manifest.json"


class FolderError(ValueError):
    """A model folder that cannot be read or written; the message names the file and what to do."""


def copy_part(source: str | os.PathLike, folder: str | os.PathLike, name: str) -> None:
    """Copies the files of the folder `source` (a tokenizer, say) to `folder/name`, with a manifest.

    Raises:
      FolderError: where there is nothing to copy, or no writing.
    """
    files = [path for path in Path(source).glob("*") if path.is_file() and path.name != MANIFEST]
    if not files:
        raise FolderError(f"{source} is missing or empty, so {Path(folder) / name} cannot be written.")
    with new_folder(Path(folder) / name) as target:
        for path in files:
            shutil.copy2(path, target)


def check_manifest(path: Path) -> None:
    """Compares the files of a subfolder with its manifest, where it has one.

    Raises:
      FolderError: naming the file that is missing or differs.
    """
    if not (path / MANIFEST).is_file():
        return
    digests = read_json(path / MANIFEST).get("sha256")
    if not isinstance(digests, dict):
        raise FolderError(
            f"{path / MANIFEST} is damaged or another program's: it has no digests (sha256). Copy or publish the model "
            "folder again, or delete that file if it is not ours."
        )
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise FolderError(f"{path / name} is missing; copy or publish the model folder again.")
        if _digest(path / name) != digest:
            raise FolderError(
                f"{path / name} is damaged: its digest is not the one in {MANIFEST}. Copy or publish the "
                f"model folder again; if you changed the file on purpose, delete {path / MANIFEST}."
            )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, with a manifest, if nothing goes wrong.

    Raises:
      FolderError: where it cannot be written, for want of space, say; what was there before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        files = sorted(file for file in partial.iterdir() if file.is_file())
        write_json(partial / MANIFEST, {"sha256": {file.name: _digest(file) for file in files}})
        replace_folder(partial, path)
    except OSError as error:
        raise FolderError(
            f"{path} cannot be written: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed while they wrote folders have left in `folder`; nobody else writes."""
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Renames the folder `new` to `path`; an earlier folder there goes once the new one stands."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file of one object."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of one object, in whichever encoding a person has saved it.

    Raises:
      FolderError: where it is missing or damaged.
    """
    if not path.exists():
        raise FolderError(f"{path} is missing; copy or publish the model folder again.")
    try:
        return read_json_object(path)
    except TextFileError as error:
        raise FolderError(f"{path} cannot be read: {error}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
