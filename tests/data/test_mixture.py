"""Several sources as one: exact shares, every record of each in every one of its epochs, no memory of the past."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax.data import mixture, pipeline
from audioldm2_jax.data.encoders import Waveform
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.mixture import Mixture


class Numbers(Source):
    """Clips of one sample, each with its number as caption; some cannot be read."""

    def __init__(self, name: str, count: int, damaged=()) -> None:
        self.name, self.count, self.damaged = name, count, damaged

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise UnreadableRecord(f"{self.name} {index}")
        return Example(np.full(4, index, np.float32), self.text(index), {"name": self.name})

    def text(self, index):
        return f"{self.name} {index}"


def mixed(*parts: tuple[str, int, int]) -> Mixture:
    return Mixture([Numbers(name, count) for name, count, _ in parts], [Fraction(w) for *_, w in parts])


def drawn(source: Mixture, numbers, seed: int = 0) -> list[str]:
    return [source.text(source.draw(number, seed)) for number in numbers]


@settings(deadline=None, max_examples=25)
@given(
    parts=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    block=st.integers(0, 1000),
)
def test_shares_are_exact_and_nothing_is_left_out(parts, seed, block):
    source = mixed(*((f"s{number}", count, weight) for number, (count, weight) in enumerate(parts)))
    size = sum(Fraction(weight) for _, weight in parts)
    length = int(size) // np.gcd.reduce([weight for _, weight in parts])
    texts = drawn(source, range(block * length, (block + 1) * length), seed)
    counts = Counter(text.split()[0] for text in texts)
    assert all(counts[f"s{number}"] * size == weight * length for number, (_, weight) in enumerate(parts))
    # So many blocks have whole epochs of the first source.
    count, share = parts[0][0], counts["s0"]
    texts = Counter(text for text in drawn(source, range(length * count), seed) if text.startswith("s0 "))
    assert texts == {f"s0 {index}": share for index in range(count)}


def test_odd_weights_are_kept_to_a_part_in_a_thousand():
    source = Mixture([Numbers("a", 7), Numbers("b", 5)], [Fraction(1), Fraction(314159265, 100000000)])
    counts = Counter(text[0] for text in drawn(source, range(10_000)))
    assert counts["b"] / counts["a"] == pytest.approx(3.14159265, rel=1e-3)


def test_a_record_that_cannot_be_read_gives_way_to_one_of_its_source():
    source = Mixture([Numbers("a", 4), Numbers("b", 4, damaged=(0, 1, 2))], [Fraction(1), Fraction(1)])
    slots = pipeline.ExampleIndex(source, [Waveform(4), Names()], 2, 4, seed=3)
    made = [slots[k] for k in range(40)]
    assert Counter(str(example["name"]) for example in made) == {"a": 20, "b": 20}
    assert sum(int(example["replaced"]) > 0 for example in made) >= 10


class Names:
    fields = ("name",)

    def __call__(self, example):
        return {"name": np.str_(example.labels["name"])}


def test_the_first_records_are_those_of_every_source():
    first = mixed(("a", 100, 3), ("b", 100, 1)).first(40)
    assert [len(part) for part in first.parts] == [30, 10] and len(first) == 40
    assert {first.text(index) for index in range(40)} == {f"a {i}" for i in range(30)} | {f"b {i}" for i in range(10)}
    assert set(drawn(first, range(400))) <= {first.text(index) for index in range(40)}
    with pytest.raises(IndexError):
        first[40]


@pytest.mark.parametrize(
    "named, wanted",
    [
        ("builtin:music;/a b", [("builtin:music", 1), ("/a b", 1)]),
        ("builtin:music,2; /data/x,y ,0.5", [("builtin:music", 2), ("/data/x,y", Fraction(1, 2))]),
        ("/data/one,two;/c,1e-1", [("/data/one,two", 1), ("/c", Fraction(1, 10))]),
    ],
)
def test_names(named, wanted):
    assert mixture.parse(named) == wanted


@pytest.mark.parametrize(
    "named, message", [("a;", "nothing stands before"), (";a", "nothing"), ("a,0;b", "is 0;"), ("a,-1;b", "-1")]
)
def test_names_that_say_nothing(named, message):
    with pytest.raises(ValueError, match=message):
        mixture.parse(named)
