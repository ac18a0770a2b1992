"""Local files behind a file system whose requests take as long as those to an object store."""

from __future__ import annotations

import asyncio
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem


class Delayed(AsyncFileSystem):  # type: ignore[misc]
    """Files whose every request is answered after `latency` seconds."""

    protocol = "delayed"
    latency = 0.0

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        await asyncio.sleep(self.latency)
        with open(self._strip_protocol(path), "rb", buffering=0) as file:
            if start is not None:
                file.seek(start, 2 if start < 0 else 0)
            return file.read() if end is None else file.read(end - (start or 0))


def delay(seconds: float) -> Any:
    """The file system ``delayed://``, which waits so long from now on."""
    fsspec.register_implementation("delayed", Delayed, clobber=True)
    Delayed.latency = seconds
    return fsspec.filesystem("delayed")
