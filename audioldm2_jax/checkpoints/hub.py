"""Models on the Hugging Face hub: fetched into its cache, only what is needed; offline, what the cache has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from audioldm2_jax.checkpoints.atomic_folder import FolderError
from audioldm2_jax.checkpoints.tensors import choose, shard_names
from audioldm2_jax.runtime.hub_access import hub_reachable, no_folder, out_of_reach

# A component's files beside its weights: configs, tokenizers, manifests.
_SMALL = (".json", ".txt", ".model")


def is_id(text: str) -> bool:
    """Whether a text may be the id of a repository: `owner/name`, or the `name` of one of the hub's oldest."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
        return True
    except HFValidationError:
        return False


def fetch_file(repository: str, name: str) -> Path | None:
    """One file of a repository, in the cache; None where the repository lacks it.

    Raises:
      FolderError: where the repository is nowhere.
    """
    file = _snapshot(repository, [name]) / name
    return file if file.is_file() else None


def fetch_folders(repository: str, folders: Iterable[str], variant: str | None) -> Path:
    """Folders of a repository, of their weights those that are to be read; returns the repository's place in the cache.

    Args:
      repository: its id.
      folders: their names, "" for the repository's own; those that it does not have are left out.
      variant: of the weights, as in `tensors.choose`.

    Raises:
      FolderError: where the repository is nowhere, or it is not clear which weights to take.
    """
    folders = tuple(folders)
    names = _listing(repository)
    if names is None:
        return _snapshot(repository, [_inside(folder, "*config.json") for folder in folders])
    wanted: list[str] = []
    for folder in folders:
        files = [file.name for file in map(PurePosixPath, names) if file.parent == PurePosixPath(folder)]
        wanted += [_inside(folder, file) for file in files if file.endswith(_SMALL) and ".index." not in file]
        if "config.json" in files:
            chosen = _inside(folder, choose(files, variant, f"{repository}/{folder}".rstrip("/")))
            wanted.append(chosen)
            if chosen.endswith(".json"):
                shards = set(shard_names(_snapshot(repository, [chosen]) / chosen).values())
                wanted += [_inside(folder, shard) for shard in sorted(shards)]
    return _snapshot(repository, wanted)


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _listing(repository: str) -> list[str] | None:
    """The names of all files of a repository, or None where the hub does not say."""
    from huggingface_hub import list_repo_files

    if not hub_reachable():
        return None
    try:
        return list_repo_files(repository)
    except Exception:  # offline, unknown, forbidden: `_snapshot` finds it in the cache, or says what is wrong
        return None


def _snapshot(repository: str, names: list[str]) -> Path:
    """Fetches files (patterns) of a repository; returns its place in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    if not is_id(repository):
        raise FolderError(f"{no_folder(repository)}, nor is that the id of a repository on the hub (owner/name).")
    try:
        offline = {} if hub_reachable() else {"local_files_only": True}
        return Path(snapshot_download(repository, allow_patterns=names, **offline))
    except RepositoryNotFoundError:
        reason = "there is no such repository on the hub; for a private one, log in with `hf auth login`"
    except LocalEntryNotFoundError:
        reason = out_of_reach(repository)
    except Exception as error:  # whatever the network and the disk may raise
        reason = f"the hub does not give it ({(str(error).strip() or repr(error)).splitlines()[0]})"
    raise FolderError(f"{no_folder(repository)}; as the id of a repository on the hub (owner/name): {reason}.")
