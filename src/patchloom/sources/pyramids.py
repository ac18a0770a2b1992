"""Pyramids: the coarser levels of an OME-Zarr image, opened when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchloom.errors import SourceError
from patchloom.image import Image, Role
from patchloom.location import Location
from patchloom.sources.handles import image_of_node
from patchloom.sources.ome_zarr import levels_of
from patchloom.sources.roles import align
from patchloom.sources.zarrs import open_node

__all__ = ["ZarrPyramid"]


@dataclass(frozen=True)
class ZarrPyramid:
    """Where the levels of an OME-Zarr image are listed; nothing is read before they are asked."""

    location: Location

    def levels(self, image: Image) -> tuple[Role, ...]:
        """The levels coarser than an opened one, fine to coarse: one small read each.

        Those that are missing, or show another field than their image, are left out.
        """
        found = []
        for index, level in enumerate(levels_of(open_node(self.location))):
            if index <= image.level:
                continue
            try:
                node = open_node(self.location / level.path)
                if node.array is None:
                    continue
                other = image_of_node(node, image.axes.names, image.id, level, index)
                found.append(align(image, other, "level"))
            except SourceError:
                continue
        return tuple(found)

    def to_document(self) -> dict[str, Any]:
        """The shown URL."""
        return {"kind": "zarr", "url": self.location.shown}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> ZarrPyramid:
        """Inverse of `to_document`."""
        return cls(Location.of(document["url"], options))
