"""AudioCaps, MusicCaps, AudioSet, WavCaps, Clotho and FMA: small copies laid out as their authors publish them."""

import json
import logging
import pickle

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2_jax import recipes
from audioldm2_jax.data.class_names import python_list
from audioldm2_jax.data.public import json_objects
from audioldm2_jax.data.public.json_objects import objects_of
from audioldm2_jax.data.public.listed import Listed
from audioldm2_jax.data.sources import open_source

RATE = 1000


def config(source, share=0.3):
    recipe = recipes.get("tiny")
    recipe.audio.sampling_rate = RATE
    recipe.data.update({"source": str(source), "heldout_share": share})
    return recipe


def record(path, seconds=10.0, value=0.5):
    """A sound whose samples rise slowly with time, so that a piece of it tells where it lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = value + np.arange(round(seconds * RATE), dtype=np.float32) / 2**20
    soundfile.write(path, wave, RATE, subtype="FLOAT" if path.suffix == ".wav" else "PCM_24")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def both(source, share=0.3):
    """{name: captions} of the two splits."""
    splits = [open_source(config(source, share), split) for split in ("train", "heldout")]
    return [{name: split.captions(i) for i, name in enumerate(split.names)} for split in splits]


def audiocaps(folder):
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write(
        folder / "dataset/train.csv",
        header
        + "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n"
        + '58146,-oGl1ihuTJk,30,"Rain falls, then thunder"\n'
        + "11542,gonegonegon,30,Constant rattling noise\n"
        + "7,0aPhoneOnly,0,Birds\n"
        + "8,wholevideo0,20,An engine\n"
        + "9,tooshort000,50,A dog\n",
    )
    write(folder / "dataset/test.csv", header + "103549,7fmOlUlwoNg,80,Snoring\n103548,7fmOlUlwoNg,80,Someone snores\n")
    record(folder / "audio/train/Yr1nicOVtvkQ.wav", value=0.1)
    record(folder / "audio/train/-oGl1ihuTJk_30.flac")
    record(folder / "audio/test/7fmOlUlwoNg.wav")
    record(folder / "wholevideo0.wav", 40, value=0.0)
    record(folder / "tooshort000.wav", 20)
    write(folder / "0aPhoneOnly.m4a", "what a phone makes")
    record(folder / "unknown.wav")


def test_audiocaps(tmp_path, caplog):
    audiocaps(tmp_path)
    with caplog.at_level(logging.WARNING):
        train, heldout = both(tmp_path, share=0.9)
    assert train == {
        "audio/train/Yr1nicOVtvkQ.wav@130": ("A woman talks nearby as water pours",),
        "audio/train/-oGl1ihuTJk_30.flac@30": ("Rain falls, then thunder",),
        "wholevideo0.wav@20": ("An engine",),
    }
    assert heldout == {"audio/test/7fmOlUlwoNg.wav@80": ("Snoring", "Someone snores")}
    warnings = [entry.message for entry in caplog.records if "skipped" in entry.message][:1]
    assert "3 of 7 recordings cannot be read and are skipped" in warnings[0]
    for part in (
        "train.csv, line 4: no recording YgonegonegonX"[:-1],
        "0aPhoneOnly.m4a is in a format that is not",
        "20.0 s",
    ):
        assert part in warnings[0]


def test_a_clip_is_cut_out_of_a_whole_video(tmp_path):
    audiocaps(tmp_path)
    source = pickle.loads(pickle.dumps(open_source(config(tmp_path), "train")))
    assert isinstance(source, Listed)
    index = source.names.index("wholevideo0.wav@20")
    seconds = 2**20 / RATE
    assert len(source[index].waveform) == 10 * RATE and source[index].waveform[0] * seconds == pytest.approx(20)
    late = source.excerpt(index, 100, 0.9999).waveform
    assert len(late) == 100 and late[-1] * seconds == pytest.approx(30, abs=0.01)
    assert len(source.excerpt(index, 20 * RATE, 0.5).waveform) == 10 * RATE
    whole = source.names.index("audio/train/Yr1nicOVtvkQ.wav@130")
    assert source[whole].waveform[0] == pytest.approx(0.1) and len(source[whole].waveform) == 10 * RATE
    other = open_source(config(tmp_path), "train")
    assert other.follow(json.loads(json.dumps(source.listing()))) == ""
    assert set(source.digests(9)) == {name.split("@")[0] for name in source.names}


def test_one_list_alone_is_split_by_hash(tmp_path):
    for i in range(40):
        record(tmp_path / f"Yvideo{i:06}.wav", 0.1)
    rows = [f"{i},video{i:06},0,caption {i}" for i in range(40)]
    write(tmp_path / "train.csv", "\n".join(["audiocap_id,youtube_id,start_time,caption", *rows]))
    train, heldout = both(tmp_path / "train.csv")
    assert len(train) + len(heldout) == 40 and 3 < len(heldout) < 25 and not train.keys() & heldout.keys()


def musiccaps(folder):
    write(
        folder / "musiccaps-public.csv",
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
        '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'low quality\', \'ballad\']","A ballad, sung.",4,False,True\n'
        "-0SdAVK79lg,30,40,\"/m/0155w\",\"['guitar song', 'piano']\",,0,False,False\n",
    )
    record(folder / "wav/-0Gj8-vB1q4.wav")
    record(folder / "wav/-0SdAVK79lg.wav")


def test_musiccaps(tmp_path):
    musiccaps(tmp_path)
    assert both(tmp_path) == [
        {"wav/-0SdAVK79lg.wav@30": ("guitar song, piano",)},
        {"wav/-0Gj8-vB1q4.wav@30": ("A ballad, sung.",)},
    ]


def audioset(folder):
    head = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    write(folder / "eval_segments.csv", head + '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"\n')
    write(
        folder / "balanced_train_segments.csv",
        head + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n--aE2O5G5WE, 0.000, 10.000, "/m/none,/m/03v3yw"\n',
    )
    write(
        folder / "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/0k4j,"Car"\n'
        '2,/m/03v3yw,"Keys jangling"\n3,/t/dd00088,"Gush"\n',
    )
    record(folder / "eval/Y-0RWZT-miFs.wav")
    record(folder / "train/--PJHxphWEs_30.000.wav")
    record(folder / "train/--PJHxphWEs_30000_40000.flac", value=0.2)
    record(folder / "train/--aE2O5G5WE.wav", 10.01)


def test_audioset(tmp_path, caplog):
    audioset(tmp_path)
    with caplog.at_level(logging.WARNING):
        train, heldout = both(tmp_path)
    assert train == {
        "train/--PJHxphWEs_30000_40000.flac@30": ("Speech, Gush",),
        "train/--aE2O5G5WE.wav@0": ("Keys jangling",),
    }
    assert heldout == {"eval/Y-0RWZT-miFs.wav@420": ("Keys jangling, Car",)}
    assert "1 labels have no name and are left out, each with how often it stands there: /m/none (1)" in caplog.text
    (tmp_path / "class_labels_indices.csv").unlink()
    with pytest.raises(ValueError, match=r"but not its class_labels_indices\.csv"):
        open_source(config(tmp_path), "train")


def wavcaps(folder, whole=True):
    """As the whole data set is published, or the records of its parts alone."""

    def listed(name, *records):
        data = {"num_captions_per_audio": 1, "data": records} if whole else records
        write(folder / "json_files" / name, json.dumps(data))

    listed("SoundBible/sb_final.json", {"id": "2219", "caption": "An airplane is landing.", "duration": 14.1})
    listed("FreeSound/fsd_final.json", {"id": "2219", "caption": "A bell."}, {"id": "3.5", "caption": "Waves."})
    listed("AudioSet_SL/as_final.json", {"id": "Yb0RFKhbpFJA.wav", "caption": "A truck."})
    listed("BBC_Sound_Effects/bbc_final.json", {"id": "2219", "caption": "Not here."})
    write(folder / "json_files/blacklist/blacklist_exclude_all_ac.json", '{"FreeSound": ["3.5"]}')
    record(folder / "mnt/waveforms/SoundBible_flac/2219.flac", 1)
    record(folder / "mnt/waveforms/FreeSound_flac/2219.flac", 1)
    record(folder / "mnt/waveforms/FreeSound_flac/3.5.flac", 1)
    record(folder / "mnt/waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac", 1)


@pytest.mark.parametrize("whole", [True, False])
def test_wavcaps(tmp_path, whole):
    """The numbers of its parts are not each other's."""
    wavcaps(tmp_path, whole)
    train, heldout = both(tmp_path)
    assert train | heldout == {
        "mnt/waveforms/SoundBible_flac/2219.flac": ("An airplane is landing.",),
        "mnt/waveforms/FreeSound_flac/2219.flac": ("A bell.",),
        "mnt/waveforms/FreeSound_flac/3.5.flac": ("Waves.",),
        "mnt/waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac": ("A truck.",),
    }
    assert set(open_source(config(tmp_path), "train").skipped) == {"2219"}


