"""Training from a prepared set is training from the recordings of which it was made."""

import json
import re
from pathlib import Path

import numpy as np
import soundfile
from smallest import get_config

from audioldm2_jax.data.prepare import job
from audioldm2_jax.training import main


def losses(source, folder, xla):
    config = get_config()
    config.update(run_dir=str(folder), stages="audiomae", compilation_cache=str(xla))
    config.data.update(source=source, heldout_share=0.3, workers=0)
    config.train.audiomae.update(steps=2, log_every=1, heldout_every=0)
    assert main.main(config) == 0
    lines = Path(folder, "stages/audiomae/metrics.jsonl").read_text().splitlines()
    return [value for line in lines for name, value in json.loads(line).items() if name.endswith("/loss")]


def test_two_steps_have_the_losses_that_they_have_from_the_folder(tmp_path, compiled_once, capsys):
    recordings, rng = tmp_path / "recordings", np.random.default_rng(0)
    recordings.mkdir()
    for number in range(10):
        wave = 0.1 * np.cumsum(rng.standard_normal((22050 + 1000 * number, 2)), axis=0)
        soundfile.write(recordings / f"{number}.wav", wave / np.abs(wave).max(), (16000, 22050)[number % 2])
    job.prepare(job.Options(str(recordings), str(tmp_path / "prepared"), shard_records=4))
    before = losses(str(recordings), tmp_path / "before", compiled_once)
    after = losses(f"tfds:{tmp_path / 'prepared'}", tmp_path / "after", compiled_once)
    assert len(before) >= 2 and before[0] != before[1]
    said = re.findall(r"audiomae: learns from (\d+) of (\d+) records; held out: (\d+)", capsys.readouterr().out)
    assert len(said) == 2 and said[0] == said[1] and said[0][0] == said[0][1]
    assert int(said[0][1]) + int(said[0][2]) == 10 and said[0][2] != "0"
    # Excerpts of resampled sound and of sound in 16 bits differ by rounding, and logarithms of mels with it.
    np.testing.assert_allclose(after, before, rtol=3e-3)
