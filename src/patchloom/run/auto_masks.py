"""Automatic masks of many images made plain, as Dask tasks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask.highlevelgraph import HighLevelGraph

from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.run.executing import execute
from patchloom.run.graph import Graph
from patchloom.run.thresholds import resolve
from patchloom.sources.automatic import AutoSource

__all__ = ["with_plain_masks"]

_TOGETHER = 8
"""Images of one task: their coarse levels are small."""


def with_plain_masks(
    images: Sequence[Image], *, progress: bool, folder: Location | None = None
) -> tuple[tuple[Image, ...], Reads]:
    """The images, each automatic mask with the threshold of its own image.

    Parameters
    ----------
    images
        Of a plan; those with other masks, or none, stay as they are.
    progress
        Whether to show it.
    folder
        Where thresholds are kept and looked for: that of a survey.

    Returns
    -------
    tuple of Image
        In the same order.
    Reads
        What was read of them by this call.

    Raises
    ------
    PlanError
        If the folder cannot be reached.
    """
    automatic = [
        k
        for k, image in enumerate(images)
        if image.mask is not None and isinstance(image.mask.image.source, AutoSource)
    ]
    if not automatic:
        return tuple(images), Reads()
    name = f"patchloom-threshold-{uuid.uuid4().hex}"
    far = [k for k in automatic if images[k].source.addressable]
    tasks = [far[k : k + _TOGETHER] for k in range(0, len(far), _TOGETHER)]
    layer: dict[Any, Any] = {
        (name, k): (_resolved, _Task([images[i] for i in task], folder))
        for k, task in enumerate(tasks)
    }
    graph = Graph(HighLevelGraph.from_collections(name, layer, dependencies=[]), [*layer])
    done = execute(graph, progress=progress, label="thresholds")
    found = dict(zip(far, [one for part in done for one in part], strict=True))
    # What is in memory does not travel.
    found |= {k: resolve(images[k]) for k in automatic if k not in found}
    plain, reads = list(images), Reads()
    for k, (image, counted) in found.items():
        plain[k] = image
        reads += counted
    return tuple(plain), reads


@dataclass(frozen=True)
class _Task:
    """An opaque value, so that Dask does not look inside."""

    images: list[Image]
    folder: Location | None


def _resolved(task: _Task) -> list[tuple[Image, Reads]]:
    return [resolve(image, task.folder) for image in task.images]
