"""The embedded corpus of sound effects: pure, disjoint, true to its captions and labels, audible where it says."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
import scipy.signal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audioldm2_jax.data.builtin import effects, scenes
from audioldm2_jax.data.builtin.effects import EffectsCorpus, heldout_captions, heldout_examples
from audioldm2_jax.data.builtin.music import MusicCorpus
from audioldm2_jax.data.builtin.scenes import HELD_OUT, HELD_OUT_COUNTS, SHORTEST, Part, Plan, arrange
from audioldm2_jax.data.builtin.sounds import SOUNDS
from audioldm2_jax.data.draw import Draw

CORPUS = EffectsCorpus(16000, 2.56, 0, "train")
CLIPS = [CORPUS[i] for i in range(60)]
# Words by which a reader knows a class; longer ones first where one holds another.
WORDS = {
    "knock": ("knock",),
    "rain": ("rain",),
    "bell": ("bell",),
    "dog": ("bark",),
    "siren": ("siren",),
    "fire": ("fire crackl", "crackling", "fire burn", "a fire"),
    "glass": ("glass",),
    "gunshot": ("shot", "gun fir", "shoot"),
    "bird": ("bird",),
    "telephone": ("phone",),
    "waves": ("waves",),
    "horn": ("honk", "horn"),
    "helicopter": ("helicopter",),
    "cat": ("meow",),
    "thunder": ("thunder",),
    "beep": ("beep",),
    "engine": ("engine", "motor"),
    "crow": ("caw", "crow calls", "crow calling"),
    "applause": ("applau", "clap"),
    "whistle": ("whistl",),
    "cricket": ("cricket",),
    "cow": ("moo", "low"),
    "drop": ("drip", "drop"),
    "sheep": ("bleat",),
}
NUMBERS = {"two ": 2, "three ": 3, "four ": 4}
TIMES = {"twice": 2, "three times": 3, "four times": 4, "once": 1}


def place(text, name):
    """Where a caption first names a class; -1 where it does not."""
    text = text.lower().replace("clap of thunder", "thunder").replace("follow", "")
    found = [text.find(word) for word in WORDS[name]]
    return min((at for at in found if at >= 0), default=-1)


def test_a_clip_is_a_function_of_its_index():
    again = EffectsCorpus(16000, 2.56, 0, "train")
    for i in (7, 3):
        np.testing.assert_array_equal(again[i].waveform, CLIPS[i].waveform)
        assert again[i].text == CLIPS[i].text == again.text(i) and again[i].labels == CLIPS[i].labels
    assert EffectsCorpus(16000, 2.56, 1, "train").text(3) != CLIPS[3].text
    assert EffectsCorpus(16000, 2.56, 0, "heldout").text(3) != CLIPS[3].text


def test_the_rate_only_changes_how_it_is_heard():
    fine = EffectsCorpus(48000, 2.56, 0, "train")
    for i in range(6):
        clip = fine[i]
        assert clip.waveform.shape == (122880,) and clip.text == CLIPS[i].text and clip.labels == CLIPS[i].labels
        levels = [
            np.square(sound.waveform.reshape(16, -1)).mean(-1) / np.square(sound.waveform).mean()
            for sound in (clip, CLIPS[i])
        ]
        assert np.corrcoef(*levels)[0, 1] > 0.8, clip.text  # the same course of loudness


def test_clips_are_sound_at_a_sane_level():
    for clip in CLIPS:
        waveform = clip.waveform
        assert waveform.dtype == np.float32 and waveform.shape == (40960,) and np.isfinite(waveform).all()
        assert abs(np.abs(waveform).max() - 0.5) < 1e-3 and abs(waveform.mean()) < 1e-4
        assert np.sqrt(np.square(waveform).mean()) > 0.005, clip.text  # more than a click in silence


def test_every_class_is_heard_in_both_splits_and_all_kinds_occur():
    for split in ("train", "heldout"):
        plans = [dataclasses.replace(CORPUS, split=split)._plan(i)[0] for i in range(1000)]
        assert {part.sound for plan in plans for part in plan.parts} == set(SOUNDS)
        shares = {kind: sum(plan.kind == kind for plan in plans) / 1000 for kind in scenes.MIXTURE}
        assert all(abs(shares[kind] - share) < 0.08 for kind, share in scenes.MIXTURE.items())


def test_splits_share_no_voice():
    def voices(split, seed):
        corpus = EffectsCorpus(16000, 2.56, seed, split)
        return {(part.sound, part.voice) for i in range(500) for part in corpus._plan(i)[0].parts}

    train, other = (voices("train", 0), voices("heldout", 1))
    assert not train & other and all(v % 2 == 0 for _, v in train) and all(v % 2 for _, v in other)
    heard = [
        effects._sound(arrange(Plan("single", (Part("dog", 1, voice),)), 2.56, Draw("t"))[0], 16000) for voice in (2, 3)
    ]
    assert not np.allclose(heard[0], heard[1])


def test_training_never_has_what_is_held_out_but_knows_its_parts():
    corpus = EffectsCorpus(16000, 5.0, 0, "train")
    firsts, seconds, counts = set(), set(), set()
    for i in range(3000):
        plan, _ = corpus._plan(i)
        names = [part.sound for part in plan.parts]
        pairs = [*itertools.pairwise(names), *([(names[0], names[-1])] if plan.kind == "overlay" else [])]
        for first, second in pairs:
            assert second not in HELD_OUT[first]
            firsts.add(first)
            seconds.add(second)
        for part in plan.parts:
            assert HELD_OUT_COUNTS.get(part.sound) != part.count
            counts.add((part.sound, part.count))
    assert set(HELD_OUT) == firsts == seconds == set(SOUNDS)
    assert all(others and name not in others for name, others in HELD_OUT.items())
    assert len(HELD_OUT_COUNTS) >= 3 and set(HELD_OUT_COUNTS.values()) == {2, 3}
    for name, count in HELD_OUT_COUNTS.items():
        assert {(name, c) for c in (1, 2, 3, 4)} - counts == {(name, count)}


@pytest.mark.parametrize("seconds", [SHORTEST, 2.56, 5.12, 10.24])
def test_events_are_in_order_and_apart(seconds):
    corpus, most = EffectsCorpus(16000, seconds, 0, "train"), 0
    for i in range(300):
        plan, _ = corpus._plan(i)
        events = arrange(plan, seconds, corpus._draw("performance", i))
        assert [event.part for event in events] == list(plan.parts)
        assert events[0].onset <= 0.26 and events[-1].onset + events[-1].duration <= seconds + 1e-6
        if plan.kind == "overlay":
            assert (events[0].onset, events[0].duration) == (0, seconds) and SOUNDS[events[0].part.sound].background
            events = events[1:]
        for event, later in itertools.pairwise(events):
            assert event.onset + event.duration <= later.onset - 0.05
        for event in events:
            assert len(event.strokes) == event.part.count and event.strokes[0] == 0
            gaps = np.diff((*event.strokes, event.duration))
            assert (gaps > 0.1).all()
        most = max(most, len(plan.parts))
    assert most == (3 if seconds > 4 else 2)


@pytest.mark.parametrize("name", SOUNDS)
def test_events_sound_where_the_labels_say(name):
    """Nearly all energy lies within the event, and near its beginning as well; alone, without a room."""
    for voice in range(6):
        count = 1 + voice % min(SOUNDS[name].most(2.3), 3)
        event = arrange(Plan("single", (Part(name, count, voice),)), 2.56, Draw("where", voice))[0]
        sound = effects._sound(event, 16000)
        assert np.isfinite(sound).all() and len(sound) == max(round(event.duration * 16000), 1)
        power = np.square(sound)
        assert power[: int(0.35 * 16000)].mean() > 0.02 * power.mean(), "it begins late"
        assert 0.5 < np.sqrt(power[: len(power) // 1600 * 1600].reshape(-1, 1600).mean(-1).max()) < 1.01
        for start, stop in itertools.pairwise((*event.strokes, event.duration)):
            stroke = power[int(start * 16000) : int(stop * 16000)]
            assert stroke.mean() > 0.05 * power.mean(), "a stroke is missing"
        loud = effects.perform(Plan("single", (Part(name, count, voice),)), "", Draw("clip", voice), 16000, 2.56)
        ((_, onset, duration, labelled),) = loud.labels["events"]
        inside = np.square(loud.waveform[int(onset * 16000) : int((onset + duration + 0.5) * 16000)]).sum()
        assert labelled == count and inside > 0.99 * np.square(loud.waveform).sum()


def test_strokes_can_be_counted():
    """Of a short sound, as many bursts as the label has."""
    for name in ("knock", "dog", "beep", "gunshot"):
        for count in (1, 2, 3):
            event = arrange(Plan("single", (Part(name, count, 4),)), 2.56, Draw("count", count))[0]
            sound = effects._sound(event, 16000)
            loud = np.sqrt(np.square(sound[: len(sound) // 160 * 160]).reshape(-1, 160).mean(-1))  # of 10 ms each
            bursts, _ = scipy.signal.find_peaks(np.pad(loud, 1), prominence=0.3 * loud.max(), distance=13)
            assert len(bursts) == count, (name, count)


def test_captions_agree_with_the_labels():
    said = set()
    for seconds in (2.56, 5.12):
        corpus = EffectsCorpus(16000, seconds, 0, "train")
        for i in range(1500):
            plan, text = corpus._plan(i)
            lower = text.lower()
            places = [place(text, part.sound) for part in plan.parts]
            assert min(places) >= 0, (text, plan)
            if plan.kind == "sequence":
                turned = " after " in lower
                assert (places == sorted(places)) != turned or lower.startswith("after "), text
            elif plan.kind == "single":
                assert not any(word in lower for word in ("then", "while", "after", "background")), text
            else:
                assert any(word in lower for word in ("while", "with ", "over ")), text
            numbers = sorted(
                [n for word, n in NUMBERS.items() for _ in range(lower.replace(word + "times", "").count(word))]
                + [n for word, n in TIMES.items() for _ in range(lower.count(word)) if n > 1]
            )
            assert numbers == sorted(part.count for part in plan.parts if part.count > 1), text
            tokens = lower.replace(",", "").rstrip(".").split()
            assert all(tokens[k + 1][0] in "aeiou" for k, token in enumerate(tokens) if token == "an"), text
            assert all(tokens[k + 1][0] not in "aeiou" for k, token in enumerate(tokens) if token == "a"), text
            said.add(text)
    assert len(said) > 2300


def test_held_out_captions_name_what_they_ask_for():
    captions = heldout_captions(96)
    assert len({text for text, _ in captions}) == 96 and captions[:10] == heldout_captions(10)
    assert {names[0] for _, names in captions} == set(SOUNDS)
    for text, (first, second) in captions:
        assert second in HELD_OUT[first] and min(place(text, first), place(text, second)) >= 0, text
    clips = heldout_examples(6, 16000, SHORTEST)
    assert [(clip.text, clip.labels["order"]) for clip in clips] == captions[:6]
    assert all(clip.waveform.shape == (40000,) for clip in clips)
    assert [clip.text for clip in heldout_examples(2, 16000, 4.0)] == [text for text, _ in captions[:2]]


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.floats(SHORTEST, 6.0),
    rate=st.sampled_from((8000, 16000, 22050, 44100, 48000)),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 999),
    split=st.sampled_from(("train", "heldout")),
)
@example(seconds=3.0, rate=8000, seed=11297761, index=535, split="train")  # a cricket, above what 8 kHz can have
def test_any_clip_can_be_made(seconds, rate, seed, index, split):
    clip = EffectsCorpus(rate, seconds, seed, split, examples=1000)[index]
    assert clip.waveform.shape == (round(seconds * rate),) and np.isfinite(clip.waveform).all() and clip.text
    assert 0.49 < np.abs(clip.waveform).max() < 0.51
    for name, onset, duration, count in clip.labels["events"]:
        assert name in SOUNDS and 0 <= onset and onset + duration <= seconds + 1e-6 and 1 <= count <= 4


def test_a_clip_costs_little():
    """Against the music of the same length, in this process: a few times as much at most."""
    music = MusicCorpus(16000, 2.56, 0, "train")

    def seconds(corpus):
        began = time.process_time()
        for i in range(40):
            corpus[i]
        return time.process_time() - began

    seconds(music), seconds(CORPUS)  # what is kept is made
    assert seconds(CORPUS) < 30 * seconds(music)


def test_errors():
    base = {"sampling_rate": 16000, "seconds": 2.56, "seed": 0, "split": "train"}
    for change, message in (
        ({"split": "test"}, "split is 'test'"),
        ({"sampling_rate": 96000}, "up to 48000"),
        ({"seconds": 2.0}, r"2\.5 seconds or more.*got 2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            EffectsCorpus(**{**base, **change})
    with pytest.raises(ValueError, match=r"2\.5 seconds or more"):
        heldout_examples(1, 16000, 1.0)
    with pytest.raises(IndexError):
        dataclasses.replace(CORPUS, examples=5)[5]
