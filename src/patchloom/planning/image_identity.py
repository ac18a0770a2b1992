"""What an image is to a plan, wherever it lies, and which pixels a saved plan is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from patchloom.errors import SourceError
from patchloom.image import ROLES, Image

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
        for name in ROLES
        if (role := getattr(image, name)) is not None
    }
    identity = getattr(image.source, "identity", None)
    made = {} if identity is None else {"made": identity()}
    return {
        **made,
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

    def check(what: str, saved: Image, own: Image | None) -> None:
        if own is None or own.shape != saved.shape or own.dtype != saved.dtype:
            raise SourceError(
                f"{what} ({saved.shape}, {saved.dtype}) was an array in memory or is read by a "
                "function, which a saved plan does not hold; pass the image with it: "
                "Plan.load(url, images=[...])"
            )

    roles = document["roles"]
    for name in ROLES:
        role = getattr(image, name)
        if role is None:
            continue
        own = None if given is None else getattr(given, name)
        source = roles[name]["image"]["source"]
        if source["kind"] in _GIVEN:
            check(f"the {name} of {image.id!r}", role.image, None if own is None else own.image)
            image = image.with_role(name, own)
        elif source.get("image", {}).get("source", {}).get("kind") in _GIVEN:
            # A mask is made of it anew, by the rule that was saved.
            own_image = None if own is None else getattr(own.image.source, "image", None)
            check(f"what the {name} of {image.id!r} is made of", role.image.source.image, own_image)
            assert own_image is not None
            filled = role.image.source.filled(own_image.source)
            image = image.with_role(name, replace(role, image=replace(role.image, source=filled)))
    if document["source"]["kind"] in _GIVEN:
        check(f"{image.id!r}", image, given)
        assert given is not None
        image = replace(image, source=given.source)
    return image
