"""resolved: the threshold of an automatic mask, from the pixels of a coarse level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import Alignment
from patchloom.errors import ConfigError
from patchloom.image import ChunkReader, Image, Reads, Role
from patchloom.location import Location
from patchloom.run.kept_rules import load_rule, rule_name, save_rule
from patchloom.sources.automatic import AutoSource
from patchloom.sources.derived import derived, gathered
from patchloom.sources.rules import LEVELS, Feature, ThresholdRule, features
from patchloom.sources.thresholds import Histogram

__all__ = ["resolve", "resolved"]

_PLANE = 2**22
"""Pixels of a plane that is coarse enough."""
_VOLUME = 2**26
"""Pixels of all planes that are coarse enough."""
_LARGEST = 2**28
"""Pixels of all planes that are read without being asked for."""
_BINS = 2**22
"""Whole numbers that are counted one by one."""
_EXACT = 2**53
"""Whole numbers below are floats."""
_WIDE = 2**12
"""Bins where they are not."""

_Block = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def resolved(image: Image) -> Image:
    """The image that `resolve` makes."""
    return resolve(image)[0]


def resolve(image: Image, folder: Location | None = None) -> tuple[Image, Reads]:
    """The image with its automatic mask made plain: a level, a threshold and a side.

    Reads that level once (twice where values are no small whole numbers), chunk by chunk. An
    image whose mask is of another kind, or that has none, stays as it is.

    Parameters
    ----------
    image
        The image.
    folder
        Where thresholds are kept and looked for, that of a survey; not those of arrays in memory.

    Returns
    -------
    Image
        With a mask that has pixels.
    Reads
        What was read of the level.

    Raises
    ------
    ConfigError
        If the image has no such level.
    PlanError, WriteError
        If the folder cannot be read or written.
    """
    source = None if image.mask is None else image.mask.image.source
    if not isinstance(source, AutoSource):
        return image, Reads()
    role = _level(image, source.config.level)
    name, rule = "", None
    if folder is not None and role.image.source.addressable:
        name = rule_name(role.image, source.config, source.only)
        rule = load_rule(folder, name)
    reader = role.image.source.reader()
    if rule is None:
        rule = _rule(role.image, reader, source)
        if folder is not None and name:
            save_rule(folder, name, rule)
    mask = derived(role.image, rule)
    return image.with_role("mask", Role(mask, role.alignment, role.axes)), reader.reads


def _rule(level: Image, reader: ChunkReader, source: AutoSource) -> ThresholdRule:
    """What the pixels of a level tell apart."""
    asked = source.config
    inside, border = _histograms(level, reader, asked.of, source.only)
    k = inside.split(asked.auto, asked.percentile)
    bright = asked.foreground == "bright"
    if asked.foreground == "auto" and k is not None:
        above = int(border.counts[k + 1 :].sum())
        bright = 2 * above <= int(border.counts.sum())
    return ThresholdRule(
        of=asked.of,
        only=source.only,
        threshold=None if k is None else inside.value(k),
        bright=bright,
        fill_holes=asked.fill_holes,
        min_size=asked.min_size,
    )


def _level(image: Image, asked: int | str | None) -> Role:
    spatial = image.axes.spatial
    plain = Alignment((Fraction(1),) * len(spatial), (Fraction(0),) * len(spatial))
    roles = [Role(image, plain, spatial), *image.levels]
    if asked is not None:
        for role in roles:
            by_path = isinstance(asked, str) and role.image.uri.endswith(f"/{asked.strip('/')}")
            if role.image.level == asked or by_path:
                return role
        there = [f"{role.image.level} ({'x'.join(map(str, role.image.shape))})" for role in roles]
        raise ConfigError(
            "the level of an automatic mask is the opened one or a coarser one, by number or path, "
            f"got {asked!r} for {image.id!r}, which has {there}"
        )
    for role in roles:
        plane, volume = _sizes(role.image)
        if plane <= _PLANE and volume <= _VOLUME:
            return role
    if volume > _LARGEST:
        raise ConfigError(
            "an automatic mask is made from a coarse level, but the coarsest of "
            f"{image.id!r} has {volume:,} pixels; write coarser ones, or name one to read it "
            f"nevertheless: level: {roles[-1].image.level}"
        )
    return roles[-1]


def _sizes(image: Image) -> tuple[int, int]:
    """Pixels of a plane and of all planes, one channel."""
    layout = image.layout
    return math.prod(layout.space.shape[-2:]), math.prod(layout.space.shape) * layout.n_samples


def _histograms(
    image: Image, reader: ChunkReader, of: Feature, only: int | None
) -> tuple[Histogram, Histogram]:
    """Of all pixels, and of those along the image's border (in y and x)."""
    n = 1 if only is not None else image.layout.n_channels
    kind = image.dtype.kind
    if of == "saturation":
        low, width, bins = 0.0, 0.0, LEVELS
    elif kind in "bui" and image.dtype.itemsize <= 2 and n * 256**image.dtype.itemsize <= _BINS:
        info = np.iinfo(np.uint8 if kind == "b" else image.dtype)
        low, width, bins = float(n * int(info.min)), 0.0, n * (int(info.max) - int(info.min)) + 1
    else:
        low, width, bins = _binned(image, reader, of, only)
    counts = np.zeros((2, bins), np.int64)
    for values, edge in _blocks(image, reader, of, only):
        for into, some in zip(counts, (values.ravel(), values[edge]), strict=True):
            into += np.bincount(_bins(some, low, width, bins), minlength=bins)
    return Histogram(low, width, counts[0]), Histogram(low, width, counts[1])


