"""Scales: what images of several stores, or of parts of them, are normalised with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from patchloom.errors import ConfigError, IdentityError
from patchloom.normalization import Normalization
from patchloom.summaries.asked import quantiles_of
from patchloom.summaries.table import Statistics

__all__ = ["check_as_sources", "scale_of", "summed"]


def summed(wholes: Sequence[tuple[Any, set[str] | None]]) -> Statistics:
    """Statistics of the images of some stores, as one value.

    Parameters
    ----------
    wholes
        Each store, and the ids of those of its images that count; None: all.

    Raises
    ------
    ConfigError
        If one of them has no statistics, or they do not add: other channels, or other pixels.
    IdentityError
        If two call different images by one id, or images whose source has no name to tell by.
    """
    found = []
    for whole, ids in wholes:
        if not hasattr(whole, "summaries"):
            raise ConfigError(
                f"statistics are those of stores, got patches of a {type(whole).__name__}; survey "
                "its images (patchloom.summarize), and give a Normalization"
            )
        own: Statistics = whole.summaries()
        known = {image.id for image in own.images}
        found.append(own if ids is None or ids >= known else own.select(image=sorted(ids & known)))
    _check_nameless(found)
    return reduce(add, found)


def _check_nameless(parts: Sequence[Statistics]) -> None:
    """Refuse arrays of one id in several stores: nothing tells whether they are one image."""
    nameless = [image.id for part in parts for image in part.images if not image.uri]
    if twice := sorted(name for name, n in Counter(nameless).items() if n > 1):
        raise IdentityError(
            f"an image has an id of its own, but several stores have an array {twice[0]!r}, and "
            "nothing tells whether they are one image; open arrays with ids= of their own, and "
            "give parts of a store as parts of one that was opened once"
        )


def check_as_sources(applied: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to scale images that are scaled.

    Parameters
    ----------
    applied
        What the arrays of each store were normalised with when they were written.

    Raises
    ------
    ConfigError
        If images of one were.
    """
    if any("images" in done for done in applied):
        raise ConfigError(
            "images are normalised once, but those of a store were when they were written; load "
            "them as they are"
        )


def scale_of(
    statistics: Statistics,
    applied: Sequence[Mapping[str, Any]],
    kind: str,
    per: str,
    percentiles: Sequence[float],
    method: str = "linear",
) -> Normalization:
    """What images are normalised with, by the numbers of some.

    Parameters
    ----------
    statistics
        Of the images.
    applied
        What the arrays of each store were normalised with when they were written.
    kind, per, percentiles, method
        As for `Normalization.of`.

    Raises
    ------
    ConfigError
        If images are normalised already, there is no such kind or column, or statistics are not
        finite.
    """
    check_as_sources(applied)
    if kind == "percentile" and per == "image":
        table = statistics.dataset(percentiles, method=method).sel(
            quantile=quantiles_of(percentiles)
        )
        return Normalization.from_statistics(table, kind)
    return Normalization.of(
        kind,
        {(cell.image, cell.channel): summary for cell, summary in statistics.summaries.items()},
        [image.id for image in statistics.images],
        statistics.channels,
        per=per,
        columns=[image.metadata for image in statistics.images],
        q=percentiles,
        method=method,
        over=statistics.over,
    )
