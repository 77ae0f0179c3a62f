"""Turns a source into a prepared set (data/prepared.py), in parallel, so that it can be stopped and gone on with.

The records of the source are divided into ranges of equal length, each of which becomes a shard. A shard depends on its
range alone: which process makes it, and when, changes no byte. While the work goes on there is beside the shards

    OUT/prepare.json                    what is made of what; written first, and kept
    OUT/parts/00000-of-00004.parquet    the rows of a shard, written before the shard has its name

so that what counts as made is whole. Processes of this machine make the shards (workers.py), or Apache Beam does
(beam.py); this process alone decides what is to be made, and finishes. In the end the rows become one table, the report
is written, and at the very last what TFDS knows the set by.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pyarrow import compute, parquet

from audioldm2_jax.data import prepared
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.prepare import beam, picture, places, records, report, workers
from audioldm2_jax.data.prepare.options import Options, PrepareError, open_all
from audioldm2_jax.data.prepare.places import OutputPlace
from audioldm2_jax.data.prepare.shards import PARTS, Plan, renamed, splits_of, write_file
from audioldm2_jax.runtime.lock import RunLock
from audioldm2_jax.runtime.object_folders import local_copy
from audioldm2_jax.runtime.object_store import normalized
from audioldm2_jax.runtime.storage import local_path, scheme_of
from audioldm2_jax.runtime.text_files import read_json_object, shown

_PROBLEMS = 20  # that are told while the work goes on


def prepare(
    options: Options,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Prepares a source, or goes on with it; returns the report (data/prepare/report.py).

    Args:
        options: what and how.
        on_progress: told how many recordings of how many are done.
        say: told what else a person wants to know, a line at a time.

    Raises:
        ValueError: the source cannot be opened, holds nothing that can be read, or is a mixture; it or the options are
            others than those that the folder was begun with; a shard cannot be written. The message says what to do.
        LockedError: another process is at work in the folder.
        OSError: the folder cannot be written.
        ImportError: a package that is needed is not installed.
        WorkerError: a worker process was killed, or the pipeline failed.
    """
    report.check_libraries()
    if options.beam is not None:
        beam.check(options.beam)  # what is wrong with them is told before the source is looked through
    source = open_all(options)
    place = places.Address(normalized(options.out, "--out")) if scheme_of(options.out) else _folder(options)
    with RunLock(place.locked, say, advice="Wait for it, end it, or choose another --out"), closing(place):
        place.take_up()
        plan = _begin(place, source, options)
        if not (place.folder / prepared.INFO).exists():
            _make(plan, place, source, options, on_progress, say)
            _finish(plan, place, source)
        else:
            say(f"{place} is prepared already")
        found = read_json_object(place.folder / report.FILE)
        place.forget()
        return found


