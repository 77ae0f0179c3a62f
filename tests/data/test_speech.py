"""The embedded speech: the same in every process, whole, said as written, described truly, and understood."""

import builtins
import ctypes
import dataclasses
import importlib.util
import multiprocessing
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipes
from audioldm2_jax.audio import silence
from audioldm2_jax.data import espeak
from audioldm2_jax.data.builtin import speech
from audioldm2_jax.data.builtin.corpus import SPLITS
from audioldm2_jax.data.builtin.sentences import LONGEST, RULES, SHORTEST, heldout, sentence, words
from audioldm2_jax.data.builtin.speakers import PITCHES, RATES, VOICES, Speaker, describe
from audioldm2_jax.data.builtin.speech import (
    HELD_OUT,
    SpeechCorpus,
    draw_text,
    heldout_examples,
    heldout_sentences,
    most_seconds,
    perform,
)
from audioldm2_jax.data.cache import Cached
from audioldm2_jax.data.draw import Draw
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.phonemes import phonemes
from audioldm2_jax.data.sources import open_source

FILE = Path(__file__).parents[2] / "benchmarks" / "speech.py"
SPEC = importlib.util.spec_from_file_location("speech_benchmark", FILE)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

CORPUS = SpeechCorpus(16000, 2.56, 0, "train")
CLIPS = [CORPUS[i] for i in range(40)]


def test_a_clip_is_the_same_in_every_order_thread_and_process():
    wanted = [clip.waveform for clip in CLIPS[:8]]
    for i in (7, 2, 2, 5):
        phonemes("something else in between")  # phonemizer speaks with the same library
        np.testing.assert_array_equal(CORPUS[i].waveform, wanted[i])
    with ThreadPoolExecutor(4) as threads:
        for clip, waveform in zip(threads.map(CORPUS.__getitem__, range(8)), wanted):
            np.testing.assert_array_equal(clip.waveform, waveform)
    with multiprocessing.get_context("spawn").Pool(1) as process:
        for clip, waveform in zip(process.map(CORPUS.__getitem__, range(7, -1, -1)), wanted[::-1]):
            np.testing.assert_array_equal(clip.waveform, waveform)


def test_text_and_transcription_are_those_of_the_clip():
    for i, clip in enumerate(CLIPS):
        assert (CORPUS.text(i), CORPUS.transcription(i)) == (clip.text, clip.transcription)
    assert CORPUS.excerpt(3, 40960, 0.5).transcription == CLIPS[3].transcription
    assert CORPUS.excerpt(3, 16000, 0.5).transcription is None  # who knows which of the words are heard
    assert Cached(CORPUS.first(10), [], 1)[3].transcription == Cached(CORPUS.first(10), [], 1).transcription(3)
    assert Cached(CORPUS.first(10), [], 1).transcription(3) == CLIPS[3].transcription
    other = [dataclasses.replace(CORPUS, seed=1), dataclasses.replace(CORPUS, split="heldout")]
    assert all(corpus.transcription(3) != CLIPS[3].transcription for corpus in other)


def test_rates_of_sampling_and_lengths():
    assert dataclasses.replace(CORPUS, sampling_rate=48000)[3].waveform.shape == (122880,)
    long = dataclasses.replace(CORPUS, seconds=10.24)
    for i in range(4):
        clip = long[i]
        assert clip.waveform.shape == (163840,) and clip.text == CLIPS[i].text
        assert clip.transcription.startswith(CLIPS[i].transcription)
        assert clip.labels["end"] - clip.labels["onset"] > 5.0, "several sentences"


