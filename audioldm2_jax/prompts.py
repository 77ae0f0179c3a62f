"""Prompts to token ids, as diffusers' AudioLDM2Pipeline.encode_prompt has its tokenizers do it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_jax.weights.store import FolderError, check_manifest

_LOG = logging.getLogger(__name__)
# Lengths are padded to a multiple of this, so that not every other prompt compiles anew; padding changes nothing.
_BUCKET = 16


class Prompts:
    """The two tokenizers of a model folder."""

    def __init__(self, clap: Any, t5: Any, *, clap_limit: int, t5_limit: int):
        """Args:
        clap: CLAP's tokenizer (RoBERTa), of transformers.
        t5: T5's.
        clap_limit, t5_limit: how many tokens the networks can take; the tokenizers' own limit may be lower.
        """
        self.clap, self.t5 = clap, t5
        self.clap_limit = min(clap_limit, clap.model_max_length)
        self.t5_limit = min(t5_limit, t5.model_max_length)

    @classmethod
    def from_folder(cls, path: Path, *, clap_limit: int, t5_limit: int) -> Prompts:
        """Reads `tokenizer/` and `tokenizer_2/` of a model folder.

        Raises:
          FolderError: where one is missing or cannot be read.
        """
        from transformers import AutoTokenizer

        tokenizers = []
        for name in ("tokenizer", "tokenizer_2"):
            if not (path / name).is_dir():
                raise FolderError(f"{path} has no {name}/; copy or publish the model folder again.")
            check_manifest(path / name)
            try:
                tokenizers.append(AutoTokenizer.from_pretrained(path / name))
            except (OSError, ValueError) as error:
                raise FolderError(f"{path / name} cannot be read: {error}") from None
        return cls(*tokenizers, clap_limit=clap_limit, t5_limit=t5_limit)

    def encode(
        self, prompts: Sequence[str], negatives: Sequence[str], *, emptied: bool = False
    ) -> dict[str, np.ndarray]:
        """Token ids and masks of prompts and negative prompts, one after the other in one batch.

        A negative prompt is padded, or cut, to the length that T5's tokens of its prompt have, as in diffusers.
        What does not fit is cut, and a warning quotes it.

        Args:
          prompts, negatives: as many of the one as of the other.
          emptied: adds the empty text, once a prompt and of its length, as a third part.

        Returns:
          `clap_ids`, `clap_mask`, `t5_ids`, `t5_mask` and `t5_slots` (conditioning.py), [2 or 3 * prompts, n] int32.
        """
        t5 = [self._tokens(self.t5, text, self.t5_limit, "T5") for text in prompts]
        lengths = [len(ids) for ids in t5]
        every = [*prompts, *negatives, *([""] * len(prompts) if emptied else ())]
        for part in (every[i : i + len(prompts)] for i in range(len(prompts), len(every), len(prompts))):
            t5 += [_cut(self.t5, text, length) for text, length in zip(part, lengths)]
        clap = [self._tokens(self.clap, text, self.clap_limit, "CLAP") for text in every]
        clap_ids, clap_mask = _pad(clap, self.clap.pad_token_id, self.clap_limit)
        t5_ids, t5_mask = _pad(t5, self.t5.pad_token_id, self.t5_limit)
        slots = np.arange(t5_ids.shape[1]) < np.resize(lengths, len(every))[:, None]
        return {
            "clap_ids": clap_ids,
            "clap_mask": clap_mask,
            "t5_ids": t5_ids,
            "t5_mask": t5_mask,
            "t5_slots": slots.astype(np.int32),
        }

    def _tokens(self, tokenizer: Any, text: str, limit: int, name: str) -> list[int]:
        ids = tokenizer(text, verbose=False).input_ids
        if len(ids) <= limit:
            return ids
        lost = tokenizer.decode(ids[limit - 1 : -1]).strip()
        _LOG.warning("The prompt is longer than the %d tokens that %s reads; cut was: %r", limit, name, lost)
        return _cut(tokenizer, text, limit)


def _cut(tokenizer: Any, text: str, length: int) -> list[int]:
    """At most `length` tokens, of which the last still ends the text."""
    return tokenizer(text, truncation=True, max_length=length).input_ids


def _pad(rows: list[list[int]], pad: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    width = min(-(-max(map(len, rows)) // _BUCKET) * _BUCKET, max(limit, max(map(len, rows))))
    ids, mask = np.full((len(rows), width), pad, np.int32), np.zeros((len(rows), width), np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask
