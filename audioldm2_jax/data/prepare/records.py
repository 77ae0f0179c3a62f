"""The records of a prepared set (data/prepared.py) as they are written, its table, and what TFDS knows it by."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from audioldm2_jax.data import prepared
from audioldm2_jax.data.captions import Texts

_DESCRIPTION = (
    "Recordings as mono FLAC. Multiply the decoded samples by `scale`. A record is a recording, or the piece of "
    "`recording` that begins `start` seconds in. recordings.parquet has the measures of the originals. A split `train` "
    "alone has all records, with none held out."
)
_SOFT = 2.0**-5  # peak below which 16 bits are spread over what there is

SCHEMA = pa.schema(
    {
        "name": pa.binary(),  # names of files need not be UTF-8
        "captions": pa.list_(pa.string()),
        "transcription": pa.string(),
        "recording": pa.binary(),  # of which it is a part, or all
        "split": pa.string(),  # that is given; null: the recording's name decides
        "unreadable": pa.string(),  # why it is; such a row has no measures and no pieces
        "pieces": pa.list_(pa.int64()),  # samples of each of its records
        # The rest as audio/measures.py has it.
        "seconds": pa.float64(),
        "rate": pa.int64(),
        "channels": pa.int64(),
        "encoding": pa.string(),
        "peak": pa.float64(),
        "rms": pa.float64(),
        "dc": pa.float64(),
        "clipped": pa.float64(),
        "silent": pa.bool_(),
        "bandwidth": pa.float64(),
        "digest": pa.string(),
    }
)


def encode_sound(waveform: np.ndarray, sampling_rate: int) -> tuple[bytes, float]:
    """A waveform [samples] as a FLAC file of 16 bits, and what its samples are to be multiplied by."""
    peak, scale = float(np.abs(waveform).max()), 1.0
    if peak > 1 or 0 < peak < _SOFT:
        scale = 2.0 ** math.frexp(peak)[1]
    samples = np.round(waveform * (2**15 / scale)).clip(-(2**15), 2**15 - 1).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sampling_rate, "PCM_16", format="FLAC")
    return encoded.getvalue(), scale


def _features() -> tfds.features.FeaturesDict:
    features = tfds.features
    return features.FeaturesDict(
        {
            "audio": features.Tensor(shape=(), dtype=np.str_, doc="A FLAC file, mono."),
            "sampling_rate": features.Scalar(dtype=np.int32, doc="Hz"),
            "scale": features.Scalar(dtype=np.float32, doc="What the decoded samples are to be multiplied by."),
            "name": features.Text(),
            "recording": features.Text(doc="The name of the recording of which this is a piece, or all."),
            "start": features.Scalar(dtype=np.float64, doc="Seconds, where in the recording the piece begins."),
            "captions": features.Sequence(features.Text()),
            "transcription": features.Text(doc="What is said in it; empty where nobody knows."),
        }
    )


class RecordEncoder:
    """Makes the records of recordings as TFDS stores them."""

    def __init__(self, sampling_rate: int) -> None:
        """Args:
        sampling_rate: Hz, of the waveforms.
        """
        self.sampling_rate, self._features = sampling_rate, _features()
        self._serializer = tfds.core.example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def records(
        self,
        name: str,
        part_of: tuple[str, float],
        texts: Texts,
        sounds: Sequence[tuple[bytes, float]],
        pieces: Sequence[int],
    ) -> Iterator[bytes]:
        """Yields the records that a record of the source becomes.

        Args:
            name: of the latter.
            part_of: the recording of which it is a part, and the seconds at which it begins there.
            texts: what is written about it. A piece of it has no transcription: what is said in it is not known.
            sounds: of each piece, as of `encode_sound`.
            pieces: samples of each.
        """
        recording, begin = part_of
        start = 0
        for piece, (audio, scale), samples in zip(prepared.piece_names(name, len(pieces)), sounds, pieces):
            record = {
                "audio": audio,
                "sampling_rate": self.sampling_rate,
                "scale": scale,
                "name": _bytes(piece),
                "recording": _bytes(recording),
                "start": begin + start / self.sampling_rate,
                "captions": list(texts.captions),
                "transcription": (texts.transcription if len(pieces) == 1 else None) or "",
            }
            example = self._serializer.get_tf_example(self._features.encode_example(record))
            yield example.SerializeToString(deterministic=True)  # its features are a map, of no order
            start += samples


def write_info(folder: Path, splits: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Writes features.json and, once that is there, dataset_info.json.

    Args:
        folder: of the shards.
        splits: (records, bytes) of the shards of each split.
    """
    identity = DatasetIdentity(prepared.SET, tfds.core.Version("1.0.0"), os.fspath(folder), prepared.MODULE)
    info = tfds.core.DatasetInfo(
        builder=identity, features=_features(), description=_DESCRIPTION, disable_shuffling=True
    )
    info.set_file_format("array_record")
    found = []
    for name, shards in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=prepared.SET, split=name, filetype_suffix="array_record"
        )
        lengths, sizes = zip(*shards)
        found.append(
            tfds.core.SplitInfo(name=name, shard_lengths=[*lengths], num_bytes=sum(sizes), filename_template=template)
        )
    info.set_splits(tfds.core.splits.SplitDict(found))
    partial = folder / ".info.partial"
    partial.mkdir(exist_ok=True)
    info.write_to_directory(partial)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == prepared.INFO):
        os.replace(file, folder / file.name)
    partial.rmdir()


def row(name: str, recording: str, split: str | None, texts: Texts) -> dict:
    """A row of the table, of which measures and pieces, or why there are none, are not known yet."""
    written = {"name": _bytes(name), "recording": _bytes(recording), "split": split, "pieces": []}
    return dict.fromkeys(SCHEMA.names) | written | {"captions": [*texts.captions], "transcription": texts.transcription}


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
