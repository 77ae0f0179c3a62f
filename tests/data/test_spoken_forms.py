"""Texts as they are written and as they are said; espeak-ng is the judge of what it says of each."""

import logging

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audioldm2_jax.data import encoders
from audioldm2_jax.data.encoders import Transcription
from audioldm2_jax.data.example import Example, UnreadableRecord
from audioldm2_jax.data.phonemes import AUTHORS, PhonemeTokenizer, clean, encode, phonemes
from audioldm2_jax.data.spoken_forms import foreign_script, in_words

#: What is written, and how a person would write out what is said.
SAID = [
    ("it cost $5.99", "it cost five dollars and ninety nine cents"),
    ("$1 and $0.01", "one dollar and one cent"),
    ("$1,200.50 or £3.20", "one thousand two hundred dollars and fifty cents or three pounds and twenty pence"),
    ("$1.5 million, €30", "one point five million dollars, thirty euros"),
    ("born in 1998", "born in nineteen ninety eight"),
    ("in 1905, 1900, 2005 and 2024", "in nineteen oh five, nineteen hundred, two thousand five and twenty twenty four"),
    ("the 1990s and the '80s", "the nineteen nineties and the eighties"),
    ("on 12/25/2020", "on december twenty fifth, twenty twenty"),
    ("on 2021-03-01", "on march first, twenty twenty one"),
    ("on 25/12/2020", "on december twenty fifth, twenty twenty"),
    ("Jan. 5th", "january fifth"),
    ("at 7:05 or 7:00", "at seven oh five or seven o'clock"),
    ("10:30 pm", "ten thirty pm"),
    ("20°C", "twenty degrees celsius"),
    ("5 km at 100 km/h", "five kilometers at one hundred kilometers per hour"),
    ("5 ft. tall", "five feet tall"),
    ("1/2 cup", "one half cup"),
    ("½ cup", "one half cup"),
    ("No. 5, #1", "number five, number one"),
    ("pages 10-12", "pages ten to twelve"),
    ("World War II", "world war two"),
    ("Henry VIII", "henry eight"),
    ("e.g. this, i.e. that", "for example this, that is that"),
    ("Prof. Jones vs. Smith", "professor jones versus smith"),
    ("visit www.example.com/page", "visit www dot example dot com slash page"),
    ("mail me@example.org", "mail me at example dot org"),
    ("really (yes)", "really, yes,"),
    ("a < b", "a less than b"),
    ("**bold** words", "bold words"),
]


@pytest.mark.parametrize(("written", "said"), SAID)
def test_what_is_written_is_said_as_people_say_it(written, said):
    # But for stress and gaps, which espeak-ng sets otherwise in figures.
    plain = str.maketrans("", "", "ˈˌ ")
    assert phonemes(written).translate(plain) == phonemes(said).translate(plain)


@pytest.mark.parametrize(
    "text",
    [
        *("forty two cats; is it?", "50% of 1,000,000", "the 3rd of 21", "3.14", "-5 degrees", "well-known", "a-b"),
        *("and/or", "it's 5", "1998 files.txt"[5:], "in. the house", "tell us. no way", "I am. We are."),
    ],
)
def test_what_espeak_reads_right_is_left_alone(text):
    assert in_words(text) == text


def test_initials_are_spelt():
    for text, spelt in (("the U.S.A.", "the usa"), ("a Ph.D.", "a phd"), ("A.I.", "ai"), ("the F.B.I.", "the fbi")):
        plain = str.maketrans("", "", "ˈˌ ")
        assert phonemes(text).translate(plain) == phonemes(spelt).translate(plain)


def test_letters_that_are_not_latin_are_named():
    for text, script in (("привет мир", "Cyrillic"), ("你好", "Chinese"), ("مرحبا", "Arabic"), ("say γειά", "Greek")):
        with pytest.raises(ValueError, match=f"in the transcription .* is {script}: English alone is spoken"):
            encode(text)
    assert foreign_script("Zürich, señor, œuvre, 5 µm, 1º, Åse, ﬁne") is None


@pytest.mark.parametrize("text", ["!!!", "...", "?!", "—", "( )"])
def test_punctuation_alone_says_nothing(text):
    with pytest.raises(ValueError, match="nothing to say"):
        encode(text)


WRITTEN = st.lists(
    st.sampled_from(
        "$5.99|$1|€30.5|1998|2005|1990s|12/25/2020|2020-12-25|7:05|7:00|pm|p.m.|3-4|1/2|20°C|5 km|No. 5|#1|VIII|World|"
        "e.g.|U.S.A.|www.x.com|a@b.org|(yes)|<COMMA>|<|>|*b*|_c_|Dr.|St.|'80s|5'10\"|555-1234|and|,|.|-|–|/|:|1,000|100%"
        "".split("|")
    ),
    max_size=6,
).flatmap(lambda words: st.sampled_from((" ", "", "  ")).map(lambda gap: gap.join(words)))


@settings(max_examples=400, deadline=None)
@given(WRITTEN | st.text(st.characters(codec="ascii"), max_size=30))
@example("1998-2001-2005")
@example("e.g._c_")
@example("½ of №5")
def test_cleaning_twice_is_cleaning_once(text):
    """So that the tokenizer of a published folder, which does not clean, agrees with what was cleaned."""
    try:
        once = clean(text)
    except ValueError:
        return
    assert clean(once) == once


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("abcdefghijklmnopqrstuvwyz'", min_size=1, max_size=8), max_size=8).map(" ".join))
def test_plain_words_are_never_changed(text):
    assert in_words(text) == text


@settings(max_examples=300, deadline=None)
@given(WRITTEN | st.text(max_size=60))
def test_no_word_is_lost(text):
    """Letters of words stay: only figures, signs and what has a longer form are rewritten."""
    words = [word for word in text.split() if word.isalpha() and word.islower() and word.isascii() and len(word) > 3]
    said = in_words(text).split()
    assert all(any(word in other for other in said) for word in words)


def test_records_whose_words_cannot_be_said_are_left_out_and_named(caplog):
    encoders._refused.clear()
    encoder = Transcription("phoneme", PhonemeTokenizer(AUTHORS))
    with caplog.at_level(logging.WARNING):
        for i in range(7):
            for _ in range(2):
                with pytest.raises(UnreadableRecord, match="Cyrillic"):
                    encoder(Example(np.zeros(1), None, {"name": f"{i}.wav"}, transcription="да"))
        with pytest.raises(UnreadableRecord, match="too long"):
            encoder(Example(np.zeros(1), None, {"name": "long.wav"}, transcription="on and on. " * 60))
    assert [entry.message.split(" ")[0] for entry in caplog.records] == [f"{i}.wav" for i in range(5)]
    assert "0.wav is left out of what teaches words: 'да'" in caplog.text
    assert "further ones are not listed" in caplog.records[-1].message
    encoders._refused.clear()
