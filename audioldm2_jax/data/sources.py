"""Where examples come from: the embedded corpus, a TensorFlow Datasets set or a folder of recordings."""

from __future__ import annotations

import os
from fractions import Fraction

from ml_collections import ConfigDict

from audioldm2_jax.data import mixture
from audioldm2_jax.data.builtin.music import SPLITS, MusicCorpus
from audioldm2_jax.data.example import Source
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.mixture import Mixture

BUILTIN = ("music",)
_KINDS = """data.source is one of
  builtin:music        the embedded music corpus
  tfds:NAME            a TensorFlow Datasets set by name, e.g. tfds:nsynth
  tfds:/FOLDER         one prepared in ArrayRecord, by its folder (…/name/1.0.0)
  /FOLDER              recordings of your own, captions in metadata.jsonl or metadata.csv
or several of these with their weights: builtin:music,2;/FOLDER,1"""


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens `config.data.source` at the recipe's sampling rate.

    Args:
        config: a recipe; read are `data`, `audio` and `seed`.
        split: "train" or "heldout". The corpus holds out scores, the others a share of the records.

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


def _open(config: ConfigDict, split: str, source: str) -> Source:
    data, rate = config.data, config.audio.sampling_rate
    named = source.strip()
    scheme, _, name = named.partition(":")
    if scheme == "builtin":
        if name not in BUILTIN:
            raise ValueError(f"no embedded corpus {name!r}; there is builtin:{', builtin:'.join(BUILTIN)}")
        return MusicCorpus(rate, config.audio.seconds, config.seed, split, examples=data.examples)
    if scheme == "tfds":
        from audioldm2_jax.data.datasets import Dataset  # its import takes a second that others need not wait

        return Dataset(name, split, rate, data.heldout_share, data.audio_feature, data.text_feature)
    if "://" in named and scheme.lower() != "file":
        raise ValueError(f"data.source is {named!r}: nothing is read from {scheme} addresses; {_KINDS}")
    return Folder(source, split, rate, data.heldout_share)
