"""Alignment: from ``align=`` to a strategy whose patches fit what is stored in chunks."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from patchloom.errors import BudgetError, ConfigError
from patchloom.image import Image
from patchloom.patching.config import AnyConfig, ChunkAlignedConfig, GridConfig, SequentialConfig
from patchloom.patching.lattice import LatticePatching, covered, lattice
from patchloom.patching.protocol import Edge
from patchloom.planning.incidence import Cut
from patchloom.planning.plans import Plan
from patchloom.planning.runs import MIN_TASKS, SHARD_BYTES

__all__ = ["ALIGNS", "Align", "AxisCost", "Draft", "aligned", "axis_cost"]

Ints = npt.NDArray[np.int64]
Align = Literal["none", "chunk", "shard", "auto"]
ALIGNS: tuple[Align, ...] = get_args(Align)
Draft = Callable[[AnyConfig, int | None], Plan]
"""A plan of a strategy and of patches a shard, before any mask or filter selects from it."""

_CONFINED = ("sequential", "grid", "chunk_aligned", "random", "fixed_random", "stratified")
"""Strategies that can be told to keep patches inside chunks or shards."""
_CHOSEN = (*_CONFINED, "tiled", "blue_noise", "whole")
"""Strategies for which "auto" has something to choose: at least how patches are grouped."""
_TRIED = 16
"""Offsets for which whole plans are compared, at most."""
_WALKED = 2**22
"""Patches that comparing plans walks over, about; of larger plans, axes alone decide."""
_PER_IMAGE = 2**10
"""Patches whose time a plan takes for each image."""
_PLACED = 2**14
"""Offsets times kinds of axes that are looked at, about."""


@dataclass(frozen=True)
class AxisCost:
    """What patches along one axis take of its chunks."""

    apart: int
    """Chunks that are decoded if each chunk's patches are cut by themselves."""
    needed: int
    """Distinct chunks that are decoded: fewer can never be."""
    covered: int
    """Pixels that lie in at least one patch."""
    key: tuple[bytes, int]
    """Equal for offsets with which a plan differs in nothing that costs."""


def aligned(
    align: str, images: Sequence[Image], config: AnyConfig, rows: int | None, draft: Draft
) -> tuple[AnyConfig, int | None]:
    """The strategy and the patches of a shard that ``align=`` stands for.

    ``"none"`` changes nothing. ``"chunk"`` and ``"shard"`` keep patches inside these units: a
    grid begins anew in each, a random strategy draws inside them.

    ``"auto"`` moves a grid (`sequential`, `grid`) by an offset below its stride on each axis,
    and then chooses how many patches a shard has. It takes the plan that decodes the fewest
    bytes per pixel of the images that its patches cover, out of those that

    - fit into the memory,
    - cover on no axis fewer pixels than the grid that is anchored at 0,
    - decode no more bytes in all than it,
    - have as many tasks as it, or at least 16.

    Of equal ones it takes the one that covers more pixels; then the one that would decode less
    if each chunk's patches were cut by themselves, as live loading cuts them; then the smaller
    offset, in the order of the axes; then the shards as they were. Of shards it tries the
    default number of patches, the power of two below it, half of that and twice that. Offsets
    with the same incidence of patches and chunks are one; of more than 16 it compares the plans
    of those that would decode least with each chunk's patches by themselves, which is a product
    of one number an axis. Of plans of more than 4 million patches (an image counts as 1024
    more) this number alone decides, and shards stay as they were.

    Nothing is read: masks and filters select afterwards.

    Parameters
    ----------
    align
        One of `ALIGNS`.
    images, config
        Of the plan, the configuration with one number for each axis.
    rows
        Patches of a shard if they were asked for: then "auto" keeps them.
    draft
        How a plan is made.

    Raises
    ------
    ConfigError
        If there is no such alignment, or the strategy cannot be aligned so.
    """
    if align not in ALIGNS:
        raise ConfigError(f"align= is one of {list(ALIGNS)}, got {align!r}")
    if align == "none":
        return config, rows
    able = _CHOSEN if align == "auto" else _CONFINED
    if config.name not in able:
        raise ConfigError(
            f"align={align!r} is for the strategies {list(able)}, got {config.name!r}; take one "
            "of these, or say align='none'"
        )
    if any(getattr(config, "offset", None) or ()):
        raise ConfigError(
            f"align={align!r} says itself where a grid begins, got offset="
            f"{getattr(config, 'offset', None)} besides; leave one of them out"
        )
    if align == "auto":
        return _cheapest(images, config, rows, draft)
    return _confined(images, config, align), rows


