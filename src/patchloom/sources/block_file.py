"""BlockFile: a stored object as a file that packages can seek in, fetched and kept in blocks."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

from patchloom.errors import SourceError
from patchloom.sources.fetching import Fetching

__all__ = ["BlockFile"]

_BLOCK = 256 * 1024
"""Bytes of a block."""
_KEPT = 64
"""Blocks that are kept; a read of more than half as many bypasses them."""


class BlockFile(io.RawIOBase):
    """The one object at a location, read-only, through its `Fetching`.

    Requests are counted and tried again there, and all bytes are of one state of the object.

    Parameters
    ----------
    fetching
        What reads it.
    size
        Bytes of the object.

    Raises
    ------
    SourceError
        If the size is not known (-1): without it nothing can be found from the end.
    """

    def __init__(self, fetching: Fetching, size: int) -> None:
        super().__init__()
        if size < 0:
            raise SourceError(
                f"a file that is read in places has a size that its store tells, but that of "
                f"{fetching.location.shown!r} does not; copy the file to a disk or object store"
            )
        self._fetching, self._size, self._at = fetching, size, 0
        self._blocks: OrderedDict[int, Any] = OrderedDict()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, from the start, the position or the end."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file reaches; the number of bytes."""
        into = memoryview(buffer).cast("B")
        start = self._at
        stop = max(start, min(start + len(into), self._size))
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        if last - first > _KEPT // 2:
            [data] = self._fetching.spans([("", start, stop)])
            into[: len(data)] = data
            self._at += len(data)
            return len(data)
        self._fetch([k for k in range(first, last) if k not in self._blocks])
        for k in range(first, last):
            self._blocks.move_to_end(k)
            low, high = max(start, k * _BLOCK), min(stop, (k + 1) * _BLOCK)
            part = self._blocks[k][low - k * _BLOCK : high - k * _BLOCK]
            into[low - start : low - start + len(part)] = part
            self._at += len(part)
            if len(part) < high - low:
                break  # it became shorter: packages say what they miss
        while len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)
        return self._at - start

    def _fetch(self, blocks: list[int]) -> None:
        if blocks:
            spans = [("", k * _BLOCK, min((k + 1) * _BLOCK, self._size)) for k in blocks]
            self._blocks.update(zip(blocks, self._fetching.spans(spans), strict=True))
