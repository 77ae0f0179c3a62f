"""Weights from one form to another: %(prog)s --from audioldm2-full.pth --to models/audioldm2

--from takes a checkpoint file of AudioLDM 2's authors (or of their VAE and vocoder, of AudioMAE or LAION-CLAP), a model
folder, a run folder or a hub id; --to is a model folder in the diffusers layout, or a file ending in .pth, .pt or
.ckpt, in which the weights are as the authors have them. Each may be an address, gs://BUCKET/NAME or s3://BUCKET/NAME.
"""

import argparse
import sys

from audioldm2_jax.invocation import command_line


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command_line("convert"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", required=True, help="a checkpoint file, a folder, or a hub id")
    parser.add_argument("--to", dest="destination", required=True, help="the model folder to write, or a .pth")
    parser.add_argument(
        "--tokenizers",
        help="a folder or hub id with tokenizer/ and tokenizer_2/ for the authors' files, which hold none; by default "
        "roberta-base and google/flan-t5-large from the hub or its cache",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = flags().parse_args(arguments)

    from audioldm2_jax.checkpoints.convert import convert

    try:
        report = convert(
            options.source, options.destination, tokenizers=options.tokenizers, overwrite=options.overwrite
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Found {report.found}:")
    for name, parameters, words in report.networks:
        print(f"  {name:17}{parameters:>13,} parameters  {words}")
    for reason, number in report.left_out.items():
        print(f"Left out {number} tensors: {reason}.")
    for note in report.notes:
        print(f"Note: {note}")
    print(f"Wrote {', '.join(report.written)} to {options.destination}")
    return 0
