"""Picks: what is taken of an array along one of its axes."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError

__all__ = ["Pick", "Stretch", "pick_by_index", "pick_by_place", "regular_parts"]

_SLICE = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?\s*)?")
_CLOSE = 1e-6
"""Shares of a pixel by which a physical coordinate may miss it through rounding."""


@dataclass(frozen=True)
class Stretch:
    """Indices of the pixels of one array that lie under those of another, along one axis.

    Pixel k of the array covers ``[offset + k * scale, offset + (k + 1) * scale)`` in pixels of the
    other; under one of the other's lies the one that its middle is in, or the nearest.

    >>> np.asarray(Stretch(5, 2, Fraction(5, 2), Fraction(0))).tolist()
    [0, 0, 1, 1, 1]
    """

    n: int
    """Pixels of the other."""
    extent: int
    """Pixels of the array."""
    scale: Fraction
    offset: Fraction

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(np.asarray(self).tolist())

    def __getitem__(self, where: Any) -> Any:
        inside = range(self.n)[where]
        return self._at(np.asarray(inside, np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._at(np.arange(self.n, dtype=np.int64)).astype(dtype or np.int64, copy=False)

    def _at(self, pixel: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # (k + 1/2 - offset) / scale, in integers.
        slope = 1 / self.scale
        start = (Fraction(1, 2) - self.offset) * slope
        whole = math.lcm(slope.denominator, start.denominator)
        found = (pixel * int(slope * whole) + int(start * whole)) // whole
        return np.clip(found, 0, self.extent - 1)

    def taken(self, some: range) -> Stretch:
        """Those under some of the other's pixels."""
        half, step = Fraction(1, 2), some.step
        offset = (self.offset - some.start - half) / step + half
        return Stretch(len(some), self.extent, self.scale / step, offset)


@dataclass(frozen=True)
class Pick:
    """Indices along one axis, in the order in which they are taken.

    >>> Pick(range(10)).of(Pick(range(2, 8, 2))).indices
    range(2, 8, 2)
    """

    indices: range | tuple[int, ...] | Stretch
    """At least one; ascending by equal steps if it is a range."""
    drops: bool = False
    """Whether the axis goes: there is one index then."""

    def __len__(self) -> int:
        return len(self.indices)

    def of(self, other: Pick) -> Pick:
        """Another pick of what this one takes, as one."""
        if isinstance(self.indices, range) and isinstance(other.indices, range):
            o = other.indices
            return Pick(self.indices[o.start : o.stop : o.step], other.drops)
        if isinstance(self.indices, Stretch) and isinstance(other.indices, range):
            return Pick(self.indices.taken(other.indices), other.drops)
        return Pick(tuple(int(self.indices[k]) for k in other.indices), other.drops)

    def is_whole(self, extent: int) -> bool:
        """Whether it takes an axis as it is."""
        return not self.drops and self.indices == range(extent)

    def to_document(self) -> dict[str, Any]:
        """For JSON: ``range`` (start, stop, step), ``stretch`` or ``indices``, and ``drops``."""
        i = self.indices
        taken: dict[str, Any]
        if isinstance(i, range):
            taken = {"range": [i.start, i.stop, i.step]}
        elif isinstance(i, Stretch):
            taken = {"stretch": [i.n, i.extent, str(i.scale), str(i.offset)]}
        else:
            taken = {"indices": [*i]}
        return {**taken, "drops": True} if self.drops else taken

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Pick:
        """Inverse of `to_document`."""
        if "range" in document:
            return cls(range(*document["range"]), document.get("drops", False))
        if "stretch" in document:
            n, extent, *exact = document["stretch"]
            stretch = Stretch(n, extent, *(Fraction(text) for text in exact))
            return cls(stretch, document.get("drops", False))
        return cls(tuple(document["indices"]), document.get("drops", False))


def regular_parts(indices: Sequence[int] | Stretch, extent: int) -> tuple[int, bool]:
    """Into how long parts indices fall so that each lies in one chunk, and none in another's.

    Parameters
    ----------
    indices
        What is taken along an axis.
    extent
        Pixels of a chunk along it.

    Returns
    -------
    int, bool
        Indices of a part (the last may have fewer), and whether there are such parts.

    >>> regular_parts(range(8, 30), 8), regular_parts([0, 2], 1), regular_parts(range(3, 30), 8)
    ((8, True), (1, True), (5, False))
    """
    chunk = np.asarray(indices, np.int64) // extent
    begins = np.concatenate([[0], np.flatnonzero(np.diff(chunk)) + 1])
    lengths = np.diff(np.append(begins, len(chunk)))
    first = int(lengths[0])
    equal = bool((lengths[:-1] == first).all() and lengths[-1] <= first)
    return first, equal and len(np.unique(chunk[begins])) == len(begins)


