"""Cells: the chunks that own the patches of a plan, as columns in the plan's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchloom.grid import morton
from patchloom.image import Image, Layout

__all__ = ["Cells", "spatial_order"]

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Cells:
    """One row a cell that keeps at least one patch; memory grows with chunks."""

    image: Ints
    """Which image: int64[n]."""
    cell: Ints
    """Which cell of the image (``sample * n_chunks + chunk``): int64[n]."""
    kept: Ints
    """Patches that it keeps, at least 1: int64[n]."""
    bit: Ints
    """Where its bitmap begins, in bytes of `bits`; -1 if it keeps all it owns: int64[n]."""
    bits: Bits
    """Bitmaps of the cells that keep only some, one bit a candidate, padded to bytes."""

    @classmethod
    def join(cls, parts: Sequence[Cells]) -> Cells:
        """Several parts as one."""
        shifts = np.cumsum([0, *(len(p.bits) for p in parts)])
        bit = [
            np.where(p.bit >= 0, p.bit + shift, -1)
            for p, shift in zip(parts, shifts[:-1], strict=True)
        ]
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *(p.image for p in parts)]),
            np.concatenate([none, *(p.cell for p in parts)]),
            np.concatenate([none, *(p.kept for p in parts)]),
            np.concatenate([none, *bit]).astype(np.int64),
            np.concatenate([np.zeros(0, np.uint8), *(p.bits for p in parts)]),
        )

    @classmethod
    def of(cls, image: int, cells: Ints, counts: Ints, keep: npt.NDArray[np.bool_] | None) -> Cells:
        """The cells of one image that keep patches.

        Parameters
        ----------
        image
            Which image.
        cells
            Its cells: int64[k].
        counts
            Candidates of each: int64[k].
        keep
            One flag a candidate, cell after cell: bool[counts.sum()]; None keeps all.
        """
        if keep is None:
            some = counts > 0
            n = int(some.sum())
            whole = np.full(n, -1, np.int64)
            return cls(
                np.full(n, image, np.int64), cells[some], counts[some], whole, np.zeros(0, np.uint8)
            )
        owner = np.repeat(np.arange(len(cells)), counts)
        kept = np.bincount(owner[keep], minlength=len(cells)).astype(np.int64)
        mixed = (kept > 0) & (kept < counts)
        nbytes = np.where(mixed, -(-counts // 8), 0)
        begin = np.cumsum(nbytes) - nbytes
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        taken = keep & mixed[owner]
        flags = np.zeros(int(nbytes.sum()) * 8, np.bool_)
        flags[begin[owner[taken]] * 8 + within[taken]] = True
        some = kept > 0
        return cls(
            np.full(int(some.sum()), image, np.int64),
            cells[some],
            kept[some],
            np.where(mixed, begin, -1)[some],
            np.packbits(flags),
        )

    def __len__(self) -> int:
        return len(self.cell)

    def __getstate__(self) -> dict[str, object]:
        # What is derived is derived again: it need not travel.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def take(self, order: Ints) -> Cells:
        """The same cells in another order."""
        return Cells(
            self.image[order], self.cell[order], self.kept[order], self.bit[order], self.bits
        )

    @cached_property
    def first(self) -> Ints:
        """Row of each cell's first patch, and the number of rows at the end: int64[n + 1]."""
        return np.concatenate([[0], np.cumsum(self.kept, dtype=np.int64)]).astype(np.int64)

    def units(self, images: Sequence[Image]) -> Ints:
        """Number of each cell's unit: consecutive cells of one block, which decode together."""
        change: npt.NDArray[np.bool_] = np.zeros(len(self), np.bool_)
        change[1:] = np.diff(self.image) != 0
        for index in np.unique(self.image):
            layout = images[int(index)].layout
            low, high = np.searchsorted(self.image, [index, index + 1])
            sample, chunk = np.divmod(self.cell[low:high], layout.space.n_chunks)
            block = layout.groups_of(sample) * layout.space.n_chunks + chunk
            change[low + 1 : high] |= np.diff(block) != 0
        numbers: Ints = np.cumsum(change)
        return numbers

    def unit_ends(self, images: Sequence[Image]) -> Ints:
        """Rows at which a unit begins, and the number of rows at the end."""
        units = self.units(images)
        begins = np.flatnonzero(np.diff(units, prepend=-1))
        ends: Ints = self.first[np.append(begins, len(self))]
        return ends

    @cached_property
    def _sorted(self) -> tuple[Ints, Ints, Ints]:
        order = np.lexsort((self.cell, self.image))
        return order.astype(np.int64), self.image[order], self.cell[order]

    def find(self, image: int, cells: Ints) -> Ints:
        """Positions of those of an image's cells that are here, ascending: int64[m]."""
        order, images, sorted_cells = self._sorted
        low, high = np.searchsorted(images, [image, image + 1])
        mine = sorted_cells[low:high]
        place = np.searchsorted(mine, cells)
        inside = place < len(mine)
        hit = np.zeros(len(cells), np.bool_)
        hit[inside] = mine[place[inside]] == cells[inside]
        return np.sort(order[low + place[hit]])

    def flags(self, positions: Ints, counts: Ints) -> npt.NDArray[np.bool_]:
        """Which candidates of some cells are kept, cell after cell: bool[counts.sum()]."""
        owner = np.repeat(np.arange(len(positions)), counts)
        begin = self.bit[positions][owner]
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = begin < 0
        where = np.flatnonzero(~kept)
        if len(where):
            byte = self.bits[begin[where] + within[where] // 8]
            kept[where] = (byte >> (7 - within[where] % 8)) & 1 == 1
        return kept


def spatial_order(cells: Ints, layout: Layout) -> Ints:
    """Positions that sort one image's cells along a locality-keeping curve.

    Samples that share chunks stay together, then the chunks follow the Z curve.
    """
    n = layout.space.n_chunks
    sample, chunk = np.divmod(cells, n)
    curve = morton(layout.space.unflat(chunk))
    return np.lexsort((sample, curve, layout.groups_of(sample))).astype(np.int64)
