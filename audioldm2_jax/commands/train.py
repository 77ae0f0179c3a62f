"""Trains a recipe; the same command again goes on where it stopped. On several hosts the same command runs on each."""

import sys
from functools import partial

from absl import app, flags

from audioldm2_jax.commands import config_flag
from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import cluster

CONFIG = config_flag.define(flags.FLAGS)
flags.declare_key_flag("config")
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
    return config_flag.parse(CONFIG, arguments, flags.FLAGS)


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
