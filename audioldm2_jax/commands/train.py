"""Trains a recipe; the same command again goes on where it stopped. On several hosts the same command runs on each."""

import re
import sys
from functools import partial

from absl import app, flags
from ml_collections import config_flags

from audioldm2_jax import config_files
from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import cluster

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe: music, music:base, music:large, music:48k (of configs/music.py), or a config file of your own.",
)
flags.register_validator("config", lambda config: config is not None, "name the recipe, with --config music, say")
for _name, _help in cluster.FLAGS.items():
    _default = cluster.Cluster._field_defaults[_name]
    (flags.DEFINE_string if isinstance(_default, str) else flags.DEFINE_integer)(_name, _default, _help)


def usage() -> str:
    """What --help prints."""
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    lines = [f"  --{flag.name}: {flag.help}" for flag in own]
    lines.append(
        "  --config.KEY=VALUE: another value for a key of the recipe (audioldm2_jax/recipes/paper.py declares them all)"
    )
    examples = [
        command_line("train", "--config music"),
        command_line("train", "--config music:base --config.data.source=/your/recordings"),
    ]
    return "\n".join([__doc__, "", *examples, "", "flags:", *lines])


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags. A key, value or recipe that does not exist is told in one line, a broken config file in full."""
    try:
        rest = flags.FLAGS(with_files(arguments))
        CONFIG.value.lock()  # also the first use of the file, which fails here if it is not there
        if len(rest) > 1:
            near = re.sub(r"^\W*(config\W)", r"--\1", rest[1])
            meant = f"; did you mean {near}?" if near.startswith("--") else ": flags begin with two dashes"
            sys.exit(f"error: {rest[1]!r} is no flag{meant}")
        return rest
    except (AttributeError, KeyError) as error:
        cause = error.args[0]
        text = str(cause.args[0] if isinstance(cause, KeyError) else cause)
        sys.exit(f"error: the recipe has no key {': '.join(text.splitlines())}")
    except (flags.Error, OSError, ValueError) as error:
        text = str(error).strip()
        last = text.splitlines()[-1]
        sys.exit(f"error: {last.partition('ValueError: ')[2] or text}")


def with_files(arguments: list[str]) -> list[str]:
    """`arguments` with the path of the config file in the place of a config's name.

    Raises:
      ValueError: where there is no such config.
    """
    found = list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, name = argument.partition("=")
        if flag in ("--config.recipe", "-config.recipe"):
            raise ValueError(f"{argument}: a recipe is chosen by its config, --config music:{name or 'base'}, say")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            found[index] = f"{flag}={config_files.resolve(name)}"
        elif index + 1 < len(arguments):
            found[index + 1] = config_files.resolve(arguments[index + 1])
    return found


def run(_: list[str], caches_only: bool = False) -> int:
    """Trains what the flags say, or makes the caches for it; returns the exit code."""
    from audioldm2_jax.training import main as training

    others = cluster.Cluster(**{name: flags.FLAGS[name].value for name in cluster.FLAGS})
    return training.main(CONFIG.value, others, caches_only)


def main(arguments: list[str] | None = None, caches_only: bool = False) -> int:
    """Runs the command, in which absl ends the process; `caches_only`: what `prepare --cache` does."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return 0
    app.run(partial(run, caches_only=caches_only), argv=[sys.argv[0], *arguments], flags_parser=parse)
    return 0
