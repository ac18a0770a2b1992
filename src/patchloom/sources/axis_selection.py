"""Selection by the names of axes and channels, as users ask for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from patchloom.errors import AxesError, ConfigError
from patchloom.image import Image
from patchloom.sources.picks import Pick, pick_by_index, pick_by_place
from patchloom.sources.roles import per_image
from patchloom.sources.selected import selected

__all__ = ["is_resampled", "narrowed", "of_channels", "part_of"]

_PART = {"from", "channels", "isel", "resample"}


def of_channels(images: Sequence[Image], channels: Any) -> list[Image]:
    """Images with some of their channels.

    Parameters
    ----------
    images
        Without roles.
    channels
        One name or number, or a list of them, in the order in which they are wanted.

    Raises
    ------
    ConfigError
        If an image has no such channel.
    """
    if channels is None:
        return list(images)
    return [selected(image, {"c": _channels(channels, image)}) for image in images]


def narrowed(images: Sequence[Image], isel: Any, sel: Any) -> list[Image]:
    """Images and their roles cut down along some of their axes.

    Parameters
    ----------
    images
        With their roles.
    isel, sel
        What is taken by axis, in pixels and in physical units: one mapping for all images, one for
        each in a list, or per image id in a mapping.

    Raises
    ------
    ConfigError
        If an axis is asked for that an image has not, or twice, or nothing is there.
    """
    items = zip(images, _mappings(isel, images, "isel"), _mappings(sel, images, "sel"), strict=True)
    return [selected(image, _picks(image, i, s)) for image, i, s in items]


def part_of(given: Any, open_one: Callable[[Any], Image]) -> Image:
    """The array of a role, or the part of it that ``{"from": ..., "channels": ...}`` names.

    Parameters
    ----------
    given
        What stands for the role of one image.
    open_one
        Opens what stands somewhere.
    """
    if not isinstance(given, Mapping):
        return open_one(given)
    if "from" not in given or set(given) - _PART:
        raise ConfigError(
            f"part of an array is named by {sorted(_PART)}, 'from' at least, got "
            f"{sorted(map(str, given))}"
        )
    image = open_one(given["from"])
    [image] = of_channels([image], given.get("channels"))
    [image] = narrowed([image], given.get("isel"), None)
    return image


def is_resampled(given: Any) -> bool:
    """Whether an array is to be brought to the pixels of its image.

    Raises
    ------
    ConfigError
        If it is to be in a way that there is not.
    """
    how = given.get("resample") if isinstance(given, Mapping) else None
    if how not in (None, "nearest"):
        raise ConfigError(f"resample: is 'nearest', got {how!r}; leave it out to take it as it is")
    return how is not None


def _mappings(given: Any, images: Sequence[Image], name: str) -> list[Mapping[str, Any]]:
    if given is None:
        return [{}] * len(images)
    axes = {a for image in images for a in image.axes.names}
    # Ids may be one letter long, too; but an axis is given no mapping.
    one = isinstance(given, Mapping) and not all(
        item is None or isinstance(item, Mapping) for item in given.values()
    )
    items = [given] * len(images) if one or given == {} else per_image(given, images, name)
    for item in items:
        if item is not None and not isinstance(item, Mapping):
            raise ConfigError(
                f"{name}= is a mapping from axes to what is taken along them, for all images, for "
                f"each in a list or per image id in a mapping, got {item!r}; the axes are "
                f"{sorted(axes)}"
            )
    return [{} if item is None else item for item in items]


def _picks(image: Image, isel: Mapping[str, Any], sel: Mapping[str, Any]) -> dict[str, Pick]:
    names, found = image.axes.names, {}
    wanted = [(str(a).lower(), v, True) for a, v in isel.items()]
    wanted += [(str(a).lower(), v, False) for a, v in sel.items()]
    for axis, given, by_index in wanted:
        what = f"{axis} of {image.id!r}"
        if axis not in names:
            raise AxesError(
                f"isel and sel name axes of the image, got {axis!r} for {image.id!r} with axes "
                f"{names!r}"
            )
        if axis in found:
            raise ConfigError(f"an axis is selected once, got {axis!r} twice for {image.id!r}")
        extent = image.shape[names.index(axis)]
        if by_index:
            found[axis] = pick_by_index(given, extent, what)
            continue
        if axis not in image.spacing:
            hint = "name channels by channels=" if axis == "c" else "select by index: isel"
            raise ConfigError(
                f"sel goes by physical coordinates, but {what} has none (axes with a spacing: "
                f"{sorted(image.spacing)}); {hint}"
            )
        origin = image.origin.get(axis, 0.0)
        found[axis] = pick_by_place(given, extent, image.spacing[axis], origin, what)
    return found


def _channels(given: Any, image: Image) -> Pick:
    if not image.axes.has_channel:
        raise AxesError(
            f"channels= is for images with an axis c, got {given!r} for {image.id!r} with axes "
            f"{image.axes.names!r}; leave it out"
        )
    is_one = isinstance(given, str) or not isinstance(given, list | tuple | range | np.ndarray)
    numbers = [_number(item, image) for item in ([given] if is_one else given)]
    return pick_by_index(numbers, image.layout.n_channels, f"the channels of {image.id!r}")


def _number(item: Any, image: Image) -> int:
    if isinstance(item, str) and image.channels.count(item) == 1:
        return image.channels.index(item)
    if not isinstance(item, str | bool):
        try:
            return operator.index(item)
        except TypeError:
            pass
    named = f", or names out of {list(image.channels)}" if image.channels else " (it names none)"
    raise ConfigError(
        f"channels= are numbers from 0 to {image.layout.n_channels - 1}{named}, got {item!r} for "
        f"{image.id!r}"
    )
