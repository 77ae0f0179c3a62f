"""What is written about a recording, under the names that people and data sets give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from audioldm2_jax.runtime.text_files import printable

#: Names that captions usually have, the likeliest first.
TEXT_FEATURES = ("caption", "text", "captions", "description", "sentence", "transcription", "transcript", "title")
#: Names that the words spoken in a recording usually have, the likeliest first. They are its caption, too, where it has
#: no other.
TRANSCRIPTION_FEATURES = ("transcription", "transcript", "sentence", "normalized_text", "text_normalized")
#: Names of what is said in single words; together they are the caption of a recording that has no other.
LABEL_FEATURES = ("tags", "tag", "labels", "label")
_QUOTED = 60


class Texts(NamedTuple):
    """What is written about a recording.

    Attributes:
        captions: what it sounds like, in one way or in several.
        transcription: the words that are spoken in it; None where nobody wrote them down.
    """

    captions: tuple[str, ...] = ()
    transcription: str | None = None


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


def texts_in(record: Mapping, where: str, beside: tuple[str, ...] = (), elsewhere: str = "another file") -> Texts:
    """What a JSON object says of a recording.

    Captions stand under the first of `TEXT_FEATURES` that holds any; without them its labels are the caption, "rain,
    wind", where they are texts (numbers say nothing). The transcription stands under the first of
    `TRANSCRIPTION_FEATURES`.

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
    labels = next(filter(None, (joined_labels(record.get(name)) for name in LABEL_FEATURES)), ())
    said = next(filter(None, (transcription_of(record.get(n), f"{where}: {n}") for n in TRANSCRIPTION_FEATURES)), None)
    return Texts(named or beside or labels, said)


def transcription_of(value: object, what: str) -> str | None:
    """The transcription in a value; None where it is empty.

    Raises:
        ValueError: it is no text, or several; `what` names it.
    """
    found = captions_of(value, what)
    if len(found) > 1:
        raise ValueError(f"{what} holds {len(found)} texts, and a transcription is one")
    return found[0] if found else None


def joined_labels(value: object) -> tuple[str, ...]:
    """Labels, a text or several, as one caption; none where they are no texts."""
    try:
        labels = captions_of(value, "a label")
    except ValueError:
        return ()
    return (", ".join(labels),) if labels else ()
