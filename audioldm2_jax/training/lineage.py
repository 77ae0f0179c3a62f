"""Which result was made from which, so that networks of different generations are never mixed.

A stage writes down what it was begun with: stages/STAGE/lineage.json has, for each component that it read, where that
came from and the digest of its config and weights, and the digests of the tokenizers that made its token ids. The same
file goes into stages/STAGE/result/. Where what is there now has another digest, the stage is stale: it neither goes on
nor is published until it is trained anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.checkpoints.atomic_folder import MANIFEST, read_json
from audioldm2_jax.checkpoints.tensors import choose, shard_names
from audioldm2_jax.conditioning.conditions import text_kinds
from audioldm2_jax.data import text
from audioldm2_jax.runtime import hosts
from audioldm2_jax.runtime.storage import is_here
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import run_folder

FILE = "lineage.json"


class RunError(ValueError):
    """The run cannot start or go on as asked; the message says what to do."""


class Input(NamedTuple):
    """A component that a stage reads: `origin` as a person knows it, `place` a folder, or a hub id."""

    origin: str
    place: str


def stage_folder(config: ConfigDict, name: str) -> Path:
    return run_folder.path(config) / "stages" / name


def finished(config: ConfigDict, name: str) -> bool:
    """Returns whether the stage's result is there."""
    return (stage_folder(config, name) / "result").is_dir()


def begun(config: ConfigDict, name: str) -> bool:
    """Returns whether the stage has something to go on from: a checkpoint, or its result.

    A stage that failed before its first checkpoint may be begun again with any settings.
    """
    return finished(config, name) or run_folder.has_checkpoints(config, stage_folder(config, name))


def maker(config: ConfigDict, component: str, before: str = "") -> str | None:
    """Returns the last stage that makes `component`, earlier than the stage `before`; None if no stage does."""
    made = None
    for name, stage in STAGES.items():
        if name == before:
            break
        if component in stage.makes(config):
            made = name
    return made


def inputs(config: ConfigDict, name: str) -> dict[str, Input]:
    """Returns the components that stage `name` reads or starts from, those that are there."""
    stage, found = STAGES[name], {}
    for part in dict.fromkeys((*stage.needs(config), *stage.continues(config), *stage.makes(config))):
        source = maker(config, part, before=name)
        if source and finished(config, source):
            found[part] = Input(f"stages/{source}", str(stage_folder(config, source) / "result"))
        elif config.init_from[part]:
            found[part] = Input(config.init_from[part], config.init_from[part])
    return found


def write(config: ConfigDict, name: str, adopted: bool = False) -> None:
    """Writes down what stage `name` is begun with; of a finished one, also in its result.

    Args:
        adopted: whether an earlier version began the stage and wrote nothing down.
    """
    read = {
        part: {"from": source.origin, "digest": digest(source.place, part)}
        for part, source in inputs(config, name).items()
    }
    content = {"version": 1, "adopted": adopted, "inputs": read, "tokenizers": _tokenizers(config, name)}
    write_json(stage_folder(config, name) / FILE, content)
    if finished(config, name):
        write_json(stage_folder(config, name) / "result" / FILE, content)


def adopt(config: ConfigDict, say: Callable[[str], None]) -> None:
    """Writes down, for stages that an earlier version began, that they were made from what is there now; says which."""
    names = [name for name in STAGES if begun(config, name) and read(config, name) is None]
    for name in names:
        write(config, name, adopted=True)
    if names:
        going_on = [name for name in names if not finished(config, name)]
        numbers = f"; {', '.join(going_on)} will go on with random numbers that differ from those of then"
        say(
            f"{', '.join(names)}: begun by an earlier version, which did not write down what they were made from; "
            f"taken to be made from what is in the run folder now{numbers * bool(going_on)}"
        )


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file through a temporary name."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def read(config: ConfigDict, name: str) -> dict | None:
    """Returns what stage `name` was begun with; None where an earlier version began it.

    Raises:
        RunError: the file is damaged.
    """
    path = stage_folder(config, name) / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} to train the stage anew") from error


def stale(config: ConfigDict, fetched: str = "") -> dict[str, str]:
    """Returns {stage: why it no longer fits what it was made from} of all stages that are begun.

    Args:
        fetched: the stage whose weights from the hub are here, so that these are compared, and not their ids alone.
    """
    found: dict[str, str] = {}
    for name in STAGES:
        if begun(config, name) and (reason := _why_stale(config, name, found, fetched == name)):
            found[name] = reason
    return found


