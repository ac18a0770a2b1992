"""A plain web server to test against: the files of one folder, with ranges, and a log."""

from __future__ import annotations

import html
import mimetypes
import shutil
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.servers.process import HOST
from tests.servers.ranges import UnsatisfiableRangeError, parse_range

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered."""

    method: str
    path: str
    """The decoded path below the folder, without a leading slash."""
    range: str | None
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """A running web server, as the tests see it."""

    endpoint: str
    """Its address, ``http://127.0.0.1:PORT``."""
    folder: Path
    requests: list[Request] = field(default_factory=list, repr=False)
    """What was asked for so far, in order; ``requests.clear()`` starts anew."""
    kind: Literal["http"] = "http"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What ``fsspec.filesystem("http", **options)`` takes."""
        return {}

    def url(self, path: str = "") -> str:
        """The address of a file or folder below the served one."""
        return f"{self.endpoint}/{urllib.parse.quote(path)}"


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # clients connect many at a time; those beyond it wait for seconds


@contextmanager
def serve_http(folder: Path) -> Iterator[HttpServer]:
    """Serve a folder, read-only, from a thread of this process; stop with the block."""
    requests: list[Request] = []

    class Handler(FolderHandler):
        root = folder.resolve()
        log = requests

    server = _Server((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield HttpServer(
            endpoint=f"http://{HOST}:{server.server_port}", folder=folder, requests=requests
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


class FolderHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of ``root``, and lists folders as links."""

    root: Path
    log: list[Request]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits for the client's delayed ACK
    timeout = 60

    def do_GET(self) -> None:
        """Answer with the file, or the asked range of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean; ``log`` has the requests."""

    def _answer(self, *, with_body: bool) -> None:
        target = (self.root / self._path()).resolve()
        with suppress(BrokenPipeError, ConnectionResetError):
            if target.is_relative_to(self.root) and target.is_dir():
                self._send_listing(target, with_body)
            elif target.is_relative_to(self.root) and target.is_file():
                self._send_file(target, with_body)
            else:
                self._send_head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})

    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")

    def _send_head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        # Logged before it is sent: who has the answer also finds it in the log.
        asked = self.headers.get("Range")
        self.log.append(Request(self.command, self._path(), asked, int(status)))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send_listing(self, folder: Path, with_body: bool) -> None:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
        links = "\n".join(
            f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>' for name in names
        )
        body = f"<!doctype html>\n<html><body>\n{links}\n</body></html>\n".encode()
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body))}
        self._send_head(HTTPStatus.OK, headers)
        if with_body:
            self.wfile.write(body)

    def _send_file(self, path: Path, with_body: bool) -> None:
        stat = path.stat()
        size = stat.st_size
        try:
            part = parse_range(self.headers.get("Range"), size)
        except UnsatisfiableRangeError:
            self._send_head(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                {"Content-Range": f"bytes */{size}", "Content-Length": "0"},
            )
            return
        start, stop = part or (0, size)
        headers = {
            "Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
            "ETag": f'"{stat.st_mtime_ns:x}-{size:x}"',
            "Last-Modified": self.date_time_string(int(stat.st_mtime)),
        }
        status = HTTPStatus.OK
        if part is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send_head(status, headers)
        if with_body:
            with path.open("rb") as file:
                file.seek(start)
                if part is None:
                    shutil.copyfileobj(file, self.wfile, _COPY_BYTES)
                else:
                    self.wfile.write(file.read(stop - start))
