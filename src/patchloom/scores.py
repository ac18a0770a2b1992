"""Scores: one number for each patch, which filters look at and manifests keep.

A score of a patch is a function of its pixels alone: the same bits in whatever batch it comes.
Sums are therefore not NumPy's, whose order is its own affair, but those of a fixed tree.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, SourceError

__all__ = ["SCORES", "Score", "parse_scores"]

SCORES: Mapping[str, tuple[str, ...]] = {
    "max": (),
    "mean": (),
    "std": (),
    "entropy": (),
    "focus": (),
    "saturation": ("level",),
    "bright": ("coverage",),
    "nodata": ("value",),
}
"""The scores, and what may be said of each."""

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[Any]
_PIECE = 2**16
"""Pixels that are looked at together: as float64 they stay in a processor's cache."""


@dataclass(frozen=True)
class Score:
    """One number for each patch.

    ============  =====================================================================
    max           largest pixel
    mean, std     mean; population standard deviation, which is 0 for a constant patch
    entropy       Shannon entropy in bits, over the distinct values that occur
    focus         variance of the Laplacian over the square of the mean
    saturation    share of pixels at or above `level`, by default the type's largest value
    bright        largest value that `coverage` of the patch reaches once each pixel shows the
                  maximum of the window of half a patch around it; by default 1/2^ndim
    nodata        share of pixels that are NaN, or equal to `value`
    ============  =====================================================================

    Parameters
    ----------
    name
        One of `SCORES`.
    channel
        The channel that is looked at.
    params
        Pairs of a name and a number; what is not said is the default.

    Raises
    ------
    ConfigError
        If the name, the channel or a parameter is unknown or out of range.

    Notes
    -----
    NaN pixels are left out, and a patch of nothing else has the score NaN; only ``nodata``
    counts them, and ``bright`` takes them for less than any number. An infinite pixel makes
    ``std`` and ``focus`` NaN. All is float64, so 64-bit integers beyond 2**53 are rounded.

    The variance of the Laplacian is of Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy" (ICPR 2000), LAP4 in Pertuz et al. (Pattern Recognition 46, 2013). Here the
    Laplacian is the sum of second differences along each axis of 3 pixels or more, taken inside
    the patch only, and its variance is divided by the squared mean, so that twice the light is
    not twice the focus; a mean of 0 gives infinity, or 0 if the Laplacian is constant.

    Examples
    --------
    >>> patches = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    >>> Score("mean").of(patches).tolist()
    [7.5, 23.5]
    >>> Score("saturation", 1, (("level", 4095.0),)).column
    'saturation_4095_c1'
    """

    name: str
    channel: int = 0
    params: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in SCORES:
            near = difflib.get_close_matches(str(self.name), SCORES, 1)
            raise ConfigError(
                f"a score has a name out of {list(SCORES)}, got {self.name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(self.channel, bool) or not isinstance(self.channel, int) or self.channel < 0:
            raise ConfigError(f"a score is of a channel 0, 1, ..., got {self.channel!r}")
        known, said = SCORES[self.name], [key for key, _ in self.params]
        if len(set(said)) != len(said) or not set(said) <= set(known):
            raise ConfigError(
                f"score {self.name!r} has the parameters {list(known)}, each once, got {said}"
            )
        for key, value in self.params:
            if not math.isfinite(value) or (key == "coverage" and not 0 < value <= 1):
                law = "above 0 and at most 1" if key == "coverage" else "finite"
                raise ConfigError(f"{key} of score {self.name!r} is {law}, got {value!r}")

    def to_document(self) -> dict[str, Any]:
        """What `parse_scores` reads."""
        return {"name": self.name, "channel": self.channel, **dict(self.params)}

    @property
    def column(self) -> str:
        """Its column of a manifest: distinct scores have distinct ones."""
        parts = [self.name]
        for key, value in self.params:
            exact = Decimal(repr(float(value) + 0.0))
            parts.append(_plain(exact * 100 if key == "coverage" else exact))
        if self.channel:
            parts.append(f"c{self.channel}")
        return "_".join(parts)

    def of(self, pixels: Pixels) -> Floats:
        """The score of each patch.

        Parameters
        ----------
        pixels
            ``[n, channels, *space]`` of booleans, integers or floats; space has 1 to 3 axes.

        Returns
        -------
        float64[n]

        Raises
        ------
        ConfigError
            If there is no such channel, or `level` is not said of floating-point pixels.
        SourceError
            If the pixels are not numbers of such a type.
        """
        if pixels.dtype.kind not in "biuf" or pixels.dtype.itemsize > 8:
            raise SourceError(f"scores are of real numbers of up to 64 bits, got {pixels.dtype}")
        if self.channel >= pixels.shape[1]:
            raise ConfigError(
                f"score {self.name!r} is of channel {self.channel}, got patches of "
                f"{pixels.shape[1]}; channels are numbered from 0"
            )
        given, found = dict(self.params), np.empty(len(pixels))
        rule = _RULES[self.name]
        if self.name == "saturation" and pixels.dtype.kind == "b":
            # They are looked at as bytes, whose largest value is another.
            given.setdefault("level", 1)
        # Overflow and undefined results are told by the score itself.
        with np.errstate(all="ignore"):
            for low, piece in _pieces(pixels, self.channel):
                found[low : low + len(piece)] = rule(piece, **given)
            found += 0.0
        found[np.isnan(found)] = np.nan
        return found


def _plain(value: Decimal) -> str:
    """A number as text for a name, for example ``12p5`` or ``m3``."""
    value = value.normalize()
    text = f"{value:f}" if -7 < value.adjusted() < 17 else f"{value:e}"
    return text.replace(".", "p").replace("-", "m").replace("+", "")


def _pieces(pixels: Pixels, channel: int) -> Iterator[tuple[int, Pixels]]:
    """Patches of one channel, contiguous and of a type that is quick to compute with."""
    step = max(1, _PIECE // max(1, math.prod(pixels.shape[2:])))
    kind = {"b1": "u1", "f2": "f4"}.get(pixels.dtype.str[1:], pixels.dtype.str[1:])
    for low in range(0, len(pixels), step):
        yield low, np.ascontiguousarray(pixels[low : low + step, channel], np.dtype(kind))


def _flat(patches: Pixels) -> Pixels:
    return patches.reshape(len(patches), -1)


def _sum(values: Floats) -> Floats:
    """Sum of each row: halves are added until one number is left."""
    width = values.shape[1]
    half = 1 << (width - 1).bit_length() - 1 if width > 1 else 0
    if half:
        folded = values[:, :half].copy()
        folded[:, : width - half] += values[:, half:]
        values = folded
    while half > 1:
        half //= 2
        values = values[:, :half] + values[:, half:]
    found: Floats = values[:, 0]
    return found


def _mean(patches: Pixels) -> Floats:
    """Mean of the numbers of each patch."""
    flat = _flat(patches)
    gap, n = _gaps(flat)
    wide = flat.astype(np.float64)
    if gap is not None:
        wide[gap] = 0
    return np.asarray(_sum(wide) / n)


def _variance(patches: Pixels) -> Floats:
    """Mean squared difference from the mean."""
    flat = _flat(patches)
    gap, n = _gaps(flat)
    # From the least value on: a constant row has the variance 0, whatever its mean is rounded to.
    least = np.fmin.reduce(flat, axis=1, keepdims=True).astype(np.float64)
    wide = np.subtract(flat, least)
    if gap is not None:
        wide[gap] = 0
    mean = _sum(wide) / n
    wide -= mean[:, None]
    if gap is not None:
        wide[gap] = 0
    wide *= wide
    return np.asarray(_sum(wide) / n)


def _gaps(flat: Pixels) -> tuple[npt.NDArray[np.bool_] | None, Any]:
    """Where pixels are NaN, if any is, and how many numbers each row has."""
    gap = np.isnan(flat) if flat.dtype.kind == "f" else None
    if gap is None or not gap.any():
        return None, flat.shape[1]
    return gap, flat.shape[1] - np.count_nonzero(gap, axis=1)


def _std(patches: Pixels) -> Floats:
    return np.asarray(np.sqrt(_variance(patches)))


def _max(patches: Pixels) -> Floats:
    return np.asarray(np.fmax.reduce(_flat(patches), axis=1), np.float64)


def _entropy(patches: Pixels) -> Floats:
    """Each run of equal values in a sorted row is one value that occurs."""
    # The stable sort of the narrow types is by their digits, and the fastest.
    kind: Any = "stable" if patches.dtype.itemsize <= 2 else None
    values = np.sort(_flat(patches), axis=1, kind=kind)
    n, width = values.shape
    first = np.ones((n, width), np.bool_)
    np.not_equal(values[:, 1:], values[:, :-1], out=first[:, 1:])
    begin = np.flatnonzero(first)
    count = np.diff(begin, append=n * width)
    row = begin // width
    number = np.full(n, width)
    if patches.dtype.kind == "f":
        number -= np.count_nonzero(np.isnan(values), axis=1)
        real = ~np.isnan(values.ravel()[begin])
        count, row = count[real], row[real]
    log = np.log2(np.arange(1, width + 1))
    bits = count * (log[number - 1][row] - log[count - 1])
    # This sums one after another, in the order of the values.
    return np.asarray(np.bincount(row, bits, minlength=n) / number)


def _focus(patches: Pixels) -> Floats:
    # Both are exact for narrow integers, and the smaller is the faster.
    narrow = patches.dtype.kind != "f" and patches.dtype.itemsize <= 2
    wide: Pixels = patches.astype(np.int32 if narrow else np.float64)
    axes = [axis for axis in range(1, wide.ndim) if wide.shape[axis] > 2]
    if not axes:
        return np.full(len(wide), np.nan)
    inner = tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(wide.ndim))
    bent = wide[inner] * (-2 * len(axes))
    pair = np.empty_like(bent)
    for axis in axes:
        before, after = (
            wide[(*inner[:axis], step, *inner[axis + 1 :])]
            for step in (slice(None, -2), slice(2, None))
        )
        bent += np.add(before, after, out=pair)
    variance = _variance(bent)
    square = _mean(patches) ** 2
    return np.where((variance == 0) & (square == 0), 0.0, variance / square)


def _saturation(patches: Pixels, level: float | None = None) -> Floats:
    flat = _flat(patches)
    if flat.dtype.kind != "f":
        # Python's integers are compared exactly, whatever fits into the type.
        top = int(np.iinfo(flat.dtype).max) if level is None else math.ceil(level)
        return np.asarray(np.count_nonzero(flat >= top, axis=1) / flat.shape[1])
    if level is None:
        raise ConfigError(
            "saturation of floating-point pixels is at or above a level, got none; say level="
        )
    n = np.count_nonzero(~np.isnan(flat), axis=1)
    return np.asarray(np.count_nonzero(flat >= np.float64(level), axis=1) / n)


def _nodata(patches: Pixels, value: float | None = None) -> Floats:
    flat = _flat(patches)
    none = np.isnan(flat) if flat.dtype.kind == "f" else np.zeros(flat.shape, np.bool_)
    if value is not None:
        whole = flat.dtype.kind != "f" and float(value).is_integer()
        none |= flat == (int(value) if whole else np.float64(value))
    return np.asarray(np.count_nonzero(none, axis=1) / flat.shape[1])


def _bright(patches: Pixels, coverage: float | None = None) -> Floats:
    size = patches.shape[1:]
    n = math.prod(size)
    coverage = 0.5 ** len(size) if coverage is None else coverage
    # As the shares are compared: a coverage of 0.1 is 1 pixel out of 10.
    rank = math.ceil(coverage * n) - 1
    rank = next(k for k in range(max(1, rank), n + 1) if k / n >= coverage)
    empty = None
    if patches.dtype.kind == "f":
        gap = np.isnan(patches)
        empty = gap.reshape(len(gap), n).all(axis=1)
        patches = np.where(gap, patches.dtype.type(-np.inf), patches)
    for axis, extent in enumerate(size, 1):
        patches = _widest(patches, axis, max(1, extent // 2))
    found = np.partition(patches.reshape(-1, n), n - rank, axis=1)[:, n - rank].astype(np.float64)
    if empty is not None:
        found[empty] = np.nan
    return found


def _widest(patches: Pixels, axis: int, window: int) -> Pixels:
    """Maximum of the window around each pixel, as far as it lies inside the patch."""
    if window == 1:
        return patches
    least = -np.inf if patches.dtype.kind == "f" else np.iinfo(patches.dtype).min
    around = [(0, 0)] * patches.ndim
    # An even window reaches one pixel further to the left, as SciPy's does.
    around[axis] = (window // 2, window - 1 - window // 2)
    found = np.pad(patches, around, constant_values=least)

    def doubled(by: int) -> Pixels:
        at = (slice(None),) * axis
        rest = found.shape[axis] - by
        return np.asarray(np.maximum(found[(*at, slice(0, rest))], found[(*at, slice(by, None))]))

    # Windows of twice the width until one more would be too wide.
    width = 1
    while 2 * width <= window:
        found = doubled(width)
        width *= 2
    return doubled(window - width) if width < window else found


_RULES: Mapping[str, Callable[..., Floats]] = {
    "max": _max,
    "mean": _mean,
    "std": _std,
    "entropy": _entropy,
    "focus": _focus,
    "saturation": _saturation,
    "bright": _bright,
    "nodata": _nodata,
}


def parse_scores(given: Sequence[str | Mapping[str, Any] | Score]) -> tuple[Score, ...]:
    """Scores from their names, from mappings with `name`, `channel` and parameters, or as they are.

    Raises
    ------
    ConfigError
        If one is unknown.

    Examples
    --------
    >>> [score] = parse_scores([{"name": "saturation", "channel": 1, "level": 4095}])
    >>> score.column
    'saturation_4095_c1'
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"scores are a list such as ['mean', 'std'], got {given!r}")
    return tuple(_parse(item) for item in given)


def _parse(item: str | Mapping[str, Any] | Score) -> Score:
    if isinstance(item, Score):
        return item
    if isinstance(item, str):
        return Score(item)
    if not isinstance(item, Mapping) or "name" not in item:
        raise ConfigError(f"a score is a name or a mapping with one, got {item!r}")
    rest = {key: value for key, value in item.items() if key not in ("name", "channel")}
    wrong = sorted(key for key, value in rest.items() if not isinstance(value, int | float))
    if wrong:
        raise ConfigError(f"parameters of a score are numbers, got {item!r}")
    return Score(str(item["name"]), item.get("channel", 0), tuple(sorted(rest.items())))
