"""Classes by their names: AudioSet's ids, and lists of labels that other programs wrote."""

from __future__ import annotations

import ast
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from audioldm2_jax.data.captions import joined_labels
from audioldm2_jax.data.csv_rows import rows_of
from audioldm2_jax.runtime.text_files import shown

FILE = "class_labels_indices.csv"
"""What AudioSet's authors call the table of its classes."""
_LISTED = 5  # unknown ids that a warning spells out


class ClassNames:
    """The names of classes by their ids, and how often an id that has none was asked for.

    Args:
        names: id → name.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._unknown: Counter[str] = Counter()

    @classmethod
    def read(cls, *files: Path) -> ClassNames:
        """The table in CSV files with the columns index, mid, display_name.

        Raises:
            ValueError: a file is something else.
        """
        rows = [row for file in files for _, row in rows_of(file, ("mid", "display_name"))]
        return cls({row["mid"]: row["display_name"] for row in rows if row["mid"] and row["display_name"]})

    def captions(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels as one caption, in their order: ids, which begin with "/", by their names, names as they are.

        An id without a name is left out and counted; see `warn`.
        """
        found = []
        for label in (label.strip() for label in labels):
            name = self._names.get(label) if label.startswith("/") else label
            if name is None:
                self._unknown[label] += 1
            else:
                found.append(name)
        return joined_labels(found)

    def warn(self, where: Path) -> None:
        """Names the ids that had no name, in one warning."""
        if self._unknown:
            listed = ", ".join(f"{name} ({count})" for name, count in sorted(self._unknown.items())[:_LISTED])
            more = f" and {len(self._unknown) - _LISTED} more" if len(self._unknown) > _LISTED else ""
            logging.warning(
                "%s: %d labels have no name and are left out, each with how often it stands there: %s%s; %s is where "
                "they are named",
                *(shown(where), len(self._unknown), listed, more, FILE),
            )


def python_list(text: str, where: str) -> list[str]:
    """The texts and numbers in a list that Python printed, such as "['low quality', 'drums']"; none in "".

    Raises:
        ValueError: it is something else.
    """
    if not text.strip():
        return []
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str | int) for one in found):
        raise ValueError(f"{where}: {text[:60]!r} is no list such as ['drums', 'bass']")
    return [str(one) for one in found]
