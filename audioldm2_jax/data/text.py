"""Captions to token ids: RoBERTa's byte-level BPE for CLAP and T5's Unigram, trained here or pretrained.

The folders are those of transformers, so RobertaTokenizerFast, T5TokenizerFast and diffusers read them. Both
kinds are built exactly as transformers 5 builds them from a vocabulary (it ignores the rest of a tokenizer.json), so
the same text has the same ids everywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from huggingface_hub import snapshot_download
from ml_collections import ConfigDict
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.example import Source, UnreadableRecord
from audioldm2_jax.data.phonemes import AUTHORS, PhonemeTable, PhonemeTokenizer, read_tokenizer
from audioldm2_jax.runtime.hub_access import hub_reachable, no_folder, out_of_reach
from audioldm2_jax.runtime.object_folders import local_copy

_FOLDERS = ("tokenizer", "tokenizer_2", "tokenizer_3")  # CLAP's and the others'; diffusers has the first two
_NAMES = {"clap": "CLAP", "t5": "T5", "phoneme": "phonemes"}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
_CAPTIONS = 5000  # enough to train on
_UNKNOWN = 0.01  # of the captions' characters: the most that a tokenizer trained here may not know
_QUOTED = 300  # characters of a caption in a warning
_WARNINGS = 3  # about cut captions, for each kind of tokenizer


class Tokenizer:
    """One tokenizer with the fixed length of its batches.

    Args:
        backend: with the special tokens put on by its post-processor, the last of them the end of the text.
        pad: id of the padding.
        length: tokens of every row.
        files: what its folder holds, name → content.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad: int, length: int, files: dict[str, bytes]) -> None:
        self.backend, self.pad, self.length, self.files = backend, pad, length, files
        self.truncated = 0  # texts cut so far, in this process
        backend.no_padding()
        backend.no_truncation()

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask (1: token, 0: padding), [texts, length] int32 each.

        What does not fit is cut, the end mark kept; it is counted in `truncated` and quoted in a warning.
        """
        ids = np.full((len(texts), self.length), self.pad, np.int32)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(self.backend.encode_batch(list(texts))):
            tokens = encoding.ids
            if len(tokens) > self.length:
                self._warn(texts[row], texts[row][encoding.offsets[self.length - 1][0] :].strip())
                tokens = [*tokens[: self.length - 1], tokens[-1]]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    @property
    def vocabulary(self) -> int:
        """Number of ids: one more than the highest, so that many rows a network's table needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def save(self, folder: str | Path) -> None:
        """Writes the folder that `from_pretrained` of transformers reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _warn(self, text: str, lost: str) -> None:
        self.truncated += 1
        if self.truncated <= _WARNINGS:
            last = " (further ones are only counted)" if self.truncated == _WARNINGS else ""
            logging.warning(
                "a caption is longer than %d tokens, this is cut: %r of %r%s",
                *(self.length, lost[:_QUOTED], text[:_QUOTED], last),
            )


class Tokenizers:
    """The tokenizers of AudioLDM 2, each `tokenizer(texts)` → (ids, mask), [texts, length] int32.

    Args:
        clap: of captions.
        second: of captions for T5, or in models of speech of transcriptions.
        third: of transcriptions, in unified models.

    Attributes:
        by_kind: all of them, by what they read: "clap" first, then "t5" or "phoneme", or both.
    """

    def __init__(
        self, clap: Tokenizer, second: Tokenizer | PhonemeTokenizer, third: PhonemeTokenizer | None = None
    ) -> None:
        others = (second,) if third is None else (second, third)
        self.by_kind = {"clap": clap} | {
            "phoneme" if isinstance(one, PhonemeTokenizer) else "t5": one for one in others
        }

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer/`, `tokenizer_2/` and where there is a third `tokenizer_3/` of a model folder."""
        for name, tokenizer in zip(folders(self.by_kind).values(), self.by_kind.values()):
            tokenizer.save(Path(folder) / name)


def folders(kinds: Iterable[str]) -> dict[str, str]:
    """Returns which folder of a run, or of a model, each tokenizer lies in; `kinds` as in `Tokenizers.by_kind`."""
    return dict(zip(kinds, _FOLDERS))


