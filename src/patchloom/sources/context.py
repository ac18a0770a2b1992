"""Context: coarser levels of an image, seen around its patches."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from patchloom.errors import ConfigError, SourceError
from patchloom.image import CONTEXT, Image

__all__ = ["with_context"]


def with_context(image: Image, levels: Any) -> Image:
    """An image with some of its coarser levels as further arrays.

    Parameters
    ----------
    image
        One level of a pyramid.
    levels
        Numbers of coarser levels.

    Raises
    ------
    ConfigError
        If these are no numbers.
    SourceError
        If the image has no such level, or it is finer, or of other channels, axes or type.
    """
    for level in _numbers(levels):
        there = {role.image.level: role for role in image.levels}
        role = there.get(level)
        if role is None:
            raise SourceError(
                f"context= are numbers of levels coarser than the one that is opened "
                f"({image.level}), here {sorted(there)}, got {level} for {image.id!r}; open an "
                "OME-Zarr image that has it"
            )
        other = role.image
        coarser = all(scale >= 1 for scale in role.alignment.scale)
        alike = role.axes == image.axes.spatial and other.dtype == image.dtype
        if not (coarser and alike and other.layout.n_channels == image.layout.n_channels):
            raise SourceError(
                "a level for context has the axes, channels and type of its image, and no smaller "
                f"pixels, but level {level} of {image.id!r} has not; leave it out"
            )
        image = image.with_role(f"{CONTEXT}{level}", role)
    return image


def _numbers(levels: Any) -> Sequence[int]:
    try:
        found = [operator.index(level) for level in levels]
    except TypeError:
        found = [-1]
    if len({*found}) < len(found) or any(level < 1 for level in found):
        raise ConfigError(f"context= lists numbers of levels, each once, from 1 on, got {levels!r}")
    return found