def test_a_clip_is_silence_the_whole_sentence_and_silence():
    for clip in CLIPS:
        waveform, labels = clip.waveform, clip.labels
        assert waveform.dtype == np.float32 and waveform.shape == (40960,)
        assert abs(np.abs(waveform).max() - 0.5) < 1e-3 and abs(waveform.mean()) < 1e-4
        assert 0.05 <= labels["onset"] <= 0.3 and labels["end"] <= 2.56 - 0.05 + 1e-3
        onset, end = round(labels["onset"] * 16000), round(labels["end"] * 16000)
        assert np.abs(waveform[: onset - 20]).max() < 0.005 and np.abs(waveform[end + 20 :]).max() < 0.005
        assert np.abs(waveform[onset : onset + 800]).max() > 0.005 and np.abs(waveform[end - 800 : end]).max() > 0.004


def test_where_it_sounds_is_where_it_is_said():
    """Through the hiss; what is left out at the ends are weak consonants."""
    for clip in CLIPS:
        frames = np.flatnonzero(silence.loud(clip.waveform, 16000))
        assert abs(frames[0] * 0.01 - clip.labels["onset"]) < 0.06
        assert abs((frames[-1] + 1) * 0.01 - clip.labels["end"]) < 0.06


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    index=st.integers(0, 999),
    split=st.sampled_from(SPLITS),
    seconds=st.floats(2.0, 12.0),
)
def test_any_transcription_is_of_its_split_and_fits(seed, index, split, seconds):
    corpus = SpeechCorpus(16000, seconds, seed, split, examples=1000)
    said = re.findall(r"[^.?]+[.?]", corpus.transcription(index))
    said = [text.strip() for text in said]
    rate = corpus._speaker(index)[0].rate
    assert " ".join(said) == corpus.transcription(index)
    assert all(heldout(text) == (split == "heldout") for text in said)
    assert sum(most_seconds(text, rate) for text in said) <= seconds - 0.3


@settings(max_examples=10, deadline=None)
@given(key=st.integers(), voice=st.sampled_from(tuple(VOICES)), rate=st.sampled_from(tuple(RATES)))
def test_no_sentence_takes_longer_than_was_reckoned(key, voice, rate):
    said = draw_text(Draw(key), rate, "train", 5.12)
    most = sum(most_seconds(text, rate) for text in re.findall(r"[^.? ][^.?]*[.?]", said))
    assert len(espeak.speak(said, voice, RATES[rate], 50)) / espeak.SAMPLING_RATE <= most


def test_a_sentence_that_would_be_cut_is_not_made():
    speaker, said = Speaker("en-us+f1", "slow", "low"), "they carry twenty yellow candles."
    with pytest.raises(
        UnreadableRecord, match=r"'they carry .*' takes longer than 1\.\d\d seconds in the voice en-us\+f1"
    ):
        perform(speaker, "", said, Draw(0), 16000, 2.0)


def test_the_grammar():
    said = [sentence(Draw(i)) for i in range(3000)]
    lengths = [len(words(text)) for text in said]
    assert {*lengths} == set(range(SHORTEST, LONGEST + 1))
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)+[.?]", text) for text in said)
    vocabulary = benchmark.vocabulary()
    assert 100 <= len(vocabulary) <= 200 and {word for text in said for word in words(text)} == vocabulary
    assert benchmark.sentences() > 500_000
    assert all(ways("<sentence>", tuple(words(text))) == 1 for text in said[:100])
    assert 0.45 < sum(map(heldout, said)) / 3000 < 0.55


@cache
def ways(rule: str, said: tuple[str, ...]) -> int:
    """In how many ways the words come of a text of rules and words."""
    first, *rest = re.findall(r"<\w+>|\w+", rule)
    options = RULES[first[1:-1]] if first[0] == "<" else None
    if not rest and options is None:
        return said == (first,)
    if options is None:
        return ways(" ".join(rest), said[1:]) if said[:1] == (first,) else 0
    if not rest:
        return sum(ways(option, said) for option in options)
    return sum(
        sum(ways(option, said[:k]) for option in options) * ways(" ".join(rest), said[k:]) for k in range(1, len(said))
    )


