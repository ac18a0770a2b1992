"""An HTTP proxy in front of a server, that disturbs what passes through it.

A process of its own. Which requests it disturbs follows from a seed and from the request itself
(method, path, range, and how often just this was asked before), not from the order in which
requests come in: the same job meets the same faults on any number of threads. The `Host` header
goes through as it came, since S3 signs it.

    python -m tests.servers.proxy PORT UPSTREAM-PORT
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.servers.process import HOST, answers_http, free_port, running, wait_until

CONTROL = "/-/"
"""Paths of the proxy itself; no bucket has such a name."""

_MESSAGES = {
    "SlowDown": "Please reduce your request rate.",
    "InternalError": "We encountered an internal error. Please try again.",
    "TooManyRequests": "Too many requests.",
    "ExpiredToken": "The provided token has expired.",
    "InvalidAccessKeyId": "The access key id you provided does not exist in our records.",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to some requests."""

    kind: Literal["status", "reset", "truncate", "delay", "flip", "hold"]
    """An answer of our own; the connection reset, or closed in the middle of the body; an answer
    that comes late; one bit of the body turned over; the request kept until `Proxy.release`."""
    share: float = 1.0
    """Of the requests that it is about."""
    method: str = "."
    path: str = "."
    """Regular expressions that method and path match somewhere."""
    after: int = 0
    """How many requests that it is about pass before."""
    every: int = 1
    """Of the requests for one object, the first of so many."""
    times: int = 1_000_000
    """How often the same request is disturbed at most."""
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One request that came in."""

    method: str
    path: str
    range: str | None
    fault: str | None


@dataclass(frozen=True)
class Proxy:
    """A running proxy, as the tests see it."""

    endpoint: str

    def disturb(self, *faults: Fault) -> None:
        """Do this from now on, and count anew; the first fault that a request meets is taken."""
        self._call("faults", json.dumps([asdict(fault) for fault in faults]).encode())

    def release(self) -> None:
        """Let go what is held."""
        self._call("release", b"")

    @property
    def requests(self) -> list[Request]:
        """What came in since the last `disturb`, in order."""
        return [Request(*row) for row in json.loads(self._call("log"))]

    def count(self, method: str = ".", path: str = ".") -> int:
        """How many requests came in."""
        return sum(
            bool(re.search(method, r.method) and re.search(path, r.path)) for r in self.requests
        )

    @property
    def disturbed(self) -> Counter[str]:
        """How many requests met which kind of fault."""
        return Counter(r.fault for r in self.requests if r.fault)

    def _call(self, name: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}{CONTROL}{name}", body, timeout=60) as answer:
            found: bytes = answer.read()
        return found


@contextmanager
def proxy_of(endpoint: str, folder: Path) -> Iterator[Proxy]:
    """A proxy in front of a server, in a process of its own, until the end of the block."""
    port = free_port()
    upstream = str(urlsplit(endpoint).port)
    command = [sys.executable, "-m", "tests.servers.proxy", str(port), upstream]
    root = Path(__file__).parents[2]
    with running("proxy", command, folder, cwd=root) as process:
        proxy = Proxy(f"http://{HOST}:{port}")
        wait_until(lambda: answers_http(f"{proxy.endpoint}{CONTROL}log"), "the proxy", [process])
        yield proxy


@dataclass
class _State:
    """What the threads of the proxy share."""

    faults: list[dict[str, Any]] = field(default_factory=list)
    log: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    met: Counter[int] = field(default_factory=Counter)
    seen: Counter[tuple[int, str]] = field(default_factory=Counter)
    done: Counter[tuple[int, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    def begin(self, faults: list[dict[str, Any]]) -> None:
        """Start anew with other faults."""
        with self.lock:
            self.released.set()
            self.faults, self.released = faults, threading.Event()
            for counts in (self.asked, self.met, self.seen, self.done):
                counts.clear()
            self.log.clear()

    def meet(self, method: str, path: str, span: str | None) -> dict[str, Any] | None:
        """Log a request and say which fault it meets."""
        with self.lock:
            name = f"{method} {path} {span}"
            self.asked[name] += 1
            found = next(
                (
                    fault
                    for k, fault in enumerate(self.faults)
                    if self._meets(k, fault, name, method, path)
                ),
                None,
            )
            self.log.append((method, path, span, None if found is None else found["kind"]))
            return found

    def _meets(self, k: int, fault: dict[str, Any], name: str, method: str, path: str) -> bool:
        if not (re.search(fault["method"], method) and re.search(fault["path"], path)):
            return False
        self.met[k] += 1
        if self.met[k] <= fault["after"] or self.done[k, name] >= fault["times"]:
            return False
        self.seen[k, f"{method} {path}"] += 1
        if (self.seen[k, f"{method} {path}"] - 1) % fault["every"]:
            return False
        word = hashlib.sha256(f"{fault['seed']} {name} {self.asked[name]}".encode()).digest()
        if int.from_bytes(word[:8], "big") / 2**64 >= fault["share"]:
            return False
        self.done[k, name] += 1
        return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    state: _State
    upstream: int

    def do_GET(self) -> None:
        body = self._body()
        if self.path.startswith(CONTROL):
            self._control(body)
            return
        fault = self.state.meet(self.command, self.path, self.headers.get("Range"))
        kind = fault and fault["kind"]
        if kind == "delay":
            assert fault is not None
            time.sleep(fault["seconds"])
        elif kind == "hold":
            self.state.released.wait(60)
        elif kind == "status":
            assert fault is not None
            self._refuse(fault)
            return
        elif kind == "reset" and self.command != "PUT":
            self._reset()
            return
        status, headers, answer = self._forward(body)
        if kind == "reset":
            # Of a write, the object is there and only the answer is lost.
            self._reset()
            return
        if kind == "flip" and answer:
            at = len(answer) // 2
            answer = answer[:at] + bytes([answer[at] ^ 0x10]) + answer[at + 1 :]
        self._send(status, headers, answer, cut=kind == "truncate")

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is asked for."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _control(self, body: bytes) -> None:
        if self.path == f"{CONTROL}faults":
            self.state.begin(json.loads(body))
        elif self.path == f"{CONTROL}release":
            self.state.released.set()
        with self.state.lock:
            answer = json.dumps(self.state.log).encode()
        self._send(200, [], answer)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(HOST, self.upstream, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOPS:
                    connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _refuse(self, fault: dict[str, Any]) -> None:
        code = fault["code"]
        text = (
            f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>"
            f"<Message>{_MESSAGES.get(code, code)}</Message></Error>"
        )
        self._send(fault["status"], [("Content-Type", "application/xml")], text.encode())

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        told = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in _HOPS:
                self.send_header(name, value)
        if self.command == "HEAD":
            length = next((v for k, v in headers if k.lower() == "content-length"), "0")
            self.send_header("Content-Length", length)
        elif status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        if "date" not in told:
            self.send_header("Date", self.date_time_string())
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and body:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _reset(self) -> None:
        """Close the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.close()
        self.rfile.close()
        self.connection.close()


_HOPS = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error of ours."""


def main() -> None:
    """Serve until stopped."""
    port, upstream = map(int, sys.argv[1:3])
    handler = type("Handler", (_Handler,), {"state": _State(), "upstream": upstream})
    _Server((HOST, port), handler).serve_forever()


if __name__ == "__main__":
    main()
