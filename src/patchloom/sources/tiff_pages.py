"""Pages of a TIFF file: where its tiles and strips lie, and reading them.

A file is parsed by tifffile once a process and run; what stays in memory of it are offsets and
sizes as columns. Bytes are fetched in batches of ranges, and decoded by tifffile's functions, which
call imagecodecs.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError, PatchloomError, SourceChangedError
from patchloom.grid import ChunkGrid
from patchloom.image import Ints, Reads
from patchloom.location import Location
from patchloom.sources.block_file import BlockFile
from patchloom.sources.fetching import Fetching
from patchloom.sources.files import FileSource, package
from patchloom.sources.lzw import check_lzw

__all__ = ["PageReader", "Shelf", "dimensions_of", "opened", "shelf_of"]

_STRIPS = 256 * 1024
"""Decoded bytes of a chunk up to which strips are joined: many writers make them of a few rows."""
_LARGEST = 2**31
"""Decoded bytes of a chunk above which a file is refused."""
_FILES = 32
"""Files whose offsets a process keeps."""
_LZW = 5
"""The compression's number in TIFF."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Shelf:
    """How the pixels of one array lie in the pages of a file.

    Dimensions are those of the array in stored order: of the sequence of pages, then of a page:
    separate samples, depth, rows, columns, samples of a pixel. Those of one pixel are left out,
    but for rows and columns.
    """

    axes: str
    """tifffile's letter for each dimension."""
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    pages: tuple[int, ...]
    """Extents of the sequence of pages, those of one page included in none."""
    page: tuple[int, int, int, int, int]
    """Extents of a page: separate samples, depth, rows, columns, samples of a pixel."""
    segment: tuple[int, int, int, int, int]
    """The same of a tile or strip."""
    joined: int
    """Strips of a chunk; 1 for tiles."""

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tiles or strips of a page on each of its five dimensions."""
        return tuple(-(-n // s) for n, s in zip(self.page, self.segment, strict=True))

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of a page's five dimensions the array has."""
        return tuple(k for k, n in enumerate(self.page) if n > 1 or k in (2, 3))

    def places(self, chunk: Sequence[int]) -> tuple[int, list[int]]:
        """The page that holds a chunk, and the numbers of its tiles or strips there."""
        n = len(self.pages)
        page = int(np.ravel_multi_index(chunk[:n], self.pages)) if n else 0
        index = [0] * 5
        for k, i in zip(self.kept, chunk[n:], strict=True):
            index[k] = i
        first = index[2] * self.joined
        rows = range(first, min(first + self.joined, self.counts[2]))
        s, d, _, x, _ = index
        _, depth, height, width, _ = self.counts
        return page, [((s * depth + d) * height + y) * width + x for y in rows]


def dimensions_of(series: Any) -> list[tuple[str, int]]:
    """Letter (as tifffile has it) and extent of each dimension of a series, those of 1 too."""
    # tifffile showed those of one pixel apart before its version 2026.5.2.
    told = hasattr(series, "get_axes")
    axes = series.get_axes(False) if told else series.axes
    shape = series.get_shape(False) if told else series.shape
    return [(letter, int(n)) for letter, n in zip(axes, shape, strict=True)]