def test_training_knows_all_words_and_no_held_out_sentence():
    train = [text for i in range(1500) for text in re.findall(r"[^.? ][^.?]*[.?]", CORPUS.transcription(i))]
    assert {word for text in train for word in words(text)} == benchmark.vocabulary()
    assert not {*train} & {said for said, *_ in heldout_sentences(300)}


def test_training_never_has_the_held_out_combinations():
    held_out = {(voice, *cell) for voice, cells in HELD_OUT.items() for cell in cells}
    assert len(held_out) == 3 * len(VOICES)
    known = {CORPUS._speaker(i)[0] for i in range(1500)}
    assert not known & held_out and len(known) == 6 * len(VOICES)
    for voice, rate, pitch in held_out:  # but it knows each pair
        assert any((s.voice, s.rate) == (voice, rate) for s in known)
        assert any((s.voice, s.pitch) == (voice, pitch) for s in known)
        assert any((s.rate, s.pitch) == (rate, pitch) for s in known)
    heldout_split = dataclasses.replace(CORPUS, split="heldout")
    assert held_out <= {heldout_split._speaker(i)[0] for i in range(1500)}


def test_held_out_sentences_are_new_and_fully_described():
    triples = heldout_sentences(60)
    assert len({said for said, *_ in triples}) == 60 and triples[:10] == heldout_sentences(10)
    assert [voice for *_, voice in triples[: len(VOICES)]] == list(VOICES)
    for (said, text, voice), clip in zip(triples, heldout_examples(12, 16000, 2.56)):
        assert (clip.transcription, clip.text, clip.labels["voice"]) == (said, text, voice)
        assert heldout(said) and (clip.labels["rate"], clip.labels["pitch"]) in HELD_OUT[voice]
    for _, text, voice in triples:
        assert all(what in text for what in VOICES[voice])
        assert any(word in text.lower() for word in (*"low deep medium high".split(), "low-pitched")), text


def test_descriptions_are_true():
    paces = {"slow": "slow", "slowly": "slow", "unhurried": "slow", "unhurriedly": "slow", "normal": "normal"}
    paces |= {"moderate": "normal", "moderately": "normal", "steady": "normal"}
    paces |= {"fast": "fast", "quick": "fast", "quickly": "fast"}
    pitches = {"low": "low", "deep": "low", "medium": "middle", "high": "high"}
    names = {voice.name.lower(): voice.name for voice in VOICES.values()}
    said = {"name": 0, "pace": 0, "pitch": 0, "accent": 0}
    texts = set()
    for i in range(1500):
        draw = Draw("description", i)
        speaker = Speaker(draw.pick(tuple(VOICES)), draw.pick(tuple(RATES)), draw.pick(tuple(PITCHES)))
        texts.add(text := describe(speaker, draw))
        tokens = re.findall(r"\w+", text.lower())
        name, gender, accent = VOICES[speaker.voice]
        assert gender in tokens and not ({"man", "woman"} - {gender}) & {*tokens}
        assert all(tokens[j + 1][0] in "aeiou" for j, token in enumerate(tokens) if token == "an"), text
        assert all(tokens[j + 1][0] not in "aeiou" for j, token in enumerate(tokens) if token == "a"), text
        assert sum(token in paces for token in tokens) == 1, text
        assert (name in text) == ("," in text) and not re.search(r",(?! )|,$|,\.", text), text
        for token in tokens:
            if token in names:
                assert names[token] == name, text
                said["name"] += 1
            if token in paces:
                assert paces[token] == speaker.rate, text
                said["pace"] += 1
            if token in pitches:
                assert pitches[token] == speaker.pitch, text
                said["pitch"] += 1
            if token in {voice.accent.lower() for voice in VOICES.values()}:
                assert token == accent.lower()
                said["accent"] += 1
    assert all(count > 500 for count in said.values()) and said["pace"] == 1500 and len(texts) > 700
    assert len(names) == len(VOICES)


