"""Mixing of live patches: how fair a sample batches are that go window by window; reads nothing."""

from __future__ import annotations

import numpy as np

from patchloom.image import Ints
from patchloom.live.places import Places
from patchloom.live.stretches import Stretches
from patchloom.load.order import Order
from patchloom.mixing import WHOLE, Columns, Found, drawn, mixing_of, regions

__all__ = ["mixing"]

_DRAWS = 2**14
"""Patches that stand for all where only a sample is measured."""


def mixing(stretches: Stretches, order: Order, batch: int) -> Found:
    """Measure the batches of the first epoch of an order.

    Parameters
    ----------
    stretches
        Whose patches.
    order
        Of their positions.
    batch
        Patches of a batch.

    Returns
    -------
    dict
        As `LivePatches.mixing` documents it.
    """
    n = order.n
    columns = [
        _shown(stretches, order.at(0, np.arange(*some)))
        for some in drawn(n, batch, batch, order.seed)
    ]
    everything = None
    if n > WHOLE:
        fair = Order(n, order.blocks, order.seed, "exact")
        everything = _shown(stretches, fair.at(0, np.arange(_DRAWS)))
    found = mixing_of(columns, everything, n, batch, batch)
    return {name: told for name, told in found.items() if not name.endswith("_per_shard")}


def _shown(stretches: Stretches, positions: Ints) -> Columns:
    """What the patches at some positions show: their image, and the part of it."""
    plan, bounds = stretches.plan, stretches.bounds
    image, region = np.empty((2, len(positions)), np.int64)
    order = np.argsort(positions, kind="stable")
    stretch = np.searchsorted(bounds, positions[order], side="right") - 1
    for which in np.split(order, np.flatnonzero(np.diff(stretch)) + 1):
        k = int(np.searchsorted(bounds, positions[which[0]], side="right")) - 1
        whole = Places.of(plan, *bounds[k : k + 2].tolist())
        some = whole.take(positions[which] - bounds[k])
        extent = np.asarray(plan.images[some.image].layout.space.shape, np.int64)
        part = regions(some.sample, 2 * some.corner + some.size, extent)
        # Regions of two images are two: no image has so many.
        image[which], region[which] = some.image, some.image * 2**32 + part
    return {"image": image, "region": region}
