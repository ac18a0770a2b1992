"""Tallies: they count pixels chunk by chunk and hold no more than a stated number of counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.dense import Dense
from patchloom.summaries.fine import Fine
from patchloom.summaries.keys import Ints
from patchloom.summaries.refining import Targets
from patchloom.summaries.summary import Summary
from patchloom.summaries.wide import Wide

__all__ = ["Tally", "summarize", "tally_bytes"]


class Tally:
    """Adds up the pixels of one channel.

    Parameters
    ----------
    dtype
        Type of the pixels: bool, integers or floats of up to 64 bits. Integers beyond 2^53
        count as the nearest float64.
    nodata
        Value of pixels to leave out; for floats, as `dtype` holds it. NaN is left out anyway.
    targets
        Count inside these leaves only, for `Summary.refined`.

    Examples
    --------
    >>> tally = Tally(np.dtype("uint8"), nodata=0)
    >>> tally.add(np.array([0, 1, 2, 2], np.uint8))
    >>> tally.add(np.array([7], np.uint8), times=3)
    >>> found = tally.summary()
    >>> found.count, found.nodata, found.median
    (6, 1, 4.5)
    """

    def __init__(
        self, dtype: np.dtype[Any], nodata: float | None = None, targets: Targets | None = None
    ) -> None:
        dtype = np.dtype(dtype).newbyteorder("=")
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise TypeError(
                f"pixels are bool, integers or floats of up to 64 bits, got {dtype}; convert them"
            )
        self._dtype = dtype
        left_out = _as_held(nodata, dtype)
        self._counts: Dense | Wide | Fine
        if targets is not None:
            self._counts = Fine(dtype, left_out, targets)
        elif _is_dense(dtype):
            self._counts = Dense(dtype, left_out)
        else:
            self._counts = Wide(dtype, left_out)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds; see `tally_bytes`."""
        return self._counts.nbytes

    def add(self, pixels: npt.NDArray[Any], times: int | Ints = 1) -> None:
        """Count some pixels.

        Parameters
        ----------
        pixels
            Any shape.
        times
            How often each counts: one number, or an array of pixels' shape.
        """
        if isinstance(times, np.ndarray):
            # Numbers of times are sums of powers of two.
            for bit in range(int(times.max(initial=0)).bit_length()):
                self.add(pixels[(times >> bit) & 1 == 1], 1 << bit)
            return
        if pixels.size and times:
            # In whatever order they lie: nothing is copied if they lie together.
            flat = pixels.astype(self._dtype, copy=False).ravel(order="K")
            self._counts.add(flat, int(times))

    def summary(self) -> Summary:
        """What was counted so far."""
        return self._counts.summary()


def summarize(pixels: npt.NDArray[Any], nodata: float | None = None) -> Summary:
    """Summarize the pixels of one channel.

    Parameters
    ----------
    pixels
        Any shape; bool, integers or floats.
    nodata
        Value of pixels to leave out.
    """
    tally = Tally(pixels.dtype, nodata)
    tally.add(pixels)
    return tally.summary()


def tally_bytes(dtype: np.dtype[Any]) -> int:
    """Most bytes that a `Tally` without targets holds; with targets, 34 MiB.

    Float64 pixels of more than 288 octaves of size (87 decades) may take up to 10 MiB.
    """
    return Dense.most_bytes(dtype) if _is_dense(dtype) else Wide.most_bytes()


def _is_dense(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize <= 2


def _as_held(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """The nodata value as pixels of the type hold it; None if none of them can."""
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind != "f":
        return float(nodata)
    with np.errstate(over="ignore"):
        held = float(dtype.type(nodata))
    return held if math.isinf(nodata) or math.isfinite(held) else None
