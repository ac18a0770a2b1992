"""From boxes of stitched images to a Dask graph: O(boxes), no pixel inside."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.highlevelgraph import HighLevelGraph

from patchloom.errors import StoreError
from patchloom.image import Image
from patchloom.run.blocks import Supplied
from patchloom.run.graph import Graph, Key, light
from patchloom.run.mosaics import Job, Mosaic, Region, put_together
from patchloom.run.predicting import LiveInputs, Needs, RowInputs
from patchloom.run.stitch_report import StitchedTask
from patchloom.run.tilings import Listing

__all__ = ["mosaic_graph", "regions_of"]

TASKS = 8192
"""Tasks of a run, at most: each makes some boxes, one after the other."""
_TOGETHER = 16 * 2**20
"""Bytes of small boxes that one task makes."""


def regions_of(
    number: int, mosaic: Mosaic, there: npt.NDArray[np.bool_], listing: Listing | None
) -> list[Region]:
    """The boxes of an image of which some part is missing.

    Parameters
    ----------
    number
        Position of the image among those that are made.
    mosaic
        The image.
    there
        Which parts are there: bool[n_parts].
    listing
        The tiles, where no plan tells them.
    """
    if there.all():
        return []
    arranged = None if listing is None else listing.arranged(mosaic.image, mosaic.boxes)
    found = []
    of_sample = there.reshape(mosaic.target.n_samples, -1)
    for sample in np.flatnonzero(~of_sample.all(1)).tolist():
        for box in range(mosaic.boxes.n_chunks):
            parts: Any = mosaic.parts(box)
            missing = ~of_sample[sample, parts]
            if not missing.any():
                continue
            tiles = None if arranged is None else arranged.of_box(sample, box)
            some = None if missing.all() else parts[missing]
            found.append(Region(number, sample, box, some, tiles))
    return found


_Handing = tuple[int, tuple[tuple[int, ...], ...], frozenset[tuple[int, ...]]]
"""Chunks that are handed over: of what, by its number in `Needs`, which, and those that count."""


@dataclass(frozen=True, eq=False)
class _Some:
    """What one task makes: an opaque value, so that Dask does not look inside."""

    regions: tuple[Region, ...]
    handed: tuple[_Handing | None, ...]
    """For each region."""


def mosaic_graph(job: Job, regions: Sequence[Region]) -> Graph:
    """The graph that makes some boxes: one task those that follow one another.

    Parameters
    ----------
    job
        What every task needs: one value of the graph.
    regions
        The boxes. Where only Dask can read predictions or images, each task depends on the blocks
        that it needs.
    """
    token = uuid.uuid4().hex
    name, job_key = f"patchloom-stitch-{token}", f"patchloom-job-{token}"
    pieces = _pieces(job, regions)
    width = len(str(len(pieces)))
    keys: list[Key] = [(name, f"{k:0{width}}") for k in range(len(pieces))]
    lazies = _lazies(job)
    counted: set[Any] = set()

    def needs(region: Region) -> Needs | None:
        if not lazies:
            return None
        mosaic, inputs = job.mosaics[region.mosaic], job.answers.inputs
        tiles = job.tiles(region)
        return inputs.needs(mosaic.image, region.sample, tiles) if len(tiles) else None

    def make(some: Sequence[Key]) -> dict[Any, Any]:
        made = {}
        for key in some:
            mine, blocks = pieces[int(key[1])], []
            handed: list[_Handing | None] = []
            for region in mine:
                need = needs(region)
                if need is None:
                    handed.append(None)
                    continue
                number, _, rows = need
                fresh = frozenset(row for row in rows if (number, row) not in counted)
                counted.update((number, row) for row in rows)
                handed.append((number, rows, fresh))
                blocks += [(lazies[number].name, *row) for row in rows]
            made[key] = (_stitch, job_key, _Some(tuple(mine), tuple(handed)), blocks)
        return made

    given = HighLevelGraph.from_collections(name, {}, dependencies=list(lazies.values()))
    return Graph(given, keys, {job_key: _light(job)}, neighbours=False, make=make)


def _pieces(job: Job, regions: Sequence[Region]) -> list[list[Region]]:
    """The regions of each task."""
    most = max(1, -(-len(regions) // TASKS))
    found: list[list[Region]] = []
    nbytes = 0
    for region in regions:
        mosaic = job.mosaics[region.mosaic]
        size = math.prod(mosaic.box) * mosaic.target.n_channels * mosaic.target.dtype.itemsize
        full = nbytes + size > _TOGETHER and (not found or len(found[-1]) >= most)
        if not found or full:
            found.append([])
            nbytes = 0
        found[-1].append(region)
        nbytes += size
    return found


def _lazies(job: Job) -> dict[int, Any]:
    """The Dask arrays that workers cannot read by themselves, by their numbers in `Needs`."""
    inputs = job.answers.inputs
    if isinstance(inputs, RowInputs):
        return {} if inputs.lazy is None else {-1: inputs.lazy.source.lazy(inputs.lazy)}
    assert isinstance(inputs, LiveInputs)
    images = inputs.plan.images
    return {
        mosaic.image: images[mosaic.image].source.lazy(images[mosaic.image])
        for mosaic in job.mosaics
        if not images[mosaic.image].source.addressable
    }


def _light(job: Job) -> Job:
    """The job without pixels that Dask hands over anyway."""
    inputs: Any = job.answers.inputs
    tiling = job.tiling
    if tiling is not None:
        plan = tiling.plan.with_images([light(_bare(i)) for i in tiling.plan.images])
        tiling = replace(tiling, plan=plan)
        if isinstance(inputs, LiveInputs):
            inputs = replace(inputs, plan=plan)
    if isinstance(inputs, RowInputs) and inputs.lazy is not None:
        inputs = replace(inputs, rows=_Handed.of(inputs), lazy=light(inputs.lazy))
    return replace(job, tiling=tiling, answers=replace(job.answers, inputs=inputs))


def _bare(image: Image) -> Image:
    """An image without what lies over it: none of that is read."""
    for name in image.roles:
        image = image.with_role(name, None)
    return replace(image, pyramid=None)


@dataclass(frozen=True)
class _Handed:
    """What is known of rows that a graph hands over."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    step: int
    unit: int

    @classmethod
    def of(cls, inputs: RowInputs) -> _Handed:
        rows = inputs.rows
        return cls(rows.shape, rows.dtype, rows.step, rows.unit)

    def open(self) -> Any:
        raise StoreError("rows of a Dask array are read by its graph alone")


def _stitch(job: Job, some: _Some, blocks: Sequence[Any]) -> StitchedTask:
    given: list[dict[int, Supplied]] = []
    at = 0
    for handed in some.handed:
        if handed is None:
            given.append({})
            continue
        number, rows, fresh = handed
        pixels = [np.asarray(block) for block in blocks[at : at + len(rows)]]
        at += len(rows)
        given.append({number: Supplied(dict(zip(rows, pixels, strict=True)), fresh)})
    return put_together(job, some.regions, given)
