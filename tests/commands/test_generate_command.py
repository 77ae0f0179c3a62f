"""The command generate as a user types it, on folders of random weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_folder import CAPTIONS, write_model, write_speech_model

from audioldm2_jax.audio import files
from audioldm2_jax.commands import generate
from audioldm2_jax.generation.pipeline import AudioLDM2

STEPS, RATE = 4, 16000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model, tmp_path, capsys):
    """Runs it; returns what it printed: the paths, or the error."""

    def run(*arguments, of=model):
        common = ["--model", str(of), "-s", str(tmp_path / "out"), "--ddim_steps", str(STEPS)]
        code = generate.main([*common, *map(str, arguments)])
        said = capsys.readouterr()
        return [Path(line) for line in said.out.splitlines()] if code == 0 else said.err

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A file of the model's length, at twice its rate."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    time = np.arange(5120) / 32000
    files.write(path, (0.8 * np.sin(2 * np.pi * (300 + 4000 * time) * time)).astype(np.float32), 32000)
    return path


def test_a_list_of_prompts_from_a_run(model, command, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    assert "has not finished" in command("-t", "drums", of=run)
    (run / "model").symlink_to(model)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"\n小提琴/../x\n{CAPTIONS[0]}\ndrums\ndrums\nbells|../my bells\n", encoding="utf-8")
    paths = command("-tl", prompts, "-b", 4, "--seed", 3, of=run)
    assert [path.name for path in paths] == [
        "小提琴-x-0.wav",
        "a-slow-melody-on-a-violin-in-a-minor-key-0.wav",
        "drums-0.wav",
        "my-bells-0.wav",
    ]
    assert all(path.parent == tmp_path / "out" and path.stat().st_size > 1000 for path in paths)
    records = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert records[3]["prompt"] == "bells"
    record = records[2]
    assert record["prompt"] == "drums" and record["seed"] == 3 and record["num_waveforms_per_prompt"] == 3
    # The record is all that is needed to make the sound again.
    pipeline = AudioLDM2.from_pretrained(record.pop("model"), record.pop("dtype"))
    record.pop("versions")
    favourite = pipeline(**record).audios[0]
    np.testing.assert_allclose(files.read(paths[2], RATE), favourite, atol=1e-3)  # the file has 16 bits
    (lossless,) = command("-t", "drums", "--seed", 3, "--format", "flac", of=run)
    # Not drums-0.flac, whose record would be that of drums-0.wav.
    assert lossless.name == "drums-1.flac" and lossless.read_bytes()[:4] == b"fLaC"
    np.testing.assert_allclose(files.read(lossless, RATE), favourite, atol=1e-3)
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def test_from_a_file(command, clip, tmp_path):
    given = files.read(clip, RATE)
    common = ["-f", clip, "-t", "drums", "-n", 1, "--format", "float"]
    for arguments, kind in (
        ([], "Variation"),
        (["--until", "inf"], "Variation"),
        (["--mode", "transfer", "-ts", 0.25], "Transfer"),
        (["--mode", "sr_inpainting"], "Inpainting"),
        (["--mode", "sr_inpainting", "--band", 4000, "inf"], "Inpainting"),
        (["--mode", "continuation", "--until", 0.1], "Continuation"),
    ):
        (path,) = command(*common, *arguments)
        made, edit = files.read(path, RATE), json.loads(path.with_suffix(".json").read_text())["edit"]
        assert len(made) == len(given) and edit["kind"] == kind and edit["file"] == str(clip)
        kept = {"Inpainting": slice(0, 500), "Continuation": slice(0, 1000)}.get(kind)
        if kept and "--band" not in arguments:
            np.testing.assert_allclose(made[kept], given[kept], atol=1e-4)
            assert np.abs(made - given).max() > 0.01
        if "--until" in arguments and kind == "Variation":
            assert edit["until"] == "inf"
        if "--band" in arguments:
            assert edit["band"] == [4000, "inf"]
        if kind == "Inpainting" and "--band" not in arguments:
            assert edit["span"] == pytest.approx([0.4 * 0.16, 0.6 * 0.16])  # as the authors' command


def test_speech(command, tmp_path):
    speaks = write_speech_model(tmp_path / "speech")
    (path,) = command("--transcription", "good day", "-n", 1, of=speaks)
    record = json.loads(path.with_suffix(".json").read_text())
    assert path.name == "good-day-0.wav"
    assert record["transcription"] == "good day" and "reporter" in record["prompt"]
    assert "give a transcription" in command("-t", "a man", of=speaks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ddim_steps", "-1", "-t", "x"], "-1 denoising steps"),
        ([], "Nothing to generate"),
        (["-tl", "/nowhere/none.txt"], "cannot be read"),
        (["-t", "x", "-b", "0"], "-b is 0"),
        (["-t", "x", "--mode", "transfer"], "starts from a sound file"),
        (["-t", "x", "-f", "/nowhere/none.wav"], "does not exist"),
        (["-t", "x", "--transcription", "hello"], "not a model of speech"),
        (["-t", "x", "--until", "1"], "--until is for a sound file (-f) with --mode generation or continuation"),
        (["-t", "x", "-f", "x.wav", "--span", "0", "1"], "--span is for a sound file (-f) with --mode sr_inpainting"),
        (["-t", "x", "-f", "x.wav", "-ts", "0.5"], "--transfer_strength is for a sound file (-f) with --mode transfer"),
        (["-t", "|name"], "no prompt before the bar"),
    ],
)
def test_errors(command, arguments, message):
    said = command(*arguments)
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ddim_steps", "0"], "0 denoising steps"),
        (["--solver", "heun"], "solver is 'heun'"),
        (["--eta", "2"], "eta is 2"),
        (["-gs", "nan"], "guidance_scale is nan"),
        (["--until", "1"], "--until is for a sound file"),
        (["-f", "/nowhere/none.wav"], "does not exist"),
        ([], "has no unet/config.json"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(model, command, tmp_path, arguments, message):
    shutil.copytree(model / "scheduler", tmp_path / "m/scheduler")
    shutil.copy(model / "model_index.json", tmp_path / "m")
    assert message in command("-t", "x", *arguments, of=tmp_path / "m")


def test_one_sound_has_one_name(command, tmp_path):
    """In one batch they would be two clips, in two the same; and the record of the second would give the first."""
    (tmp_path / "list.txt").write_text("drums|a\nbells\ndrums|b\n")
    assert '"drums" is listed as a and as b' in command("-tl", tmp_path / "list.txt")


def test_names_and_records_of_strange_prompts(tmp_path):
    for prompt in ("𝓭" * 80, "小" * 80, "?!", "drums \udcff"):  # the last: a byte that is no UTF-8, on the command line
        path = generate.free_path(tmp_path, generate.file_stem(prompt), ".wav")
        files.write(path, np.zeros(9, np.float32), RATE)
        generate.write_record(path.with_suffix(".json"), {"prompt": prompt})
        recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["prompt"]
        assert recorded == prompt.replace("\udcff", "?")


def test_an_empty_list(command, tmp_path):
    for content in ("", "\n  \n"):
        (tmp_path / "empty.txt").write_text(content)
        assert "is empty" in command("-tl", tmp_path / "empty.txt")
        assert "is empty" in command("-t", "x", "-tl", tmp_path / "empty.txt")


def test_names_of_the_authors():
    assert generate.model_folder("audioldm2-full") == "cvssp/audioldm2"
    assert generate.model_folder("some/other") == "some/other"
    with pytest.raises(ValueError, match=r"convert --from audioldm_48k\.pth"):
        generate.model_folder("audioldm_48k")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_prompts_as_people_write_it(tmp_path, encoding, end):
    path = tmp_path / "my prompts.txt"
    path.write_bytes(end.join(["café noise", "", "rain\u2028on a roof|rain ", "", ""]).encode(encoding))
    options = generate.flags().parse_args(["--model", "x", "-tl", f"{path}\r"])
    assert generate.read_requests(options) == [("café noise", "café noise"), ("rain\u2028on a roof", "rain")]


def test_a_list_that_is_no_text_is_told_with_its_line(command, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("rain\ncafé".encode("latin-1"))
    assert "prompts.txt, line 2: not UTF-8 (byte 0xe9" in command("-tl", path)


def test_paths_as_people_type_them(model, clip, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my model").symlink_to(model)
    (tmp_path / "clip é.wav").symlink_to(clip)
    paths = command("-t", "drums", "-f", "~/clip e\u0301.wav", "-s", "~/my sounds\r", of="~/my model ")
    assert paths[0].parent == tmp_path / "my sounds", paths
    record = json.loads(paths[0].with_suffix(".json").read_text())
    assert record["model"] == str(tmp_path / "my model") and record["edit"]["file"] == str(tmp_path / "clip é.wav")
    assert "gs:// is not served" in command("-t", "drums", "-s", "gs://bucket/sounds")


def test_a_sound_file_that_cannot_be_read_is_named(command, tmp_path):
    (tmp_path / "a.flac").write_bytes(b"fLaC and nothing else")
    assert "a.flac cannot be read as sound" in command("-t", "drums", "-f", tmp_path / "a.flac")


@pytest.fixture(scope="module")
def hours(tmp_path_factory):
    """Two files: noise of four seconds, and a file of four hours that begins with it."""
    folder = tmp_path_factory.mktemp("hours")
    short, long, samples = folder / "short.wav", folder / "long.wav", 4 * 3600 * RATE
    files.write(short, 0.1 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32), RATE)
    content = bytearray(short.read_bytes())
    content[4:8], content[40:44] = (2 * samples + 36).to_bytes(4, "little"), (2 * samples).to_bytes(4, "little")
    with long.open("wb") as file:
        file.write(content)
        file.truncate(44 + 2 * samples)
    assert files.length(long, RATE) == samples
    return short, long


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ("", 2.28),  # what AudioMAE takes, and a second
        ("-dur 1", 2.28),
        ("--until 2.5", 3.5),
        ("--until inf", 2.28),
        ("--mode continuation --until 1.5", 2.5),
        ("--mode transfer -dur 0.5", 2.28),
        ("--mode sr_inpainting -dur 1.5", 2.5),
        ("--mode sr_inpainting -dur 1 --span 0.5 inf", 2.28),
        ("--mode sr_inpainting -dur 1 --span 0.5 2.9", 3.9),
    ],
)
def test_of_a_file_of_hours_no_more_is_decoded_than_is_looked_at(hours, arguments, seconds):
    pipeline = SimpleNamespace(sampling_rate=RATE, own_length=0.64, clip_encoder=SimpleNamespace(window=1.28))
    short, long = (
        generate.given_clip(generate.flags().parse_args(f"--model m -f {file} {arguments}".split()), pipeline)
        for file in hours
    )
    assert len(long.audio) == pytest.approx(seconds * RATE, abs=2) and type(long) is type(short)
    np.testing.assert_array_equal(long.audio, short.audio)
    if "sr_inpainting" in arguments and "--span" not in arguments:
        assert long.span == pytest.approx((0.6, 0.9))  # of what is made, not of the file


@pytest.mark.parametrize("mode", ["transfer", "sr_inpainting"])
def test_hours_are_not_made_without_being_asked_for(hours, mode):
    pipeline = SimpleNamespace(sampling_rate=RATE, own_length=0.64, clip_encoder=SimpleNamespace(window=0.0))
    options = generate.flags().parse_args(["--model", "m", "-f", str(hours[1]), "--mode", mode])
    with pytest.raises(ValueError, match=r"long\.wav has 14400 s, and as many would be made: say how many"):
        generate.given_clip(options, pipeline)
    options.file_path = str(hours[0])
    assert generate.given_clip(options, pipeline).seconds == 4


def test_a_full_disk_names_the_file(command, tmp_path, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    said = command("-t", "drums")
    assert said.splitlines()[-1].startswith("error: ") and "drums-0.wav" in said and "free some" in said
