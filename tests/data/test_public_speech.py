"""LJSpeech, LibriTTS and GigaSpeech: small copies laid out as their authors publish them."""

import json

import pytest

from audioldm2_jax.data.sources import open_source

from .test_public_captions import RATE, config, record, write


def everything(source, share=0.3):
    """[{name: (captions, transcription)}] of the two splits."""
    splits = [open_source(config(source, share), split) for split in ("train", "heldout")]
    return [{n: (split.captions(i), split.transcription(i)) for i, n in enumerate(split.names)} for split in splits]


def ljspeech(folder):
    write(
        folder / "LJSpeech-1.1/metadata.csv",
        'LJ001-0001|"Printing," he said in 1455|"Printing," he said in fourteen fifty-five\n'
        "LJ001-0002|in being comparatively modern.|\n"
        "LJ001-0003|gone|gone\n",
    )
    for i in (1, 2):
        record(folder / f"LJSpeech-1.1/wavs/LJ001-000{i}.wav", 1)
    write(folder / "LJSpeech-1.1/README", "")


def test_ljspeech(tmp_path):
    ljspeech(tmp_path)
    train, heldout = everything(tmp_path)
    assert train | heldout == {
        "LJSpeech-1.1/wavs/LJ001-0001.wav": (("a woman speaks",), '"Printing," he said in fourteen fifty-five'),
        "LJSpeech-1.1/wavs/LJ001-0002.wav": (("a woman speaks",), "in being comparatively modern."),
    }
    assert everything(tmp_path / "LJSpeech-1.1/metadata.csv")[0]
    write(tmp_path / "LJSpeech-1.1/metadata.csv", "LJ001-0001|a|b\nLJ001-0002\n")
    with pytest.raises(ValueError, match="line 2: 1 fields; it needs NAME"):
        open_source(config(tmp_path), "train")


def test_libritts(tmp_path):
    for part, stem, texts in (
        ("train-clean-100", "103_1241_000000_000001", ("Matthew Cuthbert.", "Matthew Cuthbert.")),
        ("train-clean-100", "999_1_000000_000001", ("", "Mr. X")),
        ("dev-clean", "84_121123_000007_000001", ("Maximilian.", "Maximilian.")),
    ):
        reader, chapter, *_ = stem.split("_")
        folder = tmp_path / "LibriTTS" / part / reader / chapter
        record(folder / f"{stem}.wav", 1)
        write(folder / f"{stem}.normalized.txt", texts[0])
        write(folder / f"{stem}.original.txt", texts[1])
    write(
        tmp_path / "LibriTTS/speakers.tsv", "READER\tGENDER\tSUBSET\tNAME\n103\tF\ttrain-clean-100\tKaren\n84\tM\tdev\n"
    )
    assert everything(tmp_path, share=0.9) == [
        {
            "LibriTTS/train-clean-100/103/1241/103_1241_000000_000001.wav": (("a woman speaks",), "Matthew Cuthbert."),
            "LibriTTS/train-clean-100/999/1/999_1_000000_000001.wav": ((), "Mr. X"),
        },
        {"LibriTTS/dev-clean/84/121123/84_121123_000007_000001.wav": (("a man speaks",), "Maximilian.")},
    ]
    assert len(everything(tmp_path / "LibriTTS/train-clean-100")[0]) == 1


