"""Objects in real stores: what is written, listed and read, by whom; and what is said where that fails."""

import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_stores import CUT, STALL

from audioldm2_jax.runtime import object_store
from audioldm2_jax.runtime.object_store import StoreError, normalized
from audioldm2_jax.runtime.storage import StorageError

NAMES = ("a.json", "unet/weights 1", "deep/er/ümläut %41+&=.txt")


@pytest.fixture(params=["gs", "s3"])
def store(request):
    found = request.getfixturevalue({"gs": "google", "s3": "amazon"}[request.param])
    found.scheme = request.param
    return found


@pytest.fixture
def at_once(monkeypatch):
    """gcsfs repeats requests without pauses, and nothing does after that."""
    pytest.importorskip("gcsfs")

    async def sleep(_: float) -> None:
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)


def test_what_is_written_is_listed_and_read(store, tmp_path):
    root = f"{store.scheme}://bucket/round-trip"
    for name in NAMES:
        object_store.write(f"{root}/{name}", name.encode())
    object_store.write(f"{root}-2/other", b"a sibling, which begins with the same letters")
    found = object_store.listing(root)
    assert set(found) == set(NAMES) and all(found[name].size == len(name.encode()) for name in NAMES)
    assert [object_store.read(f"{root}/{name}") for name in NAMES] == [name.encode() for name in NAMES]

    before = object_store.stat(f"{root}/{NAMES[0]}")
    object_store.write(f"{root}/{NAMES[0]}", b"other!")
    after = object_store.stat(f"{root}/{NAMES[0]}")
    assert after.size == 6 and after.digest != before.digest and after.modified >= before.modified
    assert object_store.listing(f"{root}/{NAMES[0]}").keys() == {""}

    files = {name: tmp_path / str(number) for number, name in enumerate(NAMES)}
    object_store.download(root, files)
    assert files[NAMES[1]].read_bytes() == NAMES[1].encode()
    object_store.upload(f"{root}-3", files)
    assert object_store.listing(f"{root}-3").keys() == set(NAMES)

    object_store.delete(root, [*NAMES, "never/there"])
    assert object_store.listing(root) == {}
    assert object_store.read(f"{root}/a.json") is None and object_store.stat(f"{root}/a.json") is None
    assert object_store.stat(f"{root}-3/unet") is None  # what is called a folder is no object


def test_of_several_that_create_an_object_one_does(store):
    address, made, together = f"{store.scheme}://bucket/once", [], threading.Barrier(8)

    def create(number: int) -> None:
        together.wait()
        if object_store.create(address, b"%d" % number):
            made.append(b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [object_store.read(address)]


def test_a_lost_answer_does_not_make_a_second_creator(google):
    """The object is there, as the request that was repeated finds."""
    assert object_store.create("gs://bucket/lost", b"ours")
    assert object_store.create("gs://bucket/lost", b"ours") and not object_store.create("gs://bucket/lost", b"theirs")


def test_a_write_or_delete_may_depend_on_who_wrote_last(store):
    address = f"{store.scheme}://bucket/generations"
    assert object_store.replace(address, b"x", "1") == "" and object_store.read(address) is None
    object_store.remove(address, "1")
    object_store.write(address, b"first")
    first = object_store.stat(address).generation
    second = object_store.replace(address, b"second", first)
    assert second == object_store.stat(address).generation != first
    assert object_store.replace(address, b"third", first) == "" and object_store.read(address) == b"second"
    object_store.remove(address, first)
    assert object_store.read(address) == b"second"
    object_store.remove(address, second)
    assert object_store.read(address) is None


def test_a_bucket_that_is_not_there(store):
    address = f"{store.scheme}://no-such-bucket/run"
    for use in (object_store.listing, lambda a: object_store.write(a, b""), lambda a: object_store.create(a, b"")):
        with pytest.raises(StoreError, match="run: there is no bucket no-such-bucket; create it first"):
            use(address)


def test_no_permission(google):
    google.proxy.rule = lambda method, path: 403
    for use in (object_store.listing, object_store.read, lambda a: object_store.write(a, b"")):
        with pytest.raises(StoreError) as refused:
            use("gs://bucket/run")
        assert "no permission (" in str(refused.value) and "GOOGLE_APPLICATION_CREDENTIALS" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_store_that_fails_for_a_while_is_asked_again(store):
    left = [503, 503]
    store.proxy.rule = lambda method, path: left.pop() if left else None
    object_store.write(f"{store.scheme}://bucket/patient", b"x")
    assert not left and object_store.read(f"{store.scheme}://bucket/patient") == b"x"


def test_one_that_goes_on_failing_is_given_up_in_a_line(google, at_once):
    google.proxy.rule = lambda method, path: 503
    with pytest.raises(StoreError, match=r"^gs://bucket/run cannot be written: the store does not answer \(.*503"):
        object_store.write("gs://bucket/run", b"x")
    google.proxy.rule = lambda method, path: CUT
    with pytest.raises(StoreError, match="cannot be listed: the store does not answer"):
        object_store.listing("gs://bucket/run")


def test_one_that_stalls_is_asked_again(google, monkeypatch):
    monkeypatch.setattr(object_store, "_STALLED", 0.5)
    monkeypatch.setattr("fsspec.config.conf", {})
    object_store._open.cache_clear()
    try:
        left = [STALL]
        google.proxy.rule = lambda method, path: left.pop() if left else None
        object_store.write("gs://bucket/slow", b"x")
        assert not left and object_store.read("gs://bucket/slow") == b"x"
    finally:
        object_store._open.cache_clear()


@pytest.mark.parametrize("scheme, package, extra", [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_package_is_named(monkeypatch, scheme, package, extra):
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(object_store.importlib, "import_module", absent)
    object_store._open.cache_clear()
    with pytest.raises(StoreError, match=rf"{scheme}:// needs {package}: pip install audioldm2-jax\[{extra}\]"):
        object_store.listing(f"{scheme}://bucket/x")


@pytest.mark.parametrize(
    "typed", ["gs://", "gs:///run", "gs://bucket//run", "gs://bucket/../run", "gs://bucket/a#b", "s3://bucket/*"]
)
def test_what_is_no_address_is_refused(typed):
    with pytest.raises(StorageError, match=r"--model=\S+: an address has the form (gs|s3)://BUCKET/NAME"):
        normalized(typed, "--model")


@given(st.lists(st.text(st.characters(exclude_categories=("C",), exclude_characters="/#?*"), min_size=1), min_size=1))
def test_addresses_have_one_form(parts):
    if any(part in (".", "..") for part in parts) or parts[-1] != parts[-1].strip():
        return
    once = normalized(f" GS://bucket/{'/'.join(parts)}/ ", "--model")
    assert once == f"gs://bucket/{'/'.join(parts)}" == normalized(once, "--model")
