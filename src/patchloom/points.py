"""Points: places in images, with columns of metadata, and the patches centred on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from patchloom.errors import AxesError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Points", "first_pixels"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LIMIT = 2.0**53
"""Above it, float64 cannot tell one pixel from the next."""


@dataclass(frozen=True, eq=False, repr=False)
class Points:
    """Places in images, with columns of metadata; made by `read_points`.

    In pixels, the centre of pixel k is at k: it covers ``[k - 0.5, k + 0.5)``.

    Raises
    ------
    AxesError
        If the axes are not those of `position`.
    SourceError
        If the parts do not fit each other, or a position is not finite.
    """

    position: Floats
    """float64[n, ndim], in pixels of the opened level or in physical units; finite."""
    axes: str
    """The spatial axes of `position`, in the order z, y, x."""
    columns: pa.Table
    """Metadata, one value a point: text (dictionary-encoded or not), numbers and flags; may be
    missing."""
    image: Ints | None = None
    """int64[n], position in `images` of each point's image; None: all lie in the one image."""
    images: tuple[str, ...] = ()
    """Ids of the images that have points, each once; in order of their first point where
    `read_points` made them."""
    sample: Ints | None = None
    """int64[n], flat sample of the image; None: the first."""
    unit: Literal["pixel", "physical"] = "pixel"
    """What positions are counted in."""

    def __post_init__(self) -> None:
        if self.axes not in ("x", "yx", "zyx"):
            raise AxesError(
                f"points have the axes x, yx or zyx, got {self.axes!r}; name the axis of each "
                "column of positions"
            )
        n = len(self.position)
        if self.position.shape != (n, len(self.axes)) or self.position.dtype != np.float64:
            raise SourceError(
                f"positions are float64[n, {len(self.axes)}] for the axes {self.axes!r}, got "
                f"{self.position.dtype}{list(self.position.shape)}"
            )
        lengths = {
            "image": n if self.image is None else len(self.image),
            "sample": n if self.sample is None else len(self.sample),
            "columns": self.columns.num_rows if self.columns.num_columns else n,
        }
        if set(lengths.values()) != {n}:
            raise SourceError(f"every part of points has one value a point ({n}), got {lengths}")
        if self.image is not None and not _within(self.image, len(self.images)):
            raise SourceError(f"image= counts the {len(self.images)} ids in images=")
        if self.sample is not None and not _within(self.sample):
            raise SourceError(f"a sample is a number from 0, got {int(self.sample.min())}")
        if self.unit not in ("pixel", "physical"):
            raise SourceError(f"unit= is 'pixel' or 'physical', got {self.unit!r}")
        _check_size(self.position)

    def __len__(self) -> int:
        return len(self.position)

    def __repr__(self) -> str:
        where = "one image" if self.image is None else f"{len(self.images)} images"
        return (
            f"Points({len(self):,} in {where}, axes {self.axes!r} in {self.unit} units, "
            f"columns {self.columns.column_names})"
        )

    def take(self, rows: Sequence[int] | Ints | npt.NDArray[np.bool_]) -> Points:
        """Some of the points.

        Parameters
        ----------
        rows
            int[m] positions, or bool[n]. `images` stays as it is.
        """
        index = np.arange(len(self), dtype=np.int64)[rows]
        return replace(
            self,
            position=self.position[index],
            image=None if self.image is None else self.image[index],
            sample=None if self.sample is None else self.sample[index],
            columns=self.columns.take(index) if self.columns.num_columns else self.columns,
        )

    def in_pixels(
        self, spacing: Mapping[str, float], origin: Mapping[str, float] | None = None
    ) -> Points:
        """The same points with positions in pixels: (position - origin) / spacing.

        Points that are in pixels stay as they are.

        Parameters
        ----------
        spacing
            Physical extent of a pixel on each axis, as in `Image.spacing`.
        origin
            Physical coordinate of the first pixel's centre on each axis; 0 where it is missing.

        Raises
        ------
        SourceError
            If an axis has no spacing above 0.
        """
        if self.unit == "pixel":
            return self
        if not all(0 < spacing.get(a, 0) < np.inf for a in self.axes):
            raise SourceError(
                f"points in physical units need an image with a spacing above 0 on each of "
                f"{self.axes!r}, got {dict(spacing)}; give the positions in pixels, or write "
                "the image's scale into its metadata"
            )
        first = np.array([(origin or {}).get(a, 0.0) for a in self.axes])
        step = np.array([spacing[a] for a in self.axes])
        return replace(self, position=(self.position - first) / step, unit="pixel")


def first_pixels(position: npt.ArrayLike, size: Sequence[int]) -> Ints:
    """The first pixel of the patch centred on each position.

    The centre pixel is the one that covers the position, ``floor(position + 0.5)``: halves go
    up, and nothing is rounded to even or toward zero. It is pixel ``size // 2`` of the patch,
    counted from 0: of 5 pixels the one in the middle, of 4 the third.

    Parameters
    ----------
    position
        float64[n, ndim], in pixels; pixel k covers ``[k - 0.5, k + 0.5)``.
    size
        Extent of a patch on each axis, in pixels.

    Returns
    -------
    int64[n, ndim]
        Below 0 where the patch sticks out of the image.

    Raises
    ------
    SourceError
        If a position is not finite, or not below 2**53.

    Examples
    --------
    >>> first_pixels([[10.0, 10.0], [10.5, 10.49], [-0.5, -0.51]], (4, 5))
    array([[ 8,  8],
           [ 9,  8],
           [-2, -3]])
    """
    place = np.asarray(position, np.float64)
    _check_size(place)
    low = np.floor(place)
    # Not floor(place + 0.5): the sum is rounded, so the number just below 0.5 would become 1.
    centre: Ints = low.astype(np.int64) + (place - low >= 0.5)
    return centre - np.asarray(size, np.int64) // 2


def _within(values: Ints, stop: int | None = None) -> bool:
    """Whether all are at least 0 and below `stop`."""
    return not len(values) or bool(values.min() >= 0 and (stop is None or values.max() < stop))


def _check_size(position: Floats) -> None:
    wrong = ~(np.abs(position) < _LIMIT)
    if wrong.any():
        raise SourceError(
            f"a position is finite and below 2**53, got {position[wrong][0]} among "
            f"{np.count_nonzero(wrong):,} such values; leave these points out"
        )
