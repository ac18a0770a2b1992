"""Selection: which candidates of a strategy a plan keeps; masks and labels are read, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from patchloom.coverage import threshold
from patchloom.image import Image, Ints
from patchloom.patching.config import AnyConfig, PixelsConfig
from patchloom.patching.protocol import GridPatching
from patchloom.planning.cells import Cells, spatial_cells
from patchloom.run.centers import Choice
from patchloom.run.masks import covered_area, volumes

__all__ = ["Selection"]

_BATCH = 2**20
"""Candidates that are looked at together."""
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

    def select(self, index: int, image: Image) -> tuple[Cells, Counter[str]]:
        """The cells of one image that keep patches, and how many candidates each reason cost."""
        config, rejected, choice = self.config, Counter[str](), None
        if isinstance(config, PixelsConfig):
            choice = Choice(config, image, self.seed, self.strategy.keys[index])
        if choice is not None and choice.is_limited:
            # Which are the first max_num is known only when all were seen.
            for cells, counts in self._batches(index, image):
                keep, sample, flat, kind = self._asked(
                    index, image, choice, cells, counts, rejected
                )
                choice.offer(sample[keep], flat[keep], kind[keep])
        layout = image.layout
        parts = self._parts(index, image, choice, rejected)
        return Cells.collect(parts, layout.n_samples * layout.space.n_chunks), rejected

    def _parts(
        self, index: int, image: Image, choice: Choice | None, rejected: Counter[str]
    ) -> Iterator[Cells]:
        """The cells of one image, some at a time along the curve; adds up what they leave out."""
        if choice is None and not self._asks_mask(image):
            for cells in spatial_cells(image.layout):
                yield Cells.of(cells, self.strategy.counts_of(index, cells), None)
            return
        for cells, counts in self._batches(index, image):
            if choice is None:
                keep = self._covered(index, image, cells, counts)
                rejected[_OUTSIDE] += int((~keep).sum())
            elif choice.is_limited:
                keep = choice.taken(*self._centres(index, cells, counts))
                rejected[_BEYOND] -= int(keep.sum())
            else:
                keep = self._asked(index, image, choice, cells, counts, rejected)[0]
            yield Cells.of(cells, counts, keep)

    def _batches(self, index: int, image: Image) -> Iterator[tuple[Ints, Ints]]:
        """Cells that own patches along the curve, a bounded number of candidates at a time."""
        for every in spatial_cells(image.layout):
            counts = self.strategy.counts_of(index, every).astype(np.int64)
            cells, counts = every[counts > 0], counts[counts > 0]
            upto, low = np.cumsum(counts), 0
            while low < len(cells):
                begin = int(upto[low - 1]) if low else 0
                high = max(low + 1, int(np.searchsorted(upto, begin + _BATCH, side="right")))
                yield cells[low:high], counts[low:high]
                low = high

    def _asked(
        self,
        index: int,
        image: Image,
        choice: Choice,
        cells: Ints,
        counts: Ints,
        rejected: Counter[str],
    ) -> tuple[Flags, Ints, Ints, Ints]:
        """Which candidates may be taken by mask and class; their sample, pixel and class."""
        sample, flat = self._centres(index, cells, counts)
        covered = self._covered(index, image, cells, counts)
        good, kind = choice.allowed(sample, flat)
        rejected[_OUTSIDE] += int((~covered).sum())
        rejected[_CENTRE] += int((covered & ~good).sum())
        if choice.is_limited:
            rejected[_BEYOND] += int((covered & good).sum())
        return covered & good, sample, flat, kind

    def _asks_mask(self, image: Image) -> bool:
        return image.mask is not None and (self.min_coverage > 0 or self.min_pixels > 0)

    def _covered(self, index: int, image: Image, cells: Ints, counts: Ints) -> Flags:
        """Whether the mask covers enough of each patch of some cells."""
        if not self._asks_mask(image):
            return np.ones(int(counts.sum()), np.bool_)
        strategy, size = self.strategy, self.strategy.patch_size
        corners, _ = strategy.corners(index, cells)
        sample = np.repeat(cells // image.layout.space.n_chunks, counts)
        area, pixel = covered_area(image, sample, corners, size)
        volume, place = np.unique(volumes(image, corners, size, strategy.edge), return_inverse=True)
        least = [
            max(threshold(self.min_coverage, v * pixel), min(self.min_pixels, v + 1) * pixel)
            for v in volume.tolist()
        ]
        return np.asarray(area >= np.array(least, area.dtype)[place], np.bool_)

    def _centres(self, index: int, cells: Ints, counts: Ints) -> tuple[Ints, Ints]:
        """Flat sample and centre pixel of each candidate of some cells."""
        flat = self.strategy.places(index, cells)
        assert flat is not None
        n_chunks = max(1, self.strategy.grids[index].n_chunks)
        return np.repeat(cells // n_chunks, counts), flat
