"""Captions and transcriptions in metadata.jsonl, .csv or .parquet, as people, spreadsheets and programs write them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from audioldm2_jax.data.captions import Texts, captions_of, transcription_of
from audioldm2_jax.runtime.text_files import read_text, shown

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SAID = "transcription"
#: What may stand between the columns of a CSV file.
_SEPARATORS = (",", ";", "\t", "|")
csv.field_size_limit(2**31 - 1)  # Python's own limit is below what a long description takes


def read_metadata(file: Path) -> dict[str, Texts]:
    """What is written in one of the files of `METADATA`; see `parse_metadata`."""
    if file.suffix.lower() == ".parquet":
        return _texts(_parquet_rows(file, shown(file)), shown(file))
    return parse_metadata(read_text(file), shown(file))


def parse_metadata(content: str, where: str) -> dict[str, Texts]:
    """Reads metadata.jsonl or metadata.csv, told apart by the ending of `where`.

    Returns:
        file_name → what `text` (captions) and `transcription` hold.

    Raises:
        ValueError: naming `where` and the line.
    """
    return _texts(_json_rows(content, where) if where.lower().endswith(".jsonl") else _csv_rows(content, where), where)


def _texts(rows: Iterable[tuple[str, dict]], where: str) -> dict[str, Texts]:
    """file_name → what the rows say, each row with what messages call it."""
    found: dict[str, Texts] = {}
    named = False
    for line, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}, {line}: no file_name; each record needs file_name and text")
        if "\0" in name:
            raise ValueError(f"{where}, {line}: {shown(name)} holds a zero byte, which no file name can")
        if name in found:
            raise ValueError(f"{where}, {line}: {shown(name)} is named twice")
        named = named or "text" in row or _SAID in row
        said = transcription_of(row.get(_SAID), f"{where}, {line}: {_SAID}")
        found[name] = Texts(captions_of(row.get("text"), f"{where}, {line}: text"), said)
    if found and not named:
        raise ValueError(f"{where} has no text; captions go under that name, what is said under {_SAID}")
    return found


def _parquet_rows(file: Path, where: str) -> Iterator[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet  # its import takes a third of a second that others need not wait

    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if "file_name" not in names:
                raise ValueError(f"{where} has no column file_name; it has {', '.join(names) or 'none'}")
            columns = [name for name in ("file_name", "text", _SAID) if name in names]
            row = 0
            for batch in table.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield f"row {row}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where} cannot be read as Parquet ({' '.join(str(error).split())}): write it again"
        ) from error


def _json_rows(content: str, where: str) -> Iterator[tuple[str, dict]]:
    for line, record in enumerate(re.split("\r\n|\r|\n", content), 1):
        if not record.strip():
            continue
        try:
            row = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}, line {line}: not an object such as {{"file_name": "a.wav", "text": "…"}}')
        yield f"line {line}", row


def _csv_rows(content: str, where: str) -> Iterator[tuple[str, dict]]:
    """Each record with the line on which it begins. Separator and spaces behind it are told by the first line."""
    names_separator = re.match(r"sep=([,;\t|])[\r\n]+", content)  # Excel's own line
    body = content[names_separator.end() :] if names_separator else content
    before = 1 if names_separator else 0
    first = re.match(r"[^\r\n]*", body)[0]
    separators = [names_separator[1]] if names_separator else _SEPARATORS
    headers = {separator: [name.strip(' "') for name in first.split(separator)] for separator in separators}
    separator = next((sep for sep, names in headers.items() if "file_name" in names), None)
    if separator is None:
        names = max(headers.values(), key=len)
        raise ValueError(
            f"{where} has no column file_name; its first line names {', '.join(filter(None, names)) or 'nothing'}"
        )
    columns = headers[separator]
    if twice := {name for name in columns if name and columns.count(name) > 1}:
        raise ValueError(f"{where}, line {before + 1}: the column {sorted(twice)[0]} is there twice")
    spaced = re.search(re.escape(separator) + " ", first) is not None
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    quotes_after_space = not spaced and re.search(re.escape(separator) + r'[ \t]+"', body) is not None
    line = before
    try:
        for fields in reader:
            line, begun = before + reader.line_num, line + 1
            if begun == before + 1 or not any(field.strip() for field in fields):
                continue
            yield f"line {begun}", _row(columns, fields, separator, f"{where}, line {begun}", quotes_after_space)
    except csv.Error as error:
        raise ValueError(
            f"{where}, line {line + 1}: the record that begins there is not CSV ({error}); is a quotation mark missing?"
        ) from error


def _row(columns: list[str], fields: list[str], separator: str, where: str, quotes_after_space: bool) -> dict[str, str]:
    if len(fields) != len(columns):
        raise ValueError(
            f"{where}: {len(fields)} fields, but the first line names {len(columns)} ({', '.join(columns)}); put a "
            f'caption that holds {separator!r} in double quotes, as in "rain, then thunder"'
        )
    for field in fields if quotes_after_space else ():
        if field[:1] in " \t" and field.lstrip().startswith('"'):  # the quotation marks would be part of the caption
            raise ValueError(f"{where}: a space stands before the quotation mark of {field.strip()}: remove it")
    return dict(zip(columns, fields))
