"""Transforms: a scale and a translation of each axis, from what OME-Zarr and SpatialData write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchloom.errors import SourceError

__all__ = ["Transform", "compose"]

_GLOBAL = "global"
"""The coordinate system that SpatialData's elements have by default."""


@dataclass(frozen=True)
class Transform:
    """A map of coordinates along each axis: ``scale * x + translation``.

    >>> Transform((2.0,), (1.0,)).after(Transform((3.0,), (5.0,)))
    Transform(scale=(6.0,), translation=(11.0,))
    """

    scale: tuple[float, ...]
    translation: tuple[float, ...]

    @classmethod
    def identity(cls, ndim: int) -> Transform:
        """The one that changes nothing."""
        return cls((1.0,) * ndim, (0.0,) * ndim)

    def after(self, first: Transform) -> Transform:
        """The map that does another one first, then this one."""
        return Transform(
            tuple(a * b for a, b in zip(self.scale, first.scale, strict=True)),
            tuple(
                s * t + u
                for s, t, u in zip(self.scale, first.translation, self.translation, strict=True)
            ),
        )

    def check(self, spatial: Sequence[int], axes: Sequence[str], what: str) -> None:
        """Refuse what can be no size of a pixel.

        Parameters
        ----------
        spatial
            The axes in space: those whose numbers are used.
        axes
            The name of each axis.
        what
            What an error is about.

        Raises
        ------
        SourceError
            If a scale is not above 0, or a number is not finite.
        """
        for k in spatial:
            scale, shift = self.scale[k], self.translation[k]
            if not (0 < scale < math.inf and math.isfinite(shift)):
                raise SourceError(
                    "the size of a pixel is finite and above 0 and its place is finite, got a "
                    f"scale of {scale:g} and a translation of {shift:g} along {axes[k]} of "
                    f"{what}; mend its coordinateTransformations, or open the array inside it"
                )


def compose(transforms: Any, axes: Sequence[str], shown: str) -> Transform:
    """One transform out of a list as it is stored: each is done after the one before.

    A list whose members name what they lead to (SpatialData) has one for each coordinate system:
    then it is that to ``global``, or the only one.

    Parameters
    ----------
    transforms
        The value of ``coordinateTransformations``; None is an empty list.
    axes
        The name of each axis, in stored order.
    shown
        What an error is about.

    Raises
    ------
    SourceError
        If one is more than a scale and a translation, is not told here, or tells wrong numbers.
    """
    listed = list(transforms or ())
    systems = [item["output"] for item in listed if isinstance(item.get("output"), Mapping)]
    if systems:
        listed = [_chosen(listed, [str(system.get("name")) for system in systems], shown)]
    found = Transform.identity(len(axes))
    for item in listed:
        found = _one(item, axes, shown).after(found)
    return found


def _chosen(listed: Sequence[Any], names: Sequence[str], shown: str) -> Any:
    if len(names) == len(listed) and (_GLOBAL in names or len(names) == 1):
        return listed[names.index(_GLOBAL) if _GLOBAL in names else 0]
    raise SourceError(
        f"places are told in the coordinate system {_GLOBAL!r}, or in the only one, but {shown} "
        f"has transformations to {list(names)}; set one to {_GLOBAL!r} and write it again"
    )


def _one(item: Mapping[str, Any], axes: Sequence[str], shown: str) -> Transform:
    kind = item.get("type")
    plain = Transform.identity(len(axes))
    if kind == "identity":
        return plain
    if kind in ("scale", "translation") and kind in item:
        numbers = _numbers(item[kind], len(axes), kind, shown)
        names = _names(item, "input", axes)
        if sorted(names) == sorted(axes):
            numbers = tuple(numbers[names.index(axis)] for axis in axes)
            if kind == "scale":
                return Transform(numbers, plain.translation)
            return Transform(plain.scale, numbers)
    if kind == "sequence" and "transformations" in item:
        found = plain
        for part in item["transformations"]:
            found = _one(part, axes, shown).after(found)
        return found
    if kind == "affine" and "affine" in item:
        straight = _diagonal(item, axes, shown)
        if straight is not None:
            return straight
    told = f"with the numbers at {item['path']!r}" if "path" in item else "of more than that"
    raise SourceError(
        f"the pixels of an image are scaled and moved along its axes, but {shown} has a transform "
        f"of type {kind!r} {told}; apply it and write the image again, or open the array inside it"
    )


def _diagonal(item: Mapping[str, Any], axes: Sequence[str], shown: str) -> Transform | None:
    """An affine transform that turns and shears nothing; None if this one does."""
    before, after = _names(item, "input", axes), _names(item, "output", axes)
    if before != [*axes] or not set(after) <= set(before):
        return None
    scale, shift = [1.0] * len(axes), [0.0] * len(axes)
    for name, row in zip(after, item["affine"], strict=True):
        *turned, moved = _numbers(row, len(axes) + 1, "row of an affine", shown)
        k = before.index(name)
        if any(value != 0 for j, value in enumerate(turned) if j != k):
            return None
        scale[k], shift[k] = turned[k], moved
    return Transform(tuple(scale), tuple(shift))


def _names(item: Mapping[str, Any], side: str, axes: Sequence[str]) -> list[str]:
    """The axes of one side of a transform, where it tells them."""
    told = item.get(side)
    given = told.get("axes") if isinstance(told, Mapping) else None
    return [str(axis["name"]).lower() for axis in given] if given else [*axes]


def _numbers(values: Any, n: int, kind: str, shown: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != n:
        raise SourceError(
            f"a {kind} has one number for each of {n} axes, got {values!r} in {shown}; mend its "
            "coordinateTransformations"
        )
    return tuple(float(value) for value in values)
