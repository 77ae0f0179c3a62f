"""The flag `--config` with its `--config.KEY=VALUE`, of the commands that read a recipe."""

import re
import sys

from absl import flags
from ml_collections import config_flags

from audioldm2_jax import config_files


def define(values: flags.FlagValues, arguments: list[str] | None = None) -> flags.FlagHolder:
    """Defines it among the flags `values`; `arguments` are those that will be parsed, by default the program's."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Recipe: music, music:base, music:large, music:48k (of configs/music.py), or a config file of your own.",
        flag_values=values,
        sys_argv=arguments,
    )
    flags.register_validator(
        "config",
        lambda config: config is not None,
        "name the recipe, with --config music, say",
        flag_values=values,
    )
    return holder


def parse(holder: flags.FlagHolder, arguments: list[str], values: flags.FlagValues) -> list[str]:
    """Reads the flags. A key, value or recipe that does not exist is told in one line, a broken config file in full."""
    try:
        rest = values(with_files(arguments))
        holder.value.lock()  # also the first use of the file, which fails here if it is not there
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
        if typed := re.search(r"flag (--\S+=\S*): (invalid literal for int|could not convert string to float)", text):
            kind = "a whole number, 1000 say" if typed[2].endswith("int") else "a number, 0.001 say"
            sys.exit(f"error: {typed[1]}: it has to be {kind}")
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
