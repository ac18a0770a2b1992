"""Cutting without a store: pixels batch by batch, for whoever takes them from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.planning.incidence import Cut, Patches, touches
from patchloom.planning.lenses import around, is_context
from patchloom.planning.plans import Plan
from patchloom.planning.runs import fetch_bytes
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import BlockCache, Meter, Supplied
from patchloom.run.cutting import ArrayKey, steps_of
from patchloom.run.nearby import Nearby
from patchloom.run.sharing import Share, Visit, legs_from_here, visit_to

__all__ = ["cut_batches"]

Ints = npt.NDArray[np.int64]
Batch = tuple[Ints, dict[str, npt.NDArray[Any]]]


def cut_batches(
    plan: Plan, shards: Sequence[int], supplied: Mapping[ArrayKey, Supplied] | None = None
) -> Iterator[Batch]:
    """Cut the patches of some shards of one run, each block decoded once.

    Blocks that other shards need too are shared within a process, as they are when patches are
    written: whoever cuts shard after shard with one plan decodes them once where memory holds them.

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
    given = supplied or {}
    for leg, some in legs_from_here(plan, shards):
        with visit_to(plan, leg) as visit:
            for whole in plan.tour(some):
                part = whole.take(np.isin(whole.row // plan.rows_per_shard, some))
                if len(part):
                    yield from _cut(plan, part, visit, given)


def _cut(
    plan: Plan, part: Patches, visit: Visit | None, given: Mapping[ArrayKey, Supplied]
) -> Iterator[Batch]:
    """Cut some patches of one image."""
    arrays = plan.images[part.image].cut_arrays
    turn = plan.sequence.turns_of(part.rank)
    step = steps_of(part.cell, turn // plan.rows_per_shard, plan)
    caches: dict[str, BlockCache] = {}
    seen: dict[str, tuple[Ints, Cut]] = {}
    samples = {name: array.layout.own_samples(part.sample) for name, array in arrays.items()}
    for name, array in arrays.items():
        place, cut = seen[name] = around(plan.images[part.image], name, part.corner, plan.cut)
        patch, block = touches(array.layout, samples[name], place, cut)
        found = given.get((part.image, name))
        share = None
        if visit is not None and array.source.addressable and not is_context(name):
            some = np.unique(block)
            near = Nearby.of(plan, part.image, array.layout, some, part.sample, part)
            share = Share(visit, part.image, name, near.shared(plan))
        caches[name] = BlockCache(
            array,
            step[patch],
            block,
            array.source.reader() if found is None else found.reader(),
            Meter(),
            share=share,
            fetch=fetch_bytes(plan.memory),
        )
    for k, some in enumerate(np.split(np.arange(len(part)), np.flatnonzero(np.diff(step)) + 1)):
        pixels = {}
        for name, cache in caches.items():
            cache.enter(k)
            sample = int(samples[name][some[0]])
            place, cut = seen[name]
            pixels[name] = cache.windows(sample, place[some], cut)
            cache.leave(k)
        yield part.row[some], pixels
