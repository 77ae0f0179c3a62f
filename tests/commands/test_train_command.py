"""The command itself, as its user runs it: messages, exit codes, signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Modules of the tests on the path, since the config of the smallest recipe is one."""
    home = tmp_path_factory.mktemp("home")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "HOME": str(home), "COLUMNS": "200"}


def start(environment, *flags):
    return subprocess.Popen(
        [sys.executable, "launch/train.py", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(environment, *flags):
    """(exit code, stdout, stderr)"""
    process = start(environment, *flags)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (["--config=configs/music.py", "--config.train.vae.stepz=3"], "no key 'stepz': Did you mean \"steps\""),
        (["--config=configs/music.py", "--config.trian.vae.steps=3"], "no key 'trian': Did you mean \"train\""),
        (
            ["--config=configs/music.py", "--config.train.vae.steps=many"],
            "--config.train.vae.steps=many: it has to be a whole number",
        ),
        (["--config=configs/music.py:huge"], "unknown recipe 'huge'; the recipes are tiny, small, base, large, 48k"),
        (["--config=configs/musik.py"], "there is no config configs/musik.py: give the path of a config file"),
        (["--config=configs/music.py", "config.budget=0.1"], "is no flag; did you mean --config.budget=0.1?"),
        (["--config=configs/music.py", "\u2014config.budget=0.1"], "is no flag; did you mean --config.budget=0.1?"),
        (["--config=configs/music.py", "more"], "'more' is no flag: flags begin with two dashes"),
        (
            ["--config=configs/music.py", "--config.recipe=base"],
            "a recipe is chosen by its config, --config music:base",
        ),
        ([], "name the recipe, with --config music, say"),
    ],
)
def test_wrong_flags(environment, flags, wanted):
    code, _, err = command(environment, *flags)
    assert code == 1 and err.startswith("error: ") and wanted in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "flags, wanted",
    [
        (["--config=configs/music.py:base"], "the recipe 'base' needs data: name a folder of recordings"),
        (
            ["--config=tests/smallest.py", "--config.stages=vae,gan"],
            "--config.stages=vae,gan: ['gan'] is no stage; choose from audiomae",
        ),
        (["--config=tests/smallest.py", "--config.run_dir=/dev/null/run"], "cannot write to the run folder"),
    ],
)
def test_runs_that_cannot_start(environment, tmp_path, flags, wanted):
    code, _, err = command(environment, flags[0], f"--config.run_dir={tmp_path}/run", *flags[1:])
    assert code == 1 and wanted in err
    error = next(line for line in err.splitlines() if line.startswith("error: "))
    assert wanted in error and "Traceback" not in err


