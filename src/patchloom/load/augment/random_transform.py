"""The functions of data_tools: one image, or a stack of them, transformed at random."""

from __future__ import annotations

import math
from operator import index as whole
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.augment.augmentation import Augment

__all__ = ["image_random_transform", "image_stack_random_transform"]

Pixels = npt.NDArray[Any]


def image_random_transform(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    rotation_range: float = 0.0,
    width_shift_range: float = 0.0,
    height_shift_range: float = 0.0,
    shear_range: float = 0.0,
    zoom_range: float | tuple[float, float] = 0.0,
    intensity_shift_range: float = 0.0,
    fill_mode: str = "nearest",
    cval_x: float = 0.0,
    cval_y: float = 0.0,
    horizontal_flip: bool = False,
    vertical_flip: bool = False,
    spline_warp: bool = False,
    warp_sigma: float = 0.1,
    warp_grid_size: int = 3,
    crop_size: tuple[int, int] | None = None,
    channel_axis: int = 0,
    n_warp_threads: int | None = None,
    rng: Any = None,
    order: int = 1,
) -> Any:
    """One image, and what belongs to it, transformed at random.

    Parameters
    ----------
    x
        Any numbers, of three dimensions: channel and two of space.
    y
        Labels, a mask or a target of the same space; nearest pixels are taken.
    rotation_range
        Degrees, at most, either way about the centre.
    width_shift_range, height_shift_range
        Parts of the width and of the height.
    shear_range
        Degrees: rows slide sideways.
    zoom_range
        Greatest deviation of the scale of each axis from 1, or the least and the greatest scale.
    intensity_shift_range
        Grey levels that are added to each channel of `x`, which stays within its own range.
    fill_mode
        ``"nearest"``, ``"reflect"`` or ``"constant"``.
    cval_x, cval_y
        The constants.
    horizontal_flip, vertical_flip
        Whether to flip along the last axis, and along the one before it, each with
        probability 1/2.
    spline_warp
        Whether to warp by B-splines.
    warp_sigma
        Standard deviation of the displacement of control points, in pixels.
    warp_grid_size
        Cells of the grid of control points, along each axis.
    crop_size
        Extents of the part that is kept; an axis that is not larger is kept whole.
    channel_axis
        Where channels are, in `x` and in `y`.
    n_warp_threads
        Of no effect.
    rng
        A whole number, which fixes the result; or a generator of NumPy, from which one is drawn.
    order
        Of the interpolation of `x`: 0, 1 or 3.

    Returns
    -------
    array or (array, array)
        Of the types of `x` and `y`.

    Raises
    ------
    ConfigError
        If an argument is out of its bounds, or something is to be drawn without `rng`.

    Examples
    --------
    >>> x = np.arange(6).reshape(1, 2, 3)
    >>> image_random_transform(x, x > 2, horizontal_flip=True, rng=0)[0].tolist()
    [[[2, 1, 0], [5, 4, 3]]]
    """
    if np.ndim(x) != 3:
        raise ConfigError(
            f"one image has a channel axis and two of space, got {np.ndim(x)} axes; "
            "take image_stack_random_transform for more"
        )
    return image_stack_random_transform(
        x,
        rotation_range,
        width_shift_range,
        height_shift_range,
        shear_range,
        zoom_range,
        intensity_shift_range,
        fill_mode,
        cval_x,
        cval_y,
        horizontal_flip,
        vertical_flip,
        spline_warp,
        warp_sigma,
        warp_grid_size,
        crop_size,
        y=y,
        channel_axis=channel_axis,
        rng=rng,
        order=order,
    )


