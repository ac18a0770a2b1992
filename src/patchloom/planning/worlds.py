"""Worlds: where the pixels of images lie in common coordinates, exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image

__all__ = ["Frame", "column_of", "frames_of", "overlapping", "text_of"]

Ints = npt.NDArray[np.int64]
_PAIRS = 2**20
"""Pairs of images that are compared together."""


@dataclass(frozen=True)
class Frame:
    """The coordinates of one image.

    Pixel k of an axis covers ``[start + k * step, start + (k + 1) * step)``. In a world that is
    its physical extent; an image of its own has step 1 and start 0.
    """

    name: str
    """Equal for images that lie in one world."""
    step: tuple[Fraction, ...]
    start: tuple[Fraction, ...]
    reach: tuple[Fraction, ...]
    """Half of the widest guard of its world, on each axis."""
    shape: tuple[int, ...] | None = None
    """Extent of the image in pixels, where nothing lies beyond it."""


def frames_of(
    images: Sequence[Image], world: bool | str | None, guards: Sequence[Sequence[int]]
) -> list[Frame]:
    """The frame of each image.

    Parameters
    ----------
    images
        All images of a plan.
    world
        Whether all lie in one world, or the metadata column in which those of one are equal.
    guards
        Pixels of each image that a guard is wide, on each spatial axis.

    Raises
    ------
    ConfigError
        If no image has the column.
    PlanError
        If an image of a world has no spacing, origin or value, or another unit.
    """
    if world is None or world is False:
        # Images that ask for the same share one value each.
        plain = {
            tuple(guard): (
                (Fraction(1),) * len(guard),
                (Fraction(0),) * len(guard),
                tuple(Fraction(g, 2) for g in guard),
            )
            for guard in guards
        }
        return [
            Frame(f"image {image.id}", *plain[tuple(guard)], image.layout.space.shape)
            for image, guard in zip(images, guards, strict=True)
        ]
    values = ["" for _ in images] if world is True else column_of(images, world, "world")
    units: dict[str, tuple[tuple[str, ...], str]] = {}
    steps, starts = [], []
    widest: dict[str, list[Fraction]] = {}
    for image, value, guard in zip(images, values, guards, strict=True):
        spatial = image.axes.spatial
        if any(a not in image.spacing or a not in image.origin for a in spatial):
            raise PlanError(
                f"images of one world have a spacing and an origin on the axes {spatial!r}, but "
                f"{image.id!r} has not; write them into its metadata (OME-Zarr), or leave out "
                "world="
            )
        if not all(image.spacing[a] > 0 for a in spatial):
            raise PlanError(f"a spacing is above 0, got {dict(image.spacing)} in {image.id!r}")
        own = tuple(image.unit.get(a, "") for a in spatial)
        unit, other = units.setdefault(value, (own, image.id))
        if unit != own:
            raise PlanError(
                f"images of one world have one unit on each axis, got {list(unit)} in {other!r} "
                f"and {list(own)} in {image.id!r} ({', '.join(spatial)}); write the same unit into "
                "both, or keep them apart with a column: world='...'"
            )
        step = tuple(_exact(image.spacing[a]) for a in spatial)
        steps.append(step)
        centre = [_exact(image.origin[a]) for a in spatial]
        starts.append(tuple(c - s / 2 for c, s in zip(centre, step, strict=True)))
        half = [Fraction(g, 2) * s for g, s in zip(guard, step, strict=True)]
        widest[value] = [*map(max, widest.get(value, half), half)]
    return [
        Frame(f"world {value}", step, start, tuple(widest[value]))
        for value, step, start in zip(values, steps, starts, strict=True)
    ]


def overlapping(
    images: Sequence[Image], frames: Sequence[Frame], split: npt.NDArray[np.int8]
) -> tuple[int, int] | None:
    """Two images of one world that are in different splits and too close to each other.

    Images are walked along the axis that leaves the fewest pairs. O(n log n) and the pairs that
    meet on that axis.
    """
    worlds: dict[str, int] = {}
    which = [worlds.setdefault(frame.name, len(worlds)) for frame in frames]
    lows, highs = [np.array(which)], [np.array(which) + 1]
    for axis in range(len(frames[0].step)):
        low = [f.start[axis] - f.reach[axis] for f in frames]
        high = [
            f.start[axis] + image.layout.space.shape[axis] * f.step[axis] + f.reach[axis]
            for f, image in zip(frames, images, strict=True)
        ]
        ranks = _ranks(low + high)
        lows.append(ranks[: len(low)])
        highs.append(ranks[len(low) :])
    walks = [_walk(a, b) for a, b in zip(lows, highs, strict=True)]
    order, count = min(walks, key=lambda walk: int(walk[1].sum()))
    upto = np.cumsum(count)
    turns = np.searchsorted(upto, np.arange(0, int(upto[-1]), _PAIRS), side="right")
    for begin, end in pairwise(np.unique([*turns, len(order)]).tolist()):
        some = count[begin:end]
        first = np.repeat(np.arange(begin, end), some)
        within = np.arange(len(first)) - np.repeat(np.cumsum(some) - some, some)
        a, b = order[first], order[first + 1 + within]
        hit = split[a] != split[b]
        for low_of, high_of in zip(lows, highs, strict=True):
            hit &= (low_of[a] < high_of[b]) & (low_of[b] < high_of[a])
        if hit.any():
            where = int(np.argmax(hit))
            one, two = sorted((int(a[where]), int(b[where])))
            return one, two
    return None


def column_of(images: Sequence[Image], column: str, setting: str) -> list[str]:
    """The value of each image in a metadata column, as text; `text_of` says how.

    Parameters
    ----------
    images
        All images of a plan.
    column
        Its name.
    setting
        Where it was named, for errors.

    Raises
    ------
    ConfigError
        If no image has the column.
    PlanError
        If some images have no value.
    """
    known = sorted({name for image in images for name in image.metadata})
    if column not in known:
        other = ", is 'image' or 'blocks'" if setting == "by" else ""
        raise ConfigError(
            f"{setting}= names a metadata column of the images{other}, got {column!r}; there are "
            f"{known[:20]}: take one of them, or add it with open_images(sample=...)"
        )
    values = [image.metadata.get(column) for image in images]
    missing = [
        image.id
        # A float that is no number is unequal to itself.
        for image, value in zip(images, values, strict=True)
        if value is None or value != value
    ]
    if missing:
        some = f"{missing[:5]}{' and more' if len(missing) > 5 else ''}"
        raise PlanError(
            f"every image has a value in the column that {setting}= names, but {column!r} is "
            f"missing in {some}; fill it in, or leave these images out"
        )
    return [text_of(value) for value in values]


def text_of(value: object) -> str:
    """A text for each value: text itself, else JSON; text that is JSON is quoted.

    >>> text_of("donor 1"), text_of(1), text_of(1.0), text_of("1"), text_of(True)
    ('donor 1', '1', '1', '"1"', 'true')
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        # A column of whole and other numbers is one of floats: it holds 1 as 1.0.
        value = int(value)
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)


def _exact(value: float) -> Fraction:
    """The decimal that a number is written as."""
    return Fraction(str(float(value)))


def _ranks(values: Sequence[Fraction]) -> Ints:
    """Place of each value among all distinct ones: exact, however fine the fractions are."""
    unit = lcm(*(v.denominator for v in values))
    whole = [v.numerator * (unit // v.denominator) for v in values]
    place = {v: k for k, v in enumerate(sorted(set(whole)))}
    return np.array([place[v] for v in whole], np.int64)


def _walk(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Order of intervals by their begin, and how many that begin later each one meets."""
    order = np.argsort(low, kind="stable")
    last = np.searchsorted(low[order], high[order], side="left")
    return order, last - np.arange(len(order)) - 1
