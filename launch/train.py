"""Trains a recipe: python launch/train.py --config configs/music.py [--config.KEY=VALUE ...]

The same command again goes on where it stopped. On several hosts the same command runs on each.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from audioldm2_jax.runtime import cluster

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as configs/music.py or configs/music.py:base.")
flags.mark_flag_as_required("config")
for _name, _help in cluster.FLAGS.items():
    _default = cluster.Cluster._field_defaults[_name]
    (flags.DEFINE_string if isinstance(_default, str) else flags.DEFINE_integer)(_name, _default, _help)


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags. A key, value or recipe that does not exist is told in one line, a broken config file in full."""
    try:
        rest = flags.FLAGS(arguments)
        CONFIG.value.lock()  # also the first use of the file, which fails here if it is not there
        return rest
    except (AttributeError, KeyError) as error:
        cause = error.args[0]
        text = str(cause.args[0] if isinstance(cause, KeyError) else cause)
        sys.exit(f"error: the recipe has no key {': '.join(text.splitlines())}")
    except (flags.Error, OSError) as error:
        text = str(error).strip()
        last = text.splitlines()[-1]
        sys.exit(f"error: {last.partition('ValueError: ')[2] or text}")


def main(_: list[str]) -> None:
    from audioldm2_jax.training import main as training

    others = cluster.Cluster(**{name: flags.FLAGS[name].value for name in cluster.FLAGS})
    raise SystemExit(training.main(CONFIG.value, others))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
