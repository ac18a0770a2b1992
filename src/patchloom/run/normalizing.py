"""Normalisation at write time: from statistics to a scale and shift a channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.planning.runs import SCALE
from patchloom.summaries import Summary, percentiles

__all__ = ["NORMALIZATIONS", "Scaling"]

NORMALIZATIONS = ("percentile", "mean-std")
"""What ``normalize=`` takes besides None."""


@dataclass(frozen=True)
class Scaling:
    """``(x - shift) / span`` for each image and channel, clipped to [0, 1] or not."""

    shift: Mapping[tuple[int, int], float]
    span: Mapping[tuple[int, int], float]
    clip: bool

    @classmethod
    def of(
        cls,
        kind: str,
        summaries: Mapping[tuple[int, int], Summary],
        q: tuple[float, ...],
        method: str = "linear",
    ) -> Scaling:
        """The scaling of a kind.

        Parameters
        ----------
        kind
            ``"percentile"``: the lowest of `q` becomes 0 and the highest 1, clipped.
            ``"mean-std"``: mean 0 and standard deviation 1.
        summaries
            Of each (image, channel).
        q
            Percentiles, at least two for ``"percentile"``.
        method
            How a percentile between two values is told, as NumPy names it.

        Raises
        ------
        ConfigError
            If the kind is unknown, or there are too few percentiles.
        """
        if kind not in NORMALIZATIONS:
            raise ConfigError(f"normalize= is None or one of {list(NORMALIZATIONS)}, got {kind!r}")
        if kind == "mean-std":
            shift = {k: s.mean for k, s in summaries.items()}
            span = {k: s.std for k, s in summaries.items()}
        else:
            if len(q) < 2:
                raise ConfigError(
                    f"normalize='percentile' needs a low and a high percentile, got {list(q)}"
                )
            ends = {k: percentiles(s, (min(q), max(q)), method) for k, s in summaries.items()}
            shift = {k: float(v[0]) for k, v in ends.items()}
            span = {k: float(v[1] - v[0]) for k, v in ends.items()}
        bad = [k for k in shift if not math.isfinite(shift[k]) or not math.isfinite(span[k])]
        if any(summaries[k].count for k in bad):
            raise ConfigError(
                f"normalize={kind!r} needs finite statistics, got none for (image, channel) "
                f"{bad[:5]}; are there infinities? store the source's pixels: normalize=None"
            )
        return cls(shift, span, kind == "percentile")

    def apply(self, image: int, patches: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scale patches [n, channels, *space]; a channel without contrast becomes 0."""
        out = np.empty(patches.shape, np.float32)
        # In pieces: the wide copy of many patches would take more memory than all the rest.
        together = max(1, SCALE // max(1, patches[:1, 0].size))
        for channel in range(patches.shape[1]):
            shift = self.shift.get((image, channel), 0.0)
            span = self.span.get((image, channel), 1.0)
            if not span:
                out[:, channel] = 0
                continue
            for low in range(0, len(patches), together):
                some = slice(low, low + together)
                scaled = patches[some, channel].astype(np.float64)
                scaled -= shift
                scaled /= span
                out[some, channel] = np.clip(scaled, 0, 1, out=scaled) if self.clip else scaled
        return out
