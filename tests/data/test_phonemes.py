"""Transcriptions to phoneme ids: the authors' table and cleaning, espeak-ng, and transformers' VitsTokenizer."""

import builtins
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from phonemizer import phonemize
from transformers import AutoTokenizer, VitsTokenizer

from audioldm2_jax.data import phonemes
from audioldm2_jax.data.phonemes import AUTHORS, END, SYMBOLS, clean, encode, read_tokenizer, write_tokenizer

PLAIN = [
    "wish you have a good day",
    "hello, world! it's a test: of forty two cats; is it?",
    "the rain in spain... stays mainly in the plain",
    '"quoted" text, and naught else',
]


def spell(ids):
    return "".join(SYMBOLS[index] for index in ids)


def test_the_authors_table():
    assert len(SYMBOLS) == 183 and (SYMBOLS[0], SYMBOLS[END]) == ("_", "⚠")
    assert SYMBOLS[1] == ";" and SYMBOLS[16] == " " and SYMBOLS[17] == "A" and SYMBOLS[69] == "ɑ"
    # Two apostrophes in their list: a dict keeps the later place.
    assert AUTHORS.ids["'"] == 176 and len(AUTHORS.ids) == 182 and 174 not in AUTHORS.ids.values()
    assert [AUTHORS.ids[symbol] for symbol in "♪☎☒☝⚠"] == [178, 179, 180, 181, 182]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Dr. Smith and Mrs. Jones", "doctor smith and misess jones"),
        ("MR. X of the Acme Co. Ltd. at Ft. Worth", "mister x of the acme company limited at fort worth"),
        ("a strange cost.", "a strange cost."),  # not "co.", "st.": words, not their ends
        ("café — naïve “quotes”", 'cafe -- naive "quotes"'),
        ("so <COMMA> it is <PERIOD>", "so  it is "),
    ],
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


def test_espeak_speaks_as_the_authors_have_it():
    assert phonemes.phonemes("Hello, World!\n It's good.") == "həlˈoʊ, wˈɜːld! ɪts ɡˈʊd."
    arguments = dict(language="en-us", backend="espeak", strip=True, preserve_punctuation=True, with_stress=True)
    for text in PLAIN:
        assert phonemes.phonemes(text) == phonemize(text, **arguments)


def test_words_that_are_run_together_are_no_news(caplog):
    assert phonemes.phonemes("out of the house") == "ˌaʊɾəv ðə hˈaʊs"  # three words for four
    assert not caplog.records


def test_ids():
    ids = encode("Hello, World!")
    assert ids.dtype == np.int32 and spell(ids) == "həlˈoʊ, wˈɜːld!⚠"
    assert ids[-1] == END


@pytest.mark.parametrize("text", ["", "  \n", "<COMMA>", "_"])
def test_nothing_to_say(text):
    with pytest.raises(ValueError, match="nothing to say"):
        encode(text)


def test_what_cannot_be_spoken_is_named():
    with pytest.raises(ValueError, match=r"no phoneme for \[ \] in the transcription 'really \[yes\]'"):
        encode("really [yes]")
    with pytest.raises(ValueError, match="'\N{GRINNING FACE}' in the transcription 'well \N{GRINNING FACE}' cannot be"):
        encode("well \N{GRINNING FACE}")
    with pytest.raises(ValueError, match=r"'\\x00' in the transcription"):  # espeak-ng would not see what follows
        encode("one\x00two")


def test_too_long_a_sentence_is_refused_with_the_limit():
    fits = "m" * 309
    assert len(encode(fits, AUTHORS._replace(phonemize=False))) == 310
    with pytest.raises(ValueError, match="has 312 phonemes; the model takes 309, so it is 3 too long"):
        encode(fits + "mmm", AUTHORS._replace(phonemize=False))
    with pytest.raises(ValueError, match="the model takes 309"):
        encode("a rather long sentence that goes on and on. " * 20)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(st.characters(codec="ascii"), max_size=80))