def stale_results(config: ConfigDict) -> dict[str, str]:
    """Returns what `stale` does, of the finished stages alone: those that are published."""
    return {name: reason for name, reason in stale(config).items() if finished(config, name)}


def refuse_stale(config: ConfigDict, names: Iterable[str], fetched: str = "") -> None:
    """Checks the stages `names`, on all hosts as process 0 sees them; `fetched` as of `stale`.

    Raises:
        RunError: one of them is stale; the message names what to delete.
    """
    message = ""
    if hosts.is_first():
        found = {name: reason for name, reason in stale(config, fetched).items() if name in names}
        message = explain(config, found) if found else ""
    if message := hosts.broadcast(message, "lineage"):
        raise RunError(message)


def explain(config: ConfigDict, found: Mapping[str, str]) -> str:
    """Returns a line on what `stale` found, and what to do."""
    folders = [str(stage_folder(config, name)) for name in found]
    return (
        f"results of different generations: {'; '.join(f'{name} {reason}' for name, reason in found.items())}. Delete "
        f"{' and '.join(folders)} to train {'them' if len(folders) > 1 else 'it'} anew, or put back what was there"
    )


def _why_stale(config: ConfigDict, name: str, earlier: Mapping[str, str], fetched: bool) -> str:
    now, recorded, stage = inputs(config, name), read(config, name), STAGES[name]
    before = recorded["inputs"] if recorded else {}
    for part in (*stage.needs(config), *stage.continues(config)):
        if part not in now:
            source = maker(config, part, before=name)
            origin = before[part]["from"] if part in before else f"stages/{source}" if source else "init_from"
            return f"was made from the {part} of {origin}, which is gone"
    for part, source in now.items():
        if source.origin.removeprefix("stages/") in earlier:
            return f"was made from the {part} of {source.origin}, which is such a result"
        if recorded and part not in before:
            return f"was begun without the {part} of {source.origin}"
        if recorded and _is_other(part, source, before[part], fetched):
            return f"was made from another {part} than that of {source.origin}"
    tokenizers, folders = _tokenizers(config, name), text.folders(text_kinds(config))
    for folder, earlier_digest in (recorded or {}).get("tokenizers", {}).items():
        if tokenizers.get(folder, earlier_digest) != earlier_digest:
            root = run_folder.path(config)
            return (
                f"was trained with other words than those of {root / folder} (if captions have changed since, put the "
                f"earlier ones back and delete {' and '.join(str(root / one) for one in folders.values())}: the same "
                "command makes them again)"
            )
    for part in before.keys() - now.keys():
        return f"was begun with the {part} of {before[part]['from']}, which is no longer named"
    return ""


def _tokenizers(config: ConfigDict, name: str) -> dict[str, str]:
    """Returns {folder: digest} of the run's tokenizers that stage `name` reads, those that are there and whole."""
    found, folders = {}, text.folders(text_kinds(config))
    for kind in STAGES[name].text_kinds(config):
        folder = folders[kind]
        with contextlib.suppress(OSError, ValueError):  # whoever loads it says what is wrong
            found[folder] = text.words_digest(run_folder.path(config) / folder)
    return found


def _is_other(part: str, source: Input, before: Mapping[str, str], fetched: bool) -> bool:
    """Returns whether the component was another one; to find out, nothing is fetched that has the same hub id."""
    here = is_here(source.place, f"--config.init_from.{part}")
    known = before["from"] == source.origin and not fetched and not here
    return not known and digest(source.place, part) != before["digest"]


def digest(source: str, part: str) -> str:
    """Returns one digest of the config and the weights of a component, alike wherever its folder lies.

    Args:
        source: a model folder, the component's folder, or the hub id of either.
        part: the component's name.

    Raises:
        FolderError: it is missing.
    """
    path = model_folder.locate(source, part)
    chosen = choose((file.name for file in path.iterdir()), None, path)
    names = {"config.json", chosen, *(shard_names(path / chosen).values() if chosen.endswith(".json") else ())}
    manifest = read_json(path / MANIFEST).get("sha256") or {} if (path / MANIFEST).is_file() else {}
    known = {name: manifest.get(name) or _file_digest(path / name, *_stamp(path / name)) for name in sorted(names)}
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, changed: int, size: int) -> str:
    """Remembered, since several stages read the same pretrained weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_name(place: str) -> str:
    """Returns the hub id for a path into the hub's cache, which earlier versions wrote down; others as they are."""
    return re.sub(r"^.*/models--([^/]+)--([^/]+)/snapshots/[0-9a-f]+", r"\1/\2", place)
