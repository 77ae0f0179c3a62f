"""Trains a recipe: python launch/train.py --config configs/music.py [--config.KEY=VALUE ...]

The same command again goes on where it stopped.
"""

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/music.py or configs/music.py:base.")
flags.mark_flag_as_required("config")


def main(_: list[str]) -> None:
    from audioldm2_jax.training import main as training

    raise SystemExit(training.main(CONFIG.value))


if __name__ == "__main__":
    app.run(main)