def _confined(images: Sequence[Image], config: AnyConfig, unit: str) -> AnyConfig:
    """The same strategy with its patches inside chunks, or inside shards."""
    bare = [image.id for image in images if image.shards is None]
    if unit == "shard" and bare:
        raise ConfigError(
            f"align='shard' is for images that are stored in shards, got {bare[0]!r} without; say "
            "align='chunk'"
        )
    if isinstance(config, SequentialConfig | GridConfig):
        size, stride = _steps(config)
        if any(s > p for s, p in zip(stride, size, strict=True)):
            raise ConfigError(
                f"a grid that begins anew in each {unit} has a stride of at most the patch, got "
                f"stride={stride} for patch_size={size}; take a smaller stride, or align='auto', "
                "which keeps it"
            )
        found = ChunkAlignedConfig(
            patch_size=size,
            context=config.context,
            overlaps=[p - s for p, s in zip(size, stride, strict=True)],
            unit="shard" if unit == "shard" else "chunk",
        )
        return found.on(images[0].axes.spatial)
    said = {"unit": unit}
    if "inside_chunks" in type(config).model_fields:
        return config.model_copy(update={"inside_chunks": True, **said})
    return config.model_copy(update=said)


def _steps(config: SequentialConfig | GridConfig) -> tuple[list[int], list[int]]:
    """Patch size and stride of a grid, one number an axis."""
    size = config.patch_size
    assert isinstance(size, list)
    if isinstance(config, GridConfig):
        assert isinstance(config.stride, list)
        return size, config.stride
    assert isinstance(config.overlaps, list)
    return size, [p - o for p, o in zip(size, config.overlaps, strict=True)]


# -- the cheapest -----------------------------------------------------------------------


