"""A cache of the Hugging Face hub, laid out by hand."""

import os
import shutil

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(path, repository, source):
    """A hub cache at `path` with one repository: files are links to blobs, as huggingface_hub lays them out."""
    home = path / f"models--{repository.replace('/', '--')}"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(file for file in source.rglob("*") if file.is_file()):
        link = home / "snapshots" / COMMIT / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, home / "blobs" / str(number))
        link.symlink_to(os.path.relpath(home / "blobs" / str(number), link.parent))
    return path
