"""The end of a run: which clips are shown, and that a finished run does not fail for want of them."""

import numpy as np
import pytest
from smallest import Said, get_config

from audioldm2_jax.data.example import Example, Source, UnreadableRecord
from audioldm2_jax.training import main


class Recordings(Source):
    """Recordings of an hour, of which some have no caption and some are damaged; they remember what was read."""

    def __init__(self, captions, damaged=()):
        self.captions, self.damaged, self.read = captions, damaged, []

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        raise AssertionError("a whole recording was decoded")

    def text(self, index):
        return self.captions[index]

    def excerpt(self, index, samples, position):
        self.read.append((index, samples))
        if index in self.damaged:
            raise UnreadableRecord("cannot be read")
        return Example(np.full(samples, 0.1 * index, np.float32), self.captions[index])


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """(config, what is called with the model's prompts, show): a finished run with a model that makes noise."""
    config, calls = get_config(), []
    config.run_dir = str(tmp_path)

    class Model:
        @staticmethod
        def from_pretrained(folder, **_):
            return lambda captions, **_: calls.append(captions) or Result(len(captions))

    class Result:
        def __init__(self, count):
            samples = round(config.audio.seconds * config.audio.sampling_rate)
            self.audios = np.random.default_rng(0).uniform(-0.1, 0.1, (count, samples)).astype(np.float32)

    monkeypatch.setattr(main, "AudioLDM2", Model)
    monkeypatch.setattr(main, "_model_digests", lambda model: {"unet": "first"})

    def show(source):
        said = Said()
        monkeypatch.setattr(main.sources, "open_source", lambda *_: source)
        main._show(config, tmp_path / "model", said)
        return said.lines

    return config, calls, show


def test_captions_are_chosen_before_anything_is_decoded(finished):
    config, calls, show = finished
    source = Recordings([None, "rain", "", "wind", "hail", "snow"], damaged=(1,))
    lines = show(source)
    samples = round(config.audio.seconds * config.audio.sampling_rate)
    assert calls == [["wind", "hail"]] and source.read == [(1, samples), (3, samples), (4, samples)]
    assert "Clips of held-out captions" in lines[0]
    again = Recordings(["rain"])
    show(again)
    assert again.read == [] and len(calls) == 1  # they are there


@pytest.mark.parametrize("source", [Recordings([None, None]), Recordings(["rain"], damaged=(0,))])
def test_a_run_without_captions_to_show_is_finished_all_the_same(finished, source):
    _, calls, show = finished
    lines = show(source)
    assert calls == [] and len(lines) == 1 and lines[0].startswith("More:")


def test_samples_that_cannot_be_written(finished, monkeypatch):
    _, _, show = finished

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main.files, "write", full)
    assert "No space left on device" in show(Recordings(["rain", "wind"]))[0]


def test_data_that_is_gone(finished, monkeypatch):
    config, calls, _ = finished

    def gone(*_):
        raise ValueError("there is no folder /data")

    monkeypatch.setattr(main.sources, "open_source", gone)
    said = Said()
    main._show(config, None, said)
    assert "there is no folder /data" in said.lines[0] and calls == []


def test_samples_of_another_model_are_made_again(finished, monkeypatch):
    _, calls, show = finished
    show(Recordings(["rain", "wind"]))
    show(Recordings(["rain", "wind"]))
    assert len(calls) == 1
    monkeypatch.setattr(main, "_model_digests", lambda model: {"unet": "second"})
    show(Recordings(["rain", "wind"]))
    show(Recordings(["rain", "wind"]))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.audiomae.learning_rate", 0.5, r"--config.train.audiomae.learning_rate: 0.0015, there 0.5"),
        ("seed", 5, r"--config.seed: 0, there 5"),
        ("data.source", "/elsewhere", ""),
        ("run_dir", "/elsewhere", ""),
    ],
)
def test_hosts_that_were_started_otherwise_are_named(monkeypatch, key, value, said):
    monkeypatch.setattr(main.watch, "names", lambda: ["process 0 (a)", "process 1 (b)"])

    def gather(own, what):
        return [own, own if not said else own | {f"--config.{key}": value}]

    config = get_config()
    if said:
        monkeypatch.setattr(main.hosts, "gather", gather)
        with pytest.raises(
            main.hosts.HostsError, match=rf"process 1 \(b\) was started otherwise than process 0 \({said}\)"
        ):
            main._compare_hosts(config)
        return
    told = []
    monkeypatch.setattr(main.hosts, "gather", lambda own, what: told.append(own) or [own])
    main._compare_hosts(config)
    config.update_from_flattened_dict({key: value})
    main._compare_hosts(config)
    assert told[0] == told[1] and "jax" in told[0] and "the code of audioldm2_jax" in told[0]
