"""Subsets: the plan of some images of a plan, as if these alone had been planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.planning.cells import Cells, spatial_cells
from patchloom.planning.places import Places
from patchloom.planning.plans import Plan
from patchloom.planning.split_config import SplitConfig
from patchloom.planning.splits import Splits

__all__ = ["fixed_split", "same_splits", "subset"]

Ints = npt.NDArray[np.int64]


def subset(
    plan: Plan, which: Sequence[int], rows_per_shard: int, split: SplitConfig | None
) -> Plan:
    """The plan of some images of a plan: the same patches, in rows and shards of their own.

    Where an image's patches depend on nothing but the image, it is the plan that planning these
    images alone would have given, fingerprint included. Reads nothing.

    Parameters
    ----------
    plan
        Of all images.
    which
        Positions of some, in the order in which they shall stand: int[k].
    rows_per_shard
        Patches of one output shard.
    split
        How they are split, as `fixed_split` tells it or as it was asked for.

    Raises
    ------
    BudgetError
        If one shard, or window, does not fit into the memory.
    """
    bits = _bit_begins(plan.cells)
    found = replace(
        plan,
        images=tuple(plan.images[k] for k in which),
        cells=Cells.join([_cells_of(plan, k, bits) for k in which]),
        places=None if plan.places is None else _places_of(plan.places, which),
        split=split,
        # What was told of all of them is not told of some.
        rejected={},
        class_counts={},
        split_report={},
        planning_reads=0,
    )
    return found.laid_out(rows_per_shard)


def fixed_split(plan: Plan, which: Sequence[int]) -> SplitConfig | None:
    """A split of some images of a plan that puts each where the plan has it.

    Groups that are dealt out would be dealt out anew among fewer: they are kept by name.
    """
    config, splits = plan.split, plan.splits
    if config is None or splits is None or not (config.stratify or config.keep):
        return config
    names = Splits.of(config, [plan.images[k] for k in which], plan.seed).groups
    return config.model_copy(update={"keep": {name: splits.groups[name] for name in names}})


def same_splits(plan: Plan, which: Sequence[int], part: Plan) -> bool:
    """Whether the plan of some images puts each patch into the split that the plan of all does.

    Parameters
    ----------
    plan
        Of all images.
    which
        Positions of some.
    part
        The plan of these, in that order.
    """
    whole, own = plan.splits, part.splits
    if whole is None or own is None:
        return whole is own
    if whole.blocks is None or own.blocks is None:
        return whole.blocks is own.blocks and bool((whole.of_image[[*which]] == own.of_image).all())
    # The rule of blocks is of the seed alone, but frames of one world share the widest guard.
    return [whole.blocks.frames[k] for k in which] == [*own.blocks.frames]


def _bit_begins(cells: Cells) -> Ints:
    """Where the bitmaps of each image begin, and the number of bytes at the end: int64[k + 1]."""
    found = np.full(len(cells.bounds), len(cells.bits), np.int64)
    if len(cells.bit):
        begin = np.where(cells.bit >= 0, cells.bit.astype(np.int64), len(cells.bits))
        some = np.flatnonzero(np.diff(cells.bounds))
        found[some] = np.minimum.reduceat(begin, cells.bounds[some])
    # They lie image by image; one without any has none before the next one's.
    return np.minimum.accumulate(found[::-1])[::-1]


def _cells_of(plan: Plan, image: int, bit_begins: Ints) -> Cells:
    """The cells of one image along the curve, in columns as narrow as they alone need."""
    cells = plan.cells
    low, high = cells.span(image)
    position = np.arange(low, high)
    if plan.is_aligned and plan.order == "spatial":
        # Packed into shards together with the images before: back to the curve.
        position = low + _along_curve(plan, image)
    columns = {
        "image": np.zeros(high - low, np.int64),
        "cell": cells.cell[position],
        "kept": cells.kept[position],
        "bit": np.full(high - low, -1),
    }
    bits = cells.bits[:0]
    if len(cells.bit):
        first, after = bit_begins[image : image + 2].tolist()
        begin = cells.bit[position].astype(np.int64)
        columns["bit"] = np.where(begin >= 0, begin - first, -1)
        bits = cells.bits[first:after]
    return Cells.from_columns(columns, bits, 1)


def _along_curve(plan: Plan, image: int) -> Ints:
    """Where in the cells of an image each next one along the curve stands: int64[k]."""
    low, high = plan.cells.span(image)
    own = plan.cells.cell[low:high].astype(np.int64)
    order = np.argsort(own)
    ranked, found = own[order], [np.zeros(0, np.int64)]
    for cells in spatial_cells(plan.images[image].layout):
        at = np.searchsorted(ranked, cells)
        at = at[ranked[np.minimum(at, len(ranked) - 1)] == cells] if len(ranked) else at[:0]
        found.append(order[at])
    return np.concatenate(found)


def _places_of(places: Places, which: Sequence[int]) -> Places:
    """The places of some images, in the order of the table."""
    mine = np.isin(places.image, which)
    position = np.zeros(max(int(places.image.max(initial=0)), *which) + 1, np.int64)
    position[[*which]] = np.arange(len(which))
    return Places(
        position[places.image[mine]],
        places.sample[mine],
        places.corner[mine],
        places.columns.filter(pa.array(mine)),
    )
