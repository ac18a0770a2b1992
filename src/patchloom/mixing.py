"""Mixing: how fair a sample batches of consecutive rows are, from columns that say what rows show.

The measure is that of scDataset (D'Ascenzo and Cultrera di Montesano, 2025): the mean entropy
of what a batch is made of, against that of batches drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchloom.randomness import key_of, philox

__all__ = ["WHOLE", "Columns", "Found", "drawn", "entropies", "expected", "mixing_of", "regions"]

Ints = npt.NDArray[np.int64]
Columns = dict[str, Ints]
"""What rows show, by name: int64[n] each, in row order."""
Found = dict[str, int | float | dict[str, float]]

WHOLE = 2**18
"""Rows up to which every batch is measured; of more, a sample."""
_LEAST = 16
"""Batches that a stretch of a sample has at least."""
_FEWEST, _MOST = 4, 64
"""Stretches of a sample."""


def regions(sample: Ints, center2: Ints, extent: Ints) -> Ints:
    """Regions of patches of one image: the halves of each axis, in each sample: int64[n].

    Parameters
    ----------
    sample
        Flat sample of each patch: int64[n].
    center2
        Twice the centre of each patch on each spatial axis, in pixels: int64[n, ndim].
    extent
        Of the image, in pixels: int64[n, ndim] or int64[ndim].

    Examples
    --------
    >>> regions(np.array([0, 0]), np.array([[10, 90], [110, 10]]), np.array([100, 50])).tolist()
    [1, 2]
    """
    code = np.asarray(sample, np.int64)
    for half in (np.asarray(center2) >= extent).T:
        code = code * 2 + half
    return code


def drawn(n_rows: int, rows_per_shard: int, batch: int, seed: int) -> list[tuple[int, int]]:
    """The stretches [start, stop) of whole shards that are measured: all, or a seeded sample.

    Examples
    --------
    >>> drawn(1000, 100, 64, seed=0)
    [(0, 1000)]
    >>> len(drawn(10**9, 4096, 64, seed=0))
    64
    """
    if n_rows <= WHOLE:
        return [(0, n_rows)]
    step = -(-max(_LEAST * batch, rows_per_shard) // rows_per_shard) * rows_per_shard
    total = -(-n_rows // step)
    high, low, *_ = philox(key_of(seed, "mixing"), np.arange(total))
    found = np.argsort(high << np.uint64(32) | low, kind="stable")
    n = min(_MOST, max(_FEWEST, WHOLE // step))
    return [(k, min(k + step, n_rows)) for k in (np.sort(found[:n]) * step).tolist()]


def entropies(codes: Ints, batch: int) -> tuple[float, int]:
    """Sum of the entropies of whole batches of consecutive rows, in bits, and how many there are.

    >>> entropies(np.array([0, 0, 0, 0, 1, 2, 3, 4, 9]), 4)
    (2.0, 2)
    """
    n = len(codes) // batch
    counts = _counts(codes[: n * batch], batch)[0]
    share = counts / batch
    return -float((share * np.log2(share)).sum()) + 0.0, n


def _counts(codes: Ints, length: int) -> tuple[Ints, Ints]:
    """How often each code stands in each stretch of so many rows, and how many codes each has."""
    if not len(codes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, small = np.unique(codes, return_inverse=True)
    width = int(small.max()) + 1
    key = np.sort(np.arange(len(codes)) // length * width + small)
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    return np.diff(begins, append=len(key)), np.bincount(key[begins] // width)


def expected(counts: Ints, batch: int, *, replaced: bool) -> float:
    """Mean entropy of batches that are drawn at random, in bits; computed exactly.

    Parameters
    ----------
    counts
        Rows of each kind: int64[m].
    batch
        Rows of a batch, at most ``counts.sum()`` unless they are replaced.
    replaced
        True is of independent draws: a kind's number in a batch is binomial. False is of a
        batch of a random permutation: it is hypergeometric.

    Examples
    --------
    >>> expected(np.array([1, 1]), 2, replaced=True), expected(np.array([1, 1]), 2, replaced=False)
    (0.5, 1.0)
    """
    total = int(counts.sum())
    size, times = np.unique(counts[counts > 0], return_counts=True)
    k = np.arange(1, batch + 1)
    n = size[:, None]
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(total, batch) + 1)))])
    ways = logs[batch] - logs[k] - logs[batch - k]
    if replaced:
        p = n / max(1, total)
        # Of one kind alone every batch is full; its logarithm of nothing is never used.
        rest = np.log1p(-np.where(p < 1, p, 0.0))
        chance = np.where(p < 1, np.exp(ways + k * np.log(p) + (batch - k) * rest), k == batch)
    else:
        others = total - n
        may = (k <= n) & (batch - k <= others)
        a, b = np.where(may, k, 0), np.where(may, batch - k, 0)
        held = logs[n] - logs[a] - logs[n - a] + logs[others] - logs[b] - logs[others - b]
        all_ways = logs[total] - logs[batch] - logs[total - batch]
        chance = np.where(may, np.exp(held - all_ways), 0.0)
    share = k / batch
    return float(times @ (chance * (-share * np.log2(share))).sum(-1)) + 0.0


def mixing_of(
    stretches: Sequence[Columns],
    everything: Columns | None,
    n_rows: int,
    rows_per_shard: int,
    batch: int,
) -> Found:
    """What batches and shards are made of, against batches drawn at random.

    Parameters
    ----------
    stretches
        Columns of the rows that are measured: whole shards each.
    everything
        Columns of a fair sample of all rows; None where the stretches are all rows.
    n_rows
        Rows in all.
    rows_per_shard, batch
        Rows of a shard, and of a batch.

    Returns
    -------
    dict
        As `patchloom.planning.mixing.mixing` documents it.
    """
    names = list(stretches[0]) if stretches else []
    kinds = [name for name in names if name != "group"]
    found: Found = {"batch": batch, "n_batches": 0, "of_batches": n_rows // batch}
    batch = min(batch, max(1, n_rows))
    ends = np.cumsum([len(part[names[0]]) for part in stretches]) if names else [0]
    parts = [*stretches, *([] if everything is None else [everything])]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    if len(kinds) > 1:
        columns["joint"] = _joint([columns[name] for name in kinds])
        kinds.append("joint")
    for name in kinds:
        *codes, rest = np.split(columns[name], ends)
        sums = [entropies(part, batch) for part in codes]
        n = sum(k for _, k in sums)
        counts = np.unique(columns[name] if everything is None else rest, return_counts=True)[1]
        # A sample of everything does not say how small everything is.
        fair = expected(counts, batch, replaced=everything is not None)
        entropy = sum(total for total, _ in sums) / max(1, n)
        found["n_batches"] = n
        found[name] = {
            "entropy": entropy,
            "independent": expected(counts, batch, replaced=True),
            "permuted": fair,
            "relative": entropy / fair if fair else 1.0,
        }
    for name in names:
        many = np.concatenate([_counts(part[name], rows_per_shard)[1] for part in stretches])
        plural = "classes" if name == "class" else f"{name}s"
        found[f"{plural}_per_shard"] = float(many.sum() / max(1, len(many)))
    return found


def _joint(columns: Sequence[Ints]) -> Ints:
    """One code for equal rows of several columns."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        code = np.unique(code * len(values) + place, return_inverse=True)[1]
    return code
