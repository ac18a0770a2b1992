"""The strategy of a plan: a configuration over the chunk grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchloom.errors import ConfigError
from patchloom.image import Image
from patchloom.patching.config import AnyConfig, Sized
from patchloom.patching.factory import create_patching, placing
from patchloom.patching.listed import ListedPatching
from patchloom.patching.protocol import Edge, GridPatching
from patchloom.planning.places import Places
from patchloom.randomness import key_of

__all__ = ["patching_of"]


def patching_of(
    images: Sequence[Image], config: AnyConfig, edge: Edge, seed: int, places: Places | None = None
) -> GridPatching:
    """The strategy of a configuration over the chunk grids of some images."""
    shapes = [image.layout.data_shape for image in images]
    over: dict[str, Any] = {
        "edge": edge,
        "chunks": [image.layout.space.chunks for image in images],
        "keys": [key_of("image", image.id, image.level) for image in images],
    }
    if getattr(config, "unit", "chunk") == "shard":
        over["units"] = _shards(images)
    if places is not None:
        assert isinstance(config, Sized)
        size, corner = config.extents(images[0].axes.spatial), places.corner
        return ListedPatching(
            shapes, size, corner, image=places.image, sample=places.sample, **over
        )
    return create_patching(shapes, placing(config), seed=seed, **over)


def _shards(images: Sequence[Image]) -> list[list[int]]:
    """Shard extents of images on their spatial axes."""
    found = []
    for image in images:
        if image.shards is None:
            raise ConfigError(
                f"unit='shard' is for images that are stored in shards, got {image.id!r} without; "
                "say unit='chunk'"
            )
        found.append([image.shards[axis] for axis in image.axes.pick(image.axes.spatial)])
    return found