def gigaspeech(folder):
    def audio(aid, source, *segments):
        kept = [
            {"sid": f"{aid}_S{i:07}", "begin_time": begin, "end_time": end, "text_tn": text, "subsets": subsets}
            for i, (begin, end, text, subsets) in enumerate(segments)
        ]
        path = f"audio/{source}/P0000/{aid}.opus"
        return {"title": "N/A", "aid": aid, "path": path, "source": source, "segments": kept, "format": "opus"}

    audios = [
        audio(
            "POD0000000001",
            "podcast",
            (1.0, 3.5, "AS THEY'RE LEAVING <COMMA> CAN KASH PULL ZAHRA ASIDE <QUESTIONMARK>", ["{XL}"]),
            (4.0, 5.0, "<MUSIC>", ["{XL}"]),
            (5.0, 6.0, "WELL <NOISE> YES", ["{XL}"]),
            (19.0, 25.0, "THE END <PERIOD>", ["{XL}"]),
            (30.0, 31.0, "BEHIND IT", ["{XL}"]),
            (8.0, 7.0, "BACKWARDS", ["{XL}"]),
        ),
        audio("AUD0000000009", "audiobook", (0.5, 1.5, "HELD OUT <EXCLAMATIONPOINT>", ["{DEV}"])),
        audio("YOU0000000002", "youtube", (0.5, 1.5, "GONE", ["{XL}"])),
    ]
    write(folder / "GigaSpeech.json", json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": audios}))
    record(folder / "audio/podcast/P0000/POD0000000001.wav", 20, value=0.0)
    record(folder / "audio/audiobook/P0000/AUD0000000009.wav", 20)


def test_gigaspeech(tmp_path):
    gigaspeech(tmp_path)
    train, heldout = everything(tmp_path)
    podcast = ("someone speaks in a podcast",)
    assert train == {
        "POD0000000001_S0000000": (podcast, "as they're leaving, can kash pull zahra aside?"),
        "POD0000000001_S0000001": (("music",), None),
        "POD0000000001_S0000002": (podcast, None),
        "POD0000000001_S0000003": (podcast, "the end."),
    }
    assert heldout == {"AUD0000000009_S0000000": (("someone speaks in an audiobook",), "held out!")}
    source = open_source(config(tmp_path), "train")
    assert set(source.skipped) == {"POD0000000001_S0000004", "POD0000000001_S0000005", "YOU0000000002"}
    piece = source[source.names.index("POD0000000001_S0000000")]
    assert len(piece.waveform) == 2.5 * RATE and piece.waveform[0] * 2**20 == pytest.approx(1.0 * RATE)
    assert len(source[source.names.index("POD0000000001_S0000003")].waveform) == RATE  # as far as the file goes
    index = source.names.index("POD0000000001_S0000000")
    assert source.excerpt(index, 2500, 0.3).transcription == piece.transcription
    assert source.excerpt(index, 2499, 0.3).transcription is None


def test_all_pieces_of_a_recording_are_in_one_split(tmp_path):
    audios = []
    for i in range(12):
        record(tmp_path / f"audio/A{i}.wav", 4)
        segments = [
            {"sid": f"A{i}_S{k}", "begin_time": k, "end_time": k + 1, "text_tn": "A", "subsets": []} for k in range(4)
        ]
        audios.append({"aid": f"A{i}", "path": f"audio/A{i}.opus", "source": "x", "segments": segments})
    write(tmp_path / "GigaSpeech.json", json.dumps({"audios": audios}))
    train, heldout = everything(tmp_path)
    assert len(train) + len(heldout) == 48 and heldout
    assert not {name.split("_")[0] for name in train} & {name.split("_")[0] for name in heldout}


@pytest.mark.parametrize(
    "audio, message",
    [
        ({"aid": "A"}, r'number 1 of "audios": it needs aid, path and a list of segments'),
        ({"aid": "A", "path": "A.opus", "segments": [{}]}, "A: a segment has no sid"),
        (
            {"aid": "A", "path": "A.opus", "segments": [{"sid": "s", "begin_time": 0, "end_time": 1}]},
            "s: text_tn is None, not a text",
        ),
    ],
)
def test_gigaspeech_refused(tmp_path, audio, message):
    record(tmp_path / "A.wav", 1)
    write(tmp_path / "GigaSpeech.json", json.dumps({"audios": [audio]}))
    with pytest.raises(ValueError, match=message):
        open_source(config(tmp_path), "train")
