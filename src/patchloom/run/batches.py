"""Cutting without a store: pixels batch by batch, for whoever takes them from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.planning.incidence import touches
from patchloom.planning.plans import Plan
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import BlockCache, Meter, Supplied
from patchloom.run.cutting import ArrayKey, steps_of

__all__ = ["cut_batches"]


def cut_batches(
    plan: Plan, shards: Sequence[int], supplied: Mapping[ArrayKey, Supplied] | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]]:
    """Cut the patches of some shards of one run, each block decoded once.

    Parameters
    ----------
    plan
        From `patchloom.plan`.
    shards
        Numbers of the shards, ascending.
    supplied
        Chunks of the arrays that only Dask can read.

    Yields
    ------
    int64[n], dict of [n, channels, *space]
        Rows of some patches, and their pixels in each array (``"image"``, ``"labels"``,
        ``"target"``) in its own type. They come in the order of the walk, and are not used again.

    Raises
    ------
    ChunkError
        If a needed chunk cannot be read.
    """
    keep_pages()
    given, meter = supplied or {}, Meter()
    for whole in plan.tour(shards):
        part = whole.take(np.isin(whole.row // plan.rows_per_shard, shards))
        if not len(part):
            continue
        turn = plan.sequence.turns_of(part.rank)
        step = steps_of(part.cell, turn // plan.rows_per_shard, plan)
        caches: dict[str, tuple[npt.NDArray[np.int64], BlockCache]] = {}
        for name, array in plan.images[part.image].cut_arrays.items():
            sample = array.layout.own_samples(part.sample)
            patch, block = touches(array.layout, sample, part.corner, plan.cut)
            found = given.get((part.image, name))
            reader = array.source.reader() if found is None else found.reader()
            caches[name] = sample, BlockCache(array, step[patch], block, reader, meter)
        for k, some in enumerate(np.split(np.arange(len(part)), np.flatnonzero(np.diff(step)) + 1)):
            pixels = {}
            for name, (sample, cache) in caches.items():
                cache.enter(k)
                pixels[name] = cache.windows(int(sample[some[0]]), part.corner[some], plan.cut)
                cache.leave(k)
            yield part.row[some], pixels
