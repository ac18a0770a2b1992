"""Datasets: the variables of xarray, and what their coordinates say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.errors import NotAnArrayError, SourceError
from patchloom.image import Image

__all__ = ["described", "is_dataset", "variable_of"]

_TOLERANCE = 1e-3
"""Steps between coordinates are equal if they differ by less than this share of their mean:
coordinates are often kept as float32."""


def is_dataset(item: Any) -> bool:
    """Whether something is an xarray Dataset."""
    return hasattr(item, "data_vars") and hasattr(item, "coords")


def variable_of(dataset: Any, name: str | None) -> Any:
    """One data variable of a Dataset, as a DataArray: the one that is named, or the only one.

    Raises
    ------
    SourceError
        If there is none of that name.
    NotAnArrayError
        If none is named and there are several, or none at all.
    """
    names = [str(key) for key in dataset.data_vars]
    if name is not None:
        if name not in names:
            raise SourceError(
                f"array= names a data variable of the Dataset, got {name!r}; there are {names}"
            )
        return dataset[name]
    if len(names) != 1:
        raise NotAnArrayError(
            f"an image is one array, but the Dataset holds {names or 'no data variable'}; name "
            "one: array=..."
        )
    return dataset[names[0]]


def described(image: Image, array: Any) -> Image:
    """An image with what the coordinates of its DataArray tell: spacing, origin, unit, channels.

    Coordinates tell places if each spatial axis has one that rises in equal steps; else no axis
    has a spacing, since a part of a scale would be none.
    """
    names = dict(zip(image.axes.names, map(str, array.dims), strict=True))
    coords = {a: array.coords[d] for a, d in names.items() if d in array.coords}
    channels = coords.get("c")
    if channels is not None and channels.ndim == 1 and channels.dtype.kind in "OUT":
        image = replace(image, channels=tuple(map(str, channels.to_numpy())))
    steps = {a: _step(coords[a]) for a in image.axes.spatial if a in coords}
    found = {a: step for a, step in steps.items() if step is not None}
    if not found or set(found) != set(image.axes.spatial):
        return image
    units = {a: coords[a].attrs.get("units") or coords[a].attrs.get("unit") for a in found}
    return replace(
        image,
        spacing=found,
        origin={a: float(coords[a].to_numpy()[0]) for a in found},
        unit={a: str(unit) for a, unit in units.items() if unit},
    )


def _step(coordinate: Any) -> float | None:
    """The step of a coordinate that rises in equal ones; None of any other."""
    if coordinate.ndim != 1 or coordinate.size < 2 or coordinate.dtype.kind not in "iuf":
        return None
    values = coordinate.to_numpy().astype(np.float64)
    mean = float(values[-1] - values[0]) / (len(values) - 1)
    if not (np.isfinite(mean) and mean > 0):
        return None
    even = values[0] + mean * np.arange(len(values))
    return mean if np.abs(values - even).max() <= _TOLERANCE * mean else None
