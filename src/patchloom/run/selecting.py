"""Selection: which candidates of a strategy a plan keeps; masks and labels are read, once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import numpy as np
import numpy.typing as npt

from patchloom.coverage import threshold
from patchloom.image import Image, Ints, Layout, Reads
from patchloom.patching.config import AnyConfig, PixelsConfig
from patchloom.patching.protocol import GridPatching
from patchloom.planning.cells import Cells, spatial_cells
from patchloom.run.centers import Choice
from patchloom.run.masks import Walk, covered_area, volumes

__all__ = ["Selection"]

_BATCH = 2**18
"""Candidates that are looked at together."""
_STEP = 2**21
"""Pixels of a mask, of one byte each, that one step of a walk looks at, unless a cell has more."""
_OUTSIDE = "outside the mask"
_CENTRE = "centre pixel outside the mask or of another class"
_BEYOND = "beyond max_num"
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """What is asked of each patch of one strategy."""

    strategy: GridPatching
    config: AnyConfig
    min_coverage: Fraction
    min_pixels: int
    seed: int

    def reads(self, image: Image) -> list[str]:
        """Roles of an image that are read."""
        asked = {"mask": self._asks_mask(image), "labels": False}
        if isinstance(self.config, PixelsConfig):
            asked["mask"] |= image.mask is not None
            asked["labels"] = self.config.classes is not None
        return [role for role, is_read in asked.items() if is_read]

    @property
    def is_whole(self) -> bool:
        """Whether what is kept of a patch is known only when all of its image were seen."""
        return isinstance(self.config, PixelsConfig) and self.config.max_num is not None

    def survey(
        self, index: int, image: Image, stretch: tuple[int, int] | None = None
    ) -> tuple[Cells, Counter[str], Reads]:
        """The cells of one image that keep patches, what was left out, and what was read.

        Parameters
        ----------
        index, image
            Which image of the strategy.
        stretch
            Which cells, [low, high) along the curve of `spatial_cells`; by default all.
        """
        layout, rejected = image.layout, Counter[str]()
        n_cells = layout.n_samples * layout.space.n_chunks
        low, high = stretch or (0, n_cells)
        curve = _Curve(layout, low, high)
        walks = {name: Walk(image, getattr(image, name)) for name in self.reads(image)}
        parts = self._parts(index, image, curve, walks, rejected)
        cells = Cells.collect(parts, high - low, n_cells)
        return cells, rejected, sum((walk.reads for walk in walks.values()), Reads())

    def _parts(
        self,
        index: int,
        image: Image,
        curve: _Curve,
        walks: dict[str, Walk],
        rejected: Counter[str],
    ) -> Iterator[Cells]:
        """The cells of a stretch, some at a time along the curve; adds up what they leave out."""
        choice = None
        if isinstance(self.config, PixelsConfig):
            choice = Choice(self.config, image, self.seed, self.strategy.keys[index])
        if choice is None and not walks:
            for cells in curve:
                yield Cells.of(cells, self.strategy.counts_of(index, cells), None)
            return
        batches = _Batches(self.strategy, index, curve)
        looked = _looked(image, batches, walks, self, choice, rejected)
        if choice is None or not choice.is_limited:
            for batch, keep, *_ in looked:
                yield Cells.of(batch.cells, batch.counts, keep)
            return
        for batch, keep, flat, kind in looked:
            rejected[_BEYOND] += int(keep.sum())
            choice.offer(batch.sample[keep], flat[keep], kind[keep])
        for batch in batches:
            keep = choice.taken(batch.sample, batch.centres())
            rejected[_BEYOND] -= int(keep.sum())
            yield Cells.of(batch.cells, batch.counts, keep)

    def _asks_mask(self, image: Image) -> bool:
        return image.mask is not None and (self.min_coverage > 0 or self.min_pixels > 0)

    def boxes(
        self, image: Image, role: str, batch: _Batch, part: slice = slice(None)
    ) -> tuple[Ints, Ints]:
        """Half-open boxes of an image under which a role is looked at: int64[n, ndim] each."""
        shape = np.asarray(image.layout.space.shape, np.int64)
        if role == "mask" and self._asks_mask(image):
            # The centre pixel of a patch lies in it.
            corner = batch.corner[part]
            size = np.asarray(self.strategy.patch_size, np.int64)
            return np.maximum(corner, 0), np.minimum(corner + size, shape)
        centre = np.stack(np.unravel_index(batch.centres()[part], tuple(shape)), -1)
        return centre.astype(np.int64), centre.astype(np.int64) + 1

    def covered(self, image: Image, sample: Ints, corner: Ints, walk: Walk | None) -> Flags:
        """Whether the mask covers enough of each of some patches."""
        if walk is None or not self._asks_mask(image):
            return np.ones(len(sample), np.bool_)
        strategy, size = self.strategy, self.strategy.patch_size
        area, pixel = covered_area(image, sample, corner, size, walk.region)
        found = volumes(image, corner, size, strategy.edge)
        alike = strategy.edge != "shrink"
        volume, place = (
            (found[:1], np.zeros(1, np.int64)) if alike else np.unique(found, return_inverse=True)
        )
        least = [
            max(threshold(self.min_coverage, v * pixel), min(self.min_pixels, v + 1) * pixel)
            for v in volume.tolist()
        ]
        return np.asarray(area >= np.array(least, area.dtype)[place], np.bool_)


@dataclass(frozen=True)
class _Curve:
    """A stretch [low, high) of the cells of an image along the curve."""

    layout: Layout
    low: int
    high: int

    def __iter__(self) -> Iterator[Ints]:
        upto = 0
        for cells in spatial_cells(self.layout):
            begin, upto = upto, upto + len(cells)
            if begin >= self.high:
                return
            if upto > self.low:
                yield cells[max(0, self.low - begin) : self.high - begin]


class _Batch:
    """Cells that own patches, and their candidates."""

    def __init__(self, strategy: GridPatching, index: int, cells: Ints, counts: Ints) -> None:
        self._strategy, self._index = strategy, index
        self.cells, self.counts = cells, counts
        self.begins = np.cumsum(counts) - counts
        self.corner, _ = strategy.corners(index, cells)
        n_chunks = max(1, strategy.grids[index].n_chunks)
        self.sample: Ints = np.repeat(cells // n_chunks, counts)

    def centres(self) -> Ints:
        """Centre pixel of each candidate, in C order within its sample: int64[n]."""
        flat = self._strategy.places(self._index, self.cells)
        assert flat is not None
        return flat

    def candidates(self, low: int, high: int) -> slice:
        """Those of the cells [low, high)."""
        end = self.begins[high] if high < len(self.cells) else len(self.sample)
        return slice(int(self.begins[low]), int(end))


@dataclass(frozen=True)
class _Batches:
    """Batches along a stretch, a bounded number of candidates each; as often as asked."""

    strategy: GridPatching
    index: int
    curve: _Curve

    def __iter__(self) -> Iterator[_Batch]:
        for every in self.curve:
            counts = self.strategy.counts_of(self.index, every).astype(np.int64)
            cells, counts = every[counts > 0], counts[counts > 0]
            upto, low = np.cumsum(counts), 0
            while low < len(cells):
                begin = int(upto[low - 1]) if low else 0
                high = max(low + 1, int(np.searchsorted(upto, begin + _BATCH, side="right")))
                yield _Batch(self.strategy, self.index, cells[low:high], counts[low:high])
                low = high


def _looked(
    image: Image,
    batches: _Batches,
    walks: dict[str, Walk],
    selection: Selection,
    choice: Choice | None,
    rejected: Counter[str],
) -> Iterator[tuple[_Batch, Flags, Ints, Ints]]:
    """Batches with what may be kept of them, and the pixels and classes of centres."""
    none = np.zeros(0, np.int64)
    some = list(islice(batches, 2))
    # Most images are one batch, which need not be made again.
    again: Iterable[_Batch] = some if len(some) < 2 else batches
    steps: list[list[tuple[int, int]]] = []
    n_steps = 0
    del some
    for batch in again:
        steps.append(_noted(image, batch, walks, selection, n_steps))
        n_steps += len(steps[-1])
    step = 0
    mask, labels = (None if (w := walks.get(k)) is None else w.region for k in ("mask", "labels"))
    for batch, cuts in zip(again, steps, strict=True):
        n = len(batch.sample)
        keep, kind = np.ones(n, np.bool_), np.zeros(n if choice is not None else 0, np.int64)
        flat = none if choice is None else batch.centres()
        for low, high in cuts:
            part = batch.candidates(low, high)
            for walk in walks.values():
                walk.enter(step)
            sample, corner = batch.sample[part], batch.corner[part]
            covered = selection.covered(image, sample, corner, walks.get("mask"))
            rejected[_OUTSIDE] += int((~covered).sum())
            keep[part] = covered
            if choice is not None:
                good, kind[part] = choice.allowed(sample, flat[part], mask, labels)
                rejected[_CENTRE] += int((covered & ~good).sum())
                keep[part] &= good
            for walk in walks.values():
                walk.leave(step)
            step += 1
        yield batch, keep, flat, kind


def _noted(
    image: Image, batch: _Batch, walks: dict[str, Walk], selection: Selection, step: int
) -> list[tuple[int, int]]:
    """Cut a batch into steps of few pixels, and say to each walk what they look at."""
    touched = {
        name: walk.touched(*selection.boxes(image, name, batch)) for name, walk in walks.items()
    }
    sides = []
    for name, (first, last) in touched.items():
        low = np.minimum.reduceat(first, batch.begins)
        high = np.maximum.reduceat(last, batch.begins)
        sides.append((low, high, walks[name].samples(batch.sample[batch.begins])))
    cuts = _cuts(sides, len(batch.cells))
    for k, cut in enumerate(cuts):
        part = batch.candidates(*cut)
        for name, (first, last) in touched.items():
            walks[name].note(step + k, batch.sample[part], first[part], last[part])
    return cuts


def _cuts(sides: Sequence[tuple[Ints, Ints, Ints]], n: int) -> list[tuple[int, int]]:
    """Stretches of cells whose common windows are small, each half of a larger one.

    Parameters
    ----------
    sides
        For each array: first and last pixel of each cell's window, int64[n, ndim], and its
        sample, int64[n].
    n
        Number of cells.
    """
    found, waiting = [], [(0, n)]
    while waiting:
        low, high = waiting.pop()
        pixels = 0
        for first, last, sample in sides:
            window = (last[low:high].max(0) - first[low:high].min(0)).tolist()
            changes = np.count_nonzero(np.diff(sample[low:high]))
            several = len(np.unique(sample[low:high])) if changes else 1
            pixels = max(pixels, math.prod(window) * several)
        if pixels <= _STEP or high - low == 1:
            found.append((low, high))
            continue
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        waiting += [(middle, high), (low, middle)]
    return found
