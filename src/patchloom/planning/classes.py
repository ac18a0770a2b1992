"""Classes in patches: how many pixels of each label a patch shows, and of which class it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import threshold
from patchloom.errors import PlanError
from patchloom.planning.quotas import BalanceConfig

__all__ = ["ClassCounts"]

Ints = npt.NDArray[np.int64]
_TABLE = 2**22
"""Entries of a table of patches by values that is counted in one go."""


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Pixels of each label value in some patches: one entry a patch and value that it shows."""

    n: int
    """Patches."""
    volume: int
    """Pixels of a patch."""
    patch: Ints
    """Which patch each entry is of, ascending: int64[m]."""
    value: Ints
    """Label value, ascending within a patch: int64[m]."""
    pixels: Ints
    """Pixels of it, at least 1: int64[m]."""

    @classmethod
    def of(cls, labels: npt.NDArray[Any]) -> ClassCounts:
        """Count label patches: integers[n, *space].

        Raises
        ------
        PlanError
            If a value is 2**63 or more, which no class can be called.
        """
        n = len(labels)
        if labels.dtype == np.uint64 and n and int(labels.max()) >= 2**63:
            raise PlanError(
                f"classes are numbers below 2**63, but the labels show {int(labels.max())}; "
                "number them anew"
            )
        flat = labels.reshape(n, -1)
        values, which = np.unique(flat, return_inverse=True)
        key = which.reshape(flat.shape) + np.arange(n)[:, None] * len(values)
        if n * len(values) <= _TABLE:
            pixels = np.bincount(key.ravel(), minlength=n * len(values))
            found = np.flatnonzero(pixels)
            pixels = pixels[found]
        else:
            found, pixels = np.unique(key, return_counts=True)
        patch, value = np.divmod(found, max(1, len(values)))
        return cls(n, flat.shape[1], patch, values[value].astype(np.int64), pixels)

    @classmethod
    def join(cls, parts: Sequence[ClassCounts]) -> ClassCounts:
        """Those of several batches of patches, one after another; at least one batch."""
        begins = np.cumsum([0, *(part.n for part in parts)])
        patch = [part.patch + b for part, b in zip(parts, begins[:-1].tolist(), strict=True)]
        return cls(
            int(begins[-1]),
            parts[0].volume,
            np.concatenate(patch),
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.pixels for part in parts]),
        )

    def rows(self, low: int, high: int) -> ClassCounts:
        """Those of the patches [low, high)."""
        a, b = np.searchsorted(self.patch, [low, high]).tolist()
        some = slice(a, b)
        return ClassCounts(
            high - low, self.volume, self.patch[some] - low, self.value[some], self.pixels[some]
        )

    def counting(self, min_fraction: float) -> ClassCounts:
        """Only the values that cover at least a share of their patch; 0 means one pixel."""
        least = max(1, threshold(Fraction(str(min_fraction)), self.volume))
        some = self.pixels >= least
        return ClassCounts(
            self.n, self.volume, self.patch[some], self.value[some], self.pixels[some]
        )

    def fraction(self, value: int) -> npt.NDArray[np.float64]:
        """Share of each patch that a value covers: float64[n]."""
        found = np.zeros(self.n)
        some = self.value == value
        found[self.patch[some]] = self.pixels[some] / self.volume
        return found

    def assigned(self, classes: Sequence[int], balance: BalanceConfig) -> Ints:
        """Of which class each patch is: position in `classes`, -1 if of none: int64[n].

        Parameters
        ----------
        classes
            From the rarest to the most frequent one.
        balance
            By which rule.
        """
        some = self.counting(balance.min_fraction)
        names = np.asarray(classes, np.int64)
        order = np.argsort(names)
        place = np.minimum(np.searchsorted(names, some.value, sorter=order), len(names) - 1)
        known = np.flatnonzero(names[order[place]] == some.value) if len(names) else place[:0]
        rank, patch = order[place[known]], some.patch[known]
        # Equal areas go to the rarer class.
        first = rank if balance.rule == "rarest" else -some.pixels[known]
        best = np.lexsort((rank, first, patch))
        of, at = np.unique(patch[best], return_index=True)
        found = np.full(self.n, -1, np.int64)
        found[of] = rank[best[at]]
        return found
