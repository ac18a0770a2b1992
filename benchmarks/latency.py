"""A server seen from far away: each request reaches it later, and is counted.

A process of its own that passes bytes on as they are. A client sends the next request on a
connection when it has the last answer, so each piece that a client sends is held back for as long
as a request takes on its way.

    python -m benchmarks.latency PORT UPSTREAM-PORT MILLISECONDS
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

HOST = "127.0.0.1"
VERBS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


@dataclass(frozen=True)
class Distant:
    """A server behind a delay."""

    endpoint: str
    process: subprocess.Popen[str]

    def requests(self) -> int:
        """How many came in since this was last asked."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def distant(endpoint: str, milliseconds: float) -> Iterator[Distant]:
    """Put a delay in front of a server on this machine, until the end of the block."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    upstream = str(urlsplit(endpoint).port)
    command = [sys.executable, "-m", "benchmarks.latency", str(port), upstream, str(milliseconds)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it listens
            yield Distant(f"http://{HOST}:{port}", process)
        finally:
            process.terminate()


class _Delay:
    """What all connections share."""

    def __init__(self, upstream: int, seconds: float) -> None:
        self.upstream, self.seconds, self.requests = upstream, seconds, 0

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Pass one connection on."""
        try:
            server, out = await asyncio.open_connection(HOST, self.upstream)
        except OSError:
            answer.close()
            return
        back = asyncio.create_task(_pipe(server, answer))
        with contextlib.suppress(ConnectionError):
            while piece := await client.read(2**18):
                if piece.startswith(VERBS):
                    self.requests += 1
                    await asyncio.sleep(self.seconds)
                out.write(piece)
                await out.drain()
        out.close()
        await back

    def count(self) -> None:
        """Answer a line with the number of requests, and begin anew."""
        if not sys.stdin.readline():
            raise SystemExit
        print(json.dumps(self.requests), flush=True)
        self.requests = 0


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(2**18):
            target.write(piece)
            await target.drain()
    target.close()


async def _main(port: int, upstream: int, milliseconds: float) -> None:
    delay = _Delay(upstream, milliseconds / 1000)
    server = await asyncio.start_server(delay.serve, HOST, port, limit=2**18)
    asyncio.get_running_loop().add_reader(sys.stdin, delay.count)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
