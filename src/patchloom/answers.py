"""Answers: the bytes of stored objects, with what the store says about the object they are of."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

__all__ = ["Answer", "Range", "ask"]

Bytes = bytes | memoryview
Range = tuple[str, int | None, int | None]
"""Path, first byte (negative: of the last so many), last byte + 1; twice None is the whole."""
_TOGETHER = 256
"""Requests of one batch that are under way at a time."""


@dataclass(frozen=True)
class Answer:
    """Bytes of one object."""

    data: Bytes
    tag: str | None = None
    """Differs if the object is another one (ETag; time, size and file on a disk); None if the
    store does not tell."""
    written: float | None = None
    """When the object was written, or a little before, in seconds since 1970 by our clock; None if
    the store does not tell, or says a time to come."""


def ask(fs: AbstractFileSystem, ranges: Sequence[Range]) -> list[Answer | Exception | None]:
    """One batch of reads, sent together where the file system can.

    Returns
    -------
    list
        Of each, in order: the answer, None where no object is, or what went wrong.
    """
    if isinstance(fs, LocalFileSystem):
        return [_caught(_local, one) for one in ranges]
    # One that wraps another is asynchronous only if that is.
    layers = (fs, getattr(fs, "fs", fs))
    if not all(getattr(layer, "async_impl", False) for layer in layers):
        return [_caught(lambda one: _plain(fs, one), one) for one in ranges]
    if not ranges:
        return []
    found: list[Answer | Exception | None] = sync(fs.loop, _together, fs, ranges)
    return found


def _caught(read: Any, one: Range) -> Answer | Exception | None:
    try:
        answer: Answer = read(one)
    except Exception as error:  # each file system has errors of its own
        return _absent(error)
    return answer


def _absent(error: Exception) -> Exception | None:
    missing = FileNotFoundError | NotADirectoryError | KeyError
    return None if isinstance(error, missing) else error


def _local(one: Range) -> Answer:
    path, start, stop = one
    # One read of the whole range: a buffer in between would only copy.
    with open(path, "rb", buffering=0) as file:
        if start is not None:
            file.seek(start, 2 if start < 0 else 0)
        data = file.read() if stop is None else file.read(stop - (start or 0))
        told = os.fstat(file.fileno())
    tag = f"{told.st_ino:x}-{told.st_mtime_ns:x}-{told.st_size:x}"
    # A time to come that was given to the file passes while we run; when that was done does not.
    written = min(told.st_mtime, told.st_ctime)
    return Answer(data, tag, written if written <= time.time() else None)


def _plain(fs: AbstractFileSystem, one: Range) -> Answer:
    path, start, stop = one
    return Answer(fs.cat_file(path, start=start, end=stop))


async def _together(
    fs: AbstractFileSystem, ranges: Sequence[Range]
) -> list[Answer | Exception | None]:
    room = asyncio.Semaphore(_TOGETHER)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    fetch = next((_FETCH[p] for p in protocols if p in _FETCH), _any)

    async def one(asked: Range) -> Answer | Exception | None:
        async with room:
            try:
                answer: Answer = await fetch(fs, *asked)
            except Exception as error:
                return _absent(error)
            return answer

    return list(await asyncio.gather(*map(one, ranges)))


async def _any(fs: Any, path: str, start: int | None, stop: int | None) -> Answer:
    return Answer(await fs._cat_file(path, start=start, end=stop))


async def _s3(fs: Any, path: str, start: int | None, stop: int | None) -> Answer:
    # One GET. s3fs' own reading of a whole object asks for its size first.
    bucket, key, version = fs.split_path(path)
    more = {**fs.req_kw, **({"VersionId": version} if version else {})}
    if start is not None:
        more["Range"] = await fs._process_limits(path, start, stop)
    sent = time.time()
    told = await fs._call_s3("get_object", Bucket=bucket, Key=key, **more)
    try:
        data = await told["Body"].read()
    finally:
        told["Body"].close()
    headers = told["ResponseMetadata"]["HTTPHeaders"]
    return Answer(data, told.get("ETag"), _written(headers, sent))


async def _http(fs: Any, path: str, start: int | None, stop: int | None) -> Answer:
    options = dict(fs.kwargs)
    if start is not None:
        limits = await fs._process_limits(path, start, stop)
        options["headers"] = {**options.get("headers", {}), "Range": limits}
    session = await fs.set_session()
    sent = time.time()
    async with session.get(fs.encode_url(path), **options) as told:
        data = await told.read()
        fs._raise_not_found_for_status(told, path)
        if start is not None and told.status == 200:
            data = data[start:stop]  # a server without ranges sends the whole object
        return Answer(data, told.headers.get("etag"), _written(told.headers, sent))


_FETCH = {"s3": _s3, "http": _http}


def _written(headers: Any, sent: float) -> float | None:
    """When an object was written: its age by the clock of its server, taken from ours."""
    try:
        said, written = (parsedate_to_datetime(headers[k]) for k in ("date", "last-modified"))
        # A cache on the way hands on the date of its server, and says how long ago that was.
        age = (said - written).total_seconds() + float(headers.get("age", 0))
    except (KeyError, TypeError, ValueError):  # also of one date with a zone and one without
        return None
    # Both are whole seconds, rounded down, and the answer is later than the request: if anything
    # this is too early, so that nothing is refused that was written before.
    return sent - age - 1 if age >= 0 else None
