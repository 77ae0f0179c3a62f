"""The console script: audioldm2-jax train | generate | convert | prepare | plan."""

import importlib
import sys
from importlib import metadata

from audioldm2_jax.invocation import PROGRAM

COMMANDS = {
    "train": "train a recipe, or go on with it",
    "generate": "text to sound, from a run or a model folder",
    "convert": "weights of the authors, of diffusers and of runs, from one form to another",
    "prepare": "recordings to a data set that is read fast, with a report on them",
    "plan": "memory, time and cost of training on TPUs, without one",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command by its name; returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(f"audioldm2_jax.commands.{name}").main(rest)
    if name in ("-h", "--help", "help"):
        lines = "\n".join(f"  {PROGRAM} {command:10}{what}" for command, what in COMMANDS.items())
        print(f"AudioLDM 2 in JAX.\n\n{lines}\n\n{PROGRAM} COMMAND --help lists the flags of a command.")
        return 0
    if name == "--version":
        print(f"{PROGRAM} {metadata.version(PROGRAM)}")
        return 0
    print(f"error: there is no command {name}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
    return 2
