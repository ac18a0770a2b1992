"""Mixing: how fair a sample a batch of consecutive rows is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchloom.planning.plans import Plan

__all__ = ["mixing"]

Ints = npt.NDArray[np.int64]
_ROWS = 2**18
"""Rows that are looked at together, where no window says how many."""


def mixing(plan: Plan, batch: int = 64) -> dict[str, float]:
    """How many images meet in batches and shards; reads nothing.

    The measure of scDataset (D'Ascenzo and Cultrera di Montesano, 2025): the entropy of what
    a batch is made of, here of images. It is set against what batches of patches that are drawn
    independently have on average, which is computed exactly.

    Parameters
    ----------
    plan
        Any plan.
    batch
        Consecutive rows of a batch.

    Returns
    -------
    dict
        ``images_per_batch`` and ``images_per_shard``: means; ``entropy``: mean over whole
        batches, in bits; ``entropy_independent``: what independent draws have; ``relative``:
        their ratio, 1 where no draw could be fairer.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> from patchloom.planning.mixing import mixing
    >>> images = patchloom.open_images([np.zeros((512, 512), "uint8")] * 2, ids=["a", "b"])
    >>> grid = {"name": "sequential", "patch_size": [32, 32]}
    >>> mixing(patchloom.plan(images, grid))["relative"]
    0.0
    >>> mixed = mixing(patchloom.plan(images, grid, order="shuffled"))
    >>> mixed["relative"] > 0.95
    True
    """
    rows, n = plan.rows_per_shard, plan.n_patches
    entropy, in_batch, in_shard, n_batches = 0.0, 0, 0, 0
    total = np.array([plan.n_patches_of(k) for k in range(len(plan.images))], np.int64)
    step = plan.window_rows or -(-_ROWS // rows) * rows
    rest = np.zeros(0, np.int64)
    for start in range(0, n, step):
        stop = min(start + step, n)
        image = np.empty(stop - start, np.int64)
        for part in plan.visits(start, stop):
            image[part.row - start] = part.image
        in_shard += int(_distinct(image, np.arange(stop - start) // rows)[1].sum())
        image = np.concatenate([rest, image])
        whole = len(image) // batch * batch
        rest = image[whole:]
        found, distinct = _distinct(image[:whole], np.arange(whole) // batch)
        share = found / batch
        entropy -= float((share * np.log2(share)).sum())
        in_batch += int(distinct.sum())
        n_batches += whole // batch
    independent = _independent(total[total > 0], batch)
    mean = entropy / max(1, n_batches) + 0.0
    return {
        "images_per_batch": in_batch / max(1, n_batches),
        "images_per_shard": in_shard / max(1, plan.n_shards),
        "entropy": mean,
        "entropy_independent": independent,
        "relative": mean / independent if independent else 1.0,
    }


def _distinct(image: Ints, of: Ints) -> tuple[Ints, Ints]:
    """How often each image stands in each batch, and how many images each batch has."""
    pairs = np.stack([of, image], -1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return counts, np.bincount(found[:, 0])


def _independent(n: Ints, batch: int) -> float:
    """Mean entropy of independent draws: each image's count is binomial."""
    k = np.arange(1, batch + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(k))])
    choose = logs[batch] - logs[k] - logs[batch - k]
    term = -(k / batch) * np.log2(k / batch)
    found = 0.0
    for p in (n / max(1, int(n.sum()))).tolist():
        if 0 < p < 1:
            chance = np.exp(choose + k * np.log(p) + (batch - k) * np.log1p(-p))
            found += float((chance * term).sum())
    return found