def check_tables(tokenizers: Tokenizers, rows: Mapping[str, int | None]) -> None:
    """Compares the tokenizers' ids with the rows of the networks' tables of words.

    Args:
        tokenizers: of a recipe.
        rows: by what the tokenizers read; None: there is no such network, or it is not known yet.

    Raises:
        ValueError: there are ids without a row; the message names the keys.
    """
    sections = ("models.text_encoder.text_config", "models.text_encoder_2", "models.text_encoder_3")
    for (kind, tokenizer), section in zip(tokenizers.by_kind.items(), sections):
        if rows[kind] is not None and tokenizer.vocabulary > rows[kind]:
            raise ValueError(
                f"the tokenizer of {_NAMES[kind]} has {tokenizer.vocabulary} ids, but the network's table {rows[kind]} "
                f"rows: set --config.{section}.vocab_size={tokenizer.vocabulary}, or for a tokenizer that is trained "
                f"here lower --config.text.vocabulary; both have to be of the same model where it starts from given "
                "weights"
            )


def open_tokenizers(
    text: ConfigDict, source: Source | None = None, kinds: Sequence[str] = ("clap", "t5")
) -> Tokenizers:
    """The tokenizers of a recipe: pretrained where it names them, else trained on the captions of `source`.

    A source without captions gets tokenizers of the embedded corpus, so that prompts can still be written.

    Args:
        text: that section of the recipe.
        source: the data.
        kinds: what the tokenizers read, as in `Tokenizers.by_kind`. Phonemes are not learnt: where the recipe names no
            table it is the authors'.

    Raises:
        ValueError: a tokenizer is to be trained and there is no source, or a named one cannot be loaded.
    """
    texts = []
    if not all(text[f"{kind}_tokenizer"] for kind in kinds if kind != "phoneme"):
        if source is None:
            raise ValueError("there is no source to train tokenizers on; name pretrained ones in config.text")
        texts = captions(source)
        if not texts:
            logging.warning("no record has a caption: the tokenizers are trained on those of the embedded corpus")
            texts = captions(MusicCorpus(16000, 1.0, 0, "train"))
    return Tokenizers(*(_open_tokenizer(text, kind, texts) for kind in kinds))


def _open_tokenizer(text: ConfigDict, kind: str, texts: Sequence[str]) -> Tokenizer | PhonemeTokenizer:
    name, length = text[f"{kind}_tokenizer"], text[f"{kind}_length"]
    if kind == "phoneme":
        return PhonemeTokenizer((_phoneme_table(name) if name else AUTHORS)._replace(length=length))
    if name:
        return load(name, kind, length)
    return {"clap": train_clap, "t5": train_t5}[kind](texts, text.vocabulary, length)


def load_tokenizers(folder: str | Path, lengths: Mapping[str, int]) -> Tokenizers:
    """Those of a run folder, as `Tokenizers.save` wrote them.

    Args:
        folder: of the run.
        lengths: of the rows, by what the tokenizers read, as in `Tokenizers.by_kind`.

    Raises:
        ValueError: one is damaged; the message says how to have all made again.
    """
    places = {kind: Path(folder) / name for kind, name in folders(lengths).items()}
    try:
        return Tokenizers(
            *(
                PhonemeTokenizer(read_tokenizer(place)._replace(length=lengths[kind]))
                if kind == "phoneme"
                else load(str(place), kind, lengths[kind])
                for kind, place in places.items()
            )
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; delete {' and '.join(map(str, places.values()))}: the same command makes them again, alike of "
            "the same captions"
        ) from error


