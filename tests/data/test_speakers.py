"""The listener of benchmarks/speakers.py against PyTorch's LSTM, and on voices that are known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def speakers():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("speakers", FOLDER / "speakers.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_encoder_is_pytorchs(speakers, monkeypatch):
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    weights = {f"lstm.{key}": value.numpy() for key, value in lstm.state_dict().items()}
    weights |= {f"linear.{key}": value.numpy() for key, value in linear.state_dict().items()}
    monkeypatch.setattr(speakers, "_weights", lambda: weights)
    mels = np.random.default_rng(0).exponential(size=(2, 20, 40)).astype(np.float32)
    with torch.no_grad():
        raw = torch.relu(linear(lstm(torch.tensor(mels))[1][0][-1]))
        wanted = raw / raw.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(speakers._encode(mels), wanted, atol=1e-5)


def test_two_sentences_fit_in_a_clip(speakers):
    pairs = [speakers.draw_pair(index, 2.56) for index in range(12)]
    assert len({speaker.voice for speaker, *_ in pairs}) == 12
    for speaker, before, after in pairs[:4]:
        both = [speakers.speak(speaker, text) for text in (before, after)]
        assert before != after and sum(map(len, both)) <= 2.56 * 16000


def test_it_tells_voices_apart(speakers):
    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip("pip install --no-deps resemblyzer")
    pairs = [speakers.draw_pair(index, 2.56) for index in range(12)]
    prompts, wanted = ([speakers.speak(pair[0], pair[part]) for pair in pairs] for part in (1, 2))
    own, others = speakers.similarities(wanted, prompts, [pair[0] for pair in pairs])
    assert np.isnan(np.diagonal(others)).all()
    assert (own > np.nanmean(others, 1)).all() and own.mean() > np.nanmean(others) + 0.1
