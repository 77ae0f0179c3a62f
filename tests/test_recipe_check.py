"""Facts that a recipe has several times: they follow, or are refused by name before anything is written."""

import pytest
from smallest import get_config

from audioldm2_jax import recipe_check, recipe_resolve, recipes
from audioldm2_jax.stages import STAGES

NAMES = ("tiny", "small", "base", "large", "48k")
ALL = tuple(STAGES)


def changed(recipe: str, **values):
    """The recipe with {dotted key: value}, dots written as two underscores."""
    config = recipes.get(recipe)
    with config.ignore_type():
        for key, value in values.items():
            *path, last = key.split("__")
            section = config
            for part in path:
                section = section[part]
            section[last] = value
    return config


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_fit_and_nothing_follows(name):
    config = recipes.get(name)
    assert recipe_resolve.follow(config) == (config, [])
    assert recipe_check.check(config, ALL) == []


def test_the_smallest_recipe_of_the_tests_fits():
    config, lines = recipe_resolve.follow(get_config())
    assert not lines
    recipe_check.check(config, ALL)


@pytest.mark.parametrize(
    "name, seconds, frames",
    [("tiny", 5.12, 512), ("tiny", 1.28, 128), ("base", 5.12, 512), ("base", 20.48, 2048), ("tiny", 3.2, 320)],
)
def test_audiomae_follows_the_length_of_a_clip(name, seconds, frames):
    config, lines = recipe_resolve.follow(changed(name, audio__seconds=seconds))
    assert config.audio.fbank.frames == frames and tuple(config.models.audiomae.img_size) == (frames, 128)
    assert len(lines) == 2 and "follows audio.seconds" in lines[0]
    assert config.is_locked
    recipe_check.check(config, ALL)


def test_one_of_two_keys_follows_the_other():
    config, _ = recipe_resolve.follow(changed("tiny", audio__fbank__frames=320, audio__seconds=3.2))
    assert tuple(config.models.audiomae.img_size) == (320, 128)
    config, _ = recipe_resolve.follow(changed("tiny", models__audiomae__img_size=(320, 64), audio__seconds=3.2))
    assert (config.audio.fbank.frames, config.audio.fbank.n_mels) == (320, 64)


def test_the_mel_follows_the_sampling_rate():
    config, lines = recipe_resolve.follow(changed("base", audio__sampling_rate=44100))
    assert config.audio.mel.fmax == 22050.0
    assert lines == ["audio.mel.fmax: 8000.0 → 22050.0 (follows audio.sampling_rate)"]
    with pytest.raises(
        recipe_check.RecipeError, match=r"audio.seconds=10.24 at audio.sampling_rate=44100 are 2822 mel"
    ):
        recipe_check.check(config, ALL)
    fitting = changed("base", audio__sampling_rate=44100, audio__seconds=10.2168)
    recipe_check.check(recipe_resolve.follow(fitting)[0], ("vae", "vocoder", "diffusion"))
    config, _ = recipe_resolve.follow(changed("base", audio__sampling_rate=8000))
    assert config.audio.mel.fmax == 4000.0
    kept, lines = recipe_resolve.follow(changed("base", audio__sampling_rate=32000, audio__mel__fmax=9000.0))
    assert kept.audio.mel.fmax == 9000.0 and not lines
    assert any("the mel ends at 9000 Hz" in note for note in recipe_check.check(kept, ("vae",)))


