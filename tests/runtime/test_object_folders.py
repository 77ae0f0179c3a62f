"""Folders in real stores: what is half written counts for nothing, what is the same is not copied again."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioldm2_jax.runtime import object_folders, object_store
from audioldm2_jax.runtime.object_folders import UPLOADING, cached, fetch, upload, whole
from audioldm2_jax.runtime.object_store import Entry, StoreError

FILES = {"model_index.json": "{}", "unet/config.json": "{1}", "unet/weights": "w" * 1000, "vae/config.json": "{2}"}


@pytest.fixture(autouse=True)
def nothing_read():
    cached.cache_clear()


@pytest.fixture
def model(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(text)
    return tmp_path / "model"


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def sent(store, *methods: str) -> int:
    """How many requests there were since the last call."""
    count = sum(method in methods for method, _ in store.proxy.seen)
    store.proxy.seen.clear()
    return count


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_there_and_back_and_not_twice(request, scheme, model, tmp_path):
    store = request.getfixturevalue({"gs": "google", "s3": "amazon"}[scheme])
    address, changing = f"{scheme}://bucket/folders/there", {"gs": ("POST",), "s3": ("PUT",)}[scheme]
    upload(model, address)
    assert object_store.listing(address).keys() == FILES.keys()
    sent(store)
    upload(model, address)
    assert sent(store, *changing, "DELETE") == 0

    copy = tmp_path / "copy"
    (copy / "old").mkdir(parents=True)
    (copy / "old/file").touch()
    fetch(address, copy)
    assert texts(copy) == FILES and not (copy / "old").exists()
    if scheme == "s3":
        time.sleep(1.1)  # it knows times by the second
    object_store.write(f"{address}/unet/weights", b"v" * 1000)  # as long as before
    object_store.delete(address, ["vae/config.json"])
    fetch(address, copy, lambda name: name.startswith("unet/"))
    assert texts(copy) == {"unet/config.json": "{1}", "unet/weights": "v" * 1000}
    assert not [path for path in copy.rglob(".*")]

    upload(copy, address)
    assert object_store.listing(address).keys() == {"unet/config.json", "unet/weights"}


def test_a_file_is_an_object(google, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"weights")
    upload(tmp_path / "model.pth", "gs://bucket/folders/model.pth")
    assert cached("gs://bucket/folders/model.pth").read_bytes() == b"weights"


def test_an_upload_that_was_cut_off_counts_for_nothing_until_it_is_made_again(google, model, tmp_path):
    address = "gs://bucket/folders/cut"
    upload(model, address)
    (model / "unet/weights").write_text("other")
    (model / "vae/config.json").write_text("other")
    left = [None, None]  # the sign, and one of the files
    google.proxy.rule = lambda method, path: None if method != "POST" else left.pop() if left else 403
    with pytest.raises(StoreError, match="no permission"):
        upload(model, address)
    google.proxy.reset()
    there = object_store.listing(address)
    assert UPLOADING in there and whole(there) == {}
    assert fetch(address, tmp_path / "copy") == {} == texts(tmp_path / "copy")
    with pytest.raises(StoreError, match="cut is being written, or was not written to its end: write it again"):
        cached(address)
    upload(model, address)
    assert texts(cached(address)) == texts(model) == FILES | {"unet/weights": "other", "vae/config.json": "other"}


def test_a_copy_stays_as_it_is_in_a_process_and_follows_in_the_next(google, model):
    address = "gs://bucket/folders/followed"
    upload(model, address)
    path = cached(address)
    object_store.write(f"{address}/unet/config.json", b"new")
    assert texts(cached(address)) == FILES
    cached.cache_clear()  # as a new process has it
    sent(google)
    assert texts(cached(address)) == FILES | {"unet/config.json": "new"} and path == cached(address)
    assert sum("alt=media" in path for _, path in google.proxy.seen) <= 1


def test_a_copy_stays_as_it_is_when_another_is_made_of_a_part_of_it(google, model):
    address = "gs://bucket/folders/outer"
    upload(model, address)
    outer = cached(address)
    object_store.write(f"{address}/unet/weights", b"v")
    object_store.delete(address, ["unet/config.json"])
    inner = cached(f"{address}/unet")
    assert texts(inner) == {"weights": "v"} and texts(outer) == FILES


def test_a_long_copy_says_how_far_it_is(google, model, monkeypatch, capsys):
    monkeypatch.setattr(object_folders, "_SAID_EVERY", -1.0)
    address = "gs://bucket/folders/long"
    upload(model, address)
    cached(address)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" GiB")[0] for line in lines if "objects are here" in line] == [
        f"{address}: {count} of 4 objects are here, 0.00 of 0.00" for count in (1, 2, 3, 4)
    ]


def test_a_copy_ends_at_the_first_object_that_cannot_be_had(google, tmp_path, monkeypatch):
    address, asked = "gs://bucket/folders/many", []
    entries = {f"{number}": Entry(1, 0, "", "") for number in range(200)}

    def refuse(address, files):
        asked.extend(files)
        time.sleep(0.1)  # as a request does
        raise StoreError("no permission")

    monkeypatch.setattr(object_store, "download", refuse)
    with pytest.raises(StoreError, match="no permission"):
        object_folders.add(address, tmp_path, entries)
    assert len(asked) < 100 and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_of_a_model_one_network_is_fetched_with_every_config(google, model):
    upload(model, "gs://bucket/folders/part")
    found = cached("gs://bucket/folders/part", "vae")
    assert texts(found) == {name: text for name, text in FILES.items() if name.endswith("config.json")}
    assert "unet/weights" in texts(cached("gs://bucket/folders/part", "unet"))


def test_nothing_is_said_to_be_nothing(google):
    with pytest.raises(StoreError, match="there is nothing at gs://bucket/folders/none"):
        cached("gs://bucket/folders/none")


@given(st.sets(st.lists(st.sampled_from(["a", "b", "result", UPLOADING]), min_size=1, max_size=4).map("/".join)))
def test_what_lies_beside_or_below_the_sign_of_an_upload_is_left_out(names):
    half = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == UPLOADING}
    found = whole(dict.fromkeys(names, Entry(0, 0, "", "")))
    for name in names:
        above = name.split("/")[:-1]
        inside = any("/".join(above[:depth]) in half for depth in range(len(above) + 1))
        assert (name in found) == (not inside)


def test_an_address_is_read_as_its_copy(google, model):
    upload(model, "gs://bucket/folders/typed")
    assert texts(object_folders.local_copy(" gs://bucket/folders/typed/ ", "--model")) == FILES
    assert object_folders.local_copy(str(model), "--model") == model
