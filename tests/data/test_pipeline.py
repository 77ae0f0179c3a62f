"""The data order is a function of (seed, step, slot), whoever makes it, and every batch is what it says."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import audioldm2_jax.data
from audioldm2_jax.data import text
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.encoders import Captioned, Waveform, recipe_encoders, select
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.pipeline import ExampleIndex, batches

SAMPLES = 4000
CORPUS = MusicCorpus(16000, 0.25, 0, "train", examples=50)


class Ramps(Source):
    """Record i is constant but for a ramp that shows where it was cut; every third cannot be read."""

    def __init__(self, records=12, broken=lambda i: i % 3 == 0, length=1000):
        self.readable = [not broken(i) for i in range(records)]
        self.length = length

    def __len__(self):
        return len(self.readable)

    def __getitem__(self, index):
        if not self.readable[index]:
            raise UnreadableRecord(f"record {index} is damaged")
        ramp = np.linspace(0.0, 1.0, self.length, dtype=np.float32)
        return Example(ramp, None if index == 1 else f"record {index}")


@pytest.fixture(scope="module")
def encoders():
    captions = text.captions(CORPUS)
    tokenizers = text.Tokenizers(text.train_clap(captions, 300, 24), text.train_t5(captions, 300, 24))
    return recipe_encoders(SAMPLES, tokenizers)


def take(n, *args, **kwargs):
    iterator = batches(*args, **kwargs)
    try:
        return [next(iterator) for _ in range(n)]
    finally:
        iterator.close()


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def run(**change):
    return {"batch_size": 4, "samples": SAMPLES, "seed": 1, "threads": 0, "prefetch": 0, **change}


def test_keys_shapes_and_dtypes(encoders):
    (batch,) = take(1, CORPUS, encoders, **run())
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "waveform": ((4, SAMPLES), "float32"),
        "clap_ids": ((4, 24), "int32"),
        "clap_mask": ((4, 24), "int32"),
        "t5_ids": ((4, 24), "int32"),
        "t5_mask": ((4, 24), "int32"),
        "captioned": ((4,), "bool"),
        "transcribed": ((4,), "bool"),
        "replaced": ((4,), "int32"),
    }
    np.testing.assert_allclose(np.abs(batch["waveform"]).max(1), 0.5, atol=1e-5)
    assert batch["captioned"].all() and not batch["transcribed"].any() and not batch["replaced"].any()
    (batch,) = take(1, CORPUS, select(encoders, ("waveform", "clap_mask")), **run())
    assert set(batch) == {"waveform", "clap_ids", "clap_mask", "replaced"}


def test_threads_workers_hosts_and_starts_give_the_same(encoders):
    """Bit by bit; the worker processes are spawned, which is most of this test's time."""
    straight = take(4, CORPUS, encoders, **run())
    same(straight, take(4, CORPUS, encoders, **run(threads=2, prefetch=3)))
    same(straight, take(4, CORPUS, encoders, **run(workers=2, prefetch=2)))
    same(straight[2:], take(2, CORPUS, encoders, **run(start_step=2)))
    hosts = [take(4, CORPUS, encoders, **run(host_index=i, host_count=2)) for i in range(2)]
    same(straight, [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*hosts, strict=True)])


