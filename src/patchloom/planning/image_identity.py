"""What an image is to a plan, wherever it lies, and which pixels a saved plan is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from patchloom.errors import SourceError
from patchloom.image import Image, made_of

__all__ = ["identity_of", "with_pixels"]

_GIVEN = ("array", "function", "loader")
"""Kinds of sources that a saved plan does not hold: arrays in memory, and what functions read."""


def identity_of(image: Image) -> dict[str, Any]:
    """What an image is to a plan: no path, no credential."""
    roles = {
        name: [
            identity_of(role.image),
            role.axes,
            [str(v) for v in (*role.alignment.scale, *role.alignment.offset)],
        ]
        for name, role in image.roles.items()
    }
    return {
        **made_of(image.source),
        "id": image.id,
        "level": image.level,
        "axes": image.axes.names,
        "shape": image.shape,
        "dtype": image.dtype.newbyteorder("<").str,
        "chunks": image.grid.chunks,
        "shards": image.shards,
        "roles": roles,
        "metadata": {k: image.metadata[k] for k in sorted(image.metadata)},
        **image.nodata_document(),
    }


def with_pixels(image: Image, document: Mapping[str, Any], given: Image | None) -> Image:
    """An image of a saved plan with the arrays that were in memory taken from a given one."""
    for name, role in image.roles.items():
        own = None if given is None else given.roles.get(name)
        item = document["roles"][name]["image"]
        array = None if own is None else own.image
        filled = _filled(f"the {name} of {image.id!r}", role.image, item, array)
        image = image.with_role(name, replace(role, image=filled))
    return _filled(f"{image.id!r}", image, document, given)


def _filled(what: str, saved: Image, document: Mapping[str, Any], own: Image | None) -> Image:
    """A saved image with the pixels of a given one, if it was in memory or made of one that was."""
    source = document["source"]
    if source["kind"] in _GIVEN:
        if own is None or own.shape != saved.shape or own.dtype != saved.dtype:
            raise SourceError(
                f"{what} ({saved.shape}, {saved.dtype}) was an array in memory or is read by a "
                "function, which a saved plan does not hold; pass the image with it: "
                "Plan.load(url, images=[...])"
            )
        return replace(saved, source=own.source)
    if "image" not in source:
        return saved
    # It is made anew, by what was saved, of the other image.
    inner: Image = saved.source.image  # type: ignore[attr-defined]
    given = None if own is None else getattr(own.source, "image", None)
    made = what if what.startswith("what ") else f"what {what} is made of"
    filled = _filled(made, inner, source["image"], given)
    if filled is inner:
        return saved
    return replace(saved, source=saved.source.filled(filled.source))  # type: ignore[attr-defined]