def test_all_that_is_counted_in_steps_follows_the_budget():
    usual = recipes.get("tiny")
    config, (line,) = recipe_resolve.follow(changed("tiny", budget=0.1))
    assert line.startswith("train.*.steps: 0.1 times the recipe's (follows budget): audiomae 90, ")
    for name, stage in config.train.items():
        former = usual.train[name]
        for key in ("steps", "warmup", "log_every", "save_every", "heldout_every"):
            assert stage[key] == max(round(former[key] / 10), 1), (name, key)
        assert (stage.sample_every == 0) == (former.sample_every == 0)
        assert stage.batch_size == former.batch_size and stage.learning_rate == former.learning_rate
    assert config.data.cache_records == 205  # of 2048: each is seen as often
    assert recipe_resolve.follow(changed("base", budget=0.1))[0].data.cache_records == 0  # all, as before
    # So that it starts, or does not, as before.
    assert config.train.vocoder.discriminator_start == config.train.vocoder.steps
    assert config.is_locked and usual.train.vae.steps == recipes.get("tiny").train.vae.steps
    recipe_check.check(config, tuple(config.train))

    assert recipe_resolve.follow(changed("tiny", budget=1e-9))[0].train.vae.steps == 1
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(recipe_check.RecipeError, match=r"budget=.*above 0; 0.1 takes a tenth"):
            recipe_resolve.follow(changed("tiny", budget=value))


def test_steps_that_were_set_are_not_multiplied():
    """Who types both says how long that stage trains, and how long all others do."""
    set_by_hand = changed("tiny", budget=0.1, train__vae__steps=3, train__vae__log_every=1, data__cache_records=7)
    config, (line,) = recipe_resolve.follow(set_by_hand)
    assert (config.train.vae.steps, config.train.vae.log_every, config.data.cache_records) == (3, 1, 7)
    assert config.train.audiomae.steps == round(recipes.get("tiny").train.audiomae.steps / 10)
    assert " vae 3, " in line and line.endswith(
        "; set, and so not multiplied: train.vae.log_every=1, train.vae.steps=3, data.cache_records=7"
    )


def test_tables_follow_a_larger_vocabulary():
    config, lines = recipe_resolve.follow(changed("tiny", text__vocabulary=1000))
    assert config.models.text_encoder.text_config.vocab_size == config.models.text_encoder_2.vocab_size == 1000
    assert [line.split(":")[0] for line in lines] == [
        "models.text_encoder.text_config.vocab_size",
        "models.text_encoder_2.vocab_size",
    ]
    recipe_check.check(config, ALL)
    pretrained, lines = recipe_resolve.follow(changed("base", text__vocabulary=99999))
    assert pretrained.models.text_encoder_2.vocab_size == 32128 and not lines
    recipe_check.check(pretrained, ALL)


def test_what_clap_takes_of_longer_clips_is_said():
    config, _ = recipe_resolve.follow(changed("tiny", audio__seconds=5.12))
    assert recipe_check.check(config, ALL) == [
        "CLAP takes the first 2 s of each clip of 5.12 s (--config.audio.clap.seconds)"
    ]
    assert recipe_check.check(config, ("vae",)) == []


