"""CSV files that other programs wrote, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from audioldm2_jax.runtime.text_files import read_text, shown

csv.field_size_limit(2**31 - 1)  # Python's own limit is below what a long description takes


def fields_of(file: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file that are not empty, each with what messages call it. Spaces behind a separator count for
    nothing, and neither do comments before the first row: lines that begin with #.

    Raises:
        ValueError: it is no text, or not CSV; with the line.
    """
    text = read_text(file)
    comments, start = 0, 0
    while text.startswith("#", start):
        comments, start = comments + 1, text.find("\n", start) + 1 or len(text)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = comments
    try:
        for fields in reader:
            begun, line = line + 1, comments + reader.line_num
            if any(fields):
                yield f"{shown(file)}, line {begun}", fields
    except csv.Error as error:
        raise ValueError(
            f"{shown(file)}, line {line + 1}: the row that begins there is not CSV ({error}); is a "
            "quotation mark missing?"
        ) from error


def rows_of(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """As `fields_of`, each row by the names of its columns, which are the first row.

    Raises:
        ValueError: a column of `needed` is not there, or a row has other columns than the first one names.
    """
    columns: list[str] = []
    for where, fields in fields_of(file):
        if not columns:
            columns = [name.strip() for name in fields]
            if missing := [name for name in needed if name not in columns]:
                raise ValueError(f"{shown(file)} has no column {missing[0]}; it has {', '.join(columns)}")
        elif len(fields) != len(columns):
            raise ValueError(f"{where}: {len(fields)} fields, but the first row names {len(columns)} columns")
        else:
            yield where, dict(zip(columns, fields))
