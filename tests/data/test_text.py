"""Tokenizers: what we make of a text is what transformers and diffusers make of our folders."""

import logging
import os
import pickle
import subprocess
import sys
import time

import huggingface_hub
import numpy as np
import pytest

from audioldm2_jax import recipes
from audioldm2_jax.data import text
from audioldm2_jax.data.builtin.music import MusicCorpus, heldout_captions
from audioldm2_jax.data.example import Example, Source

CORPUS = MusicCorpus(16000, 1.0, 0, "train")
CAPTIONS = text.captions(CORPUS, 2000)
TEXTS = ["", "A slow melody on a violin.", "Techno — 音楽 for the end of time!", "a  b <mask> c", *CAPTIONS[:20]]


@pytest.fixture(scope="module")
def tokenizers():
    return text.Tokenizers(text.train_clap(CAPTIONS, 512, 40), text.train_t5(CAPTIONS, 512, 40))


def test_shapes_padding_and_the_empty_caption(tokenizers):
    for tokenizer, empty, pad in ((tokenizers.by_kind["clap"], [0, 2], 1), (tokenizers.by_kind["t5"], [1], 0)):
        ids, mask = tokenizer(TEXTS)
        assert ids.shape == mask.shape == (len(TEXTS), 40) and ids.dtype == mask.dtype == np.int32
        assert ids[0, : len(empty)].tolist() == empty and mask[0].sum() == len(empty)
        assert (ids[mask == 0] == pad).all()
        assert (np.diff(mask, axis=1) <= 0).all()
        assert 0 <= ids.min() and ids.max() < tokenizer.vocabulary <= 512


def test_captions_stay_short_and_known(tokenizers):
    """Held-out captions too: no unknown token, nothing cut, words in few pieces."""
    captions = [*CAPTIONS, *(caption for caption, _ in heldout_captions(64))]
    for tokenizer, unknown in ((tokenizers.by_kind["clap"], 3), (tokenizers.by_kind["t5"], 2)):
        ids, mask = tokenizer(captions)
        assert not (ids == unknown).any() and tokenizer.truncated == 0
        assert mask.sum(1).mean() < 20


def test_too_long_captions_are_cut_counted_and_quoted(tokenizers, caplog):
    long = "a violin " * 30 + "and a kazoo"
    for kind in (tokenizers.by_kind["clap"], tokenizers.by_kind["t5"]):
        tokenizer = pickle.loads(pickle.dumps(kind))
        with caplog.at_level(logging.WARNING):
            ids, mask = tokenizer([long] * 5)
        assert tokenizer.truncated == 5 and mask.all()
        end = tokenizer([""])[0][0, tokenizer([""])[1][0].sum() - 1]
        assert (ids[:, -1] == end).all()
    assert "this is cut" in caplog.text and "and a kazoo'" in caplog.text
    assert caplog.text.count("this is cut") == 6  # three for each, then only counted


