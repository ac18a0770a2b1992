"""The manifest of a plan that is not written: made when it is asked for, stretch by stretch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.live.stretches import Stretches
from patchloom.load.reader import Reader
from patchloom.planning.plans import Plan
from patchloom.planning.runs import GATHER
from patchloom.run.centers import classes_at, goes_by_class
from patchloom.run.contents import Contents
from patchloom.run.manifest_rows import rows_of_manifest
from patchloom.store.manifest import joined_manifest
from patchloom.store.schema import array_of

__all__ = ["manifest"]

_ROWS = 2**16
"""Rows that are made together, about."""


def manifest(plan: Plan, reader: Reader, stretches: Stretches, upto: int | None = None) -> pa.Table:
    """One row a patch, in the order of positions.

    Parameters
    ----------
    plan
        Whose patches.
    reader
        Gives their pixels as the sources hold them, where a column is of pixels.
    stretches
        That positions lie in.
    upto
        Rows that are made; by default all.
    """
    if upto is not None:
        return _rows(plan, reader, stretches, 0, upto)
    # A part ends with a stretch, so that its masks, labels and chunks are read together.
    bounds = stretches.bounds
    every = np.flatnonzero(np.diff(bounds[:-1] // _ROWS, prepend=-1))
    ends = np.append(bounds[every], bounds[-1]).tolist()
    return joined_manifest(
        [_rows(plan, reader, stretches, low, high) for low, high in pairwise(ends)]
    )


def _rows(plan: Plan, reader: Reader, stretches: Stretches, low: int, high: int) -> pa.Table:
    parts, told = stretches.patches(plan, low, high), dict(_told(plan, reader, low, high))
    if goes_by_class(plan.config):
        placed = [(part, part.place) for part in parts if part.place is not None]
        found = [classes_at(plan.images[p.image], p.sample, place) for p, place in placed]
        told["class"] = np.concatenate(found)
    return pa.table(rows_of_manifest(plan, parts, told))


def _told(plan: Plan, reader: Reader, low: int, high: int) -> Mapping[str, npt.NDArray[Any]]:
    """What is found in the pixels of patches, by columns."""
    contents = Contents.of(plan)
    roles = [role for role in plan.images[0].cut_arrays if role in contents.arrays]
    patch = math.prod(plan.patch_shape) * plan.dtype.itemsize
    step = max(1, GATHER // max(1, patch))
    found: dict[str, list[npt.NDArray[Any]]] = {}
    for begin in range(low, high, step) if roles else ():
        at = np.arange(begin, min(begin + step, high))
        pixels = reader.read(at, [array_of(role) for role in roles])
        for role in roles:
            for name, values in contents.of_batch(plan, role, pixels[array_of(role)]).items():
                found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}
