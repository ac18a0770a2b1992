"""Decodes: how often an undisturbed run decodes the stored chunks of each image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.planning.needs import Needs
from patchloom.planning.rows import Rows
from patchloom.planning.runs import Runs

__all__ = ["decodes_of"]

Ints = npt.NDArray[np.int64]
_LEGS, _CELLS = 2**10, 2**18
"""Legs of tasks whose needs are told together, and about as many cells as they may go through."""


def decodes_of(
    images: Sequence[Image], needs: Needs, runs: Runs, sequence: Rows, name: str
) -> list[int]:
    """Chunk decodes of one array of each image, if each leg of a task reads for itself.

    A leg that comes back to an image reads anew. Dask makes a chunk of an array that only it
    can read once, however many legs need it.

    Parameters
    ----------
    images, needs, runs, sequence
        Of the plan.
    name
        The role of the array; images without it decode none.
    """
    found = [0] * len(images)
    shared: dict[int, list[Ints]] = {}
    cells = needs.kept.cells
    rows, n_legs = runs.rows(), len(runs.legs)
    together = min(_LEGS, max(1, _CELLS * n_legs // max(1, len(cells))))
    while legs := [*islice(rows, together)]:
        pieces = [sequence.pieces(*leg) for leg in legs]
        begin, end = (np.concatenate(column) for column in zip(*pieces, strict=True))
        leg = np.repeat(np.arange(len(pieces)), [len(low) for low, _ in pieces])
        image = cells.image_of(cells.positions_of(begin))
        visit = np.cumsum((np.diff(leg, prepend=0) != 0) | (np.diff(image, prepend=0) != 0))
        for index, part, blocks in needs.of_parts(begin, end, visit, name):
            array = images[index].cut_arrays[name]
            if array.source.addressable:
                cuts = np.flatnonzero(np.diff(part)) + 1
                found[index] += sum(map(array.decodes, np.split(blocks, cuts)))
            else:
                shared.setdefault(index, []).append(np.unique(blocks))
    for index, blocks_of in shared.items():
        layout = images[index].cut_arrays[name].layout
        found[index] += len(np.unique(np.concatenate(blocks_of))) * layout.chunks_per_block
    return found
