"""Config files by name: those of configs/, which travel in the package, and the user's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def load(name: str) -> ConfigDict:
    """The config of `name`: music, music:base, configs/music.py:base, or a file of your own.

    Raises:
      ValueError: where there is no such config; the message lists those that come with the package.
    """
    file, colon, argument = resolve(name).partition(":")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[argument] if colon else [])


def resolve(name: str) -> str:
    """`name` with the path of its file in the place of its first part; what follows a colon stays.

    A file that is there is taken as it is; a name without .py, and the path configs/NAME.py, from any folder, are those
    that come with the package.

    Raises:
      ValueError: where there is no such config; the message lists those that come with the package.
    """
    file, colon, argument = name.partition(":")
    path = Path(file)
    if not path.is_file():
        named = path.suffix != ".py" and path.name == file
        shipped = folder() / f"{path.stem if path.suffix == '.py' else file}.py"
        if not (named or path.parent.name == "configs") or not shipped.is_file():
            names = ", ".join(sorted(found.stem for found in folder().glob("*.py")))
            raise ValueError(
                f"there is no config {file}: give the path of a config file, or the name of one that comes with the "
                f"package: {names}"
            )
        path = shipped
    return f"{path}{colon}{argument}"


def folder() -> Path:
    """Where the config files of the package are: configs/, inside the package where it is installed from a wheel."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
