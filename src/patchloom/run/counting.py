"""Counting: which pixels of a block count, how often, and within which values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.run.union import taken, union
from patchloom.summaries import Tally, Targets

__all__ = ["EACH", "Counting"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]

EACH = ("once", "taken")
"""How often a pixel of kept patches counts: once, or once for each patch that takes it."""


@dataclass(frozen=True)
class Counting:
    """How the pixels of a plan's patches are counted; an opaque value for Dask."""

    each: str = EACH[0]
    targets: Mapping[tuple[int, int], Targets] | None = None
    """Of a refining pass, what it looks for by (image, channel): it counts nothing else."""

    @property
    def needs_all(self) -> str:
        """Why a chunk that cannot be read ends the pass, and the way out; the end of a sentence."""
        if self.targets is None:
            return "; what patches are normalised with needs every pixel; normalize=None does not"
        return "; exact statistics need every pixel once more; exact=False does not"

    def skips(self, image: int) -> bool:
        """Whether nothing of an image is asked for, so that it is not read."""
        return self.targets is not None and all(i != image for i, _ in self.targets)

    def tally(self, image: int, channel: int, described: Image) -> Tally | None:
        """An empty tally of one channel; None if nothing of it is asked for.

        Parameters
        ----------
        image, channel
            Positions in the plan.
        described
            The image.
        """
        if self.targets is None:
            return Tally(described.dtype, described.nodata)
        targets = self.targets.get((image, channel))
        return None if targets is None else Tally(described.dtype, described.nodata, targets)

    def parts(
        self, low: Ints, high: Ints, extent: tuple[int, ...]
    ) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[np.bool_] | None, Ints | int]]:
        """The pixels of a block that some patches take, part by part.

        Parameters
        ----------
        low, high
            Half-open boxes of the patches, clipped to the block: int64[n, ndim].
        extent
            Shape of the block.

        Yields
        ------
        (lines, where, times)
            An index into the block; which pixels there are taken, None for all; and how often
            each of these counts.
        """
        if self.each == "once":
            yield (), union(low, high, extent), 1
            return
        for lines, times in taken(low, high, extent):
            if isinstance(times, int):
                if times:
                    yield lines, None, times
                continue
            where = times > 0
            yield lines, where, times[where]
