"""Where examples come from: an embedded corpus, a TensorFlow Datasets set or a folder of recordings."""

from __future__ import annotations

from ml_collections import ConfigDict

from audioldm2_jax.data.builtin.corpus import SPLITS, Corpus
from audioldm2_jax.data.builtin.effects import EffectsCorpus
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.builtin.speech import SpeechCorpus
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.folder import Folder

BUILTIN: dict[str, type[Corpus]] = {corpus.NAME: corpus for corpus in (MusicCorpus, SpeechCorpus, EffectsCorpus)}
_KINDS = """data.source is one of
  builtin:music        the embedded music corpus
  builtin:speech       the embedded speech corpus, with transcriptions
  builtin:audio        the embedded corpus of sound effects
  tfds:NAME            a TensorFlow Datasets set by name, e.g. tfds:nsynth
  tfds:/FOLDER         one prepared in ArrayRecord, by its folder (…/name/1.0.0)
  /FOLDER              recordings of your own, captions in metadata.jsonl or metadata.csv"""


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens `config.data.source` at the recipe's sampling rate.

    Args:
        config: a recipe; read are `data`, `audio` and `seed`.
        split: "train" or "heldout". The embedded corpora hold out scores, sentences or sources of sound,
            the others a share of the records.

    Raises:
        ValueError: the source is unknown, missing or empty; the message says what to do.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    data, rate = config.data, config.audio.sampling_rate
    named = data.source.strip()
    scheme, _, name = named.partition(":")
    if not named:
        raise ValueError(f"no data: set --config.data.source; {_KINDS}")
    if scheme == "builtin":
        if name not in BUILTIN:
            raise ValueError(f"no embedded corpus {name!r}; there is builtin:{', builtin:'.join(BUILTIN)}")
        return BUILTIN[name](rate, config.audio.seconds, config.seed, split, examples=data.examples)
    if scheme == "tfds":
        from audioldm2_jax.data.datasets import Dataset  # its import takes a second that others need not wait

        return Dataset(name, split, rate, data.heldout_share, data.audio_feature, data.text_feature)
    if "://" in named and scheme.lower() != "file":
        raise ValueError(f"data.source is {named!r}: nothing is read from {scheme} addresses; {_KINDS}")
    return Folder(data.source, split, rate, data.heldout_share)