@pytest.mark.parametrize(
    "values, named",
    [
        ({"audio__fbank__frames": 320, "models__audiomae__img_size": (384, 128)}, "audio.fbank is 320 frames"),
        ({"audio__seconds": 5.12, "init_from__audiomae": "x"}, "AudioMAE would see the first 2.56 s"),
        ({"audio__fbank__frames": 128}, "AudioMAE would see the first 1.28 s of clips of 2.56 s"),
        ({"audio__mel__fmax": 9000.0}, "audio.mel with audio.sampling_rate=16000: .*9000"),
        ({"audio__seconds": -1.0}, "have to be positive"),
        ({"audio__seconds": 0.02}, "too few for a mel"),
        ({"audio__seconds": 2.5}, r"audio.seconds=2.5 .*set audio.seconds=2.56"),
        ({"audio__mel__n_mels": 60}, "audio.mel.n_mels=60 is no multiple"),
        ({"audio__mel__hop_length": 160}, r"models.vocoder.upsample_rates=\(8, 5, 4, 4\) make 640"),
        ({"audio__clap__seconds": 5.0}, r"audio.clap.seconds=5 are 501 frames, and .*spec_size=128 takes 256"),
        ({"audio__clap__n_mels": 32}, "audio.clap.n_mels=32 and models.text_encoder.audio_config.num_mel_bins=64"),
        ({"audio__clap__fmax": 30000.0}, "audio.clap: .*30000"),
        ({"text__clap_length": 77}, "text.clap_length=77, and .*max_position_embeddings=42 leaves room for 40"),
        ({"text__t5_length": 120}, "models.language_model.n_positions is 128: enlarge it to 133"),
        (
            {"text__vocabulary": 1000, "init_from__text_encoder": "x"},
            r"text.vocabulary=1000 .*--config.models.text_encoder.text_config.vocab_size=1000",
        ),
        (
            {"text__vocabulary": 1000, "init_from__text_encoder_2": "x"},
            r"--config.models.text_encoder_2.vocab_size=1000 \(now 512\)",
        ),
        ({"loa__pooling": 32}, "loa.pooling=32: AudioMAE's grid has 16 steps"),
        ({"loa__training_poolings": (4, 99)}, "loa.training_poolings"),
        ({"models__vae__latent_channels": 4}, "are 4, 8 and 8: make them the same"),
        ({"models__language_model__n_embd": 320}, "models.language_model.n_embd=320 and models.audiomae.embed_dim=160"),
        ({"models__text_encoder_2__d_model": 64}, "has 128 where models.text_encoder_2.d_model is 64"),
        ({"models__unet__cross_attention_dim": ((160,), (96,), (None, 160, 128))}, "has 96 where models.audiomae"),
        ({"models__unet__cross_attention_dim": ((160,), (160,))}, "models.unet: cross_attention_dim"),
        ({"train__vae__crop_frames": 66}, "train.vae.crop_frames=66 is no multiple of the 4"),
        ({"train__vocoder__segment_samples": 8192}, "train.vocoder.segment_samples=8192 is no multiple"),
    ],
)
def test_what_does_not_fit_is_named(values, named):
    config, _ = recipe_resolve.follow(changed("tiny", **values))
    with pytest.raises(recipe_check.RecipeError, match=named) as caught:
        recipe_check.check(config, ALL)
    assert "\n" not in str(caught.value)


def test_only_what_the_stages_read_is_compared():
    config = changed(
        "tiny", text__vocabulary=1000, init_from__text_encoder="x", models__vocoder__upsample_rates=(5, 4, 4, 2)
    )
    assert recipe_check.check(config, ("audiomae", "vae")) == []


def test_paths_as_people_type_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a model").mkdir()
    config = recipe_resolve.resolve_paths(
        changed("tiny", run_dir="~/my run\r", init_from__vae="~/a model ", init_from__unet=" cvssp/audioldm2\r")
    )
    assert config.run_dir == str(tmp_path / "my run") and config.is_locked
    assert config.init_from.vae == str(tmp_path / "a model") and config.init_from.unet == "cvssp/audioldm2"
    with pytest.raises(ValueError, match=r"--config.init_from.vae=hdfs://b/vae: hdfs:// is not served"):
        recipe_resolve.resolve_paths(changed("tiny", init_from__vae="hdfs://b/vae"))


def test_addresses_have_one_form():
    config = recipe_resolve.resolve_paths(changed("tiny", run_dir=" gs://b/run/ ", init_from__vae="S3://b/vae"))
    assert config.run_dir == "gs://b/run" and config.init_from.vae == "s3://b/vae"
    assert recipe_resolve.resolve_paths(changed("tiny", run_dir="s3://b/run/")).run_dir == "s3://b/run"
    with pytest.raises(ValueError, match=r"--config.init_from.vae=gs://b: an address has the form gs://BUCKET/NAME"):
        recipe_resolve.resolve_paths(changed("tiny", init_from__vae="gs://b"))


def test_what_diffusers_cannot_do_with_the_model_is_said():
    assert (
        "audio.clap.seconds=1.5 is no whole number"
        in recipe_check.check(
            changed(
                "tiny",
                audio__clap__seconds=1.5,
                audio__seconds=1.92,
                audio__fbank__frames=192,
                models__audiomae__img_size=(192, 128),
            ),
            ("clap",),
        )[0]
    )


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("train.vae.steps", 0, "at least 1"),
        ("train.vae.batch_size", -1, "at least 1"),
        ("train.vae.log_every", 0, "at least 1"),
        ("train.vae.heldout_clips", 0, "at least 1"),
        ("train.vae.heldout_every", -1, "at least 0"),
        ("data.workers", -1, "at least 0"),
        ("data.heldout_share", 2.0, "below 1"),
    ],
)
def test_counts_that_cannot_be(key, value, least):
    config = recipes.get("tiny")
    section, _, name = key.rpartition(".")
    target = config
    for part in section.split("."):
        target = target[part]
    target[name] = value
    with pytest.raises(recipe_check.RecipeError, match=f"{key}={value}: .*{least}"):
        recipe_check.check(config, ["vae"])


