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
from patchloom.planning.cells import Cells
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
        counts = self.strategy.counts(index)
        cells = np.flatnonzero(counts)
        counts = counts[cells]
        config, rejected = self.config, Counter[str]()
        pixels = isinstance(config, PixelsConfig) and (
            image.mask is not None or config.classes is not None or config.max_num is not None
        )
        if not pixels and not self._asks_mask(image):
            return Cells.of(index, cells, counts, None), rejected
        choice = None
        if isinstance(config, PixelsConfig) and pixels:
            choice = Choice(config, image, self.seed, self.strategy.keys[index])
            if config.max_num is not None:
                # Which are the first max_num is known only when all were seen.
                for low, high in _batches(counts):
                    sample, flat = self._centres(index, cells[low:high], counts[low:high])
                    keep = self._covered(index, image, cells[low:high], counts[low:high])
                    good, kind = choice.allowed(sample, flat)
                    rejected[_OUTSIDE] += int((~keep).sum())
                    rejected[_CENTRE] += int((keep & ~good).sum())
                    rejected[_BEYOND] += int((keep & good).sum())
                    good &= keep
                    choice.offer(sample[good], flat[good], kind[good])
        parts = []
        for low, high in _batches(counts):
            some, n = cells[low:high], counts[low:high]
            if isinstance(config, PixelsConfig) and config.max_num is not None:
                assert choice is not None
                keep = choice.taken(*self._centres(index, some, n))
                rejected[_BEYOND] -= int(keep.sum())
            else:
                keep = self._covered(index, image, some, n)
                rejected[_OUTSIDE] += int((~keep).sum())
                if choice is not None:
                    good, _ = choice.allowed(*self._centres(index, some, n))
                    rejected[_CENTRE] += int((keep & ~good).sum())
                    keep &= good
            parts.append(Cells.of(index, some, n, keep))
        return Cells.join(parts), rejected

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
            max(threshold(self.min_coverage, v * pixel), self.min_pixels * pixel)
            for v in volume.tolist()
        ]
        return np.asarray(area >= np.array(least, area.dtype)[place], np.bool_)

    def _centres(self, index: int, cells: Ints, counts: Ints) -> tuple[Ints, Ints]:
        """Flat sample and centre pixel of each candidate of some cells."""
        flat = self.strategy.places(index, cells)
        assert flat is not None
        n_chunks = max(1, self.strategy.grids[index].n_chunks)
        return np.repeat(cells // n_chunks, counts), flat


def _batches(counts: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of cells with a bounded number of candidates, at least one cell each."""
    upto, low = np.cumsum(counts), 0
    while low < len(counts):
        begin = int(upto[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(upto, begin + _BATCH, side="right")))
        yield low, high
        low = high
