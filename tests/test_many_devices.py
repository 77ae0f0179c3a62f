"""Generation on several devices, and on several hosts, gives the clips that one device gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import CAPTIONS, write_model

from audioldm2_jax.audio import files
from audioldm2_jax.generation.pipeline import AudioLDM2

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def start(model, target, devices, **environment):
    prompts = target.parent / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS[:3]), encoding="utf-8")
    flags = f"--model {model} -s {target} -tl {prompts} -b 3 -n 1 --ddim_steps 3 --eta 1 --format float"
    return subprocess.Popen(
        [sys.executable, "launch/generate.py", *flags.split()],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def clips(*processes):
    """What the processes wrote, each clip once."""
    paths = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        paths += [line for line in out.splitlines() if line.endswith(".wav")]  # Gloo speaks there, too
    assert len(paths) == 3
    return np.stack([files.read(path, 16000) for path in sorted(paths)])


def test_same_clips(model, tmp_path):
    """Three prompts on one device, on four, and on two hosts of two: neither divides the prompts.

    Tolerance 1e-3 of the peak: products of other shapes round otherwise, and guided steps amplify it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    four = start(model, tmp_path / "four", 4)
    pair = [start(model, tmp_path / f"host{index}", 2, **hosts, JAX_PROCESS_ID=str(index)) for index in range(2)]
    one = AudioLDM2.from_pretrained(model)(sorted(CAPTIONS[:3]), num_inference_steps=3, eta=1.0).audios
    for other in (clips(four), clips(*pair)):
        assert np.abs(other - one).max() < 1e-3 * np.abs(one).max()
    assert not (list((tmp_path / "host1").glob("*.wav")))
