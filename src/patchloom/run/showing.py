"""What a worker does in a survey of contents: read each block once, cut, and count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.planning.incidence import Patches, joined, touches
from patchloom.planning.plans import Plan
from patchloom.run.blocks import BlockCache, Meter, Supplied
from patchloom.run.contents import Contents, Counted
from patchloom.run.cutting import ArrayKey, steps_of
from patchloom.run.masks import covered_share

__all__ = ["Look", "show_run"]


@dataclass(frozen=True)
class Look:
    """What every task of a survey of contents needs besides the plan."""

    contents: Contents
    folder: Location | None = None
    """Where it keeps what it finds; None hands it back."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The name there of each piece."""

    def arrays(self, image: Image) -> dict[str, Image]:
        """The arrays of an image that are read."""
        wanted = self.contents.arrays
        return {name: array for name, array in image.cut_arrays.items() if name in wanted}


def show_run(
    plan: Plan,
    look: Look,
    pieces: Mapping[int, tuple[int, int]],
    supplied: Mapping[ArrayKey, Supplied],
) -> tuple[dict[int, bytes], Reads]:
    """What the patches of some pieces show.

    Parameters
    ----------
    plan
        In spatial order.
    look
        What is asked.
    pieces
        Rows [start, stop) of one image each, ascending, by number.
    supplied
        Chunks of the arrays that only Dask can read.

    Returns
    -------
    dict, Reads
        Each piece as `Counted.to_bytes`, unless it has a name in the folder; what was read.
    """
    found: dict[int, bytes] = {}
    reads = Reads()
    numbers = np.array([*pieces])
    starts = np.array([start for start, _ in pieces.values()])
    for part in joined([part for rows in pieces.values() for part in plan.patches(*rows)]):
        piece = numbers[np.searchsorted(starts, part.row, side="right") - 1]
        for number, counted in _look_at(plan, look, part, piece, supplied, reads):
            data = counted.to_bytes()
            if look.folder is not None and number in look.names:
                # As soon as it is known: what comes after may fail.
                look.folder.write(look.names[number], data)
            else:
                found[number] = data
    return found, reads


def _look_at(
    plan: Plan,
    look: Look,
    part: Patches,
    piece: npt.NDArray[np.int64],
    supplied: Mapping[ArrayKey, Supplied],
    reads: Reads,
) -> Iterator[tuple[int, Counted]]:
    """Count patches of one image, piece by piece."""
    image, contents = plan.images[part.image], look.contents
    step = steps_of(part.cell, piece, plan)
    caches, samples = {}, {}
    for name, array in look.arrays(image).items():
        alike = array.layout.n_samples == 1
        samples[name] = np.zeros_like(part.sample) if alike else part.sample
        patch, block = touches(array.layout, samples[name], part.corner, plan.cut)
        ready = supplied.get((part.image, name))
        reader = array.source.reader() if ready is None else ready.reader()
        caches[name] = BlockCache(array, step[patch], block, reader, Meter())
    bounds = np.flatnonzero(np.diff(step, prepend=-1, append=-1)).tolist()
    counted, first = Counted(), 0
    for k, (a, b) in enumerate(pairwise(bounds)):
        for name, cache in caches.items():
            cache.enter(k)
            pixels = cache.windows(int(samples[name][a]), part.corner[a:b], plan.cut)
            counted.add(contents, name, pixels, plan.cut)
            cache.leave(k)
        if b == len(piece) or piece[b] != piece[a]:
            if contents.coverage:
                counted.columns["coverage"] = [covered_share(plan, part.take(slice(first, b)))]
            yield int(piece[a]), counted
            counted, first = Counted(), b
    for cache in caches.values():
        reads.chunks += cache.reads.chunks
        reads.requests += cache.reads.requests
        reads.nbytes += cache.reads.nbytes
