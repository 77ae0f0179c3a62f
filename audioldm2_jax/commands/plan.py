"""Plans the training of a stage on TPUs that are not here: memory, time by module, MFU, days, cost.

Compiles the very step that training runs with libtpu (pip install '.[tpu]'), on any machine; no TPU, no data and no
weights are needed. The compiler takes minutes for large models; what it says is kept.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags

from audioldm2_jax.commands import config_flag
from audioldm2_jax.invocation import command_line
from audioldm2_jax.runtime import error_log


def _flags(arguments: list[str]) -> tuple[flags.FlagValues, flags.FlagHolder]:
    values = flags.FlagValues()
    config = config_flag.define(values, ["plan", *arguments])
    flags.DEFINE_string(
        "topology", "v5e:2x2", "Chip and shape of a slice: v5e:16x16, v5p:4x4x4, v6e:8x8.", flag_values=values
    )
    flags.DEFINE_integer("slices", 1, "Slices of that shape, joined by the network.", flag_values=values)
    flags.DEFINE_string("stage", "diffusion", "Which stage of training.", flag_values=values)
    flags.DEFINE_string(
        "variant",
        "",
        "Of stages whose steps differ, which one: λ of the LOA, or whether discriminators train.",
        flag_values=values,
    )
    flags.DEFINE_float("price", None, "US dollars a chip hour, for the cost.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_string("json", "", "A file for the whole plan.", flag_values=values)
    flags.DEFINE_string("picture", "", "A PNG file that shows where the time goes.", flag_values=values)
    return values, config


def usage() -> str:
    """What --help prints."""
    values, _ = _flags([])
    lines = [f"  --{name}: {values[name].help} ({values[name].default})" for name in values if name != "config"]
    lines.append("  --config.KEY=VALUE: another value for a key of the recipe, --config.mesh.fsdp=4, say")
    examples = [
        command_line("plan", "--config music:base --topology v5e:2x2"),
        command_line("plan", "--config music:large --topology v5p:4x4x4 --stage joint --price 4.2"),
    ]
    return "\n".join([__doc__, *examples, "", "flags:", f"  --config: {values['config'].help}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage())
        return 0
    error_log.escape_output()
    try:
        arguments = config_flag.with_files(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    values, config = _flags(arguments)
    config_flag.parse(config, ["plan", *arguments], values)
    try:
        return _plan(values, config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # the compiler would go on


def _plan(values: flags.FlagValues, config: flags.FlagHolder) -> int:
    from audioldm2_jax.checkpoints.atomic_folder import FolderError
    from audioldm2_jax.planning import compiling, plan, report

    request = plan.Request(
        config.value,
        _name(values),
        values["stage"].value,
        values["topology"].value,
        values["slices"].value,
        values["variant"].value,
        values["price"].value,
    )
    try:
        made = plan.plan(request, lambda line: print(line, file=sys.stderr, flush=True))
        for line in report.lines(made):
            print(line)
        if values["json"].value:
            _write(Path(values["json"].value), json.dumps(made, indent=1).encode())
        if values["picture"].value and made["fits"]:
            _write(Path(values["picture"].value), report.picture(made))
    except (ValueError, OSError, FolderError, compiling.CompileError) as error:
        print(f"error: {error_log.describe(error)}", file=sys.stderr)
        return 1
    return 0 if made["fits"] else 2


def _name(values: flags.FlagValues) -> str:
    """Returns the config as one says it: music:base."""
    file, _, recipe = values["config"].config_filename.partition(":")
    return f"{Path(file).stem}{f':{recipe}' if recipe else ''}"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
