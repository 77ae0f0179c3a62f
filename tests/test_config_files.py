"""A config by its name, by its path in the checkout, or a file of the user's, from any folder."""

import pytest

from audioldm2_jax import config_files, recipes

OWN = """
from audioldm2_jax import recipes

def get_config(name="tiny"):
    config = recipes.get(name)
    config.run_dir = "own"
    return config
"""


@pytest.mark.parametrize("name", ["music", "configs/music.py", "/elsewhere/configs/music.py"])
def test_configs_of_the_package_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "music").mkdir()  # recordings, say
    config = config_files.load(name)
    assert config.recipe == "tiny" and config.data.source == "builtin:music" and config.run_dir == "runs/music"
    with pytest.raises(AttributeError):
        config.runs_dir = "locked"
    base = config_files.load(f"{name}:base")
    assert base.recipe == "base" and base.run_dir == "runs/music-base"


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("configs/music.py", "mine.py"):
        (tmp_path / name).write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for name in ("configs/music.py", "mine.py", str(tmp_path / "mine.py")):
        assert config_files.load(name).run_dir == "own"
        assert config_files.load(f"{name}:large").recipe == "large"
    assert config_files.load("music").run_dir == "runs/music"


@pytest.mark.parametrize("name", ["musik", "musik.py", "music.py", "configs/musik.py:base", "", ":base"])
def test_what_is_no_config(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no config .*comes with the package: audio, full, music, speech"):
        config_files.load(name)


def test_the_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="unknown recipe 'huge'"):
        config_files.load("music:huge")
    assert recipes.TINY == "tiny"