@pytest.mark.parametrize(
    ("stage", "key", "value", "fault"),
    [
        ("vae", "train.vae.optimizer", "adam", "choose from adamw, muon"),
        ("joint", "train.joint.unconditional", "none", "choose from language_model, zeros"),
        ("joint", "train.joint.loss", "l2", "choose from mse, l1"),
        ("clap", "train.clap.decay", "linear", "choose from constant"),
        ("audiomae", "train.audiomae.mask_ratio", 1.5, "from 0 to 1"),
        ("diffusion", "train.diffusion.guidance_dropout", float("nan"), "from 0 to 1"),
        ("vae", "train.vae.learning_rate", float("inf"), "not below 0"),
        ("diffusion", "train.diffusion.noise_draws", 0, "at least 1"),
        ("diffusion", "train.diffusion.posterior", "mean", "choose from sample, mode"),
        ("joint", "train.joint.guided_attention", -1.0, "not below 0"),
        ("language_model", "train.language_model.token_dropout", 1.5, "from 0 to 1"),
        ("joint", "train.joint.scheduled_sampling", 2.0, "from 0 to 1"),
        ("diffusion", "train.diffusion.timestep_logits", (1.0,), "a mean and a deviation"),
        ("diffusion", "scheduler.beta_schedule", "cosine", "beta_schedule is 'cosine'; use one of"),
        ("joint", "scheduler.num_train_timesteps", 0, "num_train_timesteps"),
        ("diffusion", "loa.training_poolings", (), "name one"),
        ("diffusion", "models.audiomae.patch_size", 7, "does not divide"),
        ("audiomae", "models.audiomae.patch_size", 0, "does not divide"),
        ("vae", "audio.mel.n_mels", 0, "n_mels=0"),
        ("diffusion", "audio.mel.hop_length", 0, "hop_length=0 has to be positive"),
        ("vocoder", "audio.mel.n_fft", -1, "n_fft=-1 has to be positive"),
        ("audiomae", "dtype", "float16", "dtype='float16': choose from float32, bfloat16"),
        ("diffusion", "train.diffusion.text", "words", "choose from captions, none"),
        ("audiomae", "models.audiomae.num_heads", 7, "num_heads=7 does not divide models.audiomae.embed_dim=160"),
        ("joint", "models.audiomae.decoder_num_heads", 5, "does not divide models.audiomae.decoder_embed_dim"),
        ("audiomae", "models.audiomae.positions", (8, 64), "are 512 places, and .* has 128 patches"),
        ("vae", "audio.seconds", float("inf"), "have to be positive"),
        ("vae", "samples.steps", 5000, "samples.steps=5000: choose 1 to"),
        ("vae", "side_by_side", 0, "at least 1"),
        ("diffusion", "data.cache", "none", "choose off, auto or a folder"),
        ("diffusion", "data.cache", "", "choose off, auto or a folder"),
    ],
)
def test_values_that_would_fail_hours_later(stage, key, value, fault):
    config = recipes.get("tiny")
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(recipe_check.RecipeError, match=fault):
        followed, _ = recipe_resolve.follow(config)
        recipe_check.check(followed, [stage])


def test_whose_steps_follow_another_budget():
    assert recipe_resolve.follows_budget(recipes.get("tiny"), ALL)
    config, _ = recipe_resolve.follow(changed("tiny", budget=0.5, train__vae__steps=7))
    assert recipe_resolve.follows_budget(config, ("vae", "clap"))
    assert not recipe_resolve.follows_budget(config, ("vae",))
