"""The package is as docs/design.md draws it: every file is listed, and imports go down."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "audioldm2_jax"


def listed_layers() -> dict[str, int]:
    """{file: layer} from the list in docs/design.md."""
    layers, layer = {}, 0
    for line in (ROOT / "docs/design.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"── layer (\d+)", line):
            layer = int(heading[1])
        elif layer and (entry := re.match(r"([\w/]+\.py)(\s|$)", line)):
            assert entry[1] not in layers, f"{entry[1]} is listed twice"
            layers[entry[1]] = layer
        elif line == "```":
            layer = 0
    return layers


@functools.cache
def imports(file: str) -> frozenset[str]:
    """The modules that a file imports anywhere in it, ours as paths in the package, others by their first name."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {_module(name) for name in names}
    return frozenset(found)


def _module(name: str) -> str:
    first, *rest = name.split(".")
    if first != PACKAGE.name:
        return first
    for path in (rest, rest[:-1]):  # the name may be that of something inside the module
        if path and (PACKAGE / Path(*path)).with_suffix(".py").is_file():
            return "/".join(path) + ".py"
    folder = rest if (PACKAGE / Path(*rest)).is_dir() else rest[:-1]
    return "/".join([*folder, "__init__.py"])


def reachable(files: set[str]) -> set[str]:
    """What `files` import, directly or through others."""
    found: set[str] = set()
    while files:
        found |= files
        files = {name for file in files if file.endswith(".py") for name in imports(file)} - found
    return found


LAYERS = listed_layers()


def test_every_file_is_listed_and_every_listed_file_exists():
    there = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    code = {file for file in there if imports(file) or not file.endswith("__init__.py")} - {"__init__.py"}
    assert code - LAYERS.keys() == set(), "give these a line in docs/design.md"
    assert LAYERS.keys() - there == set(), "docs/design.md lists what is not there"


def test_imports_go_down():
    for file, layer in LAYERS.items():
        for other in (name for name in imports(file) if name.endswith(".py")):
            same_folder = "/" in file and file.split("/")[0] == other.split("/")[0]
            below = LAYERS[other] < layer or (same_folder and LAYERS[other] == layer)
            assert below, f"{file} (layer {layer}) imports {other} (layer {LAYERS[other]})"


def test_there_are_no_circles():
    for file in LAYERS:
        ours = {name for name in imports(file) if name.endswith(".py")}
        assert file not in reachable(ours), f"{file} imports itself through others"


def test_data_needs_no_jax():
    data = {file for file in LAYERS if file.startswith("data/")}
    assert not reachable(data) & {"jax", "flax", "optax", "orbax", "torch"}


def test_the_package_imports_nothing_from_outside_it():
    outside = {path.name for path in ROOT.iterdir() if path.is_dir()} - {PACKAGE.name}
    assert not reachable(set(LAYERS)) & outside


def test_what_benchmarks_and_launchers_import_of_it_is_there():
    """Many of them are run by hand alone."""
    absent = []
    for path in sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("launch/*.py"), *ROOT.glob("configs/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    within = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
                    if not (hasattr(module, name) or within):
                        absent.append(f"{path.name}: {node.module}.{name}")
    assert absent == []
