"""Objects at addresses, `gs://bucket/name` and `s3://bucket/name`: read, written whole, listed, deleted.

fsspec's file systems do it: gcsfs and s3fs, with the credentials, end points and proxies of their usual variables
(`GOOGLE_APPLICATION_CREDENTIALS`, `STORAGE_EMULATOR_HOST`; `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`). An
object appears whole or not at all, and what is listed is what is there: both stores are strongly consistent. They have
neither folders nor a rename: runtime/object_folders.py says when a folder counts as whole.

A request that fails for want of an answer is repeated, with growing pauses; one that stalls is given up after a minute
and counts as such.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from audioldm2_jax.runtime.storage import StorageError, scheme_of

#: Scheme → the package that fsspec serves it with, and the extra of ours that brings it.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
#: Seconds for which a store that does not answer is asked again, beyond what fsspec does itself (half a minute).
PATIENCE = 240.0
_STALLED = 60  # seconds without a byte
_ADDRESS = re.compile(r"^(\w+)://([^/#?\s]+)(/.*)?$")
_Answer = TypeVar("_Answer")


class StoreError(StorageError):
    """An object store does not do what is asked of it; the message says what was wrong and what to do."""


class Entry(NamedTuple):
    """What a store knows of an object.

    `modified` is nanoseconds since 1970 by the store's clock, `digest` tells contents apart, `generation` is what a
    request may be made to depend on: on gs:// it tells writes apart, on s3:// contents (the ETag).
    """

    size: int
    modified: int
    digest: str
    generation: str


def normalized(address: str, what: str) -> str:
    """Returns an address as it is compared and shown: scheme in small letters, no spaces around it, no slash behind it.

    Args:
      address: as typed.
      what: what names it in the message.

    Raises:
      StorageError: it names no place in a store.
    """
    found = _ADDRESS.match(address.strip())
    name = (found[3] or "").removeprefix("/").rstrip("/") if found else ""
    if not found or any(part in ("", ".", "..") for part in name.split("/")) or re.search(r"[#?*\x00-\x1f]", name):
        raise StorageError(
            f"{what}={address.strip()}: an address has the form {scheme_of(address)}://BUCKET/NAME, without empty or "
            "dotted parts and without # ? *"
        )
    return f"{found[1].lower()}://{found[2]}/{name}"


def bucket_of(address: str) -> str:
    """Returns the bucket of an address."""
    return address.split("/")[2]


def listing(address: str, patience: float | None = None) -> dict[str, Entry]:
    """Returns the objects below an address by their names from there on; {} where there are none.

    An object that has the address itself, as a file has a path, is called "".

    Raises:
      StoreError: there is no such bucket, no permission, or no answer.
    """
    fs = _file_system(address)
    root = address.partition("://")[2]
    try:
        found = _ask(lambda: fs.find(address, detail=True), address, "listed", patience)
    except FileNotFoundError:
        raise _no_bucket(address) from None
    if not found and address.startswith("s3:"):  # s3fs lists a bucket that is not there as an empty one
        with contextlib.suppress(PermissionError):
            if not _ask(lambda: fs.exists(bucket_of(address)), address, "listed", patience):
                raise _no_bucket(address)
    entries = {
        name.removeprefix(f"{root}/"): _entry(info) for name, info in found.items() if name.startswith(f"{root}/")
    }
    return entries | ({"": _entry(found[root])} if root in found and found[root]["type"] == "file" else {})


def read(address: str, patience: float | None = None) -> bytes | None:
    """Returns the content of an object; None where there is none.

    Raises:
      StoreError: no permission, or no answer.
    """
    fs = _file_system(address)
    try:
        return _ask(lambda: fs.cat_file(address), address, "read", patience)
    except FileNotFoundError:
        return None


def write(address: str, content: bytes, patience: float | None = None) -> None:
    """Writes an object, in the place of one that may be there.

    Raises:
      StoreError: there is no such bucket, no permission, or no answer.
    """
    fs = _file_system(address)
    try:
        _ask(lambda: fs.pipe_file(address, content), address, "written", patience)
    except FileNotFoundError:
        raise _no_bucket(address) from None


def create(address: str, content: bytes) -> bool:
    """Writes an object unless there is one; returns whether it did. Of several that try, one does.

    Raises:
      StoreError: as of `write`.
    """
    fs = _file_system(address)
    try:
        _ask(lambda: fs.pipe_file(address, content, mode="create"), address, "written")
    except FileExistsError:
        return read(address) == content  # an answer that was lost on its way, and the request repeated
    except FileNotFoundError:
        raise _no_bucket(address) from None
    return True


def stat(address: str, patience: float | None = None) -> Entry | None:
    """Returns what is known of one object; None where there is none.

    Raises:
      StoreError: no permission, or no answer.
    """
    fs = _file_system(address)
    try:
        info = _ask(lambda: fs.info(address), address, "read", patience)
    except FileNotFoundError:
        return None
    return _entry(info) if info["type"] == "file" else None


def replace(address: str, content: bytes, generation: str, patience: float | None = None) -> str:
    """Writes an object in the place of its `generation` alone; returns that of what was written.

    It is "" where the object is another one by now, or gone.

    Raises:
      StoreError: no permission, or no answer.
    """
    fs, (bucket, name) = _file_system(address), _parts(address)

    def to_google() -> str:
        to = f"{fs._location}/upload/storage/v1/b/{bucket}/o"
        sent = {"uploadType": "media", "name": name, "ifGenerationMatch": generation, "data": content}
        return json.loads(fs.call("POST", to, **sent)[1])["generation"]

    def to_amazon() -> str:
        with _conditional():
            return fs.call_s3("put_object", Bucket=bucket, Key=name, Body=content, IfMatch=generation)["ETag"]

    request = to_amazon if scheme_of(address) == "s3" else to_google
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # 412: another generation; 404: none
        return _ask(request, address, "written", patience)
    return ""


def remove(address: str, generation: str) -> None:
    """Deletes `generation` of an object, and no other.

    Raises:
      StoreError: no permission, or no answer.
    """
    fs, (bucket, name) = _file_system(address), _parts(address)

    def from_google() -> None:
        fs.call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=generation)

    def from_amazon() -> None:
        with _conditional():
            fs.call_s3("delete_object", Bucket=bucket, Key=name, IfMatch=generation)

    request = from_amazon if scheme_of(address) == "s3" else from_google
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        _ask(request, address, "deleted")


@contextlib.contextmanager
def _conditional() -> Iterator[None]:
    """Raises FileExistsError, as gcsfs does, where the condition of a request to S3 does not hold."""
    try:
        yield
    except OSError as error:
        answer = getattr(error.__cause__, "response", None) or {}
        if answer.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
            raise FileExistsError(str(error)) from error
        raise


def delete(address: str, names: Iterable[str]) -> None:
    """Deletes the objects `names` below an address; one that is not there is fine.

    Raises:
      StoreError: no permission, or no answer.
    """
    fs = _file_system(address)

    def remove_one(path: str) -> None:  # `fs.rm` would take brackets in a name for a pattern
        with contextlib.suppress(FileNotFoundError):
            _ask(lambda: fs.rm_file(path), path, "deleted")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(remove_one, [f"{address}/{name}" if name else address for name in names]))


def download(address: str, files: Mapping[str, Path]) -> None:
    """Copies objects below an address, by their names, to files.

    Raises:
      StoreError: one is not there, no permission, or no answer.
      OSError: a file cannot be written.
    """
    fs = _file_system(address)
    for name, path in files.items():
        source = f"{address}/{name}" if name else address
        try:
            _ask(lambda: fs.get_file(source, str(path)), address, "read")  # noqa: B023
        except FileNotFoundError:
            raise StoreError(f"{source} is gone: run the same command again") from None


def upload(address: str, files: Mapping[str, Path]) -> None:
    """Copies files to objects below an address, by their names. What arrives is compared by its digest.

    Raises:
      StoreError: there is no such bucket, no permission, or no answer.
      OSError: a file cannot be read.
    """
    fs = _file_system(address)
    for name, path in files.items():
        to = f"{address}/{name}" if name else address
        try:
            _ask(lambda: fs.put_file(str(path), to), address, "written")  # noqa: B023
        except FileNotFoundError as error:
            if not path.exists():
                raise
            raise _no_bucket(address) from error


def prepare(address: str) -> None:
    """Sets what every user of a store in this process shares: Orbax's paths and TensorStore, too.

    Raises:
      StoreError: the package that serves the scheme is missing.
    """
    _file_system(address)


def _file_system(address: str) -> Any:
    return _open(scheme_of(address))


@functools.cache
def _open(scheme: str) -> Any:
    """Returns fsspec's file system for a scheme."""
    package, extra = _PACKAGES[scheme]
    # gcsfs asks every bucket for its kind otherwise, for which a service account may have no permission.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import aiohttp
        import fsspec

        importlib.import_module(package)
    except ImportError as error:
        raise StoreError(f"{scheme}:// needs {package}: pip install audioldm2-jax[{extra}] ({error})") from error
    timeouts = aiohttp.ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED)
    settings: dict[str, dict[str, Any]] = {
        # Another process may have written since: a listing is never remembered.
        "gs": {"use_listings_cache": False, "consistency": "md5", "requests_timeout": timeouts},
        "s3": {
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": _STALLED, "read_timeout": _STALLED, "retries": {"mode": "standard"}},
        },
    }
    for name in {"gs": ("gs", "gcs"), "s3": ("s3", "s3a")}[scheme]:
        fsspec.config.conf[name] = settings[scheme] | fsspec.config.conf.get(name, {})
    if scheme == "gs":
        for name in ("gcsfs", "fsspec"):
            logging.getLogger(name).setLevel(
                logging.CRITICAL
            )  # they log what they raise, and every file that is opened
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            url = emulator if "://" in emulator else f"http://{emulator}"
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)
            os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # TensorStore's, which would look for one
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_STALLED))
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    return fsspec.filesystem(scheme)


