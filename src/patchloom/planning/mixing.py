"""Mixing of a plan: how fair a sample batches of consecutive rows will be; reads nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchloom.mixing import WHOLE, Columns, Found, drawn, mixing_of, regions
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan
from patchloom.randomness import key_of, philox

__all__ = ["mixing"]

Ints = npt.NDArray[np.int64]
_DRAWS = 2**14
"""Patches that stand for all of a plan of which only a sample is measured."""


def mixing(plan: Plan, batch: int = 64) -> Found:
    """How many images and regions meet in batches, and groups in shards; reads nothing.

    Three things are looked at: the ``image`` of a patch; its ``region``, which is the image,
    the sample, and the half of each spatial axis that the centre of the patch lies in (4
    regions an image in 2-D, 8 in 3-D); and both ``joint``. What the patches of a store show
    besides, such as classes, `PatchStore.mixing` tells.

    Parameters
    ----------
    plan
        Any plan.
    batch
        Consecutive rows of a batch.

    Returns
    -------
    dict
        For each of the three: ``entropy``, the mean over whole batches, in bits;
        ``independent``, what batches of independent draws have on average; ``permuted``, what
        batches of a random permutation of all rows have, a little more; ``relative``, entropy
        over permuted: 1 where no shuffle could be fairer, up to chance. Besides
        ``images_per_shard``, ``regions_per_shard`` and ``groups_per_shard`` (distinct ones, on
        average), and ``n_batches`` that were measured ``of_batches``: all of a plan of at most
        262,144 patches, of others up to 64 stretches of whole shards drawn by the seed, where
        permuted is independent, of 16,384 patches drawn from all.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images([np.zeros((512, 512), "uint8")] * 2, ids=["a", "b"])
    >>> grid = {"name": "sequential", "patch_size": [32, 32]}
    >>> patchloom.plan(images, grid).mixing()["image"]["relative"]
    0.0
    >>> mixed = patchloom.plan(images, grid, order="shuffled").mixing()
    >>> mixed["image"]["relative"] > 0.99, mixed["region"]["relative"] > 0.99
    (True, True)
    """
    n = plan.n_patches
    stretches = [_columns(plan, a, b) for a, b in drawn(n, plan.rows_per_shard, batch, plan.seed)]
    everything = _sample(plan) if n > WHOLE else None
    return mixing_of(stretches, everything, n, plan.rows_per_shard, batch)


def _columns(plan: Plan, start: int, stop: int) -> Columns:
    """What the rows [start, stop) show."""
    found = {name: np.empty(stop - start, np.int64) for name in ("image", "region", "group")}
    for part in plan.patches(start, stop):
        for name, values in _shown(plan, part).items():
            found[name][part.row - start] = values
    return found


def _sample(plan: Plan) -> Columns:
    """What patches show that are drawn from all, each as likely."""
    high, low, *_ = philox(key_of(plan.seed, "mixing all"), np.arange(_DRAWS))
    ranks = ((high << np.uint64(32) | low) % np.uint64(plan.n_patches)).astype(np.int64)
    positions = np.unique(plan.cells.positions_of(ranks))
    n = plan.cells.kept[positions].sum(dtype=np.int64)
    shown = [
        _shown(plan, part.take(np.isin(part.rank, ranks)))
        for some in np.array_split(positions, -(-n // WHOLE))
        for part in plan.along(some)
    ]
    return {name: np.concatenate([part[name] for part in shown]) for name in shown[0]}


def _shown(plan: Plan, part: Patches) -> Columns:
    extent = np.asarray(plan.images[part.image].layout.space.shape, np.int64)
    center2 = 2 * part.corner + np.asarray(plan.cut.size, np.int64)
    region = regions(part.sample, center2, extent)
    # Regions of two images are two: no image has so many.
    group = np.searchsorted(plan.groups.rank, part.rank, side="right") - 1
    return {
        "image": np.full(len(part), part.image),
        "region": part.image * 2**32 + region,
        "group": group,
    }
