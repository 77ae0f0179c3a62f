"""Small sources of data in all layouts, for the tests of these."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import soundfile

from audioldm2_jax import recipes
from audioldm2_jax.data.sources import open_source

RATE = 8000


def config(source, **data):
    recipe = recipes.get("tiny")
    recipe.audio.sampling_rate = RATE
    recipe.data.update({"source": str(source), "heldout_share": 0.3, **data})
    return recipe


def tone(i=0, samples=800):
    return (0.1 + 0.05 * (i % 8)) * np.sin(np.arange(samples + i) * (0.1 + 0.01 * i)).astype(np.float32)


def sound(i=0, form="WAV", wave=None, rate=RATE):
    file = io.BytesIO()
    wave = tone(i) if wave is None else wave
    soundfile.write(file, wave, rate, format=form, subtype={"WAV": "FLOAT", "FLAC": "PCM_16"}.get(form))
    return file.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def everything(source, **data):
    """{name: captions} of both splits, which must be apart."""
    found = {}
    for split in ("train", "heldout"):
        opened = open_source(config(source, **data), split)
        if len(opened) > 1:
            assert not found.keys() & set(opened.names)
        found |= {name: opened._texts[i].captions for i, name in enumerate(opened.names)}
    return found


def one(source, **data):
    """A source of all records."""
    return open_source(config(source, heldout_share=1.0, **data), "heldout")


def table(**columns):
    return pa.table({"audio": [{"bytes": sound(i)} for i in range(3)], **columns})


def stream(path, tables, rows=2):
    with pa.ipc.new_stream(str(path), tables.schema) as writer:
        writer.write_table(tables, max_chunksize=rows)


def pack(path, members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
