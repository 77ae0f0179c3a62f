"""Captions of recordings in metadata.jsonl or metadata.csv, as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator

from audioldm2_jax.runtime.text_files import printable, shown

METADATA = ("metadata.jsonl", "metadata.csv")
#: What may stand between the columns of a CSV file.
_SEPARATORS = (",", ";", "\t", "|")
csv.field_size_limit(2**31 - 1)  # Python's own limit is below what a long description takes


def parse_metadata(content: str, where: str) -> dict[str, str | None]:
    """Reads metadata.jsonl or metadata.csv, told apart by the ending of `where`.

    Returns:
        file_name → caption, None where it is missing or empty.

    Raises:
        ValueError: naming `where` and the line.
    """
    rows = _json_rows(content, where) if where.lower().endswith(".jsonl") else _csv_rows(content, where)
    captions: dict[str, str | None] = {}
    named = False
    for line, row in rows:
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}, line {line}: no file_name; each record needs file_name and text")
        if "\0" in name:
            raise ValueError(f"{where}, line {line}: {shown(name)} holds a zero byte, which no file name can")
        if not isinstance(text, str | None):
            raise ValueError(f"{where}, line {line}: text is {text!r}, not a string")
        if name in captions:
            raise ValueError(f"{where}, line {line}: {shown(name)} is named twice")
        named = named or "text" in row
        captions[name] = printable(text or "").strip() or None
    if captions and not named:
        raise ValueError(f"{where} has no text; captions go under that name")
    return captions


def _json_rows(content: str, where: str) -> Iterator[tuple[int, dict]]:
    for line, record in enumerate(re.split("\r\n|\r|\n", content), 1):
        if not record.strip():
            continue
        try:
            row = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}, line {line}: not an object such as {{"file_name": "a.wav", "text": "…"}}')
        yield line, row


def _csv_rows(content: str, where: str) -> Iterator[tuple[int, dict]]:
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
            yield begun, _row(columns, fields, separator, f"{where}, line {begun}", quotes_after_space)
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
