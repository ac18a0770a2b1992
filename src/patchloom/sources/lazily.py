"""Lazily: arrays of images for Dask, and images whose objects are watched."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Image, innermost

__all__ = ["Sliceable", "reading_since"]


def reading_since(image: Image, moment: float) -> Image:
    """An image whose objects are refused if they are written after a moment.

    Parameters
    ----------
    image
        With what is cut along with it.
    moment
        In seconds since 1970.
    """
    for name, role in image.roles.items():
        if name != "mask":
            image = image.with_role(name, replace(role, image=reading_since(role.image, moment)))
    if hasattr(image.source, "since"):
        watched = replace(image.source, since=moment)  # type: ignore[type-var]
        return replace(image, source=watched)
    filled = getattr(image.source, "filled", None)
    if filled is None:
        return image
    # It is made of another image's pixels.
    inner: Image = image.source.image  # type: ignore[attr-defined]
    return replace(image, source=filled(reading_since(inner, moment).source))


@dataclass(frozen=True)
class Sliceable:
    """What Dask needs of an array, answered by `Image.read`."""

    image: Image

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, in stored order."""
        return self.image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        return self.image.dtype

    @property
    def ndim(self) -> int:
        """Stored dimensions."""
        return self.image.ndim

    def __dask_tokenize__(self) -> tuple[object, ...]:
        image, source = self.image, self.image.source
        # Not the URL alone: a file holds several arrays, and a folder several stacks.
        made = json.dumps(source.to_document(), sort_keys=True)
        own = getattr(innermost(source), "token", "")
        return ("patchloom", image.id, image.shape, str(image.dtype), made, own)

    def __getitem__(self, where: Any) -> npt.NDArray[Any]:
        # Dask merges a user's slices and integers into its own: basic indexing, all axes.
        start: list[int] = []
        stop: list[int] = []
        rest: list[Any] = []
        for item, n in zip(where, self.shape, strict=True):
            inside = range(n)[item]
            if isinstance(inside, int):
                start.append(inside)
                stop.append(inside + 1)
                rest.append(0)
                continue
            low, high = (min(inside), max(inside) + 1) if inside else (0, 0)
            start.append(low)
            stop.append(high)
            rest.append(slice(None, None, inside.step) if inside else slice(0, 0))
        pixels: npt.NDArray[Any] = self.image.read(start, stop)[tuple(rest)]
        return pixels
