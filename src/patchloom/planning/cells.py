"""Cells: the chunks that own the patches of a plan, as narrow columns in the plan's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.grid import z_order
from patchloom.image import Image, Layout

__all__ = ["Cells", "spatial_cells"]

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]
Column = npt.NDArray[Any]
_BATCH = 2**18
"""Cells that a pass looks at together."""
_STRIDE = 16
"""Cells of which only the first one's row is held."""


@dataclass(frozen=True, eq=False)
class Cells:
    """One row a cell that keeps at least one patch; memory grows with chunks.

    Columns are as narrow as their largest value admits: about six bytes a cell.
    """

    bounds: Ints
    """First position of each image's cells, and the number of cells at the end: int64[k + 1]."""
    cell: Column
    """Which cell of the image (``sample * n_chunks + chunk``): unsigned[n]."""
    kept: Column
    """Patches that it keeps, at least 1: unsigned[n]."""
    bit: Column
    """Where its bitmap begins, in bytes of `bits`; -1 if it keeps all it owns: signed[n].

    Empty if all cells keep all they own.
    """
    bits: Bits
    """Bitmaps of the cells that keep only some, one bit a candidate, padded to bytes."""

    @classmethod
    def of(cls, cells: Ints, counts: Column, keep: npt.NDArray[np.bool_] | None) -> Cells:
        """The cells of one image that keep patches.

        Parameters
        ----------
        cells
            Its cells: int64[k].
        counts
            Candidates of each: int[k]; signed where only some are kept.
        keep
            One flag a candidate, cell after cell: bool[counts.sum()]; None keeps all.
        """
        bit, bits, kept = np.zeros(0, np.int8), np.zeros(0, np.uint8), counts
        some = kept > 0
        if keep is not None:
            owner = np.repeat(np.arange(len(cells)), counts)
            kept = np.bincount(owner[keep], minlength=len(cells)).astype(np.int64)
            some = kept > 0
            mixed = some & (kept < counts)
            nbytes = np.where(mixed, -(-counts // 8), 0)
            begin = np.cumsum(nbytes) - nbytes
            within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
            taken = keep & mixed[owner]
            flags = np.zeros(int(nbytes.sum()) * 8, np.bool_)
            flags[begin[owner[taken]] * 8 + within[taken]] = True
            if mixed.any():
                bit, bits = _signed(np.where(mixed, begin, -1)[some]), np.packbits(flags)
        if not some.all():
            cells, kept = cells[some], kept[some]
        return cls(np.array([0, len(cells)]), _narrow(cells), _narrow(kept), bit, bits)

    @classmethod
    def collect(cls, parts: Iterable[Cells], most: int, n_cells: int | None = None) -> Cells:
        """Several parts of one image as one; there are at most `most` cells of its `n_cells`."""
        # Reserved beforehand and filled: parts and whole never lie side by side.
        cell = np.empty(most, np.min_scalar_type(max(0, (n_cells or most) - 1)))
        kept, bit, bits, n, n_bits = [], [], [], 0, 0
        for part in parts:
            cell[n : n + len(part)] = part.cell
            kept.append(part.kept)
            bit.append((n, len(part), _shifted(part.bit, n_bits)))
            bits.append(part.bits)
            n, n_bits = n + len(part), n_bits + len(part.bits)
        narrow = np.min_scalar_type(int(cell[:n].max(initial=0)))
        # A copy where the whole would hold much that is not used.
        found = cell[:n].astype(narrow, copy=2 * n <= most)
        return cls(np.array([0, n]), found, _joined(kept), _bit_column(bit, n), _joined(bits))

    @classmethod
    def join(cls, parts: Sequence[Cells]) -> Cells:
        """The cells of several images, one part each."""
        if len(parts) == 1:
            return parts[0]
        bounds = np.cumsum([0, *(len(p) for p in parts)])
        shifts = np.cumsum([0, *(len(p.bits) for p in parts)]).tolist()
        bit = [
            (low, len(p), _shifted(p.bit, shift))
            for low, p, shift in zip(bounds[:-1].tolist(), parts, shifts[:-1], strict=True)
        ]
        return cls(
            bounds,
            _joined([p.cell for p in parts]),
            _joined([p.kept for p in parts]),
            _bit_column(bit, int(bounds[-1])),
            _joined([p.bits for p in parts]),
        )

    @classmethod
    def from_columns(cls, columns: Mapping[str, Column], bits: Bits, n_images: int) -> Cells:
        """From what `columns` answered."""
        image, bit = columns["image"].astype(np.int64), columns["bit"].astype(np.int64)
        if (np.diff(image) < 0).any() or (len(image) and not 0 <= image[0] <= image[-1] < n_images):
            raise ValueError("the cells of a plan lie image by image")
        return cls(
            np.searchsorted(image, np.arange(n_images + 1)).astype(np.int64),
            _narrow(columns["cell"].astype(np.int64)),
            _narrow(columns["kept"].astype(np.int64)),
            _signed(bit) if (bit >= 0).any() else np.zeros(0, np.int8),
            bits,
        )

    def columns(self) -> dict[str, Column]:
        """The columns of a saved plan: image, cell, kept, bit; each [n]."""
        image = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        bit = self.bit if len(self.bit) else np.full(len(self), -1, np.int8)
        return {"image": _narrow(image), "cell": self.cell, "kept": self.kept, "bit": bit}

    def __len__(self) -> int:
        return len(self.cell)

    def __getstate__(self) -> dict[str, object]:
        # What is derived is derived again: it need not travel.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def take(self, order: Ints) -> Cells:
        """The same cells in another order, each image's for themselves."""
        bit = self.bit[order] if len(self.bit) else self.bit
        return Cells(self.bounds, self.cell[order], self.kept[order], bit, self.bits)

    def only(self, image: int) -> Cells:
        """The cells of one image as those of a plan of it alone."""
        low, high = self.span(image)
        bit = self.bit[low:high] if len(self.bit) else self.bit
        bounds = np.array([0, high - low])
        return Cells(bounds, self.cell[low:high], self.kept[low:high], bit, self.bits)

    # -- images -------------------------------------------------------------------------

    def span(self, image: int) -> tuple[int, int]:
        """Positions [low, high) of one image's cells."""
        return int(self.bounds[image]), int(self.bounds[image + 1])

    def image_of(self, positions: npt.ArrayLike) -> Ints:
        """Which image the cells at some positions are of: int64[m]."""
        return np.searchsorted(self.bounds, positions, side="right").astype(np.int64) - 1

    # -- rows ---------------------------------------------------------------------------

    @cached_property
    def _begins(self) -> Ints:
        """Row of the first patch of every `_STRIDE`-th cell, and the number of rows."""
        begins = np.zeros(-(-len(self) // _STRIDE) + 1, np.int64)
        upto = 0
        for low in range(0, len(self), _BATCH):
            rows = upto + np.cumsum(self.kept[low : low + _BATCH], dtype=np.int64)
            upto = int(rows[-1])
            at = rows[_STRIDE - 1 :: _STRIDE]
            begins[low // _STRIDE + 1 :][: len(at)] = at
        begins[-1] = upto
        return begins

    @property
    def n_rows(self) -> int:
        """Patches in all."""
        return int(self._begins[-1])

    @cached_property
    def first_rows(self) -> Ints:
        """Row of the first patch of each image, and the number of rows at the end: int64[k + 1]."""
        return self.rows_of(self.bounds)

    def rows_of(self, positions: npt.ArrayLike) -> Ints:
        """Row of the first patch of some cells: int64[m]; the number of rows at ``len(self)``."""
        positions = np.asarray(positions, np.int64)
        if len(positions) > 2 and (np.diff(positions) == 1).all():
            upto = np.cumsum(self.kept[positions[:-1]], dtype=np.int64)
            return np.append(0, upto) + self.rows_of(positions[:1])
        block = positions // _STRIDE
        rows: Ints = self._begins[block]
        for step in range(_STRIDE - 1):
            at = block * _STRIDE + step
            before = np.flatnonzero(at < positions)
            if not len(before):
                break
            rows[before] += self.kept[at[before]].astype(np.int64)
        return rows

    def positions_of(self, rows: npt.ArrayLike) -> Ints:
        """Which cell keeps each of some rows below `n_rows`: int64[m]."""
        rows = np.atleast_1d(np.asarray(rows, np.int64))
        block = np.searchsorted(self._begins, rows, side="right") - 1
        position, rest = block * _STRIDE, rows - self._begins[block]
        going = np.arange(len(rows))
        while len(going):
            kept = self.kept[position[going]].astype(np.int64)
            on = rest[going] >= kept
            going, kept = going[on], kept[on]
            rest[going] -= kept
            position[going] += 1
        return position

    # -- units --------------------------------------------------------------------------

    def unit_begins(self, images: Sequence[Image]) -> Ints | None:
        """Positions at which a unit begins: consecutive cells of one block, decoded together.

        None if every cell is a unit, because no block holds several samples.
        """
        if all(image.layout.block_shape()[0] == 1 for image in images):
            return None
        begins = [np.zeros(0, np.int64)]
        for index, image in enumerate(images):
            low, high = self.span(index)
            layout = image.layout
            sample, chunk = np.divmod(self.cell[low:high].astype(np.int64), layout.space.n_chunks)
            block = layout.groups_of(sample) * layout.space.n_chunks + chunk
            begins.append(low + np.flatnonzero(np.diff(block, prepend=-1)))
        return np.concatenate(begins)

    def unit_sizes(self, begins: Ints | None) -> Column:
        """Patches of each unit."""
        if begins is None:
            return self.kept
        if not len(begins):
            return np.zeros(0, np.int64)
        sizes: Ints = np.add.reduceat(self.kept, begins, dtype=np.int64)
        return sizes

    # -- looking up ---------------------------------------------------------------------

    @cached_property
    def _sorted(self) -> list[Column]:
        """For each image: its positions, by cell."""
        spans = pairwise(self.bounds.tolist())
        return [_narrow(low + np.argsort(self.cell[low:high])) for low, high in spans]

    def find(self, image: int, cells: Ints) -> Ints:
        """Positions of those of an image's cells that are here, ascending: int64[m]."""
        order = self._sorted[image]
        low, high = self.span(image)
        own = self.cell[low:high]
        place = np.searchsorted(own, cells.astype(own.dtype), sorter=order.astype(np.int64) - low)
        inside = np.flatnonzero(place < len(order))
        found = order[place[inside]].astype(np.int64)
        return np.sort(found[self.cell[found] == cells[inside]])

    def is_whole(self, positions: Ints) -> bool:
        """Whether some cells keep all they own."""
        return bool(self.are_whole(positions).all())

    def are_whole(self, positions: Ints) -> npt.NDArray[np.bool_]:
        """Which of some cells keep all they own: bool[k]."""
        if not len(self.bit):
            return np.ones(len(positions), np.bool_)
        found: npt.NDArray[np.bool_] = self.bit[positions] < 0
        return found

    def flags(self, positions: Ints, counts: Ints) -> npt.NDArray[np.bool_]:
        """Which candidates of some cells are kept, cell after cell: bool[counts.sum()]."""
        owner = np.repeat(np.arange(len(positions)), counts)
        if not len(self.bit):
            return np.ones(len(owner), np.bool_)
        begin = self.bit[positions].astype(np.int64)[owner]
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept: npt.NDArray[np.bool_] = begin < 0
        where = np.flatnonzero(~kept)
        if len(where):
            byte = self.bits[begin[where] + within[where] // 8]
            kept[where] = (byte >> (7 - within[where] % 8)) & 1 == 1
        return kept


def spatial_cells(layout: Layout) -> Iterator[Ints]:
    """All cells of an image along a locality-keeping curve, some at a time: int64[n].

    Samples that share chunks stay together, then the chunks follow the Z curve.
    """
    space = layout.space
    group = layout.groups_of(np.arange(layout.n_samples, dtype=np.int64))
    samples = np.argsort(group, kind="stable").astype(np.int64)
    begins = np.flatnonzero(np.diff(group[samples], prepend=-1))
    n_of = np.diff(begins, append=len(samples))
    # Groups of one size go together, as many as one batch holds.
    together = max(1, _BATCH // max(1, space.n_chunks * int(n_of.max(initial=1))))
    cuts = np.flatnonzero(np.diff(n_of)) + 1
    for groups in np.split(np.arange(len(begins)), cuts):
        for low in range(0, len(groups), together):
            some = begins[groups[low : low + together]]
            of_group = samples[some[:, None] + np.arange(n_of[groups[0]])] if len(some) else None
            if of_group is None:
                continue
            for chunks in z_order(space.counts, max(1, _BATCH // of_group.size)):
                if of_group.size == 1 and not of_group[0, 0]:
                    yield chunks
                else:
                    cells = of_group[:, None, :] * space.n_chunks + chunks[:, None]
                    yield cells.ravel()


def _narrow(values: Column) -> Column:
    """The same in the narrowest unsigned type."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _signed(values: Ints) -> Column:
    """The same in the narrowest signed type; -1 is the least."""
    return values.astype(np.min_scalar_type(-int(values.max(initial=0)) - 1))


def _joined(parts: Sequence[Column]) -> Column:
    """Columns one after another, as wide as the widest."""
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def _shifted(bit: Column, shift: int) -> Column:
    """Begins of bitmaps that `shift` bytes come before."""
    wide = bit.astype(np.int64)
    return _signed(np.where(wide >= 0, wide + shift, -1)) if len(bit) else bit


def _bit_column(parts: Sequence[tuple[int, int, Column]], n: int) -> Column:
    """One column from parts (begin, length, column or empty); empty if all parts are."""
    if not any(len(column) for _, _, column in parts):
        return np.zeros(0, np.int8)
    found = np.full(n, -1, np.result_type(np.int8, *(column for _, _, column in parts)))
    for low, length, column in parts:
        if len(column):
            found[low : low + length] = column
    return found