@pytest.mark.parametrize("prefix", ["", "clotho_audio_"])
def test_clotho(tmp_path, prefix):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    for part, name in (("development", "Distorted AM Radio.wav"), ("validation", "a.wav"), ("evaluation", "b.wav")):
        write(tmp_path / f"clotho_captions_{part}.csv", f'{header}{name},"one, {part}",two,three,four,two\n')
        record(tmp_path / f"{prefix}{part}" / name, 1)
    record(tmp_path / f"{prefix}development/b.wav", 1, value=0.1)
    write(tmp_path / "clotho_metadata_development.csv", "file_name,keywords,sound_id\nx,y,1\n")
    train, heldout = both(tmp_path, share=0.0)
    assert train == {f"{prefix}development/Distorted AM Radio.wav": ("one, development", "two", "three", "four")}
    assert set(heldout) == {f"{prefix}validation/a.wav", f"{prefix}evaluation/b.wav"}


def fma(folder, size="small"):
    rows = [
        ",album,album,set,set,track,track,track,track",
        ",comments,information,split,subset,genre_top,genres,tags,title",
        "track_id,,,,,,,,",
        '2,0,"<p>two\nlines</p>",training,small,Hip-Hop,[21],[],Food',
        "5,0,,test,small,Hip-Hop,[21],\"['boom bap', 'baltimore']\",This World",
        '10,0,,training,medium,,"[10, 21]",[],Freeway',
        "20,0,,training,large,,[],[],Spiritual Level",
        "140,0,,validation,small,,[10],[],Nothing here",
    ]
    write(folder / "fma_metadata/tracks.csv", "\n".join(rows))
    write(
        folder / "fma_metadata/genres.csv",
        "genre_id,#tracks,parent,title,top_level\n10,1,0,Pop,10\n21,1,0,Hip-Hop,21\n",
    )
    write(folder / "fma_metadata/features.csv", "feature,chroma_cens\n")
    for track in (2, 5, 10) if size == "medium" else (2, 5):
        record(folder / f"fma_{size}/000/{track:06d}.flac", 1)


