"""Where examples come from: an embedded corpus, a TensorFlow Datasets set, data of one's own, or several of these."""

from __future__ import annotations

import functools
import os
from fractions import Fraction
from pathlib import Path

from ml_collections import ConfigDict

from audioldm2_jax.data import mixture
from audioldm2_jax.data.builtin.corpus import SPLITS, Corpus
from audioldm2_jax.data.builtin.effects import EffectsCorpus
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.builtin.speech import SpeechCorpus
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.layouts import open_path
from audioldm2_jax.data.mixture import Mixture
from audioldm2_jax.data.prepared import INFO, STATE, Prepared, is_prepared
from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.object_store import normalized
from audioldm2_jax.runtime.storage import StorageError, local_path, scheme_of

BUILTIN: dict[str, type[Corpus]] = {corpus.NAME: corpus for corpus in (MusicCorpus, SpeechCorpus, EffectsCorpus)}
_KINDS = """data.source is one of
  builtin:music        the embedded music corpus
  builtin:speech       the embedded speech corpus, with transcriptions
  builtin:audio        the embedded corpus of sound effects
  tfds:NAME            a TensorFlow Datasets set by name, e.g. tfds:nsynth
  tfds:/FOLDER         one prepared in ArrayRecord, by its folder (…/name/1.0.0)
  /FOLDER              data of your own, told by what lies there:
                         recordings, captions in metadata.jsonl, .csv or .parquet, or beside them (a.wav, a.txt)
                         *.parquet or *.arrow, audio data sets of Hugging Face
                         *.tar, WebDataset
                         dataset_root.json, as AudioLDM's authors have their data
                         AudioCaps, MusicCaps, AudioSet, WavCaps, Clotho, FMA, LJSpeech, LibriTTS or GigaSpeech as
                         their authors publish them (docs/data.md)
  /FILE                one such file
  gs://… s3://…        any of these but the first three in a bucket, also as tfds:gs://…, of which a copy is made here
or several of these with their weights: builtin:music,2;/FOLDER,1"""


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
    parts = names(config.data.source)
    if len(parts) == 1:
        return _open(config, split, parts[0][0])
    return Mixture([_open(config, split, name) for name, _ in parts], [weight for _, weight in parts])


def names(source: str) -> list[tuple[str, Fraction]]:
    """Returns the sources that `data.source` names, with their weights.

    Raises:
        ValueError: it names none; see `mixture.parse`, too.
    """
    if not source.strip():
        raise ValueError(f"no data: set --config.data.source; {_KINDS}")
    if ";" not in source or os.path.exists(os.path.expanduser(source)):
        return [(source, Fraction(1))]
    return mixture.parse(source)


def _prepared(place: str) -> Path | None:
    """The folder at a path where it holds what `prepare` made, which goes by names as a folder of recordings does."""
    try:
        folder = local_path(place, "--config.data.source")
    except StorageError:  # another one tells
        return None
    return folder if is_prepared(folder) else None


@functools.cache
def _fetched(place: str) -> Path:
    """The copy, on this machine, of what is at an address; it is made, or brought up to date.

    Raises:
        ValueError: there is nothing, or a set that is not finished; the store does not answer.
    """
    address = normalized(place, "--config.data.source")
    if object_store.stat(f"{address}/{STATE}") and not object_store.stat(f"{address}/{INFO}"):
        raise ValueError(f"{address} is not finished: the same command that began to prepare it goes on with it")
    return object_folders.cached(address)


def _open(config: ConfigDict, split: str, source: str) -> Source:
    data, rate = config.data, config.audio.sampling_rate
    named = source.strip()
    scheme, _, name = named.partition(":")
    if scheme == "builtin":
        if name not in BUILTIN:
            raise ValueError(f"no embedded corpus {name!r}; there is builtin:{', builtin:'.join(BUILTIN)}")
        return BUILTIN[name](rate, config.audio.seconds, config.seed, split, examples=data.examples)
    if scheme_of(address := name if scheme == "tfds" else named):
        source = named = name = str(_fetched(address))
    if folder := _prepared(name if scheme == "tfds" else named):
        return Prepared(folder, split, rate, data.heldout_share)
    if scheme == "tfds":
        from audioldm2_jax.data.datasets import Dataset  # its import takes a second that others need not wait

        return Dataset(name, split, rate, data.heldout_share, data.audio_feature, data.text_feature)
    if "://" in named and scheme.lower() != "file":
        raise ValueError(f"data.source is {named!r}: nothing is read from {scheme} addresses; {_KINDS}")
    return open_path(data, source, split, rate)
