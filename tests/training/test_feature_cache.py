"""Training from cached features is training from sound; caches are made once, resumed, and refused where stale."""

import json
import os
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from smallest import SAMPLES, Said, components, get_config

from audioldm2_jax.audio.files import write
from audioldm2_jax.checkpoints import model_folder
from audioldm2_jax.data import cache, encoders, sources
from audioldm2_jax.data.example import Derived, UnreadableRecord
from audioldm2_jax.stages import STAGES
from audioldm2_jax.training import feature_cache, feature_maker, main, run, stage_data, stage_settings
from audioldm2_jax.training.loop import Stopped

RECORDS, UNREADABLE = 6, 3  # of the seven one is held out
# One has no caption, another one three.
WORDS = (
    "a slow piano",
    "two drums",
    "a violin in a minor key",
    "",
    ["bells", "a bell", "ding"],
    "a loud flute",
    "wind",
)


class Broken(Derived):
    """A source of which a record cannot be read when its turn comes."""

    def first(self, records):
        return Broken(self.source.first(records))

    def excerpt(self, index, samples, position):
        if index == UNREADABLE:
            raise UnreadableRecord("the third is broken")
        return self.source.excerpt(index, samples, position)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with all components that stages read, of random weights."""
    folder, config = tmp_path_factory.mktemp("parts"), get_config()
    config.train.diffusion.text = "captions"
    config.train.language_model.train_text_encoder_2 = config.train.joint.train_text_encoder_2 = False
    for name in ("diffusion", "language_model", "joint"):
        for part, component in components(STAGES[name], config).items():
            model_folder.write_component(folder, part, component.config, component.variables)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of clips as long as the recipe's, one without a caption."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for number in range(len(WORDS)):
        write(folder / f"{number}.wav", 0.1 * rng.standard_normal(SAMPLES).astype(np.float32), 16000)
    lines = [{"file_name": f"{n}.wav", "text": words} for n, words in enumerate(WORDS) if words]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def without_captions(tmp_path_factory):
    """A folder of clips that have none."""
    folder, rng = tmp_path_factory.mktemp("quiet"), np.random.default_rng(2)
    for number in range(5):
        write(folder / f"{number}.wav", 0.1 * rng.standard_normal(SAMPLES).astype(np.float32), 16000)
    return folder


@pytest.fixture
def config(tmp_path, parts, recordings, monkeypatch):
    config = get_config()
    config.run_dir, config.data.source, config.data.heldout_share = str(tmp_path / "run"), str(recordings), 0.0
    for part in ("audiomae", "vae", "text_encoder", "text_encoder_2", "unet", "language_model", "projection_model"):
        config.init_from[part] = str(parts)
    for stage in config.train.values():
        stage.update(heldout_every=0, save_every=0)
    config.data.cache = str(tmp_path / "cache")
    config.train.diffusion.text = "captions"
    opened = sources._open
    monkeypatch.setattr(sources, "_open", lambda config, split, name: Broken(opened(config, "train", name)))
    return config


def opened(config, name="language_model", said=None, should_stop=lambda: 0):
    """The cache of a stage, as `run.train_stage` opens it."""
    source = stage_data.open_source(config, "train")
    run.prepare(config)
    tokenizers = run._load_tokenizers(config)
    available = encoders.recipe_encoders(SAMPLES, tokenizers)
    parts = run.load_components(config, name)
    return feature_cache.open_cache(config, name, parts, source, available, said or Said(), should_stop)


def losses(config, name):
    run.prepare(config)
    run.train_stage(config, name, Said())
    lines = (run.stage_folder(config, name) / "metrics.jsonl").read_text().splitlines()
    work = {"data_wait", "flops_all"}
    return [{k: v for k, v in json.loads(line).items() if "second" not in k and k not in work} for line in lines]


@pytest.mark.parametrize(
    ("name", "train_t5", "mixed"),
    [
        ("diffusion", False, False),
        ("language_model", False, True),
        pytest.param("language_model", True, False, marks=pytest.mark.slow),
        pytest.param("joint", True, True, marks=pytest.mark.slow),
    ],
)
def test_training_from_the_cache_is_training_from_sound(config, without_captions, tmp_path, name, train_t5, mixed):
    """The same examples, of diffusion one that cannot be read among them, one with a caption of several, and guidance
    dropout of half of the captions; the same loss on held-out data. Mixed, most of the sound has no caption."""
    if mixed:
        config.data.source = f"{config.data.source},0.3;{without_captions},0.7"
    config.train[name].update(guidance_dropout=0.5, steps=3, heldout_every=3, heldout_clips=3)
    config.loa.training_poolings = (2,)  # one executable
    if name != "diffusion":
        config.train[name].train_text_encoder_2 = train_t5
    cached = losses(config, name)
    made = {path.parent.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob(cache.FILE)}
    folders = [f"{Path(part).name}/" for part, _ in sources.names(config.data.source)] if mixed else [""]
    assert made == {f"{folder}{one}" for folder in folders for one in STAGES[name].reads_features(config)}
    config.data.cache, config.run_dir = "off", str(tmp_path / "sound")
    sound = losses(config, name)
    assert [line.keys() for line in cached] == [line.keys() for line in sound]
    assert len(sound) == 4 and "heldout/loss" in sound[-1]
    for one, other in zip(cached, sound):
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=2e-5, err_msg=key)
    if name == "diffusion":  # the others learn from records with a caption, which the broken one lacks
        assert any(line.get("replaced_records") for line in sound)


def test_a_stopped_cache_goes_on_and_a_finished_one_is_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD", 2)
    asked = iter([0, 0, 1])
    with pytest.raises(Stopped, match="what was made stays") as stopped:
        opened(config, should_stop=lambda: next(asked))
    assert stopped.value.number == 1
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.array_record")}
    assert 0 < len(written) < 6
    said = Said()
    found = opened(config, said=said)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert not [path for path in (tmp_path / "cache").rglob("*") if "partial" in path.name]
    assert len([*(tmp_path / "cache/loa_2").glob("*.array_record")]) == 3 and said.lines
    assert len(found.source) == RECORDS
    with pytest.raises(UnreadableRecord, match="the third is broken"):
        found.source[UNREADABLE]
    said = Said()
    opened(config, said=said)
    assert not said.lines


def test_memory_holds_a_batch_of_entries(config, monkeypatch):
    """What is computed goes to the files before the next batch is computed, of a shard that has several batches."""
    monkeypatch.setattr(feature_maker, "_BATCH", 1)
    held, most, packed, opened_writer = 0, 0, cache.Feature.pack, cache.array_record_module.ArrayRecordWriter

    def pack(feature, *row):
        nonlocal held, most
        held += 1
        most = max(most, held)
        return packed(feature, *row)

    class Writer:
        def __init__(self, *args):
            self.writer = opened_writer(*args)
            self.close = self.writer.close

        def write(self, entry):
            nonlocal held
            held -= entry[:1] == b"\1"
            self.writer.write(entry)

    monkeypatch.setattr(cache.Feature, "pack", pack)
    monkeypatch.setattr(cache.array_record_module, "ArrayRecordWriter", Writer)
    found = opened(config)
    assert {len(feature.shards) for feature in found.source.features} == {1}
    batch, features = len(jax.local_devices()), 2  # of text, CLAP's and T5's; of sound, the LOA
    assert batch * features < RECORDS and held == 0 and 0 < most <= batch * features


def test_crops_are_spread_over_a_recording(config, recordings, tmp_path):
    long = tmp_path / "long"
    shutil.copytree(recordings, long)
    rng = np.random.default_rng(1)
    for number in range(len(WORDS)):
        write(long / f"{number}.wav", 0.1 * rng.standard_normal(3 * SAMPLES).astype(np.float32), 16000)
    config.data.update(source=str(long), cache_crops=2, cache_records=2)
    found = opened(config).source
    first, second = (found.excerpt(1, SAMPLES, position).features for position in (0.49, 0.51))
    assert not np.allclose(first["loa_2"], second["loa_2"])
    config.data.update(cache_crops=1, cache=str(tmp_path / "other"))
    middle = opened(config).source.excerpt(1, SAMPLES, 0.9).features["loa_2"]
    assert not np.allclose(first["loa_2"], middle) and not np.allclose(second["loa_2"], middle)


def test_a_mixture_has_a_cache_of_each_source(config, recordings, without_captions, tmp_path):
    """Other weights and further sources leave what there is; a source that changed is told alone."""
    one, other, said = str(recordings), tmp_path / "more" / recordings.name, Said()
    shutil.copytree(without_captions, other)
    config.data.source = f"{one},0.3;{other},0.7"
    opened(config)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {recordings.name, f"{recordings.name}-2"}
    config.data.source = f"{one},5;{other},1;{without_captions},2"
    found = opened(config, said=said).source
    assert [len(part) for part in found.parts] == [RECORDS, 4, 4] and found.weights == (5, 1, 2)
    (told,) = {line.split(" in ")[1] for line in said.lines if "caching" in line}
    assert told == str(tmp_path / "cache" / without_captions.name)
    learnt = found.restricted(("captioned",))
    assert {learnt.text(learnt.draw(number, 0)) is None for number in range(20)} == {False}
    write(other / "1.wav", 0.2 * np.ones(SAMPLES, np.float32), 16000)
    with pytest.raises(cache.CacheError, match=rf"{recordings.name}-2/loa_2 is of something else: source.recordings.1"):
        opened(config)


def test_what_was_made_from_something_else_is_refused(config, parts, tmp_path):
    opened(config)
    where = str(tmp_path / "cache")
    config.data.cache_crops = 3
    with pytest.raises(cache.CacheError, match=rf"loa_2 is of something else: crops: 1 → 3.*delete {where}/loa_2"):
        opened(config)
    config.data.cache_crops = 1
    words = Path(config.run_dir) / "tokenizer/tokenizer.json"
    before = words.read_text()
    content = json.loads(before)
    vocabulary = content["model"]["vocab"]
    first, second = [*vocabulary][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    words.write_text(json.dumps(content))
    with pytest.raises(cache.CacheError, match=rf"clap is of something else: tokenizer: .*delete {where}/clap"):
        opened(config)
    words.write_text(before)
    other = tmp_path / "parts"
    shutil.copytree(parts, other)
    component = model_folder.read_component(other, "text_encoder")
    variables = jax.tree.map(lambda leaf: leaf * 1.5, component.variables)
    shutil.rmtree(other / "text_encoder")
    model_folder.write_component(other, "text_encoder", component.config, variables)
    config.init_from.text_encoder = str(other)
    with pytest.raises(cache.CacheError, match=rf"clap is of something else: text_encoder: .*delete {where}/clap"):
        opened(config)


def test_a_replaced_recording_is_told_and_a_copy_is_the_same(config, recordings, tmp_path):
    """Neither the place nor the time of a recording matters; text features have nothing to do with its sound."""
    opened(config)
    copy, where, said = tmp_path / "copy", tmp_path / "cache", Said()
    shutil.copytree(recordings, copy, copy_function=shutil.copyfile)
    config.data.source = str(copy)
    names = opened(config, said=said).source.source.source.source.names
    assert not said.lines
    other = np.random.default_rng(1).standard_normal(SAMPLES).astype(np.float32)
    write(copy / names[2], 0.1 * other, 16000)
    told = rf"loa_2 is of something else: source.recordings.{names[2]}: \w+ → \w+. To .*delete {where}/loa_2"
    with pytest.raises(cache.CacheError, match=told):
        opened(config)
    for name in names:
        write(copy / name, 0.2 * other, 16000)
    told = rf"{names[4]}: \w+ → \w+; … and 1 more. To .*delete {where}/loa_2"
    with pytest.raises(cache.CacheError, match=told):
        opened(config)
    shutil.rmtree(where / "loa_2")
    opened(config, said=said)
    assert "caching loa_2 of" in said.lines[0] and len(said.lines) == 2


def test_a_recording_may_have_a_name_that_is_not_utf8(config, recordings, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(recordings, data)
    shutil.copyfile(data / "1.wav", os.fsencode(data) + b"/\xe9.wav")
    config.data.source = str(data)
    assert len(opened(config).source) == RECORDS + 1
    opened(config)


def test_new_captions_and_damage_are_told(config, recordings, tmp_path):
    found = opened(config).source
    found.source.captions = lambda index: ("another caption",)
    with pytest.raises(cache.CacheError, match=r"made from other captions: 'another caption' is new"):
        found[0]
    (shard,) = (tmp_path / "cache/clap").glob("*.array_record")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(cache.CacheError, match=r"clap is damaged.*delete"):
        opened(config).source[0]
    (tmp_path / "cache/clap/cache.json").write_text("{")
    with pytest.raises(cache.CacheError, match=r"cache.json is damaged"):
        opened(config)
    (tmp_path / "cache/clap/cache.json").unlink()  # as who reads half of that may do
    with pytest.raises(cache.CacheError, match=r"clap has lost its cache.json.*delete .*--config.data.cache=FOLDER"):
        opened(config)


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    feature = cache.Feature(tmp_path / "gone", [cache.Field("x", "float32", (3,))], 2, False, {})
    entry, last = (feature.pack(number, [[np.ones(3, np.float32)]], [None]) for number in range(2))
    with pytest.raises(cache.CacheError, match=r"cannot write .*gone.*--config.data.cache=FOLDER"):
        with feature.writer(0) as shard:
            shard.write(entry)
    feature.folder.mkdir()
    with pytest.raises(RuntimeError, match="out of memory"):  # not an error of writing
        with feature.writer(0) as shard:
            shard.write(entry)
            raise RuntimeError("out of memory")
    with feature.writer(0) as shard:
        shard.write(entry)  # one of two: stopped
    assert not [*feature.folder.iterdir()]
    with feature.writer(0) as shard:
        shard.write(entry)
        shard.write(last)
    assert [*feature.folder.iterdir()] == feature.shards
    np.testing.assert_array_equal(feature.read(1, None).arrays["x"], np.ones(3, np.float32))


def test_what_a_killed_run_left_is_removed(tmp_path):
    """Once it is so old that no run can be at work on it."""
    feature = cache.open_feature(tmp_path, [cache.Field("x", "float32", (3,))], 2, False, {})
    for name, age in ((".old.partial", 3), (".new.partial", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age * 24 * 3600,) * 2)
    cache.open_feature(tmp_path, feature.fields, 2, False, {})
    assert {path.name for path in tmp_path.iterdir()} == {cache.FILE, ".new.partial"}


def test_where_a_cache_pays():
    config = get_config()
    config.run_dir = "/runs/one"

    def folder(config, name):
        place = feature_cache.place_of(config, name)
        return place and place.folder

    assert config.data.cache == "auto" and folder(config, "diffusion") is None  # it would hold more than is drawn
    config.train.diffusion.steps = 100
    assert folder(config, "diffusion") == folder(config, "joint") == Path("/runs/one/cache")
    assert folder(config, "vae") is None
    config.data.source = "builtin:music;builtin:speech;builtin:audio"  # which have more clips
    assert folder(config, "diffusion") == Path("/runs/one/cache")
    config.data.update(examples=100, cache_records=0)
    assert folder(config, "diffusion") is None
    config.data.source = "/recordings"
    assert folder(config, "diffusion") is None
    config.data.cache = "/cache"
    assert folder(config, "diffusion") == Path("/cache") and folder(config, "clap") is None
    config.data.cache = "off"
    assert folder(config, "diffusion") is None


def test_caches_are_made_without_training(config, tmp_path, capsys):
    """What `prepare --cache` does; a second time it finds them."""
    config.stages = "clap,language_model"
    assert main.main(config, caches_only=True) == 0
    out = capsys.readouterr().out
    assert "caching" in out and f"Train from it with --config.data.cache={tmp_path / 'cache'}" in out
    wanted = STAGES["language_model"].reads_features(config)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*wanted}
    assert not (Path(config.run_dir) / "stages").exists()
    assert main.main(config, caches_only=True) == 0
    assert "caching" not in capsys.readouterr().out
    config.data.cache = "off"
    assert main.main(config, caches_only=True) == 1
    assert "no stage trains from a cache; name its folder with --config.data.cache" in capsys.readouterr().err
    config.update(stages="clap")
    config.data.cache = str(tmp_path / "other")
    with pytest.raises(run.RunError, match="of the stages diffusion, language_model, joint"):
        run.make_caches(config, Said())


def test_a_stage_is_not_mixed_of_both(config):
    """A stage that was begun from the cache goes on from it, wherever that lies."""
    run.prepare(config)
    run.begin(config, "diffusion")
    (run.stage_folder(config, "diffusion") / "checkpoints/1").mkdir(parents=True)
    config.data.cache = str(Path(config.run_dir) / "elsewhere")
    stage_settings.check(config, "diffusion")
    config.data.cache_crops = 3
    with pytest.raises(run.RunError, match=r"data.cache_crops: 1 → 3"):
        stage_settings.check(config, "diffusion")
    config.data.cache = "off"
    with pytest.raises(run.RunError, match=r"data.cache: on → off"):
        stage_settings.check(config, "diffusion")
