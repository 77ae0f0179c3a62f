"""A folder of recordings: what is read, what is skipped, what is refused."""

import json
import logging
import os
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipes
from audioldm2_jax.data.captions import Texts
from audioldm2_jax.data.example import UnreadableRecord
from audioldm2_jax.data.folder import Folder
from audioldm2_jax.data.metadata import parse_metadata
from audioldm2_jax.data.records import split_names
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


def test_digests_tell_a_recording_from_another(folder, tmp_path_factory):
    """By its beginning, middle, end and size, wherever it lies and whenever it was written."""
    source = Folder(folder, "train", RATE, 0.0)
    first = source.digests(len(source))
    assert [*first] == source.names and len({*first.values()}) == len(first) - 1  # a.wav and f.wav are alike
    assert source.digests(2) == {name: first[name] for name in source.names[:2]}
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    source.root = copy
    assert source.digests(len(source)) == first
    name = max(source.names, key=lambda name: (copy / name).stat().st_size)
    size = (copy / name).stat().st_size
    for place in (100, size // 2, size - 1, size):
        with (copy / name).open("r+b") as file:
            file.seek(place)
            file.write(b"?")
        now = source.digests(len(source))
        assert {other for other in now if now[other] != first[other]} == {name}
        first = now
    (copy / name).unlink()
    assert source.digests(len(source))[name] == "unreadable"


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


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=12).filter(str.strip)
CAPTIONS = st.dictionaries(
    NAMES, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1
)


@settings(max_examples=100, deadline=None)
@given(CAPTIONS)
def test_metadata_round_trip(captions):
    import csv
    import io

    expected = {name: Texts((text.strip(),) if text.strip() else ()) for name, text in captions.items()}
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


