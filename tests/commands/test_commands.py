"""`audioldm2-jax` and the files of launch/: the same commands, each called as it was started."""

import subprocess
import sys
from pathlib import Path

import pytest

from audioldm2_jax import config_files
from audioldm2_jax.commands import config_flag
from audioldm2_jax.commands.main import COMMANDS, main

LAUNCH = Path(__file__).parents[2] / "launch"


def run(*command, folder):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def console(*arguments, folder):
    """As the script that pip writes: its name is the program's."""
    code = (
        "import sys; sys.argv[0] = '/bin/audioldm2-jax'; from audioldm2_jax.commands.main import main; sys.exit(main())"
    )
    return run("-c", code, *arguments, folder=folder)


def test_help_and_version(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"audioldm2-jax {command} " in out for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("audioldm2-jax 0.")


def test_unknown_commands(capsys):
    assert main(["trian"]) == 2
    assert (
        capsys.readouterr().err
        == "error: there is no command trian; the commands are train, generate, convert, prepare, plan\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_names_it_as_it_was_started(tmp_path, command):
    code, out, _ = console(command, "--help", folder=tmp_path)
    assert code == 0 and f"audioldm2-jax {command} --" in out and "launch" not in out
    code, out, _ = run(f"launch/{command}.py", "--help", folder=LAUNCH.parent)
    assert code == 0 and f"python launch/{command}.py --" in out and "audioldm2-jax" not in out
    assert {path.stem for path in LAUNCH.glob("*.py")} == set(COMMANDS)


def test_the_config_is_found_by_either_form_of_its_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = f"{config_files.folder() / 'music.py'}:base"
    rest = ["--config.seed=3", "--config.data.source=music"]
    for flag in ("--config", "-config"):
        assert config_flag.with_files([flag, "music:base", *rest]) == [flag, file, *rest]
        assert config_flag.with_files([*rest, f"{flag}=configs/music.py:base"]) == [*rest, f"{flag}={file}"]


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (["--config=music:huge"], "unknown recipe 'huge'"),
        (["--config", "musik"], "there is no config musik: give the path of a config file, or the name of one"),
        (["--config", "music", "--config.train.vea.steps=1"], "the recipe has no key 'vea'"),
        ([], "name the recipe, with --config music, say"),
        # This one is right, up to the data that the recipe needs.
        (["--config=mine.py:base"], "the recipe 'base' needs data"),
    ],
)
def test_errors_from_an_empty_folder(tmp_path, flags, wanted):
    if flags[:1] == ["--config=mine.py:base"]:
        (tmp_path / "mine.py").write_text("from audioldm2_jax.recipes import get as get_config\n")
    code, _, err = console("train", *flags, folder=tmp_path)
    assert code == 1 and "Traceback" not in err
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert wanted in error
