"""Places: where the patches of some positions lie, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Ints
from patchloom.planning.incidence import joined
from patchloom.planning.plans import Plan

__all__ = ["Places"]

_WIDE = 2**30
"""Extent of an image from which corners need more than 32 bits."""


@dataclass(frozen=True, eq=False)
class Places:
    """Patches of one image, one after another."""

    image: int
    """Its position in the plan."""
    sample: Ints
    """Flat sample: int64[n], or int64[1] where all are of one."""
    corner: npt.NDArray[Any]
    """First pixel of what is cut on each spatial axis: int32 or int64[n, ndim]."""
    size: Ints
    """Extent of what is cut: int64[ndim], or int64[n, ndim] where they differ."""
    chunk: tuple[int, ...]
    """The chunk of the image that owns the first of them."""

    @classmethod
    def of(cls, plan: Plan, low: int, high: int) -> Places:
        """Those of turns [low, high) of a plan, which are of one image."""
        [part] = joined(plan.visits(low, high))
        sample, corner, size = part.sample, part.corner, np.asarray(plan.cut.size, np.int64)
        if plan.edge == "shrink":
            # What is cut off at the border is not there to be padded.
            size, corner = plan.sizes(part), np.maximum(corner, 0)
        if (sample == sample[0]).all():
            sample = sample[:1].copy()
        extent = max(plan.images[part.image].layout.space.shape)
        narrow = np.int32 if extent < _WIDE else np.int64
        space = plan.images[part.image].layout.space
        chunk = space.unflat(int(plan.cells.cell[part.cell[0]]) % space.n_chunks)
        return cls(part.image, sample, corner.astype(narrow), size, tuple(chunk.tolist()))

    @classmethod
    def join(cls, parts: Sequence[Places]) -> Places:
        """Some of one image, from `take`, one after another."""
        if len(parts) == 1:
            return parts[0]
        size = parts[0].size
        if size.ndim > 1:
            size = np.concatenate([part.size for part in parts])
        sample = np.concatenate([part.sample for part in parts])
        corner = np.concatenate([part.corner for part in parts])
        return cls(parts[0].image, sample, corner, size, parts[0].chunk)

    def take(self, where: Ints) -> Places:
        """Some of them, in full."""
        size = self.size if self.size.ndim == 1 else self.size[where]
        alike = len(self.sample) == 1
        sample = np.full(len(where), self.sample[0]) if alike else self.sample[where]
        corner = self.corner[where].astype(np.int64)
        return Places(self.image, sample, corner, size, self.chunk)

    @property
    def nbytes(self) -> int:
        """Bytes of its columns."""
        return self.sample.nbytes + self.corner.nbytes + self.size.nbytes
