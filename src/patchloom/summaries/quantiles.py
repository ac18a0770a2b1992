"""Percentiles of a summary, and what must be counted again to have them exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add

import numpy as np

from patchloom.summaries.keys import Floats, Ints
from patchloom.summaries.ranking import METHODS, between, ranks
from patchloom.summaries.refining import LEAVES, LISTED, Targets
from patchloom.summaries.summary import Summary

__all__ = ["METHODS", "percentiles", "pooled", "targets"]


def percentiles(summary: Summary, q: Sequence[float], method: str = "linear") -> Floats:
    """Percentiles of the summarized pixels.

    Bit for bit ``numpy.percentile(pixels.astype("float64"), q, method=method)`` if the summary
    is exact, or refined until `targets` says None; a zero is 0.0, and where NumPy says NaN since
    it takes infinity from infinity, the limit. Else each of the two pixels that a
    percentile lies between is off by at most `Summary.error` of its value; ranks are exact.

    Parameters
    ----------
    summary
        What to rank.
    q
        In percent, from 0 to 100.
    method
        One of `METHODS`, as in `numpy.percentile`.

    Returns
    -------
    float64[len(q)]
        NaN if there is no pixel.

    Examples
    --------
    >>> from patchloom.summaries import summarize
    >>> percentiles(summarize(np.arange(10, dtype="uint8")), [25], "higher").tolist()
    [3.0]
    """
    if not summary.count:
        return np.full(len(q), np.nan)
    below, above, part = ranks(summary.count, q, method)
    return between(summary.ranked(below), summary.ranked(above), part)


def targets(
    summary: Summary, q: Sequence[float], method: str = "linear", *, median: bool = False
) -> Targets | None:
    """Where the next pass has to look closer for these percentiles to be exact.

    Parameters
    ----------
    summary, q, method
        As of `percentiles`.
    median
        Whether `Summary.median` is to be exact as well.

    Returns
    -------
    Targets or None
        None if everything is exact already. Give it to a `Tally` of the same pixels, and with what
        that counts to `Summary.refined`; then ask again.

    Examples
    --------
    >>> from patchloom.summaries import Tally, summarize
    >>> noise = np.random.default_rng(0).normal(size=10**5).astype("float32")
    >>> found, passes = summarize(noise), 1
    >>> while (wanted := targets(found, [1, 99])) is not None:
    ...     tally = Tally(noise.dtype, targets=wanted)
    ...     tally.add(noise)
    ...     found, passes = found.refined(tally.summary(), wanted), passes + 1
    >>> passes, (percentiles(found, [1, 99]) == np.percentile(noise.astype(float), [1, 99])).all()
    (2, np.True_)
    """
    found = _unresolved(summary, q, method, median)[:LEAVES]
    if not len(found):
        return None
    return _targets(summary, found)


def pooled(
    summaries: Iterable[Summary],
    q: Sequence[float] = (),
    method: str = "linear",
    *,
    median: bool = False,
) -> Summary:
    """The sum of some summaries, as finely as they know what these percentiles need.

    Summaries that are exact give their values to a sum that is not, where they are wanted.
    `targets` of the result says where another pass over the others is needed.
    """
    parts = list(summaries)
    total = reduce(add, parts, Summary.empty())
    # All of them, also if a pass can look into some only: opening takes no pass.
    wanted = _targets(total, _unresolved(total, q, method, median))
    if not len(wanted):
        return total
    return reduce(add, (part.opened(wanted) for part in parts), Summary.empty())


def _unresolved(summary: Summary, q: Sequence[float], method: str, median: bool) -> Ints:
    """Positions of the leaves that hold wanted ranks and are no values."""
    if summary.exact or not summary.count:
        return np.zeros(0, np.int64)
    below, above, _ = ranks(summary.count, q, method)
    asked = [below, above]
    if median:
        asked.append(np.array([(summary.count - 1) // 2, summary.count // 2]))
    wanted: Ints = np.unique(np.concatenate(asked))
    # The ends are known.
    wanted = wanted[(wanted > 0) & (wanted < summary.count - 1)]
    at = np.unique(summary.leaves(wanted))
    return at[summary.bits[at] > 0]


def _targets(summary: Summary, at: Ints) -> Targets:
    return Targets(summary.values[at], summary.bits[at], summary.counts[at] <= LISTED)
