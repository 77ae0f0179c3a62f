"""TensorFlow Datasets sets in ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import soundfile
import soxr
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import audio_feature  # before the alias below, which replaces its class

from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.folder import split_names

#: Names that captions usually have, the likeliest first.
TEXT_FEATURES = ("caption", "text", "captions", "description", "sentence", "transcription", "transcript", "title")
_AUDIO_FEATURES = ("audio", "waveform", "speech")
_RATES = ("sampling_rate", "sample_rate")


class _Audio(tfds.features.FeatureConnector):
    """tfds.features.Audio for reading: the original cannot even be made without TensorFlow.

    TFDS looks classes up by the name in features.json, and lets a class stand in for another through ALIASES.
    """

    ALIASES = [f"{audio_feature.__name__}.Audio"]  # noqa: RUF012

    def __init__(self, stored: tfds.features.Tensor, sample_rate: int) -> None:
        super().__init__()
        self.stored, self.sample_rate = stored, sample_rate

    @classmethod
    def from_json_content(cls, value, doc=None) -> _Audio:
        del doc
        shape = tuple(None if size == -1 else size for size in value.shape.dimensions)
        if value.lazy_decode:  # the file itself
            return cls(tfds.features.Tensor(shape=(), dtype=np.str_), value.sample_rate)
        encoding = (value.encoding or "none").lower()
        return cls(tfds.features.Tensor(shape=shape, dtype=np.dtype(value.dtype), encoding=encoding), value.sample_rate)

    def to_json_content(self) -> None:
        raise NotImplementedError("audio features are read here, not written")

    def get_tensor_info(self):
        return self.stored.get_tensor_info()

    def get_serialized_info(self):
        return self.stored.get_serialized_info()

    def get_tensor_spec(self):
        return self.stored.get_tensor_spec()

    def encode_example(self, example_data):
        return self.stored.encode_example(example_data)

    def decode_example_np(self, example_data):
        return self.stored.decode_example_np(example_data)


class Dataset(Source):
    """One split of a prepared set: our own share of TFDS' "train", or of all its splits where there is no "train".

    Args:
        name: a prepared set by its TFDS name, or the folder that holds its dataset_info.json.
        split: "train" or "heldout".
        sampling_rate: Hz, of the waveforms returned.
        heldout_share: of the records, by hash of their number.
        audio_feature, text_feature: names of the features; empty finds the one audio feature there is, and the
            caption by its usual names (`TEXT_FEATURES`); without any, examples have no caption.

    Raises:
        ValueError: not prepared, not in ArrayRecord, or no such feature; the message says what there is.
    """

    def __init__(
        self,
        name: str,
        split: str,
        sampling_rate: int,
        heldout_share: float,
        audio_feature: str = "",
        text_feature: str = "",
    ) -> None:
        self.name, self.sampling_rate = name, sampling_rate
        builder = _builder(name)
        features = dict(builder.info.features)
        self.audio_feature = _named(name, features, audio_feature) or _audio_feature(name, features)
        self.text_feature = _named(name, features, text_feature) or next(
            (n for n in TEXT_FEATURES if n in features), ""
        )
        self._rate_feature = next((n for n in _RATES if n in features), "")
        self._rate = getattr(features[self.audio_feature], "sample_rate", None) or 0
        if not self._rate and not self._rate_feature:
            logging.warning("%s says nothing of its sampling rate; taking it for %d Hz", name, sampling_rate)
        splits = "train" if "train" in builder.info.splits else "+".join(builder.info.splits)
        try:
            self._records = builder.as_data_source(split=splits)
        except NotImplementedError as error:
            raise ValueError(f"tfds:{name} cannot be read at random: {_PREPARE.format(name=name)}") from error
        if not len(self._records):
            raise ValueError(f"tfds:{name} has no records")
        numbers = split_names([str(i) for i in range(len(self._records))], split, heldout_share)
        self._numbers = np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        number = int(self._numbers[index])
        try:
            record = self._records[number]
        except Exception as error:  # whatever the reader makes of damaged bytes
            raise UnreadableRecord(f"tfds:{self.name}, record {number}: {error}") from error
        where = f"tfds:{self.name}, record {number}"
        waveform, rate = _decode(record[self.audio_feature], where)
        rate = rate or self._rate or (int(record[self._rate_feature]) if self._rate_feature else self.sampling_rate)
        if rate != self.sampling_rate:
            waveform = soxr.resample(waveform, rate, self.sampling_rate)
        return Example(waveform, self._caption(record), {"name": str(number)})

    def listing(self) -> int:
        """See `Source.listing`: how many records there are."""
        return len(self._records)

    def follow(self, listing: int) -> str:
        """See `Source.follow`."""
        if listing != len(self._records):
            raise ValueError(
                f"tfds:{self.name} has {len(self._records)} records on this host and {listing} on the first: prepare "
                "the same set on all hosts"
            )
        return ""

    def text(self, index: int) -> str | None:
        """The caption of a record (which is read for it)."""
        return self._caption(self._records[int(self._numbers[index])])

    def _caption(self, record: dict) -> str | None:
        if not self.text_feature:
            return None
        text = record[self.text_feature]
        if isinstance(text, np.ndarray | list | tuple):  # several captions of one clip: the first
            text = text[0] if len(text) else ""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        return text.strip() or None


_PREPARE = "prepare it first: tfds build {name} --file_format=array_record"


def _builder(name: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared set; the set's own code, which may need TensorFlow, is not run."""
    if Path(name).expanduser().is_dir():
        try:
            return tfds.builder_from_directory(Path(name).expanduser())
        except Exception as error:
            raise ValueError(f"tfds:{name} is not a prepared set (a folder with dataset_info.json): {error}") from error
    if "/" in name and Path(name).is_absolute():
        raise ValueError(f"tfds:{name}: there is no such folder")
    try:
        return tfds.core.read_only_builder.builder_from_files(name)
    except Exception as error:
        raise ValueError(f"tfds:{name} is not here; {_PREPARE.format(name=name)} ({error})") from error


def _named(name: str, features: dict, wanted: str) -> str:
    if wanted and wanted not in features:
        raise ValueError(f"tfds:{name} has no feature {wanted!r}; it has {', '.join(sorted(features))}")
    return wanted


def _audio_feature(name: str, features: dict) -> str:
    """The only audio feature, or the one with a usual name."""
    audio = [n for n, feature in features.items() if isinstance(feature, _Audio)]
    audio = audio or [n for n in _AUDIO_FEATURES if n in features]
    if len(audio) != 1:
        raise ValueError(
            f"tfds:{name} has {'several' if audio else 'no'} audio features ({', '.join(audio or features)}); "
            "name one with --config.data.audio_feature"
        )
    return audio[0]


def _decode(audio: object, where: str) -> tuple[np.ndarray, int]:
    """Mono [samples] float32 of what a record holds (samples, or a sound file), and its rate if it says so."""
    rate = 0
    if isinstance(audio, bytes):
        try:
            audio, rate = soundfile.read(io.BytesIO(audio), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise UnreadableRecord(f"{where}: {error}") from error
    audio = np.asarray(audio)
    if np.issubdtype(audio.dtype, np.integer):
        loudest = int(np.abs(audio.astype(np.int64)).max(initial=0))
        audio = audio / (32768.0 if loudest <= 32768 else 2.0**31)
    audio = audio.astype(np.float32)
    audio = audio.mean(-1) if audio.ndim == 2 else audio.reshape(-1)
    if not audio.size or not np.isfinite(audio).all():
        raise UnreadableRecord(f"{where}: {'no samples' if not audio.size else 'NaN or infinite samples'}")
    return audio, rate
