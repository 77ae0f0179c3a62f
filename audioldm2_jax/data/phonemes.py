"""Transcriptions to phoneme ids, for the speech variant.

Text is written as it is said (data/spoken_forms.py), cleaned, spoken by espeak-ng in American English and spelt in a
table of 183 symbols, as the authors' speech models were trained (A2: latent_diffusion/util.py,
latent_diffusion/modules/phoneme_encoder/text). Their tool turns a symbol outside the table into padding, which ends the
sentence there, and cuts what is too long; here both are errors.

A model folder has the table as transformers' VitsTokenizer, to which diffusers gives the transcription as it is. That
calls espeak-ng as we do and does not clean: its ids are ours of `clean(text)`, and so of any text that cleaning leaves
alone. It keeps capitals, some of which espeak-ng spells out, abbreviations, and marks in angle brackets.

English alone is spoken: words in another script are refused by name. Those of other languages in Latin letters lose
their accents and are read as English words are.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audioldm2_jax.data.espeak import speech_packages
from audioldm2_jax.data.spoken_forms import foreign_script, in_words
from audioldm2_jax.runtime.text_files import TextFileError, read_json_object

_IPA = (
    "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'\u0329'ᵻ"
)
SYMBOLS = f'_;:,.!?¡¿—…"«»“” ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz{_IPA}♪☎☒☝⚠'
"""The authors' symbols in the order of their ids. The apostrophe stands there twice: it has the later id, 176, and 174
is nobody's."""
PADDING, END = 0, 182
"""`_` and `⚠`: what follows a sentence, and what ends it. diffusers has both numbers fixed in its pipeline."""
LENGTH = 310
"""Most ids of a sentence, the end among them."""

_ABBREVIATIONS = {
    "mrs": "misess",  # sic: as in the models' training
    "mr": "mister",
    "dr": "doctor",
    "st": "saint",
    "co": "company",
    "jr": "junior",
    "maj": "major",
    "gen": "general",
    "drs": "doctors",
    "rev": "reverend",
    "lt": "lieutenant",
    "hon": "honorable",
    "sgt": "sergeant",
    "capt": "captain",
    "esq": "esquire",
    "ltd": "limited",
    "col": "colonel",
    "ft": "fort",
}
_TABLE_FILE, _CONFIG_FILE = "vocab.json", "tokenizer_config.json"
_TOKENIZER = "VitsTokenizer"
_QUOTED = 20
_ROUNDS = 5  # of cleaning at most


class PhonemeTable(NamedTuple):
    """What a tokenizer's folder says.

    Attributes:
      ids: symbol → id.
      length: most ids of a sentence, the end among them.
      phonemize: whether a transcription is text; if not, it is phonemes already.
    """

    ids: Mapping[str, int]
    length: int = LENGTH
    phonemize: bool = True


AUTHORS = PhonemeTable({symbol: index for index, symbol in enumerate(SYMBOLS)})


def clean(text: str) -> str:
    """The text in lower-case ASCII as it is said: without marks such as <COMMA>, with abbreviations written out.

    Applied twice it does what it does once.

    Raises:
      ValueError: for words in other letters than Latin ones, characters that ASCII has nothing for, and control
        characters; names the first.
      ImportError: where a package is missing; says which.
    """
    unidecode = _packages()[0]
    if foreign := foreign_script(text):
        raise ValueError(
            f"{foreign[0][:_QUOTED]!r} in the transcription {_quoted(text)} is {foreign[1]}: English alone is spoken; "
            "write it in English or in Latin letters, or leave it out"
        )
    for _ in range(_ROUNDS):  # until nothing changes: a half as one sign becomes 1/2, and that becomes words
        before = text
        text = in_words(re.sub(r"</?\w[^<>\s]*>", "", text))
        text = _to_ascii(text, unidecode).lower()
        for short, long in _ABBREVIATIONS.items():
            text = re.sub(rf"\b{short}\.", long, text)
        if text == before:
            break
    return text


def phonemes(text: str) -> str:
    """How espeak-ng says a text: IPA with stresses, the punctuation kept. Raises as `clean`."""
    phonemize = _packages()[1]
    spoken = phonemize(
        clean(text), language="en-us", backend="espeak", strip=True, preserve_punctuation=True, with_stress=True
    )
    return re.sub(r"\s+", " ", spoken)


