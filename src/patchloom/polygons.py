"""Polygons: outlines as columns, and the pixels whose centres lie inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.randomness import digest, digest_of

__all__ = ["Polygons"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_COLUMNS = ("vertex", "ring", "polygon")
_PIECE = 2**21
"""Crossings that are looked at together."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Many polygons with holes, as columns.

    Coordinates count pixels from the edge of the first: the centre of pixel k is at k + 0.5.
    """

    vertex: Floats
    """(y, x) of each vertex, ring after ring: float64[n, 2]. A ring closes by itself."""
    ring: Ints
    """Where each ring begins among the vertices, and where the last ends: int64[rings + 1]."""
    polygon: Ints
    """Where each polygon begins among the rings, and where the last ends: int64[polygons + 1]."""

    def __len__(self) -> int:
        return len(self.polygon) - 1

    @classmethod
    def of_rings(cls, polygons: Sequence[Sequence[Floats]]) -> Polygons:
        """From the rings of each polygon: float64[k, 2] vertices (y, x) each."""
        rings = [
            np.asarray(ring, np.float64).reshape(-1, 2) for rings in polygons for ring in rings
        ]
        return cls(
            np.concatenate([np.zeros((0, 2)), *rings]),
            _bounds([len(ring) for ring in rings]),
            _bounds([len(rings) for rings in polygons]),
        )

    @classmethod
    def of_boxes(cls, low: Floats, high: Floats) -> Polygons:
        """From first and last corners: float64[n, 2] (y, x) each."""
        corners = [low[:, 0], low[:, 1], low[:, 0], high[:, 1]]
        corners += [high[:, 0], high[:, 1], high[:, 0], low[:, 1]]
        ends = np.arange(len(low) + 1, dtype=np.int64)
        return cls(np.stack(corners, -1).reshape(-1, 2), ends * 4, ends)

    @classmethod
    def of_vertices(cls, vertex: Floats, polygon: Ints) -> Polygons:
        """From vertices in order, and the polygon of each: those of one stand together or not."""
        _, first, code = np.unique(polygon, return_index=True, return_inverse=True)
        # Polygons in the order of their first vertices, vertices in the order of the table.
        order = np.argsort(first[code], kind="stable")
        counts = np.bincount(code, minlength=len(first))[np.argsort(first)]
        return cls(vertex[order], _bounds(counts), np.arange(len(first) + 1, dtype=np.int64))

    def in_pixels(self, spacing: Sequence[float], origin: Sequence[float]) -> Polygons:
        """From physical coordinates to pixels.

        Parameters
        ----------
        spacing, origin
            Extent of a pixel, and the centre of the first, along y and x.
        """
        step, first = np.asarray(spacing, np.float64), np.asarray(origin, np.float64)
        return Polygons((self.vertex - first) / step + 0.5, self.ring, self.polygon)

    def digest(self) -> str:
        """128 bits, in hex, fixed by the columns."""
        return digest(*(digest_of(getattr(self, name)).hex() for name in _COLUMNS)).hex()

    def rasterize(self, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which pixels of a window have their centre inside a polygon.

        Scanline conversion after Wylie, Romney, Evans and Erdahl, "Half-tone perspective drawings
        by computer" (AFIPS 1967): even-odd within a polygon, so that holes are not inside; the
        union over polygons. A centre on an outline belongs to what lies after it (below, right):
        polygons that adjoin share no pixel and leave none out.

        Parameters
        ----------
        start, stop
            The window, half open: first and last + 1 pixel along y and x.

        Returns
        -------
        bool[height, width]
        """
        (top, left), (bottom, right) = start, stop
        # One more column takes the ends of the spans that reach the right border.
        change = np.zeros((bottom - top, right - left + 1), np.int32)
        low, high, ids = self._edges(top, left, bottom, right)
        first = np.clip(np.ceil(low[:, 0] - 0.5), top, bottom).astype(np.int64)
        n = np.clip(np.ceil(high[:, 0] - 0.5), top, bottom).astype(np.int64) - first
        upto = np.cumsum(n)
        at = 0
        while at < len(n):
            # Whole polygons at a time: their crossings pair up.
            base = int(upto[at - 1]) if at else 0
            end = max(int(np.searchsorted(upto, base + _PIECE, side="right")), at + 1)
            end = int(np.searchsorted(ids, ids[end - 1], side="right"))
            part = slice(at, end)
            edge = np.repeat(np.arange(at, end), n[part])
            row = (
                first[edge]
                + np.arange(len(edge))
                - (np.repeat(upto[part] - n[part], n[part]) - base)
            )
            (y0, x0), (y1, x1) = low[edge].T, high[edge].T
            x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
            order = np.lexsort((column, row, ids[edge]))
            row, column = row[order] - top, column[order]
            np.add.at(change, (row[::2], column[::2]), 1)
            np.add.at(change, (row[1::2], column[1::2]), -1)
            at = end
        inside: npt.NDArray[np.bool_] = np.cumsum(change, axis=1)[:, :-1] > 0
        return inside

    def _edges(self, top: int, left: int, bottom: int, right: int) -> tuple[Floats, Floats, Ints]:
        """Upper and lower ends of the edges that cross rows of a window, and their polygons."""
        first, past = self._boxes
        near = np.flatnonzero(((first < (bottom, right)) & (past > (top, left))).all(-1))
        ring_of = _ranges(self.polygon[near], self.polygon[near + 1])
        polygon_of_ring = np.repeat(near, self.polygon[near + 1] - self.polygon[near])
        begin, end = self.ring[ring_of], self.ring[ring_of + 1]
        here = _ranges(begin, end)
        following = here + 1
        last = np.repeat(end, end - begin) == following
        following[last] = np.repeat(begin, end - begin)[last]
        ids = np.repeat(polygon_of_ring, end - begin)
        a, b = self.vertex[here], self.vertex[following]
        # Both neighbours of an edge see it from above, and so find the same crossing.
        flipped = (a[:, 0] > b[:, 0])[:, None]
        low, high = np.where(flipped, b, a), np.where(flipped, a, b)
        keep = (low[:, 0] < high[:, 0]) & (low[:, 0] < bottom) & (high[:, 0] > top)
        return low[keep], high[keep], ids[keep]

    @cached_property
    def _boxes(self) -> tuple[Floats, Floats]:
        """First and last coordinates of each polygon: float64[polygons, 2] each."""
        low = np.full((len(self), 2), np.inf)
        high = np.full((len(self), 2), -np.inf)
        begin = self.ring[self.polygon]
        some = begin[:-1] < begin[1:]
        if some.any():
            low[some] = np.minimum.reduceat(self.vertex, begin[:-1][some])
            high[some] = np.maximum.reduceat(self.vertex, begin[:-1][some])
        return low, high

    def to_document(self) -> dict[str, str]:
        """The columns as text: NumPy's file format in base64."""
        found = {}
        for name in _COLUMNS:
            sink = io.BytesIO()
            column = getattr(self, name)
            np.save(sink, column.astype(column.dtype.newbyteorder("<")), allow_pickle=False)
            found[name] = base64.b64encode(sink.getvalue()).decode("ascii")
        return found

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Polygons:
        """Inverse of `to_document`."""
        return cls(
            *(
                np.load(io.BytesIO(base64.b64decode(document[name])), allow_pickle=False)
                for name in _COLUMNS
            )
        )


def _bounds(counts: Any) -> Ints:
    """Where each of several runs begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def _ranges(begin: Ints, end: Ints) -> Ints:
    """begin, begin + 1, ..., end - 1 for each pair, one after the other."""
    n = end - begin
    upto = np.cumsum(n)
    found: Ints = np.arange(int(n.sum()), dtype=np.int64) + np.repeat(begin - (upto - n), n)
    return found
