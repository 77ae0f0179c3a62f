"""TensorFlow Datasets sets in ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import audio_feature  # before the alias below, which replaces its class

from audioldm2_jax.audio import decoding, files
from audioldm2_jax.data.captions import TEXT_FEATURES, TRANSCRIPTION_FEATURES
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.records import file_digests, split_names
from audioldm2_jax.data.shards import PLACES
from audioldm2_jax.runtime.storage import local_path
from audioldm2_jax.runtime.text_files import printable

_AUDIO_FEATURES = ("audio", "waveform", "speech")
_RATES = ("sampling_rate", "sample_rate")
_PIECE = 2**19  # samples of an array that are converted at a time


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
        audio_feature, text_feature: names of the features, of one inside another as outer/inner; empty finds the one
            audio feature there is, and the caption by its usual names (`TEXT_FEATURES`); without any, examples have no
            caption. A caption is a text, or a label or several by name; of several texts each is one. What is said in
            a record is found by its usual names (`TRANSCRIPTION_FEATURES`).

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
        self.audio_feature = audio_feature or _audio_feature(name, features)
        audio = _find(name, features, self.audio_feature)
        self.text_feature = text_feature or next((n for n in TEXT_FEATURES if n in features), "")
        self._names = None
        if self.text_feature:
            self._names = _label_names(name, self.text_feature, _find(name, features, self.text_feature))
        self._said = next((n for n in TRANSCRIPTION_FEATURES if isinstance(features.get(n), tfds.features.Text)), "")
        self._rate_feature = next((n for n in _RATES if n in features), "")
        self._rate = getattr(audio, "sample_rate", None) or 0
        if not self._rate and not self._rate_feature:
            logging.warning("%s says nothing of its sampling rate; taking it for %d Hz", name, sampling_rate)
        chosen = ["train"] if "train" in builder.info.splits else [*builder.info.splits]
        try:
            self._records = builder.as_data_source(split="+".join(chosen))
        except NotImplementedError as error:
            raise ValueError(f"tfds:{name} cannot be read at random: {_PREPARE.format(name=name)}") from error
        if not len(self._records):
            raise ValueError(f"tfds:{name} has no records")
        self._files = [Path(path) for split_name in chosen for path in builder.info.splits[split_name].filepaths]
        numbers = split_names([str(i) for i in range(len(self._records))], split, heldout_share)
        self._numbers = np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        return self._example(index, None, 0.0)

    def excerpt(self, index: int, samples: int, position: float) -> Example:
        """See `Source.excerpt`; decodes and resamples no more than the excerpt."""
        return self._example(index, samples, position)

    def name_of(self, index: int) -> str:
        """See `Source.name_of`: the number of the record."""
        return str(int(self._numbers[index]))

    def original(self, index: int) -> files.Original:
        """See `Source.original`."""
        record, where = self._record(index)
        try:
            audio = _value(record, self.audio_feature)
            if isinstance(audio, bytes):
                return files.original(audio, where)
            return _original(np.asarray(audio), self._rate_of(record), where)
        except (ValueError, TypeError, MemoryError) as error:
            raise UnreadableRecord(f"{where}: {str(error) or type(error).__name__}") from error

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

    def digests(self, records: int) -> dict[str, str]:
        """See `Source.digests`: of its files."""
        return file_digests({path.name: path for path in self._files}, PLACES)

    def text(self, index: int) -> str | None:
        """The caption of a record (which is read for it, its sound not decoded)."""
        return next(iter(self.captions(index)), None)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a record (which is read for it, its sound not decoded)."""
        record, _ = self._record(index)
        return self._captions(record)

    def transcription(self, index: int) -> str | None:
        """What is said in a record (which is read for it, its sound not decoded)."""
        record, _ = self._record(index)
        return _text(record[self._said]) if self._said else None

    def restricted(self, fields: tuple[str, ...]) -> Source | None:
        """See `Source.restricted`; what the set's features say, as all of the sound would be read for the texts."""
        there = {"captioned": self.text_feature, "transcribed": self._said}
        return self if any(there[field] for field in fields) else None

    def _record(self, index: int) -> tuple[dict, str]:
        """A record, and what messages call it."""
        number = int(self._numbers[index])
        where = f"tfds:{self.name}, record {number}"
        try:
            return self._records[number], where
        except Exception as error:  # whatever the reader makes of damaged bytes
            raise UnreadableRecord(f"{where}: {str(error) or type(error).__name__}") from error

    def _rate_of(self, record: dict) -> int:
        return self._rate or (int(record[self._rate_feature]) if self._rate_feature else self.sampling_rate)

    def _example(self, index: int, samples: int | None, position: float) -> Example:
        record, where = self._record(index)
        labels = {"name": self.name_of(index)}
        said, length = _text(record[self._said]) if self._said else None, samples
        if said and samples is not None:
            samples += 1  # which tells whether there is more: what is said in a part of a record is not known
        try:
            audio = _value(record, self.audio_feature)
            if isinstance(audio, bytes):
                waveform = files.read_encoded(audio, where, self.sampling_rate, samples, position)
            else:
                waveform = _excerpt(
                    np.asarray(audio), self._rate_of(record), where, self.sampling_rate, samples, position
                )
        except files.UnreadableAudio as error:
            raise UnreadableRecord(str(error)) from error
        except (ValueError, TypeError, ZeroDivisionError, MemoryError) as error:
            raise UnreadableRecord(f"{where}: {str(error) or type(error).__name__}") from error
        if said and length is not None and len(waveform) > length:
            waveform, said = waveform[:length], None
        captions = self._captions(record)
        return Example(waveform, next(iter(captions), None), labels, transcription=said, captions=captions)

    def _captions(self, record: dict) -> tuple[str, ...]:
        if not self.text_feature:
            return ()
        value = _value(record, self.text_feature)
        several = list(_flat(value))
        if self._names:  # -1: the label is not known
            labels = ", ".join(self._names[int(label)] for label in several if int(label) >= 0)
            return (labels,) if labels else ()
        return tuple(dict.fromkeys(filter(None, map(_text, several))))


