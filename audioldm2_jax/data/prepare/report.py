"""What a source is like: hours, rates, levels, faults, duplicates and captions, of the recordings as they were.

What each measure is stands in audio/measures.py; each recording's are in the table (data/prepared.py).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from audioldm2_jax.data import prepared
from audioldm2_jax.data.example import Source
from audioldm2_jax.runtime.text_files import shown

FILE, TEXT, PICTURE = "report.json", "report.md", "report.png"
#: From which values on a recording is listed: the share of clipped samples, the mean of the samples.
_CLIPPED, _DC = 1e-4, 0.01
_LISTED = 20  # names of each kind; all are in the table
_MEASURES = ("seconds", "rms", "bandwidth", "clipped", "dc", "rate")


def check_libraries() -> None:
    """Raises ImportError where what measures recordings is not installed."""
    if importlib.util.find_spec("librosa") is None:
        raise ImportError(
            "librosa, which measures the recordings, is not installed: pip install 'audioldm2-jax[prepare]'"
        )


def of_table(path: Path, source: Source, sampling_rate: int) -> dict[str, Any]:
    """The report on a prepared source, as JSON can hold it.

    Args:
        path: the table.
        source: what was prepared, with all its records.
        sampling_rate: Hz, of the records.
    """
    table = parquet.read_table(path, columns=[*_COLUMNS])
    read = table.filter(compute.is_null(table["unreadable"]))
    measures = {name: read[name].to_numpy(zero_copy_only=False).astype(float) for name in _MEASURES}
    skipped = getattr(source, "skipped", {})
    unreadable = table.filter(compute.is_valid(table["unreadable"]))
    seconds = measures["seconds"]
    pieces = compute.list_value_length(read["pieces"])
    return {
        "recordings": len(read),
        "records": int(compute.sum(pieces).as_py()),
        "cut": int(compute.sum(compute.greater(pieces, 1)).as_py()),
        "sampling_rate": sampling_rate,
        "hours": round(float(seconds.sum()) / 3600, 4),
        "rates": _counts(read["rate"]),
        "channels": _counts(read["channels"]),
        "encodings": _counts(read["encoding"]),
        # Twice as far as there are any, so that recordings of one length are seen, too.
        "seconds": _spread(seconds, np.geomspace(max(seconds.min() / 2, 1e-3), max(seconds.max() * 2, 4e-3), 41)),
        "rms": _spread(measures["rms"], np.arange(-100.0, 2.0, 2.0)),
        "bandwidth": _spread(measures["bandwidth"], np.linspace(0, measures["rate"].max() / 2, 41)),
        "narrow": _listed(read, measures["bandwidth"] < measures["rate"] / 4),
        "clipped": _listed(read, measures["clipped"] > _CLIPPED),
        "dc": _listed(read, np.abs(measures["dc"]) > _DC),
        "silent": _listed(read, read["silent"].to_numpy()),
        "duplicates": _duplicates(read),
        "unreadable": {
            "count": len(unreadable) + len(skipped),
            "reasons": [*map(shown, [*unreadable["unreadable"].to_pylist(), *skipped.values()][:_LISTED])],
        },
        "captions": _captions(path) | {"without_sound": _without_sound(path, source)},
    }


_COLUMNS = ("name", "unreadable", "pieces", "channels", "encoding", "silent", "digest", *_MEASURES)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Value → how often, the most frequent first."""
    found = Counter({str(pair["values"]): pair["counts"] for pair in column.value_counts().to_pylist()})
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _spread(values: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Quantiles and a histogram of the values that there are."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"count": 0}
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    quantiles = dict(zip(("min", "p10", "median", "p90", "max"), np.quantile(values, [0, 0.1, 0.5, 0.9, 1])))
    return {
        "count": len(values),
        **{name: round(float(value), 4) for name, value in quantiles.items()},
        "histogram": {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()},
    }


def _listed(table: pa.Table, wanted: np.ndarray) -> dict[str, Any]:
    """How many rows are wanted, and the names of the first."""
    first = table["name"].take(pa.array(np.flatnonzero(wanted)[:_LISTED]))
    return {"count": int(wanted.sum()), "first": _names(first)}


def _names(column: Any) -> list[str]:
    return [name.decode("utf-8", "backslashreplace") for name in column.to_pylist()]


def _duplicates(table: pa.Table) -> dict[str, Any]:
    """Recordings with the same sound as an earlier one, and the first groups of equal ones."""
    counts = table.group_by("digest", use_threads=False).aggregate([("digest", "count")])
    several = counts.filter(compute.greater(counts["digest_count"], 1))
    groups = []
    for digest in several["digest"].to_pylist()[:_LISTED]:
        groups.append(_names(table.filter(compute.equal(table["digest"], digest))["name"])[:_LISTED])
    total = (compute.sum(several["digest_count"]).as_py() or 0) - len(several)
    return {"count": total, "groups": len(several), "first": groups}


def _captions(path: Path) -> dict[str, Any]:
    """Of the recordings that can be read: how many have captions, how long these are, and which several have."""
    found: Counter[str] = Counter()
    words: list[np.ndarray] = []
    with_caption = transcribed = rows = 0
    for batch in _batches(path, ("captions", "transcription", "unreadable")):
        batch = batch.filter(compute.is_null(batch["unreadable"]))
        texts = batch["captions"].flatten()
        rows += len(batch)
        with_caption += compute.sum(compute.greater(compute.list_value_length(batch["captions"]), 0)).as_py() or 0
        transcribed += compute.sum(compute.is_valid(batch["transcription"])).as_py() or 0
        words.append(compute.list_value_length(compute.utf8_split_whitespace(texts)).to_numpy(zero_copy_only=False))
        found.update(texts.to_pylist())
    length = np.concatenate(words).astype(float) if words else np.zeros(0)
    repeated = sorted(
        ((count, text) for text, count in found.items() if count > 1), key=lambda pair: (-pair[0], pair[1])
    )
    return {
        "recordings_with": with_caption,
        "recordings_without": rows - with_caption,
        "transcribed": transcribed,
        "count": len(length),
        "different": len(found),
        "repeated": [[text, count] for count, text in repeated[:_LISTED]],
        "words": _spread(length, np.arange(0.5, max(length.max(initial=0), 20) + 1.5)),
    }


def _without_sound(path: Path, source: Source) -> int:
    """How many recordings have captions and cannot be read, or are not there."""
    count = getattr(source, "without_sound", 0)
    for batch in _batches(path, ("captions", "unreadable")):
        some = compute.greater(compute.list_value_length(batch["captions"]), 0)
        count += compute.sum(compute.and_(some, compute.is_valid(batch["unreadable"]))).as_py() or 0
    return count


def _batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    with parquet.ParquetFile(path) as table:
        yield from table.iter_batches(columns=list(columns))


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, for a terminal."""
    captions, seconds = report["captions"], report["seconds"]
    cut = f", {report['cut']} of them cut" if report["cut"] else ""
    given = f" ({_said(report['splits'])})" if len(report["splits"]) > 1 else ""
    lines = [
        f"{duration(report['hours'])}: {report['recordings']} recordings{cut}, {report['records']} records{given} of "
        f"{report['sampling_rate']} Hz in {report['shards']} shards, {report['bytes'] / 2**20:.1f} MiB",
        f"seconds: {seconds['min']:g} to {seconds['max']:g}, half of them below {seconds['median']:g}",
        f"originals: {_said(report['rates'], ' Hz')}; channels {_said(report['channels'])}",
        f"captions: {captions['recordings_with']} recordings with, {captions['recordings_without']} without; "
        f"{captions['different']} different ones; {captions['transcribed']} recordings with a transcription",
    ]
    if captions["without_sound"]:
        lines.append(f"captions without a recording that can be read: {captions['without_sound']}")
    for key, what in _FAULTS.items():
        if report[key]["count"]:
            lines.append(f"{what}: {report[key]['count']}")
    return lines


def duration(hours: float) -> str:
    """Hours as a person reads them."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


_FAULTS = {
    "unreadable": "unreadable",
    "duplicates": "the same sound as another recording",
    "silent": "silent",
    "clipped": f"clipped (more than {_CLIPPED:.2%} of the samples in runs at full scale)",
    "narrow": "nothing above half of the band that their rate has (as if resampled from half the rate or less)",
    "dc": f"mean of the samples above {_DC} of full scale",
}


def _said(counts: dict[str, int], unit: str = "", most: int = 6) -> str:
    more = f", and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(f"{value}{unit} × {count}" for value, count in [*counts.items()][:most]) + more


def text(report: dict[str, Any]) -> str:
    """The report as Markdown, with its picture."""
    rows = [
        ("length", "s", report["seconds"]),
        ("loudness: root mean square", "dBFS", report["rms"]),
        ("bandwidth", "Hz", report["bandwidth"]),
        ("captions", "words", report["captions"]["words"]),
    ]
    lines = ["# Recordings", "", *(f"- {line}" for line in summary(report)), ""]
    lines += [f"![Histograms of length, loudness, bandwidth and captions]({PICTURE})", ""]
    lines += ["| | unit | lowest | 10 % | median | 90 % | highest |", "|---|---|---|---|---|---|---|"]
    for name, unit, spread in rows:
        if spread["count"]:
            values = " | ".join(f"{spread[key]:g}" for key in ("min", "p10", "median", "p90", "max"))
            lines.append(f"| {name} | {unit} | {values} |")
    lines += ["", f"Encodings of the originals: {_said(report['encodings'])}.", ""]
    for key, what in _FAULTS.items():
        found = report[key]
        if found["count"]:
            first = found.get("reasons") or found["first"]
            lines += [f"## {what[0].upper()}{what[1:]}: {found['count']}", ""]
            lines += [f"- {_code(name)}" for name in first]
            lines += [f"- … all are in {prepared.TABLE}"] if len(first) == _LISTED else []
            lines.append("")
    if report["captions"]["repeated"]:
        lines += ["## Captions of several recordings", ""]
        lines += [f"- {count} × {_code(caption)}" for caption, count in report["captions"]["repeated"]]
    return "\n".join(lines).rstrip() + "\n"


def _code(value: str | list[str]) -> str:
    """Names and texts as they are, whatever they hold."""
    if isinstance(value, list):
        return ", ".join(map(_code, value))
    return "`` " + shown(" ".join(value.replace("``", "' '").split())) + " ``"