def test_an_epoch_has_every_record_once_and_no_two_are_alike():
    slots = ExampleIndex(CORPUS, [Waveform(SAMPLES)], 4, SAMPLES, seed=1)
    epochs = [[slots.source.draw(50 * epoch + i, slots.seed) for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = ExampleIndex(CORPUS, [Waveform(SAMPLES)], 4, SAMPLES, seed=2)
    assert [other.source.draw(i, other.seed) for i in range(50)] != epochs[0]
    assert slots.source.draw(10**15, slots.seed) in range(50)  # any step at once


def test_unreadable_records_are_drawn_again_and_counted():
    slots = ExampleIndex(Ramps(), [Waveform(100), Captioned()], 6, 100, seed=0)
    examples = [slots.example(step, slot) for step in range(20) for slot in range(6)]
    replaced = np.array([example["replaced"] for example in examples])
    for number, count in enumerate(replaced):
        assert (count > 0) == (slots.source.draw(number, slots.seed) % 3 == 0)
    assert replaced.max() > 1  # a second draw may fail as well
    again = slots.example(3, 2)
    same([examples[20]], [again])
    with pytest.raises(UnreadableRecord, match="20 records drawn one after the other cannot be read"):
        ExampleIndex(Ramps(broken=lambda i: True), [Waveform(100)], 1, 100, seed=0)[0]


def test_long_records_are_cropped_at_random_and_short_ones_padded():
    cropped = ExampleIndex(Ramps(broken=lambda i: False), [Waveform(900)], 1, 900, seed=0)
    rows = np.stack([cropped[i]["waveform"] for i in range(30)])
    # A crop of a ramp is a ramp; normalised, they are all the same one.
    np.testing.assert_allclose(rows, np.linspace(-0.5, 0.5, 900)[None].repeat(30, 0), atol=1e-4)
    source = Ramps(broken=lambda i: False)
    starts = {float(source.excerpt(0, 900, position).waveform[0]) for position in (0.0, 0.5, 0.999)}
    assert len(starts) == 3
    padded = ExampleIndex(source, [Waveform(1500)], 1, 1500, seed=0)[0]["waveform"]
    assert padded.shape == (1500,) and not padded[1000:].any() and abs(padded[999] - 0.5) < 1e-4


def test_missing_captions_are_empty(encoders):
    slots = ExampleIndex(Ramps(broken=lambda i: False), encoders, 12, 100, seed=0)
    examples = [slots.example(0, i) for i in range(12)]
    (missing,) = (example for example in examples if not example["captioned"])
    assert missing["clap_ids"][:3].tolist() == [0, 2, 1] and missing["t5_ids"][:2].tolist() == [1, 0]


def test_errors(encoders):
    base = {"source": CORPUS, "encoders": encoders, "batch_size": 4, "samples": 10, "seed": 0}
    for change, message in (
        ({"batch_size": 3, "host_count": 2}, "multiple of the 2 hosts"),
        ({"host_index": 2, "host_count": 2}, "there are 2 hosts"),
        ({"source": Ramps(records=0)}, "no records"),
    ):
        with pytest.raises(ValueError, match=message):
            ExampleIndex(**{**base, **change})
    with pytest.raises(ValueError, match=r"no encoder makes mel of the batch; there are captioned, clap_ids"):
        select(encoders, ("waveform", "mel"))
    with pytest.raises(ValueError, match="no encoder makes t5_ids"):
        select(recipe_encoders(SAMPLES, None), ("waveform", "t5_ids"))


def test_no_jax_in_data():
    """Grain itself imports JAX where there is one; nothing of ours does, and batches are made without it."""
    for file in Path(audioldm2_jax.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("jax", "flax", "torch", "tensorflow") for name in names), file
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('jax', 'flax', 'torch', 'tensorflow'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from audioldm2_jax.data import datasets, sources\n"
        "from audioldm2_jax.data.pipeline import batches\n"
        "source = sources.MusicCorpus(16000, 0.25, 0, 'train')\n"
        "from audioldm2_jax.data.encoders import recipe_encoders\n"
        "next(batches(source, recipe_encoders(4000, None), batch_size=2, samples=4000, seed=0))\n"
        "assert not {'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WORKERS = """
import multiprocessing, os, signal, sys
import numpy as np
from audioldm2_jax.data import pipeline
from audioldm2_jax.data.encoders import Waveform
from audioldm2_jax.data.example import Example, Source

class Noise(Source):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return Example(np.full(20_000, 0.1 * index, np.float32), None)

if __name__ == "__main__":
    stream = pipeline.batches(
        Noise(), [Waveform(20_000)], batch_size=4, samples=20_000, seed=0, workers=2, prefetch=2
    )
    kept = sys.kept = [next(stream) for _ in range(3)]
    if sys.argv[1:]:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    stream.close()
    print(type(kept[0]["waveform"]).__name__)
"""


def test_workers_leave_no_shared_memory_behind(tmp_path):
    """Batches are still held when the process ends, as JAX holds them on a CPU, which does not copy."""
    (tmp_path / "run.py").write_text(WORKERS)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "ndarray\n"
    assert "leaked" not in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc and /dev/shm")
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """And of their shared memory nothing stays."""
    (tmp_path / "run.py").write_text(WORKERS)
    before = {*Path("/dev/shm").glob("psm_*")}
    with (tmp_path / "said").open("w") as said:  # a pipe would be open as long as the workers are there
        code = subprocess.run([sys.executable, tmp_path / "run.py", "killed"], stdout=said, check=False).returncode
    assert code == -signal.SIGKILL
    workers, end = (tmp_path / "said").read_text().split(), time.monotonic() + 30
    assert len(workers) == 2

    def left():
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        return alive, {*Path("/dev/shm").glob("psm_*")} - before

    while any(left()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(left()), left()