def test_transformers_reads_the_folders_alike(tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers.save(tmp_path)
    for ours, folder, name in (
        (tokenizers.by_kind["clap"], "tokenizer", "RobertaTokenizerFast"),
        (tokenizers.by_kind["t5"], "tokenizer_2", "T5TokenizerFast"),
    ):
        ids, mask = ours(TEXTS)
        for theirs in (getattr(transformers, name), transformers.AutoTokenizer):
            loaded = theirs.from_pretrained(tmp_path / folder)
            assert loaded.model_max_length == 40 and len(loaded) == ours.vocabulary
            encoded = loaded(TEXTS, padding="max_length", truncation=True, return_tensors="np")
            np.testing.assert_array_equal(encoded["input_ids"], ids)
            np.testing.assert_array_equal(encoded["attention_mask"], mask)
            assert loaded.decode(ids[5], skip_special_tokens=True) == TEXTS[5]


def test_diffusers_pads_clap_to_its_length(tokenizers, tmp_path):
    """AudioLDM2Pipeline asks isinstance for the padding: RoBERTa to model_max_length, T5 to the longest."""
    transformers = pytest.importorskip("transformers")
    tokenizers.save(tmp_path)
    clap = transformers.RobertaTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    t5 = transformers.T5TokenizerFast.from_pretrained(tmp_path / "tokenizer_2")
    assert isinstance(clap, transformers.RobertaTokenizer | transformers.RobertaTokenizerFast)
    assert isinstance(t5, transformers.T5Tokenizer | transformers.T5TokenizerFast)


def test_saved_and_loaded_again(tokenizers, tmp_path):
    tokenizers.save(tmp_path)
    loaded = text.load_tokenizers(tmp_path, {"clap": 40, "t5": 32})
    np.testing.assert_array_equal(loaded.by_kind["clap"](TEXTS)[0], tokenizers.by_kind["clap"](TEXTS)[0])
    np.testing.assert_array_equal(loaded.by_kind["t5"](TEXTS)[0], tokenizers.by_kind["t5"](TEXTS)[0][:, :32])
    loaded.save(tmp_path / "again")
    again = text.load_tokenizers(tmp_path / "again", {"clap": 40, "t5": 40})
    for before, after in (
        (tokenizers.by_kind["clap"], again.by_kind["clap"]),
        (tokenizers.by_kind["t5"], again.by_kind["t5"]),
    ):
        for one, other in zip(before(TEXTS), after(TEXTS), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_damaged_one_of_the_run_can_be_made_again(tokenizers, tmp_path):
    tokenizers.save(tmp_path)
    damaged = tmp_path / "tokenizer_2" / "tokenizer.json"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"delete {tmp_path}/tokenizer and {tmp_path}/tokenizer_2: the same command"):
        text.load_tokenizers(tmp_path, {"clap": 40, "t5": 40})


def test_training_is_deterministic(tokenizers):
    assert text.train_clap(CAPTIONS, 512, 40).files == tokenizers.by_kind["clap"].files
    assert text.train_t5(CAPTIONS, 512, 40).files == tokenizers.by_kind["t5"].files


def test_recipe_trains_or_loads(tokenizers, tmp_path):
    recipe = recipes.get("tiny")
    trained = text.open_tokenizers(recipe.text, CORPUS)
    assert trained.by_kind["clap"].vocabulary <= 512 and trained.by_kind["clap"].length == recipe.text.clap_length
    tokenizers.save(tmp_path)
    recipe.text.update({"clap_tokenizer": str(tmp_path / "tokenizer"), "t5_tokenizer": str(tmp_path / "tokenizer_2")})
    loaded = text.open_tokenizers(recipe.text)
    length = recipe.text.t5_length
    np.testing.assert_array_equal(
        loaded.by_kind["t5"](TEXTS[:2])[0], tokenizers.by_kind["t5"](TEXTS[:2])[0][:, :length]
    )


def test_recordings_without_captions_get_the_corpus_words(caplog):
    class Silent(Source):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Example(np.zeros(10, np.float32), None)

    tokenizers = text.open_tokenizers(recipes.get("tiny").text, Silent())
    assert "no record has a caption" in caplog.text
    assert tokenizers.by_kind["t5"](["a slow melody on a violin"])[1].sum() == 7


def test_errors(tmp_path):
    recipe = recipes.get("tiny")
    with pytest.raises(ValueError, match="there is no source to train tokenizers on"):
        text.open_tokenizers(recipe.text, None)
    with pytest.raises(ValueError, match="cannot load the t5 tokenizer"):
        text.load(str(tmp_path), "t5", 10)
    with pytest.raises(ValueError, match="needs 261 or more"):
        text.train_clap(CAPTIONS, 100, 40)
    with pytest.raises(ValueError, match="Unigram needs"):
        text.train_t5(CAPTIONS, 50, 40)


def strange(characters: int, times: int = 1) -> list[str]:
    """Captions of so many different Chinese characters."""
    return [chr(0x4E00 + i) * times for i in range(characters)]


def test_ids_stay_within_the_table_whatever_is_written_in(tmp_path):
    """More characters than rows: refused where captions would be unknown, else the rare ones are <unk>."""
    with pytest.raises(ValueError, match=r"815 different characters.*--config.text.vocabulary=1792"):
        text.train_t5(strange(720), 512, 40)
    enough = text.train_t5(strange(720), 1792, 40)
    assert enough.vocabulary <= 1792 and not (enough(strange(720))[0] == 2).any()
    rare = text.train_t5([*CAPTIONS, *strange(500)], 512, 40)
    assert rare.vocabulary <= 512 and rare(strange(500))[0].max() < 512
    assert not (rare(CAPTIONS)[0] == 2).any()
    for size in (512, 300):
        clap = text.train_clap(strange(720), size, 40)
        assert clap.vocabulary <= size and not (clap(strange(720))[0] == 3).any()
    text.Tokenizers(text.train_clap(CAPTIONS, 512, 40), rare).save(tmp_path)
    loaded = text.load_tokenizers(tmp_path, {"clap": 40, "t5": 40})
    np.testing.assert_array_equal(loaded.by_kind["t5"](strange(500))[0], rare(strange(500))[0])


def test_tokenizers_and_tables_are_compared(tokenizers):
    text.check_tables(tokenizers, {"clap": 512, "t5": 512})
    text.check_tables(tokenizers, {"clap": None, "t5": None})
    with pytest.raises(
        ValueError, match=r"T5 has 512 ids, .* table 500 rows: set --config.models.text_encoder_2.vocab_size=512"
    ):
        text.check_tables(tokenizers, {"clap": 512, "t5": 500})
    with pytest.raises(ValueError, match=r"CLAP has 512 ids.*models.text_encoder.text_config.vocab_size"):
        text.check_tables(tokenizers, {"clap": 511, "t5": 512})


def test_tokenizers_are_found_as_people_type_their_folders(tokenizers, tmp_path, monkeypatch):
    tokenizers.save(tmp_path / "my model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("~/my model/tokenizer", f"{tmp_path}/my model/tokenizer\r"):
        assert text.load(typed, "clap", 40).vocabulary == tokenizers.by_kind["clap"].vocabulary


def test_no_torch_and_no_jax():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['jax'] = None\n"
        "from audioldm2_jax.data import text\n"
        "text.train_clap(['a'], 300, 8)(['a']); text.train_t5(['a'], 300, 8)(['a'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["clap", "t5"])
def test_a_tokenizer_that_the_hub_does_not_give_is_no_empty_tokenizer(kind, monkeypatch):
    """transformers 5 makes one without words where the hub cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load the .* tokenizer: nobody/nothing is no folder here"):
        text.load("nobody/nothing", kind, 20)


def test_without_a_network_it_is_said_at_once_with_the_flag_and_the_place(tmp_path):
    """In a process of its own, as a user has it: the hub is out of reach, and nothing is set but where it is."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
    code = "from audioldm2_jax.data import text\ntext.load('google/flan-t5-large', 't5', 20)"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert time.monotonic() - begin < 30
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "--config.text.t5_tokenizer=PATH" in last and str(tmp_path / "hub") in last and "google/flan-t5-large" in last
    )
    assert "http://127.0.0.1:9 cannot be reached" in last and "Retry" not in done.stderr


@pytest.mark.parametrize("kind", ["clap", "t5"])
def test_a_folder_of_a_repository(kind, tokenizers, tmp_path, monkeypatch):
    """As diffusers' models have them; from the cache, in huggingface_hub's layout."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--music"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    tokenizers.save(home / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = {"clap": "tokenizer", "t5": "tokenizer_2"}[kind]
    loaded, wanted = (
        text.load(f"someone/music/{folder}", kind, 40),
        {"clap": tokenizers.by_kind["clap"], "t5": tokenizers.by_kind["t5"]}[kind],
    )
    for one, other in zip(loaded(TEXTS[:2]), wanted(TEXTS[:2]), strict=True):
        np.testing.assert_array_equal(one, other)