def _flat(value: object) -> Iterator[object]:
    """Yields what lists in lists hold, of any lengths."""
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        for one in value:
            yield from _flat(one)
    else:
        yield value


_PREPARE = "prepare it first: tfds build {name} --file_format=array_record"


def _builder(name: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared set; the set's own code, which may need TensorFlow, is not run."""
    folder = local_path(name, "--config.data.source=tfds:")
    if folder.is_dir():
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:
            raise ValueError(f"tfds:{name} is not a prepared set (a folder with dataset_info.json): {error}") from error
    if folder.is_absolute():
        raise ValueError(f"tfds:{name}: there is no such folder")
    try:
        return tfds.core.read_only_builder.builder_from_files(name)
    except Exception as error:
        raise ValueError(f"tfds:{name} is not here; {_PREPARE.format(name=name)} ({error})") from error


def _find(name: str, features: Mapping, wanted: str) -> tfds.features.FeatureConnector:
    """The feature of that name; outer/inner is one inside another."""
    inside, before = dict(features), ""
    for part in wanted.split("/"):
        if part not in inside:
            raise ValueError(
                f"tfds:{name} has no feature {wanted!r}; it has {', '.join(before + n for n in sorted(inside))}"
            )
        feature, before = inside[part], f"{before}{part}/"
        of = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        inside = dict(of) if isinstance(of, tfds.features.FeaturesDict) else {}
    return feature


def _value(record: Mapping, wanted: str) -> object:
    for part in wanted.split("/"):
        record = record[part]
    return record


def _text(value: object) -> str | None:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else printable(str(value))
    return text.strip() or None


def _label_names(name: str, wanted: str, feature: tfds.features.FeatureConnector) -> list[str] | None:
    """The names of labels; None for texts.

    Raises:
        ValueError: the feature is neither.
    """
    of = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(of, tfds.features.FeaturesDict):
        inner = ", ".join(f"{wanted}/{part}" for part in sorted(of))
        raise ValueError(
            f"tfds:{name}: {wanted} is no caption but holds {inner}: name one with --config.data.text_feature"
        )
    if isinstance(of, tfds.features.ClassLabel):
        if not of.names or of.names == [str(number) for number in range(of.num_classes)]:
            raise ValueError(f"tfds:{name}: {wanted} has labels without names, which say nothing; {_OTHER_TEXT}")
        if len(of.names) != of.num_classes:  # TFDS leaves out lines of its file that are empty
            raise ValueError(
                f"tfds:{name}: {wanted} has {of.num_classes} labels and {len(of.names)} names, so that nobody knows "
                f"which is whose: each needs a line in {wanted.replace('/', '-')}.labels.txt; or {_OTHER_TEXT}"
            )
        return list(of.names)
    if np.dtype(of.np_dtype).kind not in "OSU":
        raise ValueError(f"tfds:{name}: {wanted} holds {np.dtype(of.np_dtype).name} numbers and no text; {_OTHER_TEXT}")
    return None


_OTHER_TEXT = "name another feature with --config.data.text_feature"


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


def _excerpt(
    audio: np.ndarray, rate: int, where: str, sampling_rate: int, samples: int | None, position: float
) -> np.ndarray:
    """An excerpt (None: all) of samples [n] or [n, channels], as mono float32 at `sampling_rate`."""
    channels, scale = _channels(audio)

    def take(offset: int, count: int | None) -> tuple[np.ndarray, float]:
        piece = (channels[offset : None if count is None else offset + count] / scale).astype(np.float32)
        return decoding.to_mono(piece), float(np.abs(piece).max(initial=0.0)) if piece.shape[1] > 1 else 0.0

    start = 0
    if samples is not None:
        start = int(position * max(-(-len(channels) * sampling_rate // rate) - samples + 1, 1))
    return files.segment_of(take, rate, where, sampling_rate, start, samples)


def _original(audio: np.ndarray, rate: int, where: str) -> files.Original:
    """Samples [n] or [n, channels] as they are stored."""
    channels, scale = _channels(audio)

    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(channels), _PIECE):
            yield (channels[first : first + _PIECE] / scale).astype(np.float32)

    return files.Original(rate, channels.shape[1], f"array {audio.dtype}", lambda: files.checked(pieces(), where))


def _channels(audio: np.ndarray) -> tuple[np.ndarray, float]:
    """Samples as [n, channels], and the value of full scale."""
    scale = 1.0
    if np.issubdtype(audio.dtype, np.integer):
        loudest = max(abs(int(audio.max(initial=0))), abs(int(audio.min(initial=0))))
        scale = 32768.0 if loudest <= 32768 else 2.0**31
    return audio if audio.ndim == 2 else audio.reshape(-1, 1), scale
