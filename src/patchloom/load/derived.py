"""Derived patches: parts of stores, and stores together, scaled by their images' statistics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from patchloom.load.patches import Patches
from patchloom.load.scales import scale_of
from patchloom.normalization import Normalization
from patchloom.summaries.table import Statistics

__all__ = ["DerivedPatches"]


class DerivedPatches(Patches):
    """Patches that are others', which have the statistics."""

    @property
    @abstractmethod
    def applied(self) -> dict[str, Any]:
        """What arrays were normalised with when they were written."""

    @abstractmethod
    def summaries(self) -> Statistics:
        """Statistics of the images that they are of."""

    def normalization(
        self, kind: str, per: str = "image", *, percentiles: Sequence[float] | None = None
    ) -> Normalization:
        """From the statistics of the images that they are of: of mergers, of all parts.

        Parameters
        ----------
        kind, per
            As for `PatchStore.normalization`.
        percentiles
            The low and the high end of ``"percentile"``; by default `percentiles`.

        Raises
        ------
        ConfigError
            As of `summaries`; or if images are normalised already, or there is no such kind or
            column.
        """
        told, method = self.percentiles
        ends = told if percentiles is None else percentiles
        return scale_of(self.summaries(), [self.applied], kind, per, ends, method)
