"""Several sources as one: exact shares, every record of each in every one of its epochs, no memory of the past."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import config_files, recipes
from audioldm2_jax.audio.files import write
from audioldm2_jax.data import mixture, pipeline
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.encoders import Captioned, Waveform
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.mixture import Mixture
from audioldm2_jax.data.sources import open_source


class Numbers(Source):
    """Clips of one sample, each with its number as caption; some cannot be read, some have no caption."""

    def __init__(self, name: str, count: int, damaged=(), silent=()) -> None:
        self.name, self.count, self.damaged, self.silent = name, count, damaged, silent

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise UnreadableRecord(f"{self.name} {index}")
        return Example(np.full(4, index, np.float32), self.text(index), {"name": self.name})

    def text(self, index):
        return None if index in self.silent else f"{self.name} {index}"


class Retold(Numbers):
    """Each clip has three captions."""

    def captions(self, index):
        return tuple(f"{self.name} {index} {way}" for way in "xyz")

    def __getitem__(self, index):
        return Example(np.full(4, index, np.float32), self.captions(index)[0], captions=self.captions(index))


def mixed(*parts: tuple[str, int, int]) -> Mixture:
    return Mixture([Numbers(name, count) for name, count, _ in parts], [Fraction(w) for *_, w in parts])


class Text:
    """The caption and the number of the record, as fields of the batch."""

    fields = ("text", "record")

    def __call__(self, example):
        return {"text": np.str_(example.text or ""), "record": np.int32(example.waveform[0])}


def taught(source: Source, steps, size: int = 8, seed: int = 3, **hosts) -> list[str]:
    """The captions of the examples of so many steps, slot by slot."""
    slots = pipeline.ExampleIndex(source, [Text()], size, 4, seed=seed, **hosts)
    return [str(slots[k]["text"]) for k in range(steps * slots.local)]


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


def test_what_teaches_nothing_takes_no_slot():
    """Of the sources with captions every captioned record, and no other, once an epoch; their weights keep the ratio,
    though the source without any captions has the most of it."""
    whole = Mixture(
        [Numbers("a", 6, silent=(0, 4)), Numbers("mute", 50, silent=range(50)), Numbers("b", 3)],
        [Fraction(2), Fraction(7), Fraction(1)],
    )
    learnt = whole.restricted(("captioned",))
    assert len(learnt) == len(whole) and [learnt.text(i) for i in range(59)] == [whole.text(i) for i in range(59)]
    epochs = Counter(drawn(learnt, range(18)))  # three of "a", two of "b"
    assert epochs == {f"a {i}": 3 for i in (1, 2, 3, 5)} | {f"b {i}": 2 for i in range(3)}
    counts = Counter(text.split()[0] for text in drawn(learnt, range(300)))
    assert counts == {"a": 200, "b": 100}
    assert whole.restricted(("captioned", "transcribed")) is not None
    assert whole.restricted(("transcribed",)) is None
    # All of the audio is drawn where captions do not matter.
    assert Counter(str(text)[:2] for text in drawn(whole, range(100)))["No"] > 70


def test_a_source_that_has_it_all_is_left_as_it_is():
    source = mixed(("a", 5, 1), ("b", 3, 2))
    assert source.restricted(("captioned",)) is source


def test_what_cannot_be_read_gives_way_to_what_teaches():
    source = Numbers("a", 8, damaged=(1, 2), silent=(0, 3, 4, 5)).restricted(("captioned",))
    assert source.count_drawn() == len({source.draw(number, 0) for number in range(source.count_drawn())})
    assert set(taught(source, 20)) == {"a 6", "a 7"}
    assert source.first(7).restricted(("captioned",)) is not None
    assert {source.first(7).draw(number, 0) for number in range(30)} == {1, 2, 6}
    with pytest.raises(ValueError, match="none of the 1 records is captioned"):
        source.first(1)


def test_embedded_corpora_know_without_looking():
    corpus = MusicCorpus(16000, 1.0, 0, "heldout", examples=10**9)
    assert corpus.restricted(("captioned",)) is corpus and corpus.restricted(("transcribed",)) is None
    assert corpus.first(10**8).restricted(("transcribed",)) is None
    few = corpus.first(10**8)
    assert few.restricted(("captioned",)) is few


def test_the_full_recipe_learns_from_all_kinds():
    """Every kind has a third of every stage's examples; what is said is only in speech."""
    config = config_files.load("full")
    source = open_source(config, "train")
    assert source.restricted(("captioned",)) is source
    for drawn_from, kinds in ((source, [0, 1, 2]), (source.restricted(("transcribed",)), [1])):
        counts = Counter(source._part(drawn_from.draw(number, 0)) for number in range(60))
        assert counts == dict.fromkeys(kinds, 60 // len(kinds))
        assert all(drawn_from.text(drawn_from.draw(number, 0)) for number in range(60))


def test_a_mixture_of_a_mixture():
    """Each keeps its shares, and every record of the inner ones has its turn."""
    inner = mixed(("a", 4, 3), ("b", 5, 1))
    source = Mixture([inner, Numbers("c", 7)], [Fraction("0.5"), Fraction("0.5")])
    texts = drawn(source, range(8 * 20))
    assert Counter(text[0] for text in texts) == {"a": 60, "b": 20, "c": 80}
    assert set(texts) == {source.text(index) for index in range(len(source))}
    assert {source.text(index).split()[0] for index in range(9)} == {"a", "b"}
    hushed = Mixture([mixed(("a", 4, 3)), Numbers("c", 7, silent=range(7))], [Fraction(1), Fraction(9)])
    assert {text[0] for text in drawn(hushed.restricted(("captioned",)), range(50))} == {"a"}


def test_tenths_are_exact_from_the_first_block_on():
    source = Mixture(
        [Numbers("a", 3), Numbers("b", 1000), Numbers("c", 1)], [Fraction(x) for x in ("0.3", "0.6", "0.1")]
    )
    for block in (0, 1, 123456):
        texts = drawn(source, range(10 * block, 10 * block + 10))
        assert Counter(text[0] for text in texts) == {"a": 3, "b": 6, "c": 1}


def test_one_tiny_and_one_huge():
    """The tiny source, a single record, has its share; the huge one is gone through without repetition."""
    source = Mixture([Numbers("tiny", 1), Numbers("huge", 10**9)], [Fraction(1), Fraction(3)])
    texts = drawn(source, range(4000))
    huge = [text for text in texts if text.startswith("huge")]
    assert texts.count("tiny 0") == 1000 and len(set(huge)) == len(huge) == 3000
    far = drawn(source, range(4 * 10**11, 4 * 10**11 + 4))  # no memory of what was before
    assert sorted(text.split()[0] for text in far) == ["huge"] * 3 + ["tiny"]


def test_a_record_is_told_in_all_its_ways():
    """One of several captions is drawn for each example, anew in every epoch, alike for all."""
    source = Mixture([Retold("a", 2), Numbers("b", 2)], [Fraction(1), Fraction(1)])
    counts = Counter(taught(source, 50))
    assert set(counts) == {f"a {i} {way}" for i in range(2) for way in "xyz"} | {"b 0", "b 1"}
    assert min(counts.values()) > 15
    assert taught(source, 50) == taught(source, 50) != taught(source, 50, seed=4)


def test_hosts_and_interruptions_change_nothing():
    source = Mixture(
        [Retold("a", 5), Numbers("b", 30, silent=range(0, 30, 2)), Mixture([Numbers("c", 3)], [Fraction(1)])],
        [Fraction("0.3"), Fraction("0.5"), Fraction("0.2")],
    ).restricted(("captioned",))
    whole = np.reshape(taught(source, 12), (12, 8))
    for hosts in (2, 4):
        parts = [taught(source, 12, host_index=host, host_count=hosts) for host in range(hosts)]
        np.testing.assert_array_equal(np.hstack([np.reshape(part, (12, -1)) for part in parts]), whole)
    np.testing.assert_array_equal(np.reshape(taught(source, 5, start_step=7), (5, 8)), whole[7:])


def test_workers_change_nothing():
    source = Mixture([Numbers("a", 5), Numbers("b", 9, silent=(1, 2))], [Fraction(1), Fraction(2)])
    source = source.restricted(("captioned",))
    options = dict(batch_size=4, samples=4, seed=1, start_step=3)
    made = []
    for workers in (0, 2):
        stream = pipeline.batches(source, [Waveform(4), Captioned()], workers=workers, **options)
        made.append([next(stream) for _ in range(4)])
        getattr(stream, "close", lambda: None)()
    for one, other in zip(*made):
        assert one["captioned"].all()
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])


def test_the_heldout_split_of_a_part_may_be_one_record(tmp_path):
    """Also where that one has no caption: then the other parts have its share."""
    rng = np.random.default_rng(0)
    for folder, clips in (("one", 1), ("many", 9)):
        for number in range(clips):
            write(tmp_path / folder / f"{number}.wav", 0.1 * rng.standard_normal(1600).astype(np.float32), 16000)
    lines = [f'{{"file_name": "{number}.wav", "text": "clip {number}"}}' for number in range(9)]
    (tmp_path / "many/metadata.jsonl").write_text("\n".join(lines))
    config = recipes.get("tiny")
    config.data.update(source=f"{tmp_path}/one,0.9;{tmp_path}/many,0.1", heldout_share=1e-9)
    heldout = open_source(config, "heldout")
    assert [len(part) for part in heldout.parts] == [1, 1]
    assert set(drawn(heldout, range(10))) == {None, heldout.text(1)}
    assert set(drawn(heldout.restricted(("captioned",)), range(10))) == {heldout.text(1)}


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
