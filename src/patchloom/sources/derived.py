"""Masks made of another array's pixels when they are read, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, made_of, overlap
from patchloom.sources.rules import Rule, rule_of

__all__ = ["DerivedSource", "bare", "derived", "gathered"]

_FETCH = 64 * 2**20
"""Bytes of the other array that are looked at together."""


@dataclass(frozen=True)
class DerivedSource:
    """A mask that a rule makes of an image, where and when it is read."""

    image: Image
    rule: Rule

    @property
    def addressable(self) -> bool:
        """Whether a worker can read the image by itself."""
        return self.image.source.addressable

    def reader(self) -> ChunkReader:
        """A reader that counts the image's chunks."""
        return _DerivedReader(self)

    def without_pixels(self) -> DerivedSource:
        """A source that only a graph's blocks can serve."""
        return self.filled(self.image.source.without_pixels())

    def filled(self, source: Any) -> DerivedSource:
        """The same rule with the pixels of another source."""
        return replace(self, image=replace(self.image, source=source))

    def identity(self) -> dict[str, Any]:
        """What it makes of which level."""
        return {
            **made_of(self.image.source),
            "rule": self.rule.to_document(),
            "level": self.image.level,
        }

    def to_document(self) -> dict[str, Any]:
        """The image and the rule."""
        return {
            "kind": "derived",
            "image": self.image.to_document(),
            "rule": self.rule.to_document(),
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> DerivedSource:
        """Inverse of `to_document`."""
        return cls(Image.from_document(document["image"], options), rule_of(document["rule"]))

    def lazy(self, image: Image) -> Any:
        """The mask as Dask, in its chunks."""
        axes, array = self.image.axes, self.image.source.lazy(self.image)
        if not axes.has_channel:
            array, at = array[None], 0
        else:
            at = axes.names.index("c")
            if self.rule.channel is not None:
                some = (slice(None),) * at + (slice(self.rule.channel, self.rule.channel + 1),)
                array = array[some]
        chunks = list(image.grid.chunks)
        array = array.rechunk((*chunks[:at], -1, *chunks[at:]))
        make = partial(_made, self.rule, at, image.axes.names)
        none = np.zeros((0,) * image.ndim, np.bool_)
        return array.map_blocks(make, dtype=np.bool_, drop_axis=at, meta=none)


def derived(image: Image, rule: Rule) -> Image:
    """The mask that a rule makes of an image: on its pixels, without the channel axis."""
    axes = Axes(image.axes.names.replace("c", ""))
    grid = image.grid.pick(image.axes.pick(axes.names))
    if rule.needs_planes:
        extents = zip(axes.names, grid.shape, grid.chunks, strict=True)
        grid = ChunkGrid(grid.shape, tuple(n if a in "yx" else c for a, n, c in extents))
    return Image(
        id=image.id,
        uri=image.uri,
        axes=axes,
        shape=grid.shape,
        dtype=np.dtype(np.bool_),
        grid=grid,
        source=DerivedSource(bare(image), rule),
        level=image.level,
        spacing=image.spacing,
        origin=image.origin,
        unit=image.unit,
    )


def bare(image: Image) -> Image:
    """An image without what does not touch its pixels."""
    return replace(image, mask=None, labels=None, target=None, more={}, pyramid=None, metadata={})


def gathered(
    image: Image, reader: ChunkReader, grid: ChunkGrid, chunks: Ints, channel: int | None
) -> Iterator[tuple[tuple[int, ...], npt.NDArray[Any]]]:
    """Pixels of an image under the chunks of another grid, which has no channel axis.

    Each chunk that several of them need is read once, as long as they come together.

    Parameters
    ----------
    image, reader
        The image and what reads its chunks.
    grid, chunks
        Another grid over its pixels, and int64[n, ndim] indices in it.
    channel
        The one channel to read; None for all.

    Yields
    ------
    (start, pixels)
        First pixel, and pixels with the channel axis in front.
    """
    axes = image.axes
    at = axes.names.index("c") if axes.has_channel else None
    n_channels = 1 if at is None or channel is not None else image.shape[at]
    size = math.prod(min(c, n) for c, n in zip(grid.chunks, grid.shape, strict=True))
    together = max(1, _FETCH // max(1, size * n_channels * image.dtype.itemsize))
    for some in np.split(chunks, range(together, len(chunks), together)):
        boxes, needed = [], []
        for row in some.tolist():
            start, stop = (list(v) for v in grid.box(row))
            if at is not None:
                start.insert(at, channel or 0)
                stop.insert(at, image.shape[at] if channel is None else channel + 1)
            low = image.grid.chunk_of(start)
            high = image.grid.chunk_of(np.asarray(stop) - 1)
            ranges = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
            index = np.stack([m.ravel() for m in np.meshgrid(*ranges, indexing="ij")], -1)
            boxes.append((start, stop, index))
            needed.append(index)
        rows = np.unique(np.concatenate(needed), axis=0) if needed else chunks
        read = dict(zip(map(tuple, rows.tolist()), reader.read(rows), strict=True))
        for start, stop, index in boxes:
            out = np.zeros([b - a for a, b in zip(start, stop, strict=True)], image.dtype)
            for key in map(tuple, index.tolist()):
                into, of = overlap(image.grid.box(key)[0], read[key].shape, start, out.shape)
                out[into] = read[key][of]
            first = tuple(a for k, a in enumerate(start) if k != at)
            yield first, out[None] if at is None else np.moveaxis(out, at, 0)


class _DerivedReader:
    def __init__(self, source: DerivedSource) -> None:
        self._reader = source.image.source.reader()
        self._mask = derived(source.image, source.rule)
        self._source = source
        self.reads = self._reader.reads

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        source, mask = self._source, self._mask
        parts = gathered(
            source.image, self._reader, mask.grid, np.asarray(chunks), source.rule.channel
        )
        return [_made(source.rule, 0, mask.axes.names, pixels) for _, pixels in parts]


def _made(rule: Rule, at: int, names: str, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """A rule put to a block: its channels lie along one axis, the others are named."""
    # Planes last: a rule may look at them as a whole.
    order = sorted(range(len(names)), key=lambda k: "tszyx".index(names[k]))
    moved = np.moveaxis(pixels, at, 0).transpose(0, *(1 + k for k in order))
    found = rule.covered(moved).transpose(np.argsort(order))
    return np.ascontiguousarray(found)