@example("ʔ⚠_")
@example("\x00")
@example("tête-à-tête")
def test_any_text_has_ids_or_a_reason(text):
    try:
        ids = encode(text)
    except ValueError as error:
        assert any(
            reason in str(error)
            for reason in ("nothing to say", "no phoneme for", "cannot be read", "too long", "English alone")
        )
    else:
        assert 2 <= len(ids) <= 310 and ids[-1] == END
        assert ids.min() >= 1 and ids.max() <= END and END not in ids[:-1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("text", [*PLAIN, "Dr. Who, at 10 Downing St. in the USA"])
def test_transformers_has_our_ids(written, text):
    """The tokenizer speaks by itself; what it does not do is clean."""
    theirs = VitsTokenizer.from_pretrained(written)
    assert theirs(clean(text)).input_ids == encode(text)[:-1].tolist()
    if text in PLAIN:
        assert theirs(text).input_ids == encode(text)[:-1].tolist()


def test_transformers_pads_as_diffusers_asks(written):
    theirs = AutoTokenizer.from_pretrained(written)
    assert isinstance(theirs, VitsTokenizer) and theirs.model_max_length == 310
    rows = theirs(PLAIN, padding="max_length", max_length=310, truncation=True, return_tensors="np")
    for ids, mask, text in zip(rows.input_ids, rows.attention_mask, PLAIN):
        expected = encode(text)[:-1]
        np.testing.assert_array_equal(ids, np.pad(expected, (0, 310 - len(expected))))
        assert mask.sum() == len(expected) and mask[: len(expected)].all()


def test_the_folder_decides(written, tmp_path):
    assert read_tokenizer(written) == AUTHORS
    theirs = VitsTokenizer.from_pretrained(written)
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_tokenizer(tmp_path / "theirs") == AUTHORS
    write_tokenizer(tmp_path, AUTHORS._replace(length=8))
    vocabulary = {**AUTHORS.ids, "h": 7}
    del vocabulary["!"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    table = read_tokenizer(tmp_path)
    assert encode("ha", table)[0] == 7 and table.length == 8
    with pytest.raises(ValueError, match="no phoneme for ! in"):
        encode("ha!", table)
    with pytest.raises(ValueError, match="the model takes 7"):
        encode("hello world", table)


def test_a_folder_whose_transcriptions_are_phonemes(written, tmp_path):
    config = json.loads((written / "tokenizer_config.json").read_text()) | {"phonemize": False}
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert spell(encode("həlˈoʊ", read_tokenizer(tmp_path))) == "həlˈoʊ⚠"
    with pytest.raises(ValueError, match="no phoneme for ⚠ in"):
        encode("hə⚠lˈoʊ", read_tokenizer(tmp_path))
    assert (
        VitsTokenizer.from_pretrained(tmp_path)("həlˈoʊ").input_ids
        == encode("həlˈoʊ", read_tokenizer(tmp_path))[:-1].tolist()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_blank": True}, "puts a blank between phonemes"),
        ({"model_max_length": None}, "model_max_length=None"),
        ({"tokenizer_class": "T5Tokenizer"}, "is of a T5Tokenizer; phonemes need a VitsTokenizer"),
    ],
)
def test_folders_of_another_kind(written, tmp_path, change, message):
    write_tokenizer(tmp_path)
    config = json.loads((written / "tokenizer_config.json").read_text()) | change
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path)


def test_damaged_folders(tmp_path):
    write_tokenizer(tmp_path)
    for content, message in (("{", "cannot be read"), ("[]", "holds a list"), ('{"a": "b"}', "every symbol a number")):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(ValueError, match=rf"vocab\.json.*{message}"):
            read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"vocab\.json cannot be read"):
        read_tokenizer(tmp_path)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "espeakng_loader":
            raise ImportError(name=name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    phonemes._packages.cache_clear()
    with pytest.raises(ImportError, match=r"Speech needs espeakng_loader.*pip install espeakng-loader"):
        encode("hello")
    phonemes._packages.cache_clear()