def test_fma(tmp_path):
    fma(tmp_path / "small")
    assert both(tmp_path / "small") == [
        {"fma_small/000/000002.flac": ("Hip-Hop",)},
        {"fma_small/000/000005.flac": ("Hip-Hop, boom bap, baltimore",)},
    ]
    # Tracks of larger sets are not missing.
    assert set(open_source(config(tmp_path / "small"), "train").skipped) == {"000140"}
    fma(tmp_path / "more", "medium")
    assert both(tmp_path / "more")[0]["fma_medium/000/000010.flac"] == ("Pop, Hip-Hop",)
    fma(tmp_path / "other")
    (tmp_path / "other/fma_metadata/genres.csv").unlink()
    with pytest.raises(ValueError, match=r"genres\.csv is not there"):
        open_source(config(tmp_path / "other"), "train")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train.csv", "youtube_id,caption\nx,y\n", r"train\.csv has no column start_time"),
        ("train.csv", "youtube_id,start_time,caption\nx,soon,y\n", r"line 2: start_time is 'soon', not a number"),
        ("train.csv", "youtube_id,start_time,caption\nx,nan,y\n", r"line 2: start_time is 'nan'"),
        ("train.csv", "youtube_id,start_time,caption\nx,1\n", r"line 2: 2 fields, but the first row names 3"),
        ("train.csv", 'youtube_id,start_time,caption\nx,1,"y\n', r"line 2: the row that begins there is not CSV"),
        ("train.csv", "youtube_id,start_time,caption\nx,1,y\n", r"name 1 recordings, and none of them is below"),
        ("m.csv", "ytid,start_s,end_s,aspect_list,caption\nx,1,2,drums,\n", r"line 2: 'drums' is no list such as"),
        ("json_files/a.json", '{"rows": []}', r'a\.json has no list "data"'),
        ("json_files/a.json", '{"data": [{"id": "1"', r'damaged after number 0 of "data"'),
        ("json_files/a.json", '[{"caption": "x"}]', r"number 1 of \"data\": no id"),
        ("json_files/a.json", "[3]", r"number 1 of \"data\" is no object"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, content, message):
    write(tmp_path / name, content)
    record(tmp_path / "a.wav", 1)
    with pytest.raises(ValueError, match=message):
        open_source(config(tmp_path), "train")


def test_several_data_sets_are_told_apart(tmp_path):
    audiocaps(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,text\nunknown.wav,mine\n")
    with pytest.raises(
        ValueError, match=r"holds captions of one's own \(metadata.csv\), AudioCaps \(dataset/test.csv\)"
    ):
        open_source(config(tmp_path), "train")
    (tmp_path / "metadata.csv").unlink()
    audioset(tmp_path / "audioset")
    with pytest.raises(ValueError, match=r"holds AudioSet .*AudioCaps|holds AudioCaps .*AudioSet"):
        open_source(config(tmp_path), "train")
    assert len(both(tmp_path / "audioset")[0]) == 2


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    objects=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6),
    before=st.text(max_size=20),
    piece=st.integers(1, 40),
    indent=st.sampled_from((None, 1)),
)
def test_objects_are_read_in_pieces_of_any_size(tmp_path_factory, objects, before, piece, indent):
    file = tmp_path_factory.getbasetemp() / "objects.json"
    file.write_text(json.dumps({"before": before + '"', "audios": objects, "after": 1}, indent=indent))
    kept, json_objects._READ = json_objects._READ, piece
    try:
        if "audios" not in before:
            assert [found for _, found in objects_of(file, "audios")] == objects
        file.write_text(json.dumps(objects, indent=indent))
        assert [found for _, found in objects_of(file, "audios")] == objects
    finally:
        json_objects._READ = kept


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.lists(st.text(max_size=5) | st.integers()).map(repr))
def test_a_list_of_python_is_read_or_refused(text):
    try:
        found = python_list(text, "here")
    except ValueError as error:
        assert str(error).startswith("here: ")
    else:
        assert all(isinstance(one, str) for one in found)
