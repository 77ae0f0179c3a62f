"""WebDataset: tar files, whole and damaged."""

import logging
import os
import pickle
import tarfile

import numpy as np
import pytest

from audioldm2_jax.data.example import UnreadableRecord

from .made_sources import everything, one, pack, put, sound, tone


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_records_of_tar_files(tmp_path, form):
    long = "x/" * 30 + "y" * 90 if form != tarfile.USTAR_FORMAT else "y" * 90
    pack(
        tmp_path / "0.tar",
        {
            "a.flac": sound(1, "FLAC"),
            "a.json": b'{"text": ["rain", "wet"], "tag": ["x"]}',
            "a.txt": b"rain",
            "b.mp3": sound(2, "MP3", wave=tone(2, 4000)),
            "b.txt": "Wörter\n".encode(),
            "sub/a.wav": sound(3),
            "._a.wav": b"of macOS",
            "c.json": b'{"tags": ["slow", "rock"]}',
            "c.WAV": sound(4),
            "d.cls": b"3",
            f"{long}.ogg": sound(5, "OGG"),
            "24.wav": sound(wave=np.repeat(tone(6)[:, None], 24, 1)),
        },
        form,
    )
    pack(tmp_path / "deep/1.tar", {"ノイズ 1.5.wav": sound(7), "ノイズ 1.5.txt": "雑音".encode()}, tarfile.PAX_FORMAT)
    assert everything(tmp_path) == {
        "0.tar/a.flac": ("rain", "wet"),
        "0.tar/b.mp3": ("Wörter",),
        "0.tar/sub/a.wav": (),
        "0.tar/c.WAV": ("slow, rock",),
        f"0.tar/{long}.ogg": (),
        "0.tar/24.wav": (),
        "deep/1.tar/ノイズ 1.5.wav": ("雑音",),
    }
    source = pickle.loads(pickle.dumps(one(tmp_path)))
    whole = {name: source[i].waveform for i, name in enumerate(source.names)}
    np.testing.assert_allclose(whole["0.tar/a.flac"], tone(1), atol=1e-4)
    np.testing.assert_array_equal(whole["0.tar/sub/a.wav"], tone(3))
    np.testing.assert_allclose(whole["0.tar/24.wav"], tone(6), atol=1e-6)
    assert 4000 <= len(whole["0.tar/b.mp3"]) < 8000
    index = source.names.index("0.tar/c.WAV")
    np.testing.assert_array_equal(source.excerpt(index, 100, 0.999).waveform, tone(4)[704:])
    assert set(source.digests(len(source))) == {"0.tar", "deep/1.tar"}
    assert everything(tmp_path / "0.tar") == {k: v for k, v in everything(tmp_path).items() if k.startswith("0.")}


def test_what_a_tar_file_has_and_cannot_be_used(tmp_path, caplog):
    nan = tone()
    nan[5] = np.nan
    pack(
        tmp_path / "a.tar",
        [
            ("good.wav", sound()),
            ("good.wav", sound(1)),
            ("nan.wav", sound(wave=nan)),
            ("one.wav", sound(wave=np.full(1, 0.5, np.float32))),
            ("empty.wav", b""),
            ("wrong.wav", b"no sound"),
            ("flac.wav", sound(2, "FLAC")),  # told by its content
            ("m.m4a", b"x"),
            ("words.wav", sound()),
            ("words.json", b"[1]"),
            ("two.wav", sound()),
            ("two.txt", b"x"),
            ("two.json", b'{"caption": "y"}'),
        ],
    )
    pack(tmp_path / "none.tar", {"notes.txt": b"x"})
    put(tmp_path / "empty.tar", b"")
    put(tmp_path / "no.tar", b"not a tar file" * 100)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "a.wav")
    whole = (tmp_path / "a.tar").read_bytes()
    second = whole.index(b"good.wav", 100)
    put(tmp_path / "cut.tar", whole[: second + 1000])
    put(tmp_path / "boundary.tar", whole[:second])
    put(tmp_path / "damaged.tar", whole[:second] + b"x" * 512 + whole[second + 512 :])
    with caplog.at_level(logging.WARNING):
        source = one(tmp_path)
    names, kept = ["good", "nan", "one", "empty", "wrong", "flac"], ["boundary", "cut", "damaged"]
    assert source.names == [*(f"a.tar/{name}.wav" for name in names), *(f"{name}.tar/good.wav" for name in kept)]
    reasons = source.skipped
    assert "there twice" in reasons["a.tar/good.wav again"]
    assert ".m4a is not read" in reasons["a.tar/m.m4a"]
    assert "words.json holds a list" in reasons["a.tar/words.wav"]
    assert "two.json and" in reasons["a.tar/two.wav"] and "different captions" in reasons["a.tar/two.wav"]
    assert "is incomplete" in reasons["cut.tar/good.wav"]  # the second of that name
    assert f"damaged at byte {second:,}" in reasons["damaged.tar"]
    assert "without tar's mark of the end" in reasons["boundary.tar"]
    assert "holds no sound files" in reasons["none.tar"]
    for name in ("empty.tar", "no.tar", "packed.tar"):
        assert "no tar file, or a compressed one" in reasons[name]
    assert len(source[0].waveform) == 800 and len(source[2].waveform) == 1 and len(source[5].waveform) == 802
    for i in (1, 3, 4):
        with pytest.raises(UnreadableRecord, match=source.names[i]):
            source[i]
    os.truncate(tmp_path / "a.tar", 700)
    with pytest.raises(UnreadableRecord, match=r"a\.tar/flac\.wav"):
        source[5]


def test_a_negative_size_in_a_tar_header_ends_it(tmp_path):
    pack(tmp_path / "a.tar", {"a.wav": sound(), "b.wav": sound()})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    second = content.index(b"b.wav")
    content[second + 124 : second + 136] = b"\xff" * 8 + (-4096).to_bytes(4, "big", signed=True)
    total = sum(content[second : second + 148]) + sum(content[second + 156 : second + 512]) + 8 * 32
    content[second + 148 : second + 156] = b"%06o\0 " % total
    put(tmp_path / "a.tar", bytes(content))
    source = one(tmp_path)
    assert source.names == ["a.tar/a.wav"] and "damaged" in source.skipped["a.tar"]


def test_of_several_splits_train_is_read(tmp_path, caplog):
    for split in ("train", "test", "valid"):
        pack(tmp_path / split / "0.tar", {f"{split}.wav": sound()})
    with caplog.at_level(logging.WARNING):
        assert [*everything(tmp_path)] == ["train/0.tar/train.wav"]
    assert "2 files are of other splits than train and left out" in caplog.text
    assert [*everything(tmp_path / "test")] == ["0.tar/test.wav"]
