"""Nodata: the value of pixels that tell nothing, given by the user or by an array's metadata."""

from __future__ import annotations

import base64
import math
import numbers
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.errors import ConfigError
from patchloom.image import Image
from patchloom.sources.roles import per_image

__all__ = ["told_nodata", "with_nodata"]

_TOLD = ("_FillValue", "missing_value")
"""Attributes that name it: conventions for climate and forecast data (CF), section 2.5.1."""


def told_nodata(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> float | None:
    """The nodata value that an array's own attributes tell.

    The fill value of a Zarr array is none: it says what chunks that were never written show.

    Parameters
    ----------
    attributes
        Of the array; `_FillValue`, then `missing_value` count, as numbers, as ``"NaN"`` or as
        xarray writes floats into Zarr v3 (base64 of a little-endian float64).
    dtype
        Of its pixels; a value that none of them can have is no nodata value.

    Examples
    --------
    >>> told_nodata({"_FillValue": -9999}, np.dtype("int16"))
    -9999.0
    >>> told_nodata({"_FillValue": -9999}, np.dtype("uint8")) is None
    True
    """
    for name in _TOLD:
        value = _number(attributes.get(name))
        if value is not None:
            return value if _is_possible(value, dtype) else None
    return None


def with_nodata(given: Any, images: Sequence[Image]) -> list[Image]:
    """Images with the nodata value that was given for each; None keeps what its metadata tell.

    Parameters
    ----------
    given
        A number or ``"nan"``; one for each image in a list, or per image id in a mapping.
    images
        The images.

    Raises
    ------
    ConfigError
        If it is no number, or one that no pixel can have.
    IdentityError
        If the list or mapping does not match the images one to one.
    """
    if given is None:
        return list(images)
    items = per_image(given, images, "nodata")
    return [
        image if item is None else replace(image, nodata=_checked(item, image))
        for item, image in zip(items, images, strict=True)
    ]


def _checked(given: Any, image: Image) -> float:
    """A nodata value that pixels of an image can have."""
    value = _number(given)
    if value is None:
        raise ConfigError(
            f"nodata= is a number or 'nan', one for each image in a list or per image id in a "
            f"mapping, got {given!r} for {image.id!r}"
        )
    if not _is_possible(value, image.dtype):
        raise ConfigError(
            f"nodata= is a value that a pixel can have, got {given!r} for {image.id!r} of "
            f"{image.dtype}; leave it out"
        )
    return value


def _number(given: Any) -> float | None:
    """What stands for a number, or None."""
    if isinstance(given, np.ndarray | list | tuple) and np.size(given) == 1:
        [given] = np.ravel(np.asarray(given, object)).tolist()
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, str):
        return _spelled(given)
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        return None
    try:
        return float(given)
    except OverflowError:
        return None


def _spelled(text: str) -> float | None:
    if text.lower() == "nan":
        return math.nan
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return float(struct.unpack("<d", data)[0]) if len(data) == 8 else None


def _is_possible(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether a pixel of a type can have a value, which floats have up to rounding."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = np.float64(value).astype(dtype)
        return bool(np.isfinite(held)) or not math.isfinite(value)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value % 1 == 0 and int(low) <= value <= int(high)