def _bins(values: npt.NDArray[Any], low: float, width: float, bins: int) -> npt.NDArray[np.int64]:
    if width == 0:
        # Bins are few, however large the numbers are: their differences fit.
        wide = values if values.dtype == np.uint64 else values.astype(np.int64)
        whole: npt.NDArray[np.int64] = (wide - wide.dtype.type(low)).astype(np.int64)
        return whole[whole >= 0]
    # Halves are exact, and the difference of two of them is finite.
    finite = values[np.isfinite(values)].astype(np.float64) / 2
    found: npt.NDArray[np.float64] = np.floor((finite - float(low) / 2) / (width / 2))
    return np.clip(found, 0, bins - 1).astype(np.int64)


def _binned(
    image: Image, reader: ChunkReader, of: Feature, only: int | None
) -> tuple[float, float, int]:
    """The first value, the width and the number of bins between the least and largest values."""
    low, high = math.inf, -math.inf
    for values, _ in _blocks(image, reader, of, only):
        finite = values[np.isfinite(values)]
        if finite.size:
            # Whole numbers as such: floats do not hold all of them.
            low, high = min(low, finite.min().item()), max(high, finite.max().item())
    if low > high:
        return 0.0, 1.0, _WIDE
    is_exact = isinstance(low, int) or max(abs(low), abs(high)) < _EXACT
    if image.dtype.kind in "iu" and is_exact and high - low < _BINS:
        return int(low), 0.0, int(high - low) + 1
    width = high / _WIDE - low / _WIDE
    return low, width if width > 0 else 1.0, _WIDE


def _blocks(image: Image, reader: ChunkReader, of: Feature, only: int | None) -> Iterator[_Block]:
    """Values of each block of an image, and which of them lie along its border."""
    mask = derived(image, ThresholdRule(of, only, None, True))
    chunks = mask.grid.unflat(np.arange(mask.grid.n_chunks))
    for start, pixels in gathered(image, reader, mask.grid, chunks, only):
        values = features(pixels, of)
        border = np.zeros(values.shape, np.bool_)
        for axis, letter in enumerate(mask.axes.names):
            if letter in "yx":
                at = np.arange(values.shape[axis]) + start[axis]
                edge = (at == 0) | (at == mask.shape[axis] - 1)
                border |= edge.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        yield values, border
