"""A folder of recordings: what is read, what is skipped, what is refused."""

import json
import logging

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipes
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.folder import parse_metadata, split_names
from audioldm2_jax.data.sources import open_source

RATE = 16000


def config(source, **data):
    recipe = recipes.get("tiny")
    recipe.data.update({"source": str(source), "heldout_share": 0.3, **data})
    return recipe


def tone(seconds, rate=RATE, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * 440.0 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Six recordings of several kinds, one without caption, and two files that are none."""
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    soundfile.write(tmp_path / "b.flac", tone(0.5, 44100, 2), 44100)
    soundfile.write(tmp_path / "c.ogg", tone(0.5, 48000), 48000)
    soundfile.write(tmp_path / "d.mp3", tone(0.5, 22050), 22050)
    soundfile.write(tmp_path / "e.WAV", tone(3.0, 8000), 8000)
    soundfile.write(tmp_path / "more" / "f.wav", tone(0.5), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF and then nothing of use")
    (tmp_path / "empty.mp3").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a recording")
    lines = [{"file_name": f"{name}", "text": f"a tone in {name}"} for name in ("a.wav", "b.flac", "c.ogg", "d.mp3")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "more" / "metadata.csv").write_text('file_name,text\nf.wav,"a tone, deeper"\n')
    return tmp_path


def both(recipe):
    return [open_source(recipe, split) for split in ("train", "heldout")]


def test_reads_every_kind_and_lists_what_it_skips(folder, caplog):
    with caplog.at_level(logging.WARNING):
        train, heldout = both(config(folder))
    examples = {source.names[i]: source[i] for source in (train, heldout) for i in range(len(source))}
    assert set(examples) == {"a.wav", "b.flac", "c.ogg", "d.mp3", "e.WAV", "more/f.wav"}
    assert not set(train.names) & set(heldout.names) and len(heldout)
    assert set(train.skipped) == {"broken.wav", "empty.mp3"}
    assert "2 of 8 files cannot be read and are skipped" in caplog.text and "broken.wav" in caplog.text
    for name, example in examples.items():
        wave = example.waveform
        expected = 3.0 if name == "e.WAV" else 0.5
        assert wave.dtype == np.float32 and abs(len(wave) / RATE - expected) < 0.1  # MP3 pads to whole frames
        assert abs(np.abs(wave).max() - 0.5) < 0.05  # lossy formats and resampling overshoot a little
    assert examples["b.flac"].text == "a tone in b.flac"
    assert examples["more/f.wav"].text == "a tone, deeper"
    assert examples["e.WAV"].text is None


def test_excerpts_are_pieces_of_the_recording(folder):
    source = next(s for s in both(config(folder)) if "e.WAV" in s.names)
    index = source.names.index("e.WAV")
    whole = source[index].waveform
    for position in (0.0, 0.4, 0.999):
        piece = source.excerpt(index, 8000, position).waveform
        start = int(position * (48000 - 8000 + 1))
        # The file is resampled around the piece only: equal within the filter's rounding.
        np.testing.assert_allclose(piece, whole[start : start + 8000], atol=1e-3)
    assert len(source.excerpt(index, 100_000, 0.5).waveform) == 48000


def test_a_file_damaged_later_is_an_unreadable_record(folder):
    train = open_source(config(folder, heldout_share=1e-9), "train")
    (folder / train.names[0]).write_bytes(b"gone")
    with pytest.raises(UnreadableRecord, match=train.names[0]):
        train[0]


def test_a_single_recording_serves_both_splits(tmp_path):
    soundfile.write(tmp_path / "only.wav", tone(0.2), RATE)
    assert [source.names for source in both(config(tmp_path))] == [["only.wav"]] * 2


def test_splits_depend_on_names_alone():
    names = [f"{i}.wav" for i in range(1000)]
    heldout = set(split_names(names, "heldout", 0.1))
    assert 60 < len(heldout) < 140  # 100 ± 4 standard deviations
    assert set(split_names(names, "train", 0.1)) == set(names) - heldout
    assert set(split_names(names[:500], "heldout", 0.1)) == heldout & set(names[:500])


def test_errors_say_what_to_do(tmp_path):
    cases = [
        ("", "set --config.data.source"),
        (tmp_path / "absent", "there is no folder"),
        (tmp_path, "holds no recording that can be read"),
        ("builtin:opera", "no embedded corpus 'opera'"),
        ("https://example.com/x.wav", "nothing is read from https addresses"),
    ]
    for source, message in cases:
        with pytest.raises(ValueError, match=message):
            open_source(config(source), "train")
    with pytest.raises(ValueError, match="split is 'test'"):
        open_source(config(tmp_path), "test")
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE)
    for name, content, message in (
        ("metadata.jsonl", '{"file_name": "b.wav", "text": "x"}', "names 1 files that are not recordings"),
        ("metadata.jsonl", '{"file_name": "a.wav"}', "has no text"),
        ("metadata.jsonl", "{nonsense", "line 1: not JSON"),
        ("metadata.jsonl", "[1]", "line 1: not an object"),
        ("metadata.jsonl", '{"file_name": "a.wav", "text": 3}', "line 1: text is 3"),
        ("metadata.jsonl", '{"text": "x"}', "line 1: no file_name"),
        ("metadata.jsonl", '{"file_name": "a.wav", "text": "x"}\n' * 2, "line 2: a.wav is named twice"),
        ("metadata.csv", "file,text\na.wav,x\n", "no column file_name; its first line names file, text"),
        ("metadata.csv", "", "names nothing"),
        ("metadata.csv", 'file_name,text\n"a.wav,x\n', "not CSV"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            open_source(config(tmp_path), "train")
        (tmp_path / name).unlink()
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.wav,\xff\xfe\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        open_source(config(tmp_path), "train")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=12)
CAPTIONS = st.dictionaries(
    NAMES, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1
)


@settings(max_examples=100, deadline=None)
@given(CAPTIONS)
def test_metadata_round_trip(captions):
    import csv
    import io

    expected = {name: text.strip() or None for name, text in captions.items()}
    lines = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in captions.items())
    assert parse_metadata(lines, "metadata.jsonl") == expected
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([("file_name", "text"), *captions.items()])
    assert parse_metadata(file.getvalue(), "metadata.csv") == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.sampled_from(("metadata.jsonl", "metadata.csv")))
def test_any_metadata_is_read_or_refused_by_name(content, where):
    try:
        captions = parse_metadata(content, where)
    except ValueError as error:
        assert where in str(error)
    else:
        assert all(isinstance(name, str) and name for name in captions)
