"""Automatic masks of many images made plain, as Dask tasks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from dask.highlevelgraph import HighLevelGraph

from patchloom.image import Image
from patchloom.run.executing import execute
from patchloom.run.graph import Graph
from patchloom.run.thresholds import resolved
from patchloom.sources.automatic import AutoSource

__all__ = ["with_plain_masks"]

_TOGETHER = 8
"""Images of one task: their coarse levels are small."""


def with_plain_masks(images: Sequence[Image], *, progress: bool) -> tuple[Image, ...]:
    """The images, each automatic mask with the threshold of its own image.

    Parameters
    ----------
    images
        Of a plan; those with other masks, or none, stay as they are.
    progress
        Whether to show it.
    """
    automatic = [
        k
        for k, image in enumerate(images)
        if image.mask is not None and isinstance(image.mask.image.source, AutoSource)
    ]
    if not automatic:
        return tuple(images)
    name = f"patchloom-threshold-{uuid.uuid4().hex}"
    far = [k for k in automatic if images[k].source.addressable]
    tasks = [far[k : k + _TOGETHER] for k in range(0, len(far), _TOGETHER)]
    layer: dict[Any, Any] = {
        (name, k): (_resolved, _Images([images[i] for i in task])) for k, task in enumerate(tasks)
    }
    graph = Graph(HighLevelGraph.from_collections(name, layer, dependencies=[]), [*layer])
    done = execute(graph, progress=progress, label="thresholds")
    found = dict(zip(far, [image for part in done for image in part], strict=True))
    # What is in memory does not travel.
    found |= {k: resolved(images[k]) for k in automatic if k not in found}
    return tuple(found.get(k, image) for k, image in enumerate(images))


class _Images:
    """An opaque value, so that Dask does not look inside."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = images


def _resolved(task: _Images) -> list[Image]:
    return [resolved(image) for image in task.images]
