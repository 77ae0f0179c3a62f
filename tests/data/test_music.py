"""The embedded corpus: pure, disjoint, audible, in tune, and true to its captions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax.data.builtin import music
from audioldm2_jax.data.builtin.compose import GROOVES, SCALES, TEMPOS, heldout
from audioldm2_jax.data.builtin.corpus import SPLITS
from audioldm2_jax.data.builtin.instruments import DRUMS, EVALUATED, FAMILIES, INSTRUMENTS
from audioldm2_jax.data.builtin.music import HELD_OUT, MusicCorpus, heldout_captions, heldout_examples
from audioldm2_jax.data.builtin.render import Hiss, draw_hiss, render, sound_font
from audioldm2_jax.data.draw import Draw, digest

CORPUS = MusicCorpus(16000, 2.56, 0, "train")
CLIPS = [CORPUS[i] for i in range(200)]


def test_draws_are_the_same_in_every_release():
    # Written down once: another value means that every corpus, split and data order has changed.
    assert digest("music", 0) == 12904671749684702874
    draws = Draw("x", 1)
    assert [draws.below(1000) for _ in range(4)] == [198, 865, 482, 956]
    counts = [0, 0]
    for _ in range(2000):
        counts[draws.weighted({0: 1.0, 1: 3.0})] += 1
    assert 0.2 < counts[0] / 2000 < 0.3  # 0.25 ± 5 standard deviations of 0.01


def test_a_clip_is_a_function_of_its_index():
    again = MusicCorpus(16000, 2.56, 0, "train")
    for i in (7, 3):
        np.testing.assert_array_equal(again[i].waveform, CLIPS[i].waveform)
        assert again[i].text == CLIPS[i].text == again.text(i)
    assert MusicCorpus(16000, 2.56, 1, "train")[3].text != CLIPS[3].text
    assert MusicCorpus(16000, 2.56, 0, "heldout")[3].text != CLIPS[3].text


def test_rate_and_length_only_change_how_much_is_heard():
    long = MusicCorpus(48000, 5.0, 0, "train")
    for i in range(3):
        clip = long[i]
        assert clip.waveform.shape == (240000,) and clip.text == CLIPS[i].text
        notes = clip.labels["notes"]
        short = CLIPS[i].labels["notes"]
        np.testing.assert_array_equal(notes[notes[:, 3] == 0][: (short[:, 3] == 0).sum()], short[short[:, 3] == 0])
    assert MusicCorpus(22050, 0.3, 0, "train")[0].waveform.shape == (round(0.3 * 22050),)


def test_clips_sound_from_the_start_at_a_sane_level():
    for clip in CLIPS:
        waveform = clip.waveform
        assert waveform.dtype == np.float32 and waveform.shape == (40960,) and np.isfinite(waveform).all()
        assert abs(np.abs(waveform).max() - 0.5) < 1e-3 and abs(waveform.mean()) < 1e-4
        level = np.sqrt(np.mean(np.square(waveform.reshape(10, -1)), -1))  # of 256 ms each
        assert level[0] > 0.01, clip.text
        quiet = 0.0 if clip.labels["kind"] == "drums" else 5e-4  # slow drums and short marimba tones leave gaps
        assert (level >= quiet).all(), clip.text


def test_hiss_is_as_loud_as_drawn_at_any_rate():
    plan = music.draw_plan(Draw("hiss"), "train", None, music.MIXTURE)
    notes = music.compose(plan, music.first_bar(plan, Draw("bar")), 8.0, Draw("notes"))

    def play(rate, decibels, seed):
        return render(plan.parts, notes, plan.bpm, 2 * rate, rate, Hiss(decibels, seed))

    for rate in (16000, 48000):
        # Another seed is other noise under the same music, so the difference is √2 times the noise.
        noise = (play(rate, 50.0, 1) - play(rate, 50.0, 2)) / 2**0.5
        power = 2 * np.square(np.abs(np.fft.rfft(noise)) / len(noise)).cumsum()  # Parseval: its end is the mean square
        below_8khz = power[len(noise) * 8000 // rate]
        # dB; each clip is brought to its own peak, which leaves a little of the music in the difference.
        assert abs(10 * np.log10(below_8khz) - 20 * np.log10(0.5) + 50.0) < 1.0
    np.testing.assert_array_equal(play(16000, 50.0, 1), play(16000, 50.0, 1))
    levels = [draw_hiss(Draw(i)).decibels for i in range(200)]
    assert 49 <= min(levels) < 51 and 62 < max(levels) <= 64


def test_splits_share_no_score():
    def openings(split):
        found = set()
        for index in range(400):
            corpus = MusicCorpus(16000, 2.56, 0, split)
            plan, _ = corpus._plan(index)
            draw = corpus._draw("score", index)
            bar = music.first_bar(plan, draw)
            while heldout(plan.lead.texture, bar) != (split == "heldout"):
                bar = music.first_bar(plan, draw)
            found.add((plan.lead.texture, bar))
        return found

    assert not openings("train") & openings("heldout")


def test_training_never_has_the_held_out_combinations():
    held_out = {(name, *cell) for name, cells in HELD_OUT.items() for cell in cells}
    assert len(held_out) == 24
    pairs = set()
    for index in range(3000):
        plan, _ = CORPUS._plan(index)
        for part in plan.parts:
            if part.texture != "bass line":
                assert (part.instrument, plan.tempo, plan.mode, part.register) not in held_out
            pairs |= {(part.instrument, plan.tempo), (part.instrument, plan.mode), (part.instrument, part.register)}
    for name, tempo, mode, register in held_out:  # but it knows each part of them
        assert {(name, tempo), (name, mode), (name, register)} <= pairs


def test_held_out_captions_name_what_they_ask_for():
    captions = heldout_captions(64)
    assert len({text for text, _ in captions}) == 64 and captions[:10] == heldout_captions(10)
    assert [name for _, name in captions[:8]] == list(EVALUATED)
    for text, name in captions:
        assert name in text.lower()
    clips = heldout_examples(8, 16000, 1.0)
    assert [clip.text for clip in clips] == [text for text, _ in captions[:8]]
    for clip, (_, name) in zip(clips, captions):
        labels = clip.labels
        assert labels["instruments"] == (name,)
        assert (labels["tempo"], labels["mode"], labels["registers"][0]) in HELD_OUT[name]
    assert {name for _, name in heldout_captions(6, ("flute", "piano"))} == {"flute", "piano"}
    with pytest.raises(ValueError, match="no combinations are held out for"):
        heldout_captions(2, ("kazoo",))


def test_captions_are_true():
    words = {"slow": "slow", "unhurried": "slow", "moderate": "moderate", "mid-tempo": "moderate"}
    words |= {"fast": "fast", "quick": "fast"}
    modes = {"major": "major", "minor": "minor", "happy": "major", "bright": "major", "cheerful": "major"}
    modes |= {"sad": "minor", "dark": "minor", "gloomy": "minor", "dorian": "dorian", "pentatonic": "pentatonic"}
    said = {"tempo": 0, "mode": 0, "register": 0}
    for index in range(2000):
        plan, text = CORPUS._plan(index)
        tokens = text.lower().replace(",", "").replace(":", "").rstrip(".").split()
        assert plan.lead.instrument in text.lower()
        assert all(tokens[i + 1][0] in "aeiou" for i, token in enumerate(tokens) if token == "an"), text
        assert all(tokens[i + 1][0] not in "aeio" for i, token in enumerate(tokens) if token == "a"), text
        for token in tokens:
            if token in words:
                assert words[token] == plan.tempo
                said["tempo"] += 1
            if token in modes:
                assert modes[token] == plan.mode
                said["mode"] += 1
        if "register" in tokens:
            assert tokens[tokens.index("register") - 1] == plan.lead.register
            said["register"] += 1
    assert all(count > 300 for count in said.values())
    assert len({CORPUS.text(i) for i in range(2000)}) > 1700


def test_notes_keep_to_the_labels():
    for clip in CLIPS:
        labels = clip.labels
        low, high = TEMPOS[labels["tempo"]]
        assert low <= labels["bpm"] <= high
        notes = labels["notes"]
        if DRUMS in labels["instruments"]:
            notes = notes[notes[:, 3] != labels["instruments"].index(DRUMS)]
        tonic = music.KEYS.index(labels["key"])
        assert {int(pitch - tonic) % 12 for pitch in notes[:, 2]} <= set(SCALES[labels["mode"]])
        for number, name in enumerate(labels["instruments"]):
            if name != DRUMS:
                pitches = notes[notes[:, 3] == number, 2]
                assert (
                    len(pitches) and INSTRUMENTS[name].low <= pitches.min() <= pitches.max() <= INSTRUMENTS[name].high
                )
        assert (notes[:, 0] >= 0).all() and (notes[:, 0] < 2.56).all() and (notes[:, 1] > 0).all()


@pytest.mark.parametrize("name", EVALUATED)
def test_tones_are_in_tune(name):
    instrument = INSTRUMENTS[name]
    for program in instrument.programs:
        for key in (instrument.low + 5, (instrument.low + instrument.high) // 2, instrument.high - 3):
            tone = sound_font().tone(0, program, key, 1.0, 48000)
            part = tone[2400:35168] * np.hanning(32768)
            power = np.square(np.abs(np.fft.rfft(part, 1 << 17)))
            bin_width = 48000 / (1 << 17)
            pitch = 440.0 * 2 ** ((key - 69) / 12)
            # Over a range of ±60 cents the first harmonics together are strongest within a quarter of a semitone.
            cents = np.arange(-60, 61, 5)
            harmonics = np.outer(2.0 ** (cents / 1200.0), np.arange(1, 7)) * pitch
            comb = power[np.round(harmonics / bin_width).astype(int)].sum(-1)
            assert abs(cents[comb.argmax()]) <= 25, (program, key)


def test_struck_tones_fade_and_blown_ones_do_not():
    def fall(program):
        tone = sound_font().tone(0, program, 64, 2.0, 16000)
        early, late = tone[1600:4800].std(), tone[24000:27200].std()
        return 20 * np.log10(early / late)

    assert fall(0) > 10 and fall(24) > 6 and fall(12) > 20  # piano, guitar, marimba
    assert abs(fall(73)) < 6 and abs(fall(19)) < 6  # flute, organ


def test_families_solos_duos_and_drums():
    assert len(FAMILIES) >= 16 and len(EVALUATED) == 8 and set(EVALUATED) <= set(INSTRUMENTS)
    seen, kinds = set(), {}
    for index in range(3000):
        plan, _ = CORPUS._plan(index)
        kinds[plan.kind] = kinds.get(plan.kind, 0) + 1 / 3000
        seen |= {part.instrument for part in plan.parts}
    assert seen == {*INSTRUMENTS, DRUMS}
    for kind, share in music.MIXTURE.items():
        assert abs(kinds[kind] - share) < 0.05  # five standard deviations
    flutes = MusicCorpus(16000, 1.0, 0, "train", families=("flutes",))
    assert {flutes[i].labels["instruments"] for i in range(20)} == {("flute",)}
    drums = MusicCorpus(16000, 1.0, 0, "train", families=(DRUMS,))
    assert {drums[i].labels["textures"][0] for i in range(60)} == set(GROOVES)


@settings(max_examples=30, deadline=None)
@given(
    families=st.sets(st.sampled_from(FAMILIES), min_size=1).map(tuple),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 999),
    split=st.sampled_from(SPLITS),
)
def test_any_families_play(families, seed, index, split):
    try:
        corpus = MusicCorpus(16000, 0.5, seed, split, examples=1000, families=families)
    except ValueError as error:
        assert "leave nothing to play" in str(error) and set(families) <= {"bass"}
        return
    clip = corpus[index]
    assert clip.waveform.shape == (8000,) and np.isfinite(clip.waveform).all() and clip.text
    for name in clip.labels["instruments"]:
        assert (INSTRUMENTS[name].family if name != DRUMS else DRUMS) in families


def test_errors():
    base = {"sampling_rate": 16000, "seconds": 1.0, "seed": 0, "split": "train"}
    for change, message in (
        ({"split": "test"}, "split is 'test'"),
        ({"sampling_rate": 96000}, "up to 48000"),
        ({"seconds": 0.0}, "must be positive"),
        ({"families": ("kazoos",)}, "no instrument family"),
        ({"mixture": {"trio": 1.0}}, "the kinds are"),
        ({"families": ("bass",)}, "nothing to play"),
    ):
        with pytest.raises(ValueError, match=message):
            MusicCorpus(**{**base, **change})
    with pytest.raises(IndexError):
        dataclasses.replace(CORPUS, examples=5)[5]
