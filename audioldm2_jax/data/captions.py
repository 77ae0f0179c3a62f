"""The captions of a recording, under the names that people and data sets give them."""

from __future__ import annotations

from collections.abc import Mapping

from audioldm2_jax.runtime.text_files import printable

#: Names that captions usually have, the likeliest first.
TEXT_FEATURES = ("caption", "text", "captions", "description", "sentence", "transcription", "transcript", "title")
#: Names of what is said in single words; together they are the caption of a recording that has no other.
LABEL_FEATURES = ("tags", "tag", "labels", "label")
_QUOTED = 60


def captions_of(value: object, what: str) -> tuple[str, ...]:
    """The captions in a value: a text, several, or none at all (null, or nothing but space).

    Args:
        value: as a file has it.
        what: what messages call it.

    Raises:
        ValueError: it is anything else.
    """
    found = []
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str | None):
            raise ValueError(f"{what} is {repr(text)[:_QUOTED]}, not a text")
        found.append(printable(text or "").strip())
    return tuple(dict.fromkeys(filter(None, found)))


def captions_in(
    record: Mapping, where: str, beside: tuple[str, ...] = (), elsewhere: str = "another file"
) -> tuple[str, ...]:
    """The captions of a recording that a JSON object describes.

    They stand under the first of `TEXT_FEATURES` that holds any; without them its labels are the caption, "rain, wind",
    where they are texts (numbers say nothing).

    Args:
        record: the object.
        where: what messages call it.
        beside: captions that another file has for the same recording.
        elsewhere: what messages call that file.

    Raises:
        ValueError: a caption is no text, or the object and the other file say different things.
    """
    named = next(filter(None, (captions_of(record.get(name), f"{where}: {name}") for name in TEXT_FEATURES)), ())
    if named and not set(beside) <= set(named):
        raise ValueError(f"{where} and {elsewhere}: different captions of one recording; keep one")
    return named or beside or next(filter(None, (joined_labels(record.get(name)) for name in LABEL_FEATURES)), ())


def joined_labels(value: object) -> tuple[str, ...]:
    """Labels, a text or several, as one caption; none where they are no texts."""
    try:
        labels = captions_of(value, "a label")
    except ValueError:
        return ()
    return (", ".join(labels),) if labels else ()