def until(process, text):
    """Reads what the process prints until a line holds `text`; returns all of it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines) + process.stderr.read())


@pytest.mark.parametrize("kind", ["cuda", "nonsense"])
def test_devices_that_are_not_there(environment, tmp_path, kind):
    flags = ["--config=tests/smallest.py", f"--config.run_dir={tmp_path / 'run'}"]
    code, _, err = command({**environment, "JAX_PLATFORMS": kind}, *flags)
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and f"JAX_PLATFORMS={kind}" in last and "Traceback" not in err


def test_sigterm_saves_and_the_same_command_goes_on(environment, tmp_path):
    """Side by side, too: two stages in processes of their own."""
    flags = [
        "--config=tests/smallest.py",
        f"--config.run_dir={tmp_path}",
        "--config.stages=vocoder,audiomae",
        "--config.side_by_side=2",
        "--config.train.audiomae.steps=1000000",
        "--config.train.audiomae.save_every=0",
        "--config.train.audiomae.heldout_every=0",  # a line of metrics a step
        f"--config.compilation_cache={tmp_path}/xla",
    ]
    reached = 0
    for attempt in range(2):
        process = start(environment, *flags)
        begin = until(process, "audiomae: going on after step" if attempt else "vocoder  step 4/4")
        metrics = tmp_path / "stages/audiomae/metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < reached + 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, err  # which schedulers can be told to restart on
        assert "audiomae: stopped and saved after step" in out and "The same command goes on from there" in out
        saved = sorted(int(path.name) for path in (tmp_path / "stages/audiomae/checkpoints").iterdir())
        assert saved and saved[-1] >= reached + 3
        reached = saved[-1]
        if attempt:
            assert "vocoder: finished before" in begin
    assert (tmp_path / "stages/vocoder/result/vocoder/config.json").exists()
    assert not (tmp_path / "stages/audiomae/result").exists()


@pytest.mark.slow
def test_a_part_of_the_stages_is_no_model_yet(environment, tmp_path):
    flags = ["--config=tests/smallest.py", f"--config.run_dir={tmp_path}", "--config.stages=audiomae"]
    code, out, err = command(environment, *flags)
    assert code == 0, err
    assert "audiomae  step 4/4" in out and "audiomae: waited for data" in out
    assert "No model folder yet: clap, vae, vocoder, diffusion, language_model, joint still to be trained." in out
    code, out, err = command(environment, *flags)
    assert code == 0 and "audiomae: finished before" in out, err


def checkpoints(folder):
    return sorted(int(path.name) for path in folder.glob("stages/audiomae/checkpoints/*") if path.name.isdecimal())


@pytest.mark.slow
def test_killed_hard_it_goes_on_from_the_last_finished_save(environment, tmp_path):
    """SIGKILL at any moment after a save, of which only one is kept."""
    flags = [
        "--config=tests/smallest.py",
        f"--config.run_dir={tmp_path}",
        "--config.stages=audiomae",
        "--config.train.audiomae.steps=1000000",
        "--config.train.audiomae.save_every=3",
        "--config.train.audiomae.keep=1",
        f"--config.compilation_cache={tmp_path}/xla",
    ]
    process = start(environment, *flags)
    deadline = time.monotonic() + 240
    while not checkpoints(tmp_path):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    saved = checkpoints(tmp_path)
    assert saved
    process = start(environment, *flags)
    line = until(process, "audiomae: going on after step").splitlines()[-1]
    process.kill()
    process.communicate()
    assert int(line.split("step ")[1].split()[0]) >= saved[-1] and "damaged" not in line


@pytest.mark.slow
def test_a_stage_that_is_trained_anew_is_not_mixed_with_what_was_made_from_the_old_one(environment, tmp_path):
    flags = [
        "--config=tests/smallest.py",
        f"--config.run_dir={tmp_path}",
        "--config.loa.training_poolings=(2,)",
        f"--config.compilation_cache={tmp_path}/xla",
    ]
    stages = tmp_path / "stages"
    code, _, err = command(environment, *flags, "--config.stages=audiomae,vae,diffusion")
    assert code == 0, err
    code, _, err = command(environment, *flags, "--config.stages=vae", "--config.train.vae.kl_weight=31.0")
    assert code == 1 and "train.vae.kl_weight: 500.0 → 31.0" in err and f"delete {stages}/vae" in err
    shutil.rmtree(stages / "vae")
    code, _, err = command(environment, *flags, "--config.stages=audiomae,vae,diffusion")
    assert code == 1 and "diffusion was made from the vae of stages/vae, which is gone" in err
    code, out, err = command(environment, *flags, "--config.stages=vae", "--config.train.vae.kl_weight=31.0")
    assert code == 0 and f"Delete {stages}/diffusion to train it anew" in out, err
    new = ["--config.train.vae.kl_weight=31.0", "--config.stages=audiomae,vae,diffusion"]
    code, _, err = command(environment, *flags, *new)
    assert code == 1 and "diffusion was made from another vae than that of stages/vae" in err
    shutil.rmtree(stages / "diffusion")
    code, out, err = command(environment, *flags, *new)
    assert code == 0 and "vae: finished before" in out and "diffusion  step 4/4" in out, err


@pytest.mark.parametrize("setting", ["JAX_ENABLE_X64=1", "JAX_NUMPY_DTYPE_PROMOTION=strict"])
def test_types_of_numbers_that_cannot_be_trained_with_are_refused(environment, tmp_path, setting):
    flags = ["--config=configs/music.py", f"--config.run_dir={tmp_path / 'run'}"]
    name, _, value = setting.partition("=")
    code, _, err = command({**environment, name: value}, *flags)
    assert code == 1 and err.splitlines()[-1].startswith(f"error: {name}")
    assert not (tmp_path / "run").exists()


def test_prepare_makes_caches_by_the_flags_of_training(environment):
    flags = ["--cache", "--config=music", "--config.data.cash=/x"]
    done = subprocess.run(
        [sys.executable, "launch/prepare.py", *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "the recipe has no key 'cash'" in done.stderr