def _parts(address: str) -> tuple[str, str]:
    bucket, _, name = address.partition("://")[2].partition("/")
    return bucket, name


def _entry(info: Mapping[str, Any]) -> Entry:
    """Returns the entry of what gcsfs or s3fs say of an object."""
    written = info.get("mtime") or info["LastModified"]
    digest = f"md5:{info['md5Hash']}" if info.get("md5Hash") else f"crc32c:{info.get('crc32c')}"
    if "ETag" in info:
        digest = f"etag:{info['ETag'].strip(chr(34))}"
    microseconds = round(written.timestamp() * 1_000_000)
    return Entry(int(info["size"]), microseconds * 1000, digest, str(info.get("generation") or info.get("ETag", "")))


def _ask(request: Callable[[], _Answer], address: str, done: str, patience: float | None = None) -> _Answer:
    """Returns the answer to a request, which is sent again while the store does not answer.

    Raises:
      FileNotFoundError, FileExistsError: as fsspec raises them.
      StoreError: all else that is the store's.
    """
    patience = PATIENCE if patience is None else patience
    pause, end = 1.0, time.monotonic() + patience
    while True:
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # this machine's
            if not _may_pass(error):
                raise StoreError(f"{address} cannot be {done}: {_reason(error, address)}") from error
            if time.monotonic() + pause > end:
                raise StoreError(
                    f"{address} cannot be {done}: the store does not answer ({_first_line(error)}); see whether it can "
                    "be reached from this machine, and run the same command again"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def is_passing(error: BaseException | None) -> bool:
    """Returns whether an error, or what led to it, is a store that does not answer, and may answer later."""
    while error is not None:
        # TensorStore, which Orbax writes with, raises all that is the store's as ValueError.
        if _may_pass(error) or (isinstance(error, ValueError) and re.search("UNAVAILABLE|DEADLINE_EXC", str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, PermissionError):
        return False
    module, code = type(error).__module__.partition(".")[0], getattr(error, "code", None)
    if module == "gcsfs":
        return str(code) in ("408", "429") or str(code).startswith("5")
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EBUSY):  # s3fs, of codes it has no errno for
        return True
    of_network = module in ("aiohttp", "requests") or type(error).__name__.endswith(
        ("ConnectionError", "TimeoutError", "ConnectionClosedError", "HTTPClientError", "TransportError")
    )
    return of_network or isinstance(error, TimeoutError | ConnectionError)


def _reason(error: Exception, address: str) -> str:
    said = _first_line(error)
    if re.search(r"forbidden|denied|anonymous|credential|unauthorized|permission|401|403|signature", said, re.I):
        variables = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "s3": "AWS_PROFILE, AWS_ACCESS_KEY_ID …"}[
            scheme_of(address)
        ]
        return f"no permission ({said}); see who this machine is logged in as ({variables}), and what that may do there"
    return said


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _no_bucket(address: str) -> StoreError:
    return StoreError(f"{address}: there is no bucket {bucket_of(address)}; create it first, or see how it is spelt")