def words_digest(folder: str | Path) -> str:
    """Returns a digest of what decides the ids of a saved tokenizer: its words, with their scores where it has such.

    Other versions of the library may write the same words as other bytes.

    Raises:
        OSError, ValueError: its file is missing or damaged.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.exists():
        return hashlib.sha256(json.dumps(read_tokenizer(folder)._asdict(), sort_keys=True).encode()).hexdigest()
    content = json.loads(file.read_text(encoding="utf-8"))
    try:
        words = [content["model"]["vocab"], [[one["content"], one["id"]] for one in content["added_tokens"]]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}/tokenizer.json is no tokenizer: {error}") from error
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def captions(source: Source, n: int = _CAPTIONS) -> list[str]:
    """Up to `n` captions of a source, evenly spaced over it; fewer, or none, where records have none."""
    return _some(source, source.captions, n)


def transcriptions(source: Source, n: int = _CAPTIONS) -> list[str]:
    """As `captions`, of what is said."""
    return _some(source, lambda index: (source.transcription(index),), n)


def _some(source: Source, read: Callable[[int], Sequence[str | None]], n: int) -> list[str]:
    evenly = range(0, len(source), max(len(source) // n, 1))
    for numbers in (evenly, range(len(source))):  # those that have texts may be few
        texts: list[str] = []
        for index in numbers:
            try:
                texts += filter(None, read(index))
            except UnreadableRecord:
                continue
            if len(texts) >= n:
                break
        if texts:
            return texts[:n]
    return []


def load(name: str, kind: str, length: int) -> Tokenizer:
    """A pretrained tokenizer by folder or hub id; `kind` is "clap" (RoBERTa) or "t5".

    "owner/name/folder" is the folder of that repository, where there is no such folder here.

    Raises:
        ValueError: it cannot be loaded; the message says from where and why.
    """
    from transformers import RobertaTokenizerFast, T5TokenizerFast  # a second to import; workers need not

    folder = local_copy(name, f"the {kind} tokenizer")
    if folder.is_dir():
        name = str(folder)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ValueError(f"cannot load the {kind} tokenizer: {name} holds none of {', '.join(_TOKENIZER_FILES)}")
    owner, subfolder = name.split("/")[:2], "/".join(name.split("/")[2:])
    where = {} if folder.is_dir() else {"subfolder": subfolder, "local_files_only": not hub_reachable()}
    try:
        cls = {"clap": RobertaTokenizerFast, "t5": T5TokenizerFast}[kind]
        loaded = cls.from_pretrained(name if folder.is_dir() else "/".join(owner), **where)
    except Exception as error:
        if where.get("local_files_only"):
            raise ValueError(_not_here(name, kind)) from error
        raise ValueError(f"cannot load the {kind} tokenizer {name!r} (a hub id or a folder): {error}") from error
    # Where the hub cannot be reached, transformers 5 makes a tokenizer without words and says nothing.
    if not set(loaded.get_vocab()) - {*loaded.all_special_tokens, "▁"}:
        raise ValueError(_not_here(name, kind))
    with tempfile.TemporaryDirectory() as saved:
        loaded.save_pretrained(saved)
        files = {path.name: path.read_bytes() for path in sorted(Path(saved).iterdir())}
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    return Tokenizer(backend, loaded.pad_token_id, length, files)


def _phoneme_table(name: str) -> PhonemeTable:
    """The symbols of a VitsTokenizer, by folder, or as "owner/name/folder" by hub id.

    Raises:
        ValueError: it cannot be loaded; the message says from where and why.
    """
    folder = local_copy(name, "the tokenizer of phonemes")
    if not folder.is_dir():
        owner, subfolder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
        pattern = f"{subfolder}/*" if subfolder else "*.json"
        try:
            found = snapshot_download(owner, allow_patterns=pattern, local_files_only=not hub_reachable())
        except Exception as error:
            raise ValueError(_not_here(name, "phoneme")) from error
        folder = Path(found) / subfolder
    return read_tokenizer(folder)


def _not_here(name: str, kind: str) -> str:
    return (
        f"cannot load the {kind} tokenizer: {no_folder(name)}; as the id of a repository on the hub (owner/name): "
        f"{out_of_reach('/'.join(name.split('/')[:2]))}, or name a folder that holds a tokenizer with "
        f"--config.text.{kind}_tokenizer=PATH"
    )


def train_clap(texts: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """A byte-level BPE in RoBERTa's layout: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4; "" is <s></s>.

    Args:
        texts: to train on.
        vocabulary: most ids; at least 261, the bytes and the special tokens.
        length: tokens of a row, saved as the folder's model_max_length.

    Raises:
        ValueError: the vocabulary is too small.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(special):
        raise ValueError(
            f"text.vocabulary is {vocabulary}; byte-level BPE needs {len(alphabet) + len(special)} or more"
        )
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    model = json.loads(backend.to_str())["model"]
    files = _files(backend, "RobertaTokenizer", roles, length, add_prefix_space=False, trim_offsets=True)
    files["vocab.json"] = json.dumps(model["vocab"], ensure_ascii=False).encode()
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    files["merges.txt"] = "\n".join(["#version: 0.2", *merges, ""]).encode()
    return Tokenizer(backend, 1, length, files)