def pick_by_index(given: Any, extent: int, what: str) -> Pick:
    """A pick from an index, a slice (also as text, ``"10:50:2"``) or a list of indices.

    Parameters
    ----------
    given
        As NumPy takes it: negative ones count from the end. An index drops the axis.
    extent
        Pixels along the axis.
    what
        The axis and the image, for errors.

    Raises
    ------
    ConfigError
        If it is none of these, takes nothing, goes backwards or leaves the axis.
    """
    if isinstance(given, str):
        match = _SLICE.fullmatch(given)
        if match is None:
            raise _no_index(given, what)
        given = slice(*(None if part is None else int(part) for part in match.groups()))
    if isinstance(given, slice):
        try:
            found = range(extent)[given]
        except (TypeError, ValueError):
            raise _no_index(given, what) from None
        if found.step < 0:
            raise ConfigError(
                f"a slice goes forward, got a step of {found.step} for {what}; flip patches when "
                "they are loaded"
            )
        if not found:
            raise ConfigError(
                f"a slice takes at least one of the {extent} indices of an axis, got "
                f"{given.start}:{given.stop}:{given.step} for {what}"
            )
        return Pick(found)
    if isinstance(given, range | list | tuple | np.ndarray):
        taken = [_index(k, extent, given, what) for k in given]
        if not taken or len(set(taken)) < len(taken):
            raise ConfigError(
                f"a list of indices has each once, at least one, got {[*given]} for {what}"
            )
        return _listed(taken)
    return Pick((k := range(_index(given, extent, given, what), extent)[:1]), drops=len(k) == 1)


def _listed(taken: list[int]) -> Pick:
    """A pick of some indices: a range if they ascend by equal steps."""
    steps = {b - a for a, b in itertools.pairwise(taken)}
    if len(steps) <= 1 and (step := min(steps, default=1)) > 0:
        return Pick(range(taken[0], taken[-1] + 1, step))
    return Pick(tuple(taken))


def _index(given: Any, extent: int, whole: Any, what: str) -> int:
    try:
        found = operator.index(given)
    except TypeError:
        raise _no_index(whole, what) from None
    if isinstance(given, bool | np.bool_):
        raise _no_index(whole, what)
    if not -extent <= found < extent:
        raise ConfigError(
            f"an index lies on its axis, from 0 to {extent - 1} (or from -{extent}, counted from "
            f"the end), got {found} for {what}"
        )
    return found % extent


def _no_index(given: Any, what: str) -> ConfigError:
    return ConfigError(
        f"isel takes an index, a slice (in text '10:50') or a list of indices, got {given!r} for "
        f"{what}"
    )


def pick_by_place(given: Any, extent: int, spacing: float, origin: float, what: str) -> Pick:
    """A pick by physical coordinates: those pixels whose centres lie between two, both included.

    Parameters
    ----------
    given
        Two coordinates in ascending order, as a pair or a slice (an end may be open), or one,
        which takes the pixel that it lies in and drops the axis.
    extent, spacing, origin
        Pixels along the axis, physical extent of one, and coordinate of the first one's centre.
    what
        The axis and the image, for errors.

    Raises
    ------
    ConfigError
        If it is none of these, or no pixel is there.

    >>> pick_by_place((10.0, 14.5), 20, 0.5, 10.0, "z").indices
    range(0, 10)
    """
    last = origin + (extent - 1) * spacing
    shown = f"the centres of pixels lie from {origin:g} to {last:g}"
    if isinstance(given, slice) and given.step is None:
        given = (given.start, given.stop)
    if isinstance(given, list | tuple) and len(given) == 2:
        low, high = (
            default if value is None else _coordinate(value, given, what)
            for value, default in zip(given, (origin, last), strict=True)
        )
        first = max(0, math.ceil((low - origin) / spacing - _CLOSE))
        stop = min(extent, math.floor((high - origin) / spacing + _CLOSE) + 1)
        if first >= stop:
            raise ConfigError(
                f"sel takes at least one pixel, got {low:g} to {high:g} for {what}; {shown}"
            )
        return Pick(range(first, stop))
    at = (_coordinate(given, given, what) - origin) / spacing
    if not -0.5 - _CLOSE <= at <= extent - 0.5 + _CLOSE:
        raise ConfigError(f"sel takes a pixel of the image, got {given:g} for {what}; {shown}")
    index = min(max(math.floor(at + 0.5), 0), extent - 1)
    return Pick(range(index, index + 1), drops=True)


def _coordinate(value: Any, whole: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ConfigError(
            "sel takes a physical coordinate, or a pair of them in ascending order, got "
            f"{whole!r} for {what}"
        )
    return float(value)
