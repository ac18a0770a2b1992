"""Numbers of pixels a spatial axis, however they were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

from patchloom.errors import AxesError, PatchSizeError

__all__ = ["PerAxis", "axes_of", "per_axis"]

PerAxis = int | Sequence[int] | Mapping[str, int]
"""One number for all axes, one an axis in order, or one for each named axis."""


def axes_of(
    data_shapes: Sequence[Sequence[int]], value: PerAxis = 0, among: str | None = None
) -> str:
    """The spatial axes of images whose shapes are ``SC(Z)YX``.

    Without images they are those that a size speaks of; one number speaks of ``"yx"``.

    >>> axes_of([(1, 1, 9, 9, 9)], 4), axes_of([], [4, 4, 4]), axes_of([], {"X": 4}), axes_of([], 4)
    ('zyx', 'zyx', 'x', 'yx')
    """
    if len(data_shapes):
        ndim = len(data_shapes[0]) - 2
    elif among is not None:
        return "".join(axis for axis in "zyx" if axis in among.lower())
    elif isinstance(value, Mapping):
        return axes_of([], among="".join(map(str, value)))
    else:
        ndim = 2 if isinstance(value, (int, Integral)) else len(value)
    if ndim > 3:
        raise PatchSizeError(
            f"a patch has at most 3 spatial axes (z, y, x), got {ndim}; make further axes samples"
        )
    return "zyx"[3 - ndim :]


def per_axis(
    value: PerAxis, spatial: str, *, name: str, among: str | None = None, rest: int = 0
) -> list[int]:
    """One number for each spatial axis, in the axes' order.

    Parameters
    ----------
    value
        One number for all axes, one an axis, or one for each named axis (letters of either case).
    spatial
        The spatial axes of the image, for example ``"zyx"``.
    name
        What the numbers are, for errors.
    among
        The axes that `value` speaks of, in the order of its list; by default all.
    rest
        For the axes that `among` leaves out.

    Raises
    ------
    AxesError
        If an axis is unknown, named twice or forgotten.
    PatchSizeError
        If a list is too short or too long.

    Examples
    --------
    >>> per_axis({"Y": 32, "X": 64}, "yx", name="patch_size")
    [32, 64]
    >>> per_axis([64, 32], "zyx", name="patch_size", among="xy", rest=1)
    [1, 32, 64]
    """
    axes = spatial if among is None else among.lower()
    if len(set(axes)) != len(axes) or not set(axes) <= set(spatial):
        raise AxesError(
            f"spatial_axes= are axes of the image, each once, got {among!r} for {spatial!r}; leave "
            "it out for all, or open the image with other axes="
        )
    if isinstance(value, Mapping):
        given = {str(axis).lower(): number for axis, number in value.items()}
        if given.keys() != set(axes) or len(given) != len(value):
            raise AxesError(
                f"{name} has one number for each of the axes {axes!r}, got {dict(value)}; name "
                "each once, and no other"
            )
    elif isinstance(value, (int, Integral)):
        given = dict.fromkeys(axes, int(value))
    else:
        if len(value) != len(axes):
            raise PatchSizeError(
                f"{name} has one number a spatial axis, got {list(value)} for the axes {axes!r}; "
                f"give {len(axes)} numbers, one for all, or one for each axis by name; where "
                "the image has other axes, say so: axes="
            )
        given = dict(zip(axes, value, strict=True))
    return [int(given.get(axis, rest)) for axis in spatial]