def train_t5(texts: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """A Unigram model in T5's layout: <pad> 0, </s> 1, <unk> 2; "" is </s>. Arguments as of `train_clap`.

    Raises:
        ValueError: the vocabulary is too small, for the characters of the texts, too.
    """
    special = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted({*string.ascii_letters, *string.digits, *string.punctuation})
    if vocabulary < 2 * len(alphabet):
        raise ValueError(f"text.vocabulary is {vocabulary}; T5's Unigram needs {2 * len(alphabet)} or more")
    texts = [re.sub(r"([.,:;!?])", r" \1 ", text) for text in texts]  # no pieces such as "violin:"
    most = _characters(texts, {*alphabet, "▁"}, vocabulary - len(special))
    metaspace = {"replacement": "▁", "prepend_scheme": "always"}
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace, split=True)]
    )
    # The library's Unigram trainer proposes only what occurs in several words, so a caption's few words would fall
    # to pieces, and its result varies. Pieces found by merging pairs, weighted by their frequency, do neither.
    merged = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    merged.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=[*alphabet, "▁"],
        limit_alphabet=most,
        show_progress=False,
    )
    merged.train_from_iterator(texts, trainer)
    count = Counter(token for encoding in merged.encode_batch(texts) for token in encoding.tokens)
    total = count.total() + 1.0
    pieces = sorted(merged.get_vocab().items(), key=lambda item: item[1])
    scores = [(piece, 0.0 if piece in special else math.log((count[piece] + 0.1) / total)) for piece, _ in pieces]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = split
    backend.decoder = decoders.Metaspace(**metaspace, split=True)
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    roles = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    # extra_ids: T5's hundred sentinels would be ids beyond the embedding table.
    files = _files(backend, "T5Tokenizer", roles, length, extra_ids=0, additional_special_tokens=[])
    return Tokenizer(backend, 0, length, files)


def _characters(texts: Sequence[str], always: set[str], rows: int) -> int:
    """How many characters get an id of their own: all, or where they are too many the most frequent.

    transformers' T5 has no ids for bytes (it builds its Unigram without them), so others become <unk>.

    Raises:
        ValueError: so many would be unknown that captions could not be told from each other.
    """
    count = Counter(character for text in texts for character in text if not character.isspace())
    there = len(always | count.keys())
    if there <= rows:
        return there
    kept = rows * 3 // 4  # the others are pieces of several characters
    further = [number for character, number in count.most_common() if character not in always]
    lost = sum(further[kept - len(always) :]) / count.total()
    if lost > _UNKNOWN:
        wanted = -(-2 * there // 256) * 256
        raise ValueError(
            f"the captions have {there} different characters, and T5's tokenizer of {rows} words would not know "
            f"{lost:.0%} of them: set --config.text.vocabulary={wanted} (the networks' tables of words follow), or "
            "name a tokenizer of your language in --config.text.t5_tokenizer"
        )
    logging.warning(
        "%d of the captions' %d characters are rare (%.2g%% of the text) and have no word in T5's tokenizer; "
        "--config.text.vocabulary makes it larger",
        *(there - kept, there, 100 * lost),
    )
    return kept


def _files(
    backend: tokenizers.Tokenizer, name: str, roles: dict[str, str], length: int, **settings: object
) -> dict[str, bytes]:
    tokens = {f"{role}_token": token for role, token in roles.items()}
    config = {"tokenizer_class": name, "model_max_length": length, **tokens, **settings}
    return {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(tokens, indent=2).encode(),
    }