def image_stack_random_transform(
    x: npt.ArrayLike,
    *args: Any,
    y: npt.ArrayLike | None = None,
    channel_axis: int = 1,
    one_draw: bool = False,
    **kwargs: Any,
) -> Any:
    """A stack of images, of any number of axes, each transformed by a draw of its own.

    Parameters
    ----------
    x
        Any numbers [..., y, x]: the last two axes besides the channels' are space, others count
        images.
    *args, **kwargs
        Those of `image_random_transform` from `rotation_range` on.
    y
        Labels, masks or targets of the same shape but for channels.
    channel_axis
        Where channels are, in `x` and in `y`.
    one_draw
        Whether all images of the stack are transformed by one draw, such as the planes of a volume.

    Returns
    -------
    array or (array, array)
        Of the types of `x` and `y`.

    Raises
    ------
    ConfigError
        As `image_random_transform`.

    Examples
    --------
    >>> x = np.arange(2).reshape(1, 1, 1, 2).repeat(8, 0)
    >>> image_stack_random_transform(x, horizontal_flip=True, rng=0)[:, 0, 0, 0].tolist()
    [1, 0, 1, 0, 1, 0, 0, 0]
    >>> moved = image_stack_random_transform(x, horizontal_flip=True, rng=0, one_draw=True)
    >>> moved[:, 0, 0, 0].tolist()
    [1, 1, 1, 1, 1, 1, 1, 1]
    """
    images = np.moveaxis(np.asarray(x), channel_axis, -3)
    given = {"images": images}
    if y is not None:
        given["labels"] = np.moveaxis(np.asarray(y), channel_axis, -3)
    if len({(*array.shape[:-3], *array.shape[-2:]) for array in given.values()}) > 1:
        raise ConfigError(
            f"x and y have the same shape but for channels (axis {channel_axis}), "
            f"got {[array.shape for array in given.values()]} with channels third from the end"
        )
    stack, space = images.shape[:-3], images.shape[-2:]
    n = math.prod(stack)
    augment, rng = _augment(space, *args, **kwargs)
    found = augment(
        {name: array.reshape(n, *array.shape[-3:]) for name, array in given.items()},
        np.zeros(n, np.int64) if one_draw else np.arange(n),
        seed=0 if augment.is_identity else _seed(rng),
    )
    out = [
        np.moveaxis(array.reshape(*stack, *array.shape[1:]), -3, channel_axis)
        for array in found.values()
    ]
    return out[0] if y is None else tuple(out)


def _augment(
    space: tuple[int, ...],
    rotation_range: float = 0.0,
    width_shift_range: float = 0.0,
    height_shift_range: float = 0.0,
    shear_range: float = 0.0,
    zoom_range: float | tuple[float, float] = 0.0,
    intensity_shift_range: float = 0.0,
    fill_mode: str = "nearest",
    cval_x: float = 0.0,
    cval_y: float = 0.0,
    horizontal_flip: bool = False,
    vertical_flip: bool = False,
    spline_warp: bool = False,
    warp_sigma: float = 0.1,
    warp_grid_size: int = 3,
    crop_size: tuple[int, int] | None = None,
    n_warp_threads: int | None = None,
    rng: Any = None,
    order: int = 1,
) -> tuple[Augment, Any]:
    """What data_tools' arguments ask for, and `rng`."""
    crop = None
    if crop_size is not None:
        crop = tuple(min(a, b) for a, b in zip(crop_size, space, strict=True))
    augment = Augment(
        flip="y" * bool(vertical_flip) + "x" * bool(horizontal_flip),
        rotation_range=rotation_range,
        shift_range={"y": height_shift_range, "x": width_shift_range},
        shear_range=shear_range,
        zoom_range=zoom_range,
        intensity_shift_range=intensity_shift_range,
        intensity_clip=True,
        fill_mode=fill_mode,
        cval=cval_x,
        cval_target=cval_y,
        warp_sigma=warp_sigma if spline_warp else 0.0,
        warp_grid_size=warp_grid_size,
        crop=None if crop == space else crop,
        order=order,
    )
    return augment, rng


def _seed(rng: Any) -> int:
    """A whole number as it is, or one drawn from a generator.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if isinstance(rng, np.random.RandomState):
        return int(rng.randint(2**32, dtype=np.int64))
    try:
        return whole(rng)
    except TypeError:
        raise ConfigError(
            f"chance has an address: rng= is a whole number or a generator of NumPy, got {rng!r}; "
            "rng=0 gives the same every time, rng=np.random.default_rng() another one each time"
        ) from None
