"""Planes: stacks so thin, and of so unknown depth, that they may be channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchloom.image import Image

__all__ = ["axes_instead"]

_FEW = 6
"""Planes of the thickest stack that is doubted."""


def axes_instead(images: Sequence[Image]) -> tuple[str, str] | None:
    """The axes that images may have instead, and how many planes they have, in words.

    Parameters
    ----------
    images
        As they were opened; a stack is not doubted that has channels, or a spacing along z.

    Returns
    -------
    (str, str) or None
        Such as ``("CYX", "2 planes")``; None where nothing speaks for it.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> axes_instead(patchloom.open_images(np.zeros((2, 64, 64), "uint8"), axes="ZYX"))
    ('CYX', '2 planes')
    """
    planes = set()
    for image in images:
        names = image.axes.names
        if "z" not in names or "c" in names or "z" in image.spacing:
            return None
        planes.add(image.shape[names.index("z")])
    if not planes or max(planes) > _FEW:
        return None
    low, high = min(planes), max(planes)
    some = f"{low}" if low == high else f"{low} to {high}"
    return str(images[0].axes).replace("Z", "C"), f"{some} plane{'s' * (high > 1)}"