def shelf_of(series: Any, what: str) -> Shelf:
    """How a series of pages lies in its file; nothing but metadata is looked at.

    Parameters
    ----------
    series
        A ``tifffile.TiffPageSeries``, or one of its levels.
    what
        The file, for errors.

    Raises
    ------
    NotAnArrayError
        If its pixels cannot be found tile by tile, or the tables of the file contradict its shape.
    """
    first = series.keyframe
    if 0 in first.shaped:
        raise NotAnArrayError(
            f"every axis of an image has at least one pixel, got {first.shape} ({first.axes}) in "
            f"{what}; leave it out"
        )
    dtype = np.dtype(series.dtype)
    page = tuple(int(n) for n in first.shaped)
    dimensions = dimensions_of(series)
    sequence = [(letter, n) for letter, n in dimensions if n != 1]
    inside = [n for n in page if n > 1]
    split = len(sequence) - len(inside)
    pages = tuple(n for _, n in sequence[:split])
    if (
        series.transform is not None
        or split < 0
        or [n for _, n in sequence[split:]] != inside
        or math.prod(pages) != len(series)
    ):
        raise NotAnArrayError(
            f"the pages of a TIFF image are planes of one array, but those of {what} are of "
            f"{page} (samples, depth, rows, columns, samples) for shape "
            f"{tuple(n for _, n in dimensions)} ({''.join(letter for letter, _ in dimensions)}); "
            "convert it to OME-Zarr or write it again with tifffile"
        )
    letters = iter([letter for letter, _ in sequence[split:]])
    kept = [k for k, n in enumerate(page) if n > 1 or k in (2, 3)]
    named = "".join(next(letters) if page[k] > 1 else "SZYXS"[k] for k in kept)
    if first.is_tiled:
        segment = (1, int(first.tiledepth), int(first.tilelength), int(first.tilewidth), page[4])
        joined = 1
    else:
        segment = (1, 1, int(first.rowsperstrip), page[3], page[4])
        size = max(1, math.prod(segment) * dtype.itemsize)
        joined = max(1, min(_STRIPS // size, -(-page[2] // max(1, segment[2]))))
    chunk = (*segment[:2], segment[2] * joined, *segment[3:])
    nbytes = math.prod(chunk) * dtype.itemsize
    if min(segment) < 1 or not 0 < nbytes <= _LARGEST:
        raise NotAnArrayError(
            f"a tile or strip of a TIFF file is decoded as a whole and has at most {_LARGEST:,} "
            f"bytes, got {chunk} pixels of {dtype} (samples, depth, rows, columns, samples) in "
            f"{what}; write it again in tiles"
        )
    shelf = Shelf(
        axes="".join(letter for letter, _ in sequence[:split]) + named,
        shape=(*pages, *(page[k] for k in kept)),
        chunks=(*([1] * len(pages)), *(chunk[k] for k in kept)),
        dtype=dtype.newbyteorder("="),
        pages=pages,
        page=page,  # type: ignore[arg-type]
        segment=segment,
        joined=joined,
    )
    have = min(len(first.dataoffsets), len(first.databytecounts))
    need = math.prod(shelf.counts)
    if have < need:
        raise NotAnArrayError(
            f"a TIFF page says where each of its tiles or strips lies, but {what} tells {have:,} "
            f"places for {need:,}; write it again"
        )
    return shelf


@contextmanager
def opened(fetching: Fetching, size: int) -> Iterator[Any]:
    """A file, open as tifffile sees it, while the block lasts.

    Parameters
    ----------
    fetching
        What reads it.
    size
        Its bytes.

    Raises
    ------
    NotAnArrayError
        If it is no TIFF, or broken.
    """
    location = fetching.location
    tifffile = package("tifffile", "tiff", location)
    package("imagecodecs", "tiff", location)
    name = PurePosixPath(location.shown).name
    file = BlockFile(fetching, size)
    try:
        _check_chain(file, size, name)
        file.seek(0)
        # Its own name says what some whole-slide formats are; no other file is ever opened.
        with tifffile.TiffFile(file, name=name) as tif:
            yield tif
    except PatchloomError:
        raise
    except Exception as error:  # whatever a broken file makes of its parser
        raise NotAnArrayError(
            f"{location.shown!r} cannot be read as TIFF: {location.describe(error)}; copy it "
            "again, or name it by what it is"
        ) from None


def _check_chain(file: BlockFile, size: int, name: str) -> None:
    """Refuse pages that follow each other in a circle, which tifffile follows long."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "little", b"MM": "big"}.get(head[:2])
    if order is None:
        return  # tifffile says what is wrong

    def number(data: bytes) -> int:
        return int.from_bytes(data, order)  # type: ignore[arg-type]

    big = number(head[2:4]) == 43
    counted, tag, wide = (8, 20, 8) if big else (2, 12, 4)
    if name.lower().endswith(".ndpi") and not big:
        wide = 8
    at = number(head[8:16] if big else head[4 : 4 + wide])
    seen: set[int] = set()
    while 0 < at < size:
        if at in seen:
            raise ValueError(f"page {len(seen)} is followed by an earlier one")
        seen.add(at)
        file.seek(at)
        file.seek(at + counted + tag * number(file.read(counted)))
        at = number(file.read(wide))


Decode = Callable[..., tuple[Any, Any, Any]]


@dataclass(frozen=True)
class _Pages:
    """What a reader needs of a parsed file: no open file, no page."""

    shelf: Shelf
    size: int
    offsets: list[npt.NDArray[np.int64]]
    """Of each page: first byte of each tile or strip; empty for a page that is missing."""
    nbytes: list[npt.NDArray[np.int64]]
    tables: list[dict[str, Any]]
    """JPEG tables of each page."""
    decode: Decode
    fill: float


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    pages: _Pages | None = None


_KNOWN: OrderedDict[Any, _Entry] = OrderedDict()


class PageReader:
    """Reads chunks of a TIFF file: tiles, or a few strips.

    The source's layout has ``series`` and ``level`` (numbers), ``shape``, ``chunks``, ``dtype``.
    """

    def __init__(self, source: FileSource) -> None:
        self.reads = Reads(codecs="file")
        self._source = source
        self._fetching = source.fetching(self.reads)
        self._named = source.location.shown
        layout = source.layout
        self._grid = ChunkGrid(tuple(layout["shape"]), tuple(layout["chunks"]))

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Read chunks: int64[n, ndim] indices -> arrays in stored axis order."""
        pages = self._pages
        wanted = [pages.shelf.places(row) for row in np.asarray(chunks).tolist()]
        spans: list[tuple[str, int, int]] = []
        where: list[int | None] = []
        for page, numbers in wanted:
            for number in numbers:
                span = self._span(pages, page, number)
                where.append(None if span is None else len(spans))
                spans += [] if span is None else [span]
        data = iter(self._fetching.spans(spans))
        encoded = iter([None if k is None else next(data) for k in where])
        found = []
        for row, (page, numbers) in zip(np.asarray(chunks).tolist(), wanted, strict=True):
            parts = itertools.islice(encoded, len(numbers))
            start, stop = self._grid.box(row)
            extent = [b - a for a, b in zip(start, stop, strict=True)]
            found.append(self._decoded(pages, page, numbers, list(parts), extent))
            self.reads.chunks += 1
        return found

    def _decoded(
        self, pages: _Pages, page: int, numbers: list[int], parts: list[Any], extent: list[int]
    ) -> npt.NDArray[Any]:
        """The pixels of one chunk, clipped to the image."""
        shelf = pages.shelf
        sizes = dict(zip(shelf.kept, extent[len(shelf.pages) :], strict=True))
        depth, height, *line = (sizes.get(k, 1) for k in range(1, 5))
        step = shelf.segment[2]
        rows = [(depth, min(step, height - k * step), *line) for k in range(len(numbers))]
        found = [
            self._segment(pages, page, number, data, shape)
            for number, data, shape in zip(numbers, parts, rows, strict=True)
        ]
        joined = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        return joined.reshape(extent)

    def _segment(
        self, pages: _Pages, page: int, number: int, data: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """The pixels of a tile or strip: depth, rows, columns, samples."""
        dtype = pages.shelf.dtype
        if data is None:
            return np.full(shape, pages.fill, dtype)
        cut = self._cut(pages, page, number)
        try:
            pixels, _, _ = pages.decode(data, number, **pages.tables[page])
            pixels = pixels[tuple(slice(0, n) for n in shape)]
            if pixels.shape != shape or not np.can_cast(pixels.dtype, dtype, "safe"):
                raise ValueError(f"it holds {pixels.shape} of {pixels.dtype}")
        except Exception as error:  # codecs have errors of their own
            why = self._source.location.describe(error) + cut
            raise self._broken(page, number, why) from error
        if cut:
            raise self._broken(page, number, cut)
        return np.ascontiguousarray(pixels, dtype)

    def _span(self, pages: _Pages, page: int, number: int) -> tuple[str, int, int] | None:
        """Where a tile or strip lies; None if it was never written."""
        offsets, nbytes = pages.offsets[page], pages.nbytes[page]
        if not offsets.size:
            return None
        if number >= min(offsets.size, nbytes.size):
            raise self._broken(page, number, f"the page tells {offsets.size:,} places")
        start, length = int(offsets[number]), int(nbytes[number])
        if length == 0 or start == 0:
            return None
        if length < 0 or not 0 <= start < pages.size:
            raise self._broken(page, number, f"the file has no byte {start:,}")
        return "", start, min(start + length, pages.size)

    def _cut(self, pages: _Pages, page: int, number: int) -> str:
        """What to say of a tile or strip that lies beyond the end of the file; else ``""``.

        Decoders fill up what is missing: nothing may be made of it.
        """
        stop = int(pages.offsets[page][number]) + int(pages.nbytes[page][number])
        return f" (the file ends before byte {stop:,})" if stop > pages.size else ""

    def _broken(self, page: int, number: int, why: str) -> ChunkError:
        return ChunkError(
            f"every chunk that a patch needs must be readable, but tile or strip {number} of page "
            f"{page} of {self._named} is not: {why}; copy the file again, or leave the image out"
        )

    @cached_property
    def _pages(self) -> _Pages:
        """Where everything lies; parsed once a process and run."""
        source, fetching = self._source, self._fetching
        state: Any = source.since
        if state is None:
            # Nobody says that the file stays as it is: what is known holds for one state of it.
            state = fetching.state("")
        if state == "":
            return _parsed(source, fetching)
        layout = source.layout
        key = (fetching.fs, fetching.root, state, layout["series"], layout["level"])
        with _LOCK:
            entry = _KNOWN.setdefault(key, _Entry())
            _KNOWN.move_to_end(key)
            while len(_KNOWN) > _FILES:
                _KNOWN.popitem(last=False)
        with entry.lock:
            if entry.pages is None:
                entry.pages = _parsed(source, fetching)
            return entry.pages


def _parsed(source: FileSource, fetching: Fetching) -> _Pages:
    location, layout = source.location, source.layout
    size = _size(location)
    try:
        with opened(fetching, size) as tif:
            series = tif.series[layout["series"]].levels[layout["level"]]
            shelf = shelf_of(series, repr(location.shown))
            said = (list(shelf.shape), list(shelf.chunks), shelf.dtype.str)
            if said != (list(layout["shape"]), list(layout["chunks"]), layout["dtype"]):
                raise fetching.changed("", f"is now of shape {shelf.shape} and {shelf.dtype}")
            pages = [series[k] for k in range(len(series))]
            return _Pages(
                shelf=shelf,
                size=size,
                offsets=[_column(page and page.dataoffsets) for page in pages],
                nbytes=[_column(page and page.databytecounts) for page in pages],
                tables=[_tables(page) for page in pages],
                decode=_decode_of(series.keyframe),
                fill=series.keyframe.nodata,
            )
    except NotAnArrayError as error:
        raise ChunkError(f"{error}") from error


def _decode_of(page: Any) -> Decode:
    """What decodes a tile or strip of a page; LZW is looked through before."""
    decode: Decode = page.decode
    if page.compression != _LZW:
        return decode

    def checked(data: Any, number: int, **tables: Any) -> tuple[Any, Any, Any]:
        stream = bytes(data)
        if page.fillorder == 2:
            bits = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")
            stream = np.packbits(bits).tobytes()
        check_lzw(stream)
        return decode(data, number, **tables)

    return checked


def _size(location: Location) -> int:
    try:
        return location.size()
    except FileNotFoundError:
        raise SourceChangedError(
            f"an image stays as it is while it is read, but {location.shown} vanished; put it back "
            "and run the same call again"
        ) from None


def _column(values: Any) -> npt.NDArray[np.int64]:
    return np.asarray(() if values is None else values, np.uint64).astype(np.int64)


def _tables(page: Any) -> dict[str, Any]:
    """What decoding a JPEG needs beside its bytes."""
    names = ("jpegtables", "jpegheader")
    found = {name: getattr(page, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}
