"""Whole files: arrays that are one chunk, because nothing of them decodes without the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Ints, Reads
from patchloom.sources.files import FileSource

__all__ = ["WholeReader"]

Pixels = npt.NDArray[Any]
Bytes = bytes | memoryview


class WholeReader:
    """Gets a file, or one stretch of it, in one request and decodes it.

    Parameters
    ----------
    source
        The file.
    decode
        Makes the array of the bytes, in stored axis order and native byte order. It raises
        `ChunkError` if they are not what the file was opened as.
    span
        First byte and last byte + 1 of the stretch; None for all.
    """

    def __init__(
        self,
        source: FileSource,
        decode: Callable[[FileSource, Bytes], Pixels],
        span: tuple[int, int] | None = None,
    ) -> None:
        self.reads = Reads(codecs="file")
        self._source, self._decode, self._span = source, decode, span
        self._fetching = source.fetching(self.reads)

    def read(self, chunks: Ints) -> list[Pixels]:
        """The array, as often as it is asked for: int64[n, ndim] indices, all 0."""
        n = len(np.asarray(chunks))
        if not n:
            return []
        start, stop = self._span or (None, None)
        [data] = self._fetching.get([("", start, stop)])
        if data is None:
            raise self._fetching.changed("", "vanished while it was read")
        self.reads.chunks += 1
        return [self._decode(self._source, data)] * n
