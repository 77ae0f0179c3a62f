"""Warnings that a run gives once: not again by this process, nor by one that it starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

_given: set[str] = set()


def warn(message: str, *values: object) -> None:
    """Logs a warning, unless that was done with the same text before."""
    text = message % values
    if text not in _given:
        _given.add(text)
        logging.warning("%s", text)


def given() -> list[str]:
    """Returns what was said, for a process that is started here."""
    return sorted(_given)


def adopt(texts: Iterable[str]) -> None:
    """Takes over what the process has said that started this one."""
    _given.update(texts)


def show_plainly() -> None:
    """From here on what is logged reads `warning: …`, without a logger's name, time or place in the code."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for handler in root.handlers:
        handler.setFormatter(_Plain())
    # TFDS tells at INFO what it opens, which absl's app.run turns on.
    logging.getLogger("absl").setLevel(logging.WARNING)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()  # as every formatter leaves it, for those that read the record later
        text = f"{record.levelname.lower()}: {record.message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