def _folder(options: Options) -> places.Folder:
    """The folder of the set, which exists from here on."""
    out = local_path(options.out, "--out")
    # Of an address it is the copy that was made when the source was opened.
    source = local_copy(options.source.strip().removeprefix("tfds:"), "--source")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise PrepareError(f"--out={shown(out)} lies in the source {shown(source)}: choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise PrepareError(f"--out={shown(out)} is a file: name a folder")
    out.mkdir(parents=True, exist_ok=True)
    return places.Folder(out)


def _begin(place: OutputPlace, source: Source, options: Options) -> Plan:
    """Begins the work, or takes it up.

    Raises:
        PrepareError: the place holds something else.
    """
    out = place.folder
    given = source.given_splits()
    of_source = {
        "records": len(source),
        "texts": _digest(source.listing()),
        "splits": None if given is None else _digest(given.tolist()),
        "sound": _digest(sorted(source.digests(len(source)).items())),
    }
    made_with = options.made_with(len(source))
    path = out / prepared.STATE
    if path.exists():
        _compare(place, made_with, of_source)
    else:
        if there := place.there():
            raise PrepareError(
                f"--out={place} holds other files ({shown(min(there))}): choose a new or an empty folder"
            )
        write_file(path, (json.dumps({**made_with, "source": of_source}, indent=1) + "\n").encode())
        place.keep([prepared.STATE])
    (out / PARTS).mkdir(exist_ok=True)
    _remove_partial(out)
    max_samples = int(options.max_seconds * options.sampling_rate)
    return Plan(out, splits_of(source), made_with["shard_records"], options.sampling_rate, max_samples)


def _remove_partial(out: Path) -> None:
    """Removes what processes that were killed have left."""
    for left in (*out.glob(".*.partial"), *(out / PARTS).glob(".*.partial")):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _digest(content: Any) -> str:
    found = hashlib.sha256()
    for part in content if isinstance(content, list) else [content]:
        found.update(json.dumps(part).encode())
    return found.hexdigest()


def _compare(place: OutputPlace, made_with: dict[str, Any], of_source: dict[str, Any]) -> None:
    """Refuses to go on with what was begun otherwise.

    Raises:
        PrepareError: saying what differs.
    """
    out, begun = str(place), read_json_object(place.folder / prepared.STATE)
    before, anew = begun.get("source", {}), "choose another --out, or remove that folder to begin anew"
    count = before.get("records")
    if count != of_source["records"]:
        raise PrepareError(
            f"the source has {of_source['records']} records and had {count} when {out} was begun: {anew}"
        )
    differing = [f"{key} {begun.get(key)} → {value}" for key, value in made_with.items() if begun.get(key) != value]
    if differing:
        raise PrepareError(f"{out} was begun with other settings ({', '.join(differing)}): use those, or {anew}")
    if before.get("splits") != of_source["splits"]:
        raise PrepareError(f"the splits that are given have changed since {out} was begun: {anew}")
    if before.get("texts") != of_source["texts"]:
        raise PrepareError(f"names, lengths or captions in the source have changed since {out} was begun: {anew}")
    if before.get("sound") != of_source["sound"]:
        raise PrepareError(f"recordings of the source have changed since {out} was begun: {anew}")


def _make(
    plan: Plan,
    place: OutputPlace,
    source: Source,
    options: Options,
    on_progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> None:
    """Makes the shards that are missing."""
    missing = plan.missing(place.there())
    made = plan.records - sum(len(plan.range_of(number)) for number in missing)
    if made:
        say(f"{made} of {plan.records} recordings are there already")
    problems = 0
    for found in _shards(source, plan, missing, options, lambda done: on_progress(made + done, plan.records)):
        place.keep_shards(plan)
        for line in found[: max(_PROBLEMS - problems, 0)]:
            say(line)
        if problems < _PROBLEMS <= problems + len(found):
            say(f"what else cannot be read is not listed here, but in {prepared.TABLE}")
        problems += len(found)


def _shards(
    source: Source, plan: Plan, missing: list[int], options: Options, told: Callable[[int], None]
) -> Iterator[list[str]]:
    """Makes shards, as `workers.make_shards`."""
    if options.beam is None:
        return workers.make_shards(source, plan, missing, options.workers, told)
    return beam.make_shards(source, plan, missing, options, told)


def _finish(plan: Plan, place: OutputPlace, source: Source) -> None:
    """Writes the table, the report, and what TFDS knows the set by."""
    _remove_partial(plan.out)
    path, reason, sizes = plan.out / prepared.TABLE, None, place.sizes()
    splits: dict[str, list[tuple[int, int]]] = {}
    with renamed(path) as partial, parquet.ParquetWriter(partial, records.SCHEMA) as writer:
        for number in range(plan.count):
            rows = parquet.read_table(plan.part(number), schema=records.SCHEMA)
            writer.write_table(rows)
            made = compute.sum(compute.list_value_length(rows["pieces"])).as_py() or 0
            splits.setdefault(plan.split_of(number), []).append((made, sizes[plan.shard(number).name]))
            reason = reason or next((text for text in rows["unreadable"].to_pylist() if text), None)
    splits = {split: shards for split, shards in splits.items() if any(made for made, _ in shards)}
    if not splits:
        raise PrepareError(f"none of the {plan.records} recordings can be read; the first: {reason}")
    found = report.of_table(path, source, plan.sampling_rate)
    found |= {"splits": {split: sum(made for made, _ in shards) for split, shards in splits.items()}}
    found |= {"shards": plan.count, "bytes": sum(size for shards in splits.values() for _, size in shards)}
    write_file(plan.out / report.FILE, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_file(plan.out / report.TEXT, report.text(found).encode())
    if drawn := picture.draw(found):
        write_file(plan.out / report.PICTURE, drawn)
    records.write_info(plan.out, splits)
    written = sorted(path.name for path in plan.out.iterdir() if path.is_file() and not path.name.startswith("."))
    place.keep([*(name for name in written if name != prepared.INFO), prepared.INFO])
