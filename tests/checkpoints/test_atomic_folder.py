"""Folders that appear whole or not at all."""

from audioldm2_jax.checkpoints.atomic_folder import remove_unfinished


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".vae.25982.partial", "vae", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache", "vae"]
    remove_unfinished(tmp_path / "nowhere")
