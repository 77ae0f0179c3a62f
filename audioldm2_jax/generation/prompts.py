"""Prompts to token ids, as diffusers' AudioLDM2Pipeline.encode_prompt has its tokenizers do it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_jax.checkpoints import model_index
from audioldm2_jax.checkpoints.atomic_folder import FolderError, check_manifest
from audioldm2_jax.data import phonemes
from audioldm2_jax.data.phonemes import PhonemeTable, PhonemeTokenizer

_LOG = logging.getLogger(__name__)
# Lengths are padded to a multiple of this, so that not every other prompt compiles anew; padding changes nothing.
_BUCKET = 16
_QUOTED = 200  # characters of what is cut


class Prompts:
    """The tokenizers of a model folder: CLAP's, and T5's, the phonemes' or both where the model has such."""

    def __init__(
        self, clap: Any, t5: Any = None, speech: PhonemeTable | None = None, *, clap_limit: int, t5_limit: int = 0
    ):
        """Args:
        clap: CLAP's tokenizer (RoBERTa), of transformers.
        t5: T5's.
        speech: the phonemes of transcriptions, in models of speech without T5, in unified models beside it.
        clap_limit, t5_limit: how many tokens the networks can take; the tokenizers' own limit may be lower. Without a
          limit of the networks, t5_limit is 0.
        """
        self.clap, self.t5, self.speech = clap, t5, speech
        self.clap_limit = min(clap_limit, clap.model_max_length)
        self.t5_limit = min(t5_limit or t5.model_max_length, t5.model_max_length) if t5 else 0

    @property
    def takes_transcription(self) -> bool:
        """Whether a prompt may come with a transcription."""
        return self.speech is not None

    @property
    def needs_transcription(self) -> bool:
        """Whether it has to: a model of speech says something, a unified one may also sound."""
        return self.speech is not None and self.t5 is None

    @classmethod
    def from_folder(cls, path: Path, *, clap_limit: int, t5_limit: int = 0) -> Prompts:
        """Reads `tokenizer/` of a model folder, and `tokenizer_2/` and `tokenizer_3/` where its index names one.

        Raises:
          FolderError: where one is missing or cannot be read.
        """
        from transformers import AutoTokenizer

        index, captions, speech = model_index.read(path), [], None
        classes = {name: (index.get(name) or [None, None])[1] for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}
        for name in (name for name, kind in classes.items() if kind or name == "tokenizer"):
            if not (path / name).is_dir():
                raise FolderError(f"{path} has no {name}/; copy or publish the model folder again.")
            check_manifest(path / name)
            try:
                if classes[name] == "VitsTokenizer":
                    speech = phonemes.read_tokenizer(path / name)
                    continue
                captions.append(AutoTokenizer.from_pretrained(path / name))
                if not isinstance(length := captions[-1].model_max_length, int | float):
                    raise ValueError(f"model_max_length={length!r}; it has to be a whole number")
            except Exception as error:  # of transformers and tokenizers, which raise plain Exceptions, too
                raise FolderError(f"{path / name} cannot be read: {' '.join(str(error).split())}") from error
        return cls(*captions, speech=speech, clap_limit=clap_limit, t5_limit=t5_limit)

    def check_tables(self, path: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares the tokenizers' ids with the rows of the text encoders' tables.

        Args:
          path: the model folder, for the message.
          configs: what the config.json of each component says.

        Raises:
          FolderError: where there are ids without a row: the tokenizer is another model's.
        """
        for name, tokenizer, part in (
            ("tokenizer", self.clap, "text_encoder"),
            ("tokenizer_2", self.t5, "text_encoder_2"),
        ):
            config = configs.get(part, {})
            rows = (config.get("text_config") or config).get("vocab_size")
            ids = max(tokenizer.get_vocab().values()) + 1 if tokenizer else 0
            if rows is not None and ids > rows:
                raise FolderError(
                    f"{path / name} has {ids} ids, but the table of {part}/ has {rows} rows: they are of different "
                    "models; copy or publish the model folder again."
                )

    def encode(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        transcriptions: Sequence[str | None] | None = None,
        *,
        emptied: bool = False,
    ) -> dict[str, np.ndarray]:
        """Token ids and masks of prompts and negative prompts, one after the other in one batch.

        A negative prompt is padded, or cut without a word, to the length that T5's tokens of its prompt have, as in
        diffusers; a transcription has no negative, and its phonemes are padded to the longest there can be.
        What the networks cannot take is cut, and a warning quotes it.

        Args:
          prompts, negatives: as many of the one as of the other.
          transcriptions: what is said, as many as prompts; needed where `needs_transcription`, and for none of the
            prompts elsewhere. None for a prompt of which nothing is said.
          emptied: adds the empty text, once a prompt and of its length, as a third part.

        Returns:
          `clap_ids`, `clap_mask`, and `t5_ids`, `t5_mask` and `t5_slots`, or `phoneme_ids`, `phoneme_mask` and
          `phoneme_slots`, or both (conditioning/loa.py), [2 or 3 * prompts, n] int32.

        Raises:
          ValueError: for a transcription that cannot be said (data/phonemes.py).
        """
        every = [*prompts, *negatives, *([""] * len(prompts) if emptied else ())]
        clap = [
            self._tokens(
                self.clap, text, self.clap_limit, "CLAP", "negative prompt" if row >= len(prompts) else "prompt"
            )
            for row, text in enumerate(every)
        ]
        clap_ids, clap_mask = _pad(clap, self.clap.pad_token_id, self.clap_limit)
        ids = {"clap_ids": clap_ids, "clap_mask": clap_mask}
        if self.t5:
            ids |= self._encode_t5(prompts, every)
        if self.speech:
            ids |= self._encode_phonemes(transcriptions or [None] * len(prompts), len(every))
        return ids

    def _encode_t5(self, prompts: Sequence[str], every: Sequence[str]) -> dict[str, np.ndarray]:
        t5 = [self._tokens(self.t5, text, self.t5_limit, "T5") for text in prompts]
        lengths = [len(ids) for ids in t5]
        for part in (every[i : i + len(prompts)] for i in range(len(prompts), len(every), len(prompts))):
            t5 += [_cut(self.t5, text, length) for text, length in zip(part, lengths)]
        ids, mask = _pad(t5, self.t5.pad_token_id, self.t5_limit)
        slots = np.arange(ids.shape[1]) < np.resize(lengths, len(every))[:, None]
        return {"t5_ids": ids, "t5_mask": mask, "t5_slots": slots.astype(np.int32)}

    def _encode_phonemes(self, transcriptions: Sequence[str | None], rows: int) -> dict[str, np.ndarray]:
        """As diffusers: negative prompts have no phonemes, and the places of those of their prompts."""
        ids, mask = PhonemeTokenizer(self.speech)([*transcriptions, *[None] * (rows - len(transcriptions))])
        return {
            "phoneme_ids": ids,
            "phoneme_mask": mask,
            "phoneme_slots": np.resize(mask[: len(transcriptions)], mask.shape),
        }

    def _tokens(self, tokenizer: Any, text: str, limit: int, name: str, what: str = "prompt") -> list[int]:
        ids = tokenizer(text, verbose=False).input_ids
        if len(ids) <= limit:
            return ids
        lost = tokenizer.decode(ids[limit - 1 : -1]).strip()
        quoted = lost if len(lost) <= _QUOTED else f"{lost[:_QUOTED]}…"
        _LOG.warning("The %s is longer than the %d tokens that %s reads; cut was: %r", what, limit, name, quoted)
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


def prompt_list(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list.

    Raises:
      ValueError: where there is none, or one that is empty or no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("The list of prompts is empty: give at least one.")
    for number, text in enumerate(prompts, 1):
        if not isinstance(text, str):
            raise ValueError(f"Prompt {number} is a {type(text).__name__}, not a text.")
        if not text.strip():
            raise ValueError(f"Prompt {number} is empty: say what to generate.")
    return [_valid(text) for text in prompts]


def one_each(texts: str | Sequence[str | None], count: int, name: str, *, may_lack: bool = False) -> list[str | None]:
    """Texts beside `count` prompts, given once for all or one each; `name` is what the error calls them.

    Raises:
      ValueError: where there are neither one nor `count`, or one is no text; None is one where `may_lack`.
    """
    texts = [texts] * count if isinstance(texts, str) else list(texts)
    if len(texts) != count:
        raise ValueError(f"{len(texts)} {name} for {count} prompts: give one for all, or one each.")
    for text in texts:
        if not isinstance(text, str) and not (may_lack and text is None):
            raise ValueError(f"Among the {name} is a {type(text).__name__}, not a text.")
    return [text if text is None else _valid(text) for text in texts]


def _valid(text: str) -> str:
    """The text with "?" for halves of characters (lone surrogates), which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode()