def put(folder, name, content="a.wav"):
    """A recording of a tenth of a second, or a text file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".wav", ".flac")):
        soundfile.write(os.fsencode(path), tone(0.1), RATE)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def captions_of(folder):
    sources = both(config(folder))
    return {source.names[i]: source.text(i) for source in sources for i in range(len(source))}


def test_links_are_followed_and_what_they_lead_to_counts_once(tmp_path):
    root, store = tmp_path / "data", tmp_path / "store"
    put(root, "a.wav")
    put(store, "deep/b.wav")
    put(store, "c.wav")
    (root / "linked").symlink_to(store)
    (root / "again").symlink_to(store / "deep")
    (root / "loop").symlink_to(root)
    (store / "deep" / "up").symlink_to(store)
    (root / "other.wav").symlink_to(root / "a.wav")
    (root / "outside.wav").symlink_to(store / "c.wav")
    rows = '{"file_name": "linked/deep/b.wav", "text": "b"}\n{"file_name": "other.wav", "text": "a"}\n'
    put(root, "metadata.jsonl", rows + '{"file_name": "loop/linked/c.wav", "text": "c"}\n')
    got = captions_of(root)
    assert sorted(got.values()) == ["a", "b", "c"] and "a.wav" in got  # a name without links where there is one
    (tmp_path / "way in").symlink_to(root)
    assert captions_of(tmp_path / "way in") == got


def test_what_is_left_out_is_listed_with_its_reason(tmp_path, caplog):
    put(tmp_path, "a.wav")
    for name in ("b.m4a", "c.AAC", "d.wma", "film.mp4"):
        put(tmp_path, name, b"sound")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    os.mkfifo(tmp_path / "pipe.wav")
    put(tmp_path, "notes.txt", "no sound")
    put(tmp_path, "metadata.csv", "file_name,text\nb.m4a,a song\ngone.wav,x\n")  # not there to be read, but there
    with caplog.at_level(logging.WARNING):
        source = open_source(config(tmp_path), "train")
    assert source.names == ["a.wav"]
    reasons = {name: reason for name, reason in source.skipped.items()}
    assert set(reasons) == {"b.m4a", "c.AAC", "d.wma", "film.mp4", "gone.wav", "gone", "self", "pipe.wav"}
    assert ".m4a is not read; convert it (ffmpeg -i b.m4a b.flac)" in reasons["b.m4a"]
    assert "is a broken link" in reasons["gone.wav"] and "nowhere.wav does not exist" in reasons["gone.wav"]
    assert "is no file but a pipe" in reasons["pipe.wav"]
    assert "8 of 9 files cannot be read and are skipped" in caplog.text
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match=r"no recording that can be read[\s\S]*b\.m4a"):
        open_source(config(tmp_path), "train")


ROWS = "file_name,text\na.wav,caf\u00e9 noise\nb.wav,rain\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode(),
        b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),  # old Mac
        ROWS.encode("utf-16"),
        ROWS.encode("utf-32"),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode(),
        ("sep=;\r\n" + ROWS.replace(",", ";")).encode(),
        ROWS.replace(",", ", ").encode(),
        ROWS.replace("file_name,text", "file_name, text").encode(),
        ROWS.replace("file_name,text", '"file_name","text"').encode(),
        (ROWS + "\n\n,\n  \n").encode(),
        b'file_name,"text",\na.wav,"caf\xc3\xa9 noise",\nb.wav, rain ,\n',  # an empty column of a spreadsheet
        b'file_name, text\na.wav, "caf\xc3\xa9 noise"\nb.wav, rain\n',
    ],
)
def test_metadata_as_people_and_programs_write_it(tmp_path, content):
    put(tmp_path, "a.wav")
    put(tmp_path, "b.wav")
    put(tmp_path, "metadata.csv", content)
    assert captions_of(tmp_path) == {"a.wav": "café noise", "b.wav": "rain"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_as_people_and_programs_write_them(tmp_path, encoding, end):
    put(tmp_path, "a.wav")
    put(tmp_path, "metadata.jsonl", (f'{{"file_name": "a.wav", "text": "\u2028café"}}{end}{end}').encode(encoding))
    assert captions_of(tmp_path) == {"a.wav": "café"}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"file_name,text\na.wav,x\nb.wav,rain falls, and thunder\n", r"metadata\.csv, line 3: 3 fields, .* names 2"),
        (b'file_name,text\na.wav,"two\nlines"\nb.wav\n', "line 4: 1 fields"),
        (b"sep=;\nfile_name;text\na.wav;x;y\n", "line 3: 3 fields"),
        (b'file_name,text\na.wav, "x"\n', "line 2: a space stands before the quotation mark"),
        (b"file_name,text,text\na.wav,x,y\n", "the column text is there twice"),
        (ROWS.encode("utf-16-le"), "line 1: a zero byte.*UTF-16 without a byte order mark"),
        (ROWS.encode("latin-1"), r"line 2: not UTF-8 \(byte 0xe9"),
        (b"file_name,text\na.wav,x\nb.wav,y\0\n", "line 3: a zero byte"),
        (b"file_name:text\n", "no column file_name; its first line names file_name:text"),
    ],
)
def test_metadata_that_would_be_read_wrongly_is_refused(tmp_path, content, message):
    put(tmp_path, "a.wav")
    put(tmp_path, "b.wav")
    put(tmp_path, "metadata.csv", content)
    with pytest.raises(ValueError, match=message):
        open_source(config(tmp_path), "train")


def test_two_metadata_files_must_not_disagree(tmp_path):
    put(tmp_path, "more/a.wav")
    put(tmp_path, "metadata.csv", "file_name,text\nmore/a.wav,rain\n")
    put(tmp_path, "more/metadata.csv", "file_name,text\na.wav,rain\n")
    assert captions_of(tmp_path) == {"more/a.wav": "rain"}
    put(tmp_path, "more/metadata.csv", "file_name,text\na.wav,thunder\n")
    with pytest.raises(ValueError, match=r"csv and .*csv: different captions of more/a.wav"):
        open_source(config(tmp_path), "train")


def test_one_metadata_file_that_names_a_recording_twice_is_blamed_alone(tmp_path):
    put(tmp_path, "a.wav")
    put(tmp_path, "metadata.csv", "file_name,text\na.wav,rain\n./a.wav,thunder\n")
    with pytest.raises(ValueError, match=r"metadata.csv: different captions of a.wav") as caught:
        open_source(config(tmp_path), "train")
    assert " and " not in str(caught.value)


@pytest.mark.parametrize("stored, named", [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_accents_are_the_same_however_they_are_written(tmp_path, stored, named):
    put(tmp_path, unicodedata.normalize(stored, "café/été.wav"))
    row = {"file_name": unicodedata.normalize(named, "café/été.wav"), "text": "summer"}
    put(tmp_path, "metadata.jsonl", json.dumps(row, ensure_ascii=False))
    assert list(captions_of(tmp_path).values()) == ["summer"]


@pytest.mark.parametrize(
    "written", ["more\\a b.wav", "./more/a b.wav", "more/../more/a b.wav", " more/a b.wav ", "{root}/more/a b.wav"]
)
def test_names_in_metadata_as_people_write_them(tmp_path, written):
    put(tmp_path, "more/a b.wav")
    put(tmp_path, "Metadata.jsonl", json.dumps({"file_name": written.format(root=tmp_path), "text": "x"}))
    assert captions_of(tmp_path) == {"more/a b.wav": "x"}


def test_names_that_are_not_utf8(tmp_path, caplog):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    put(root, os.fsdecode(b"\xe9t\xe9.wav"))
    put(root, os.fsdecode(b"broken\xff.flac")).write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        source = open_source(config(root), "train")
    assert len(source[0].waveform) == 1600
    assert "broken\\udcff.flac" in caplog.text
    caplog.text.encode()


def test_the_source_as_people_type_it(tmp_path, monkeypatch):
    put(tmp_path, "my data/a.wav")
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("~/my data", f"{tmp_path}/my data\r", f" {tmp_path}/my data/", f"file://{tmp_path}/my data"):
        assert open_source(config(typed), "train").names == ["a.wav"]


def test_a_caption_of_half_a_character_is_text(tmp_path):
    put(tmp_path, "a.wav")
    put(tmp_path, "metadata.jsonl", '{"file_name": "a.wav", "text": "rain \\ud83d"}')
    assert captions_of(tmp_path) == {"a.wav": "rain ?"}


def test_what_else_metadata_may_hold():
    with pytest.raises(ValueError, match=r"m.jsonl, line 1: .*holds a zero byte"):
        parse_metadata('{"file_name": "a\\u0000.wav", "text": "rain"}', "m.jsonl")
    with pytest.raises(ValueError, match=r"m.csv, line 3: the record that begins there .*quotation mark"):
        parse_metadata('file_name,text\na.wav,rain\nb.wav,"wind\nc.wav,hail\n', "m.csv")
    assert (
        len(parse_metadata(f"file_name,text\na.wav,{'rain ' * 50_000}\n", "m.csv")["a.wav"].captions[0])
        == 5 * 50_000 - 1
    )


def test_a_name_may_end_in_a_space(tmp_path):
    soundfile.write(tmp_path / "rain.wav", 0.5 * np.ones(1600, np.float32), 16000)
    (tmp_path / "rain.wav").rename(tmp_path / "rain.wav ")
    assert Folder(tmp_path, "train", 16000, 0.0).names == ["rain.wav "]


def test_hidden_folders_are_left_out(tmp_path):
    for name in ("a.wav", ".trash/b.wav", "more/.c.wav", "more/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, tone(0.1), RATE)
    assert {*Folder(tmp_path, "train", RATE, 0.0).names, *Folder(tmp_path, "heldout", RATE, 0.0).names} == {
        "a.wav",
        "more/d.wav",
    }


def test_that_all_records_are_held_out_is_told(tmp_path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", tone(0.1), RATE)
    assert len(Folder(tmp_path, "heldout", RATE, 0.999)) == 3
    with pytest.raises(ValueError, match=r"all 3 records are held out.*: lower --config\.data\.heldout_share=0\.999"):
        Folder(tmp_path, "train", RATE, 0.999)


def test_files_of_captions_that_are_not_read_are_named_once(tmp_path, caplog):
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "more/a.wav", tone(0.1), RATE)
    soundfile.write(tmp_path / "labels.wav", tone(0.2), RATE)
    (tmp_path / "labels.txt").write_text("a caption of labels.wav")
    for name in ("metadata.tsv", "more/captions.csv", "more/Metadata.json", "a.xlsx", "LICENSE.txt", ".hidden.csv"):
        (tmp_path / name).write_text("a.wav\ta bell\n")
    with caplog.at_level(logging.WARNING):
        for split in ("train", "heldout", "train"):
            Folder(tmp_path, split, RATE, 0.5)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: nothing is read from a.xlsx, metadata.tsv, more/Metadata.json, more/captions.csv; captions are "
        "read from metadata.jsonl, metadata.csv, metadata.parquet (file_name, text), or from a file beside each "
        "recording (a.wav, a.txt)"
    )