def encode(transcription: str, table: PhonemeTable = AUTHORS) -> np.ndarray:
    """The ids of a transcription: [n] int32, n up to table.length, the last one `END` and none `PADDING`.

    Raises:
      ValueError: where there is nothing to say, a symbol is not in the table, or the sentence is too long; says which.
      ImportError: where a package is missing; says which.
    """
    spoken = phonemes(transcription) if table.phonemize else transcription
    if not any(symbol.isalpha() for symbol in spoken):
        raise ValueError(f"There is nothing to say in the transcription {_quoted(transcription)}.")
    ids = [table.ids.get(symbol, PADDING) for symbol in spoken]
    unknown = [symbol for symbol, index in zip(spoken, ids) if index in (PADDING, END)]
    if unknown:
        listed = " ".join(sorted(set(unknown)))
        raise ValueError(
            f"The model has no phoneme for {listed} in the transcription {_quoted(transcription)}, which is spoken as "
            f"{_quoted(spoken)}: leave it out or write it in words."
        )
    if len(ids) >= table.length:
        raise ValueError(
            f"The transcription {_quoted(transcription)} has {len(ids)} phonemes; the model takes {table.length - 1}, "
            f"so it is {len(ids) - table.length + 1} too long: shorten it, or make several clips of it."
        )
    return np.array([*ids, END], np.int32)


class PhonemeTokenizer:
    """Transcriptions to rows of ids, as the tokenizers of captions (data/text.py) make them of those.

    Args:
      table: symbols, and the length of every row.
    """

    def __init__(self, table: PhonemeTable) -> None:
        self.table = table

    def __call__(self, transcriptions: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask (1: an id, 0: padding), [transcriptions, length] int32 each; where there is none, padding.

        Raises:
          ValueError: as `encode`.
        """
        ids = np.full((len(transcriptions), self.table.length), PADDING, np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(transcriptions):
            if text is not None:
                own = encode(text, self.table)
                ids[row, : len(own)], mask[row, : len(own)] = own, 1
        return ids, mask

    @property
    def vocabulary(self) -> int:
        """Number of ids: one more than the highest."""
        return max(self.table.ids.values()) + 1

    def save(self, folder: str | Path) -> None:
        """Writes the folder of transformers' VitsTokenizer."""
        write_tokenizer(folder, self.table)


def write_tokenizer(folder: str | Path, table: PhonemeTable = AUTHORS) -> None:
    """Writes the folder that transformers' VitsTokenizer reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # What is not in the table becomes padding, as in the authors' tool.
    tokens = {"pad_token": "_", "unk_token": "_"}
    config = {
        "tokenizer_class": _TOKENIZER,
        "model_max_length": table.length,
        "add_blank": False,
        "normalize": True,
        "phonemize": table.phonemize,
        "is_uroman": False,
        "language": "en",
        **tokens,
    }
    files = {_TABLE_FILE: table.ids, _CONFIG_FILE: config, "special_tokens_map.json": tokens}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: str | Path) -> PhonemeTable:
    """The table of a VitsTokenizer's folder.

    Raises:
      ValueError: where it is missing, damaged, or asks for something else than one id a symbol; names the file.
    """
    config, ids = (_read_json(Path(folder) / name) for name in (_CONFIG_FILE, _TABLE_FILE))
    where = Path(folder) / _CONFIG_FILE
    if config.get("tokenizer_class", _TOKENIZER) != _TOKENIZER:
        raise ValueError(f"{where} is of a {config['tokenizer_class']}; phonemes need a {_TOKENIZER}.")
    if config.get("add_blank", True):
        raise ValueError(f"{where} puts a blank between phonemes (add_blank); the model was trained without: false.")
    length = config.get("model_max_length")
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"{where} has model_max_length={length}; it has to be the model's limit, such as {LENGTH}.")
    if not all(isinstance(index, int) and index >= 0 for index in ids.values()):
        raise ValueError(f"{Path(folder) / _TABLE_FILE} does not give every symbol a number.")
    return PhonemeTable(ids, length, bool(config.get("phonemize", True)))


def _to_ascii(text: str, unidecode: Callable) -> str:
    spelt = [unidecode(symbol) for symbol in text]
    for symbol, letters in zip(text, spelt):
        # Accents that stand apart, and marks that are not seen, are nothing by themselves. A control character would be
        # the end of the text for espeak-ng.
        silent = not letters and unicodedata.category(symbol) not in ("Mn", "Me", "Cf")
        if silent or re.search(r"[^\s -~]", letters):
            raise ValueError(
                f"{symbol!r} in the transcription {_quoted(text)} cannot be read aloud; leave it out or write it in "
                "words."
            )
    return "".join(spelt)


@cache
def _packages() -> tuple[Callable, Callable]:
    """unidecode and phonemize, the latter bound to the espeak-ng that the package espeakng-loader brings along."""
    with speech_packages():
        import espeakng_loader
        from phonemizer import phonemize
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
        from unidecode import unidecode
    # It warns of every sentence in which espeak-ng runs two words together.
    logging.getLogger("phonemizer").setLevel(logging.ERROR)
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return unidecode, phonemize


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 2 * _QUOTED else f"{text[:_QUOTED]}...{text[-_QUOTED:]}")


def _read_json(file: Path) -> dict:
    try:
        return read_json_object(file)
    except TextFileError as error:
        raise ValueError(f"{file} cannot be read ({error}); copy or download it again.") from None