def _cheapest(
    images: Sequence[Image], config: AnyConfig, rows: int | None, draft: Draft
) -> tuple[AnyConfig, int | None]:
    """What "auto" takes; see `aligned`."""
    at_zero = _fitting(draft, config, rows)
    if at_zero is None and rows is None:
        rows = _rows_that_fit(images, config, draft)
        at_zero = None if rows is None else _fitting(draft, config, rows)
    if at_zero is None or not at_zero.n_patches:
        return config, rows  # The plan itself says why.
    best, effort = at_zero, at_zero.n_patches + _PER_IMAGE * len(images)
    large = effort > _WALKED
    if isinstance(config, SequentialConfig | GridConfig):
        offsets = _offsets(images, config, at_zero, most=min(_TRIED, max(1, _WALKED // effort)))
        for offset in sorted(offsets):
            found = _fitting(draft, _at(config, offset, images[0].axes.spatial), rows)
            if found is None or pixels_of(found) < pixels_of(at_zero):
                continue
            if large and apart_of(found) < apart_of(best):
                best = found
            elif not large and _may_stand_for(found, at_zero):
                best = min(best, found, key=_cost)
    if rows is None and not large:
        other = _grouped(best, at_zero, draft).rows_per_shard
        # A default is left to the plan, which knows how many patches its mask leaves.
        rows = None if other == best.rows_per_shard else other
    return best.config, rows


def _grouped(plan: Plan, at_zero: Plan, draft: Draft) -> Plan:
    """The cheapest of a plan and the same with other shards: the default, powers of two near it.

    Parameters
    ----------
    plan
        With the default number of patches a shard.
    at_zero
        The plan that all are held against.
    draft
        How a plan is made.
    """
    power = 1 << (plan.rows_per_shard.bit_length() - 1)
    others = {power // 2, power, 2 * power} - {0, plan.rows_per_shard}
    for rows in sorted(others):
        found = _fitting(draft, plan.config, rows) if rows <= plan.n_patches else None
        if found is not None and _may_stand_for(found, at_zero):
            plan = min(plan, found, key=lambda p: p.bytes_decoded)
    return plan


def _fitting(draft: Draft, config: AnyConfig, rows: int | None) -> Plan | None:
    """A plan, or None if it does not fit into the memory."""
    try:
        return draft(config, rows)
    except BudgetError:
        return None


def _rows_that_fit(images: Sequence[Image], config: AnyConfig, draft: Draft) -> int | None:
    """The largest power of two of patches whose shards fit into the memory."""
    pixel = images[0].dtype.itemsize * images[0].layout.n_channels
    size = getattr(config, "patch_size", None) or [1]
    fit: int = SHARD_BYTES // max(1, pixel * math.prod(size))
    rows = 1 << max(0, fit.bit_length() - 1)
    while _fitting(draft, config, rows) is None:
        if rows == 1:
            return None
        rows //= 2
    return rows


def _may_stand_for(found: Plan, at_zero: Plan) -> bool:
    """Whether a plan neither takes less, nor reads more, nor runs less in parallel."""
    return (
        pixels_of(found) >= pixels_of(at_zero)
        and found.bytes_decoded <= at_zero.bytes_decoded
        and found.n_tasks >= min(MIN_TASKS, at_zero.n_tasks)
    )


def _cost(plan: Plan) -> tuple[Fraction, int, int]:
    pixels = pixels_of(plan)
    return Fraction(plan.bytes_decoded, max(1, pixels)), -pixels, apart_of(plan)


def apart_of(plan: Plan) -> int:
    """Blocks that are decoded if each chunk's patches are cut by themselves; 0 for no grid."""
    strategy, cut = plan.patching, plan.cut
    if not isinstance(strategy, LatticePatching):
        return 0
    kinds: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    image_of = {}
    for k, image in enumerate(plan.images):
        space = image.layout.space
        kinds[space.shape, space.chunks] += image.layout.n_samples
        image_of[space.shape, space.chunks] = k
    return sum(
        n
        * math.prod(
            axis_cost(strategy.starts(image_of[shape, chunks], axis), along, extent, chunk).apart
            for axis, (along, extent, chunk) in enumerate(
                zip(_axes(cut), shape, chunks, strict=True)
            )
        )
        for (shape, chunks), n in kinds.items()
    )


def _axes(cut: Cut) -> list[Cut]:
    """What is cut, axis by axis."""
    sizes = zip(cut.size, cut.context, strict=True)
    return [Cut((size,), (context,), cut.padding) for size, context in sizes]


def pixels_of(plan: Plan) -> int:
    """Pixels that the patches of a plan's strategy cover, each counted once; 0 for no grid."""
    strategy = plan.patching
    if not isinstance(strategy, LatticePatching):
        return 0
    return sum(
        math.prod(image.layout.space.shape) * image.layout.n_samples - strategy.n_left_over(k)
        for k, image in enumerate(plan.images)
    )


# -- axes -------------------------------------------------------------------------------


def _at(config: SequentialConfig | GridConfig, offset: list[int], spatial: str) -> GridConfig:
    """The same grid anchored elsewhere."""
    size, stride = _steps(config)
    found = GridConfig(patch_size=size, context=config.context, stride=stride, offset=offset)
    return found.on(spatial)


def _offsets(
    images: Sequence[Image], config: SequentialConfig | GridConfig, at_zero: Plan, most: int
) -> list[list[int]]:
    """The offsets that promise most, the best first, without that of the grid at 0."""
    ranked = []
    for axis, (along, step) in enumerate(zip(_axes(at_zero.cut), _steps(config)[1], strict=True)):
        kinds = Counter(
            (image.layout.space.shape[axis], image.layout.space.chunks[axis]) for image in images
        )
        ranked.append(_ranked(kinds, along, step, at_zero.edge)[:_TRIED])
    joint = []
    for found in itertools.product(*ranked):
        apart, needed, offset = zip(*found, strict=True)
        joint.append((math.prod(apart), math.prod(needed), list(offset)))
    offsets = [offset for *_, offset in sorted(joint)]
    return [offset for offset in offsets if any(offset)][:most]


def _ranked(
    kinds: Counter[tuple[int, int]], cut: Cut, step: int, edge: Edge
) -> list[tuple[float, float, int]]:
    """Offsets of one axis, the best first: chunks apart and needed per pixel, offset.

    Parameters
    ----------
    kinds
        Extent and chunk of the axis, and how many images have them.
    cut, step, edge
        Of the grid along this axis.
    """
    # Of very many kinds of images some, spread over all, speak for the others.
    few = sorted(kinds)[:: max(1, len(kinds) * step // _PLACED)]
    weights = np.array([kinds[kind] for kind in few])
    found: dict[tuple[tuple[bytes, int], ...], tuple[float, float, int]] = {}
    least = 0
    for offset in range(step):
        costs = [
            axis_cost(lattice(extent, cut.proper[0], step, edge, offset), cut, extent, chunk)
            for extent, chunk in few
        ]
        pixels = int(weights @ [cost.covered for cost in costs])
        if not offset:
            least = pixels
        key = tuple(cost.key for cost in costs)
        if pixels < max(1, least) or key in found:
            continue
        apart = int(weights @ [cost.apart for cost in costs])
        needed = int(weights @ [cost.needed for cost in costs])
        found[key] = apart / pixels, needed / pixels, offset
    return sorted(found.values()) or [(1.0, 1.0, 0)]


def axis_cost(starts: Ints, cut: Cut, extent: int, chunk: int) -> AxisCost:
    """What patches along one axis take of its chunks.

    Parameters
    ----------
    starts
        First pixels of the patches proper, ascending: int64[n].
    cut
        What is cut around each, of one axis.
    extent, chunk
        Of the axis and of its chunks, in pixels.

    Examples
    --------
    >>> cost = axis_cost(np.array([0, 6, 12]), Cut((6,), (0,)), 20, 8)
    >>> cost.apart, cost.needed, cost.covered
    (4, 3, 18)
    """
    if not len(starts):
        return AxisCost(0, 0, 0, (b"", 0))
    low, high = cut.span((starts - cut.context[0])[:, None], np.array([extent]))
    first, last = low[:, 0] // chunk, (high[:, 0] - 1) // chunk
    owner = np.maximum(starts, 0) // chunk
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    # All that a chunk's patches need lies around it without a gap.
    spans = np.maximum.reduceat(last, begins) - np.minimum.reduceat(first, begins) + 1
    change = np.zeros(-(-extent // chunk) + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    pixels = covered(starts, cut.proper[0], extent)
    return AxisCost(
        int(spans.sum()),
        int((np.cumsum(change) > 0).sum()),
        pixels,
        (np.stack([owner, first, last]).tobytes(), pixels),
    )