def pitch(sound: np.ndarray) -> float:
    """Hz, the median over the loud half; from the cepstrum."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 1400)[::400]
    power = np.square(frames).sum(-1)
    spectra = np.abs(np.fft.rfft(frames[power > np.median(power)] * np.hanning(1400)))
    lags = np.arange(espeak.SAMPLING_RATE // 450, espeak.SAMPLING_RATE // 60)
    cepstra = np.fft.irfft(np.log(spectra + 1e-3 * spectra.max()))[:, lags]
    return espeak.SAMPLING_RATE / float(np.median(lags[cepstra.argmax(-1)]))


@pytest.mark.parametrize("voice", VOICES)
def test_rate_and_pitch_are_heard(voice):
    said = "where is her purple guitar?"
    low, middle, high = (pitch(espeak.speak(said, voice, 175, sum(PITCHES[name]) // 2)) for name in PITCHES)
    assert 1.1 * low < middle < high / 1.05
    assert (middle > 140) == (VOICES[voice].gender == "woman"), middle
    slow, normal, fast = (len(espeak.speak(said, voice, RATES[name], 50)) for name in RATES)
    assert slow > 1.2 * normal > 1.44 * fast


def test_a_recogniser_understands_the_words():
    clips = heldout_examples(3, 16000, 2.56)
    recordings, said = [clip.waveform for clip in clips], [clip.transcription for clip in clips]
    assert all(benchmark._decoder().lookup_word(word) for word in benchmark.vocabulary())
    assert benchmark.word_error_rate(recordings, said, 16000) < 0.3
    assert benchmark.word_error_rate([np.zeros(16000, np.float32)], said[:1], 16000) >= 1.0


@pytest.mark.parametrize(
    ("heard", "said", "rate"),
    [("the dog runs", "the dog runs.", 0.0), ("a dog", "the dog runs.", 2 / 3), ("", "we play.", 1.0)],
)
def test_the_error_rate_counts_words(heard, said, rate):
    assert benchmark._error_rate([heard], [said]) == pytest.approx(rate)


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"seconds is 1\.5; the sentences of builtin:speech need 2\.0 or more"):
        SpeechCorpus(16000, 1.5, 0, "train")
    with pytest.raises(ValueError, match="split is 'test'"):
        SpeechCorpus(16000, 2.56, 0, "test")
    with pytest.raises(ValueError, match=r"seconds is 1\.0; the sentences"):
        heldout_sentences(1, 1.0)
    monkeypatch.setattr(speech, "draw_text", lambda *_: "we play.")
    with pytest.raises(ValueError, match="n is 3: there are not that many different held-out sentences of 4 seconds"):
        heldout_sentences(3, 4)
    with pytest.raises(ValueError, match="has no voice 'xx-none'"):
        espeak.speak("hello", "xx-none", 175, 50)
    with pytest.raises(ValueError, match="says nothing to the text ' '"):
        espeak.speak(" ", "en-us", 175, 50)


def test_what_others_do_with_the_library_does_not_matter():
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000)
    library.espeak_SetParameter(1, 400, 0)  # the rate
    np.testing.assert_array_equal(CORPUS[0].waveform, CLIPS[0].waveform)
    library.espeak_Terminate()


def test_copies_of_the_library_are_left_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    espeak.speak("hello", "en-us", 175, 50)
    assert not any(tmp_path.iterdir())
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "espeakng_loader":
            raise ImportError(name=name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert CORPUS.transcription(0) and CORPUS.text(0)  # these need none
    with pytest.raises(ImportError, match=r"^Speech needs espeakng_loader.*pip install espeakng-loader"):
        CORPUS[0]


def test_a_recipe_opens_it():
    config = recipes.get("tiny")
    config.data.source = "builtin:speech"
    source = open_source(config, "heldout")
    assert isinstance(source, SpeechCorpus) and source.split == "heldout" and len(source) == config.data.examples
