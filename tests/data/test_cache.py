"""Entries of a cache are read as the data is drawn from sound: captions, transcriptions, restriction, mixtures."""

from fractions import Fraction

import numpy as np
import pytest

from audioldm2_jax.data import cache, pipeline
from audioldm2_jax.data.encoders import Captioned, Features, Transcribed
from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.data.mixture import Mixture

CAPTIONS = (("rain", "water falls", "it pours"), (), ("a dog",))
SAID = ("it rains", "one two three", None)


class Told(Source):
    """Three records of four samples: with three captions, without any, with one; the second is longer than a clip."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Example(
            np.full((4, 9, 4)[index], index, np.float32), self.text(index), {}, {}, SAID[index], CAPTIONS[index]
        )

    def text(self, index):
        return next(iter(CAPTIONS[index]), None)

    def captions(self, index):
        return CAPTIONS[index]

    def transcription(self, index):
        return SAID[index]


def value(text: str | None) -> np.ndarray:
    """What the network makes of a caption."""
    return np.frombuffer((text or "").encode().ljust(12)[:12], np.uint8).astype(np.float32)


@pytest.fixture
def cached(tmp_path) -> cache.Cached:
    """The records and their two features, as the trainer writes them."""
    source = Told()
    of_sound = cache.open_feature(tmp_path / "sound", [cache.Field("level", "bfloat16", (2, 3))], 3, False, {})
    of_text = cache.open_feature(tmp_path / "text", [cache.Field("states", "float32", (12,))], 3, True, {})
    with of_sound.writer(0) as sound, of_text.writer(0) as text:
        for number, excerpt in enumerate(cache.Excerpts(source, 1, 4, range(3), of_text=False)[i] for i in range(3)):
            level = np.full((2, 3), excerpt.waveform[0], np.dtype("bfloat16"))
            sound.write(of_sound.pack(number, [[level]], [None], excerpt.transcription is not None))
        for number, excerpt in enumerate(cache.Excerpts(source, 1, 4, range(3), of_text=True)[i] for i in range(3)):
            captions = excerpt.captions or (None,)
            text.write(of_text.pack(number, [[value(caption)] for caption in captions], captions))
    return cache.Cached(source, [of_sound, of_text], 1)


def test_every_caption_has_its_features(cached):
    found = []
    for position in (0.0, 0.4, 0.99):
        example = cached.with_caption(cached.excerpt(0, 4, 0.5), 0, position)
        np.testing.assert_array_equal(example.features["states"], value(example.text))
        assert example.features["level"].dtype == np.dtype("bfloat16") and example.features["level"].shape == (2, 3)
        found.append(example.text)
    assert found == [*CAPTIONS[0]]
    assert cached[1].text is None
    np.testing.assert_array_equal(cached[1].features["states"], value(None))


def test_the_examples_are_those_of_sound(cached):
    """Caption and record, slot for slot; all of them, and those with words alone, in a mixture, too."""

    class Seen:
        fields = ("text", "record")

        def __call__(self, example):
            record = example.features["level"][0, 0] if example.features else example.waveform[0]
            return {"text": np.str_(example.text or ""), "record": np.int32(record)}

    for fields in ((), ("captioned",), ("transcribed",)):
        for whole, made in (
            (Told(), cached),
            (
                Mixture([Told(), Told()], [Fraction(1), Fraction(2)]),
                Mixture([cached, cached], [Fraction(1), Fraction(2)]),
            ),
        ):
            if fields:
                whole, made = whole.restricted(fields), made.restricted(fields)
            wanted = [Seen(), Captioned(), Transcribed()]
            sound = pipeline.ExampleIndex(whole, wanted, 4, 4, seed=1)
            read = pipeline.ExampleIndex(made, [*wanted, Features(("states",))], 4, 4, seed=1)
            for k in range(60):
                one, other = sound[k], read[k]
                np.testing.assert_array_equal(other.pop("states"), value(str(other["text"]) or None))
                assert one == other
                assert not fields or one["captioned"] or fields == ("transcribed",)


def test_a_part_of_a_recording_has_no_transcription(cached):
    """From the cache as from sound (decision 19 of docs/design.md)."""
    for index in range(3):
        assert cached[index].transcription == Told().excerpt(index, 4, 0.0).transcription
    assert [cached[index].transcription for index in range(3)] == ["it rains", None, None]


def test_entries_that_do_not_fit_are_told(cached, tmp_path):
    of_sound, of_text = cached.features
    with pytest.raises(cache.CacheError, match="made from other captions: 'snow' is new"):
        of_text.read(0, "snow")
    with pytest.raises(ValueError, match=r"level is float32 \(2, 3\), not bfloat16 \(2, 3\)"):
        of_sound.pack(0, [[np.zeros((2, 3), np.float32)]], [None])
    broken = cache.open_feature(tmp_path / "broken", of_text.fields, 3, True, {})
    with broken.writer(0) as shard:
        whole = [broken.pack(number, [[value("a")]], ["a"]) for number in range(3)]
        for entry in (broken.unreadable(0, "no such file"), whole[1][:-1], whole[2][:16]):
            shard.write(entry)
    with pytest.raises(UnreadableRecord, match="no such file"):
        broken.read(0, None)
    for entry, size in ((1, 71), (2, 16)):
        with pytest.raises(cache.CacheError, match=f"its entry {entry} has {size} bytes"):
            broken.read(entry, "a")


def test_entries_in_the_place_of_others_are_told(tmp_path):
    """Shards that were renamed, or copied from another cache: their digests of captions are alike."""

    def feature(folder, **made_from):
        made = cache.open_feature(tmp_path / folder, [cache.Field("x", "float32", (1,))], 1000, False, made_from)
        for number, shard in enumerate(made.shards):
            if not shard.exists():
                with made.writer(number) as writer:
                    for entry in made.entries_of(number):
                        packed = made.pack(entry, [[np.full(1, entry, np.float32)]], [None])
                        writer.write(made.unreadable(entry, "broken") if entry == 3 else packed)
        return made

    made, other = feature("one", network="a"), feature("two", network="b")
    assert len(made.shards) == 2 and made.entries_of(1)[0] == 512
    assert all(made.read(number, None).arrays["x"][0] == number for number in (0, 511, 512, 999))
    first, second = made.shards
    kept, swapped = first.read_bytes(), second.read_bytes()
    first.write_bytes(swapped)
    found = feature("one", network="a")
    with pytest.raises(
        cache.CacheError, match=r"one is mixed up: in the place of its entry 0 is another one. .*delete"
    ):
        found.read(0, None)
    first.write_bytes(other.shards[0].read_bytes())
    for entry in (0, 3):
        with pytest.raises(
            cache.CacheError, match=rf"in the place of its entry {entry} is one of another cache. .*delete"
        ):
            feature("one", network="a").read(entry, None)
    first.write_bytes(kept)
    assert feature("one", network="a").read(2, None).arrays["x"][0] == 2


def test_a_cache_of_an_earlier_version_is_told(cached, tmp_path):
    path = tmp_path / "text" / cache.FILE
    path.write_text(path.read_text().replace('"version": 3', '"version": 2'))
    with pytest.raises(cache.CacheError, match=r"text is of something else: version: 2 → 3. To .*delete"):
        cache.open_feature(path.parent, cached.features[1].fields, 3, True, {})
