"""The wheel holds all that a run outside the checkout needs."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that what setuptools leaves behind does not lie in the checkout."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    for name in ("audioldm2_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", target, "."], cwd=copy, check=True, timeout=120)
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_it_holds_the_package_and_its_configs(wheel):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "audioldm2_jax").rglob("*") if path.is_file()}
    package = {path for path in package if "__pycache__" not in path}
    configs = {f"audioldm2_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == package | configs
    assert configs


def test_its_console_script_and_the_python_versions_it_names(wheel):
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(scripts).decode())
    assert dict(parser["console_scripts"]) == {"audioldm2-jax": "audioldm2_jax.commands.main:main"}
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    text = wheel.read(metadata).decode()
    assert all(f"Classifier: Programming Language :: Python :: 3.{minor}\n" in text for minor in (11, 12, 13))
