"""How this program was started, for messages that name a command."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = "audioldm2-jax"


def command_line(command: str, arguments: str = "") -> str:
    """What to type for `command` (train, prepare, …), in the way in which the user has started this program.

    `python launch/convert.py` where a file of launch/ was started, by the path that was typed; else
    `audioldm2-jax convert`. The processes of stages inherit `sys.argv`, and so say the same.
    """
    started = Path(sys.argv[0] if sys.argv else "")
    in_launch = started.parent.name == "launch" or (started.parent == Path() and Path.cwd().name == "launch")
    program = f"{PROGRAM} {command}"
    if in_launch and started.suffix == ".py":
        program = f"python {started.with_name(f'{command}.py')}"
    return f"{program} {arguments}".rstrip()
