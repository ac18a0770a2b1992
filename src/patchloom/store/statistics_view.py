"""Statistics in the attributes of a store: a JSON document, and the Dataset and bars it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchloom.summaries import RELATIVE_WIDTH, Summary, percentiles
from patchloom.summaries.asked import quantiles_of
from patchloom.summaries.bars import MOST, Bars
from patchloom.summaries.subjects import Subject, provenance
from patchloom.summaries.tabulated import COUNTS, NUMBERS, assembled, exactness, numbers_of

if TYPE_CHECKING:
    import xarray

__all__ = ["bars_of", "document", "from_document", "joined"]

_ALL_BARS = 65_536
"""Bars of all images and channels of a store together, as long as each has 16."""


def document(
    summaries: Mapping[tuple[int, int], Summary],
    images: Sequence[str],
    channels: Sequence[str],
    q: Sequence[float],
    over: str,
    *,
    each: str = "once",
    method: str = "linear",
) -> dict[str, Any]:
    """Statistics as JSON: NaN becomes null, infinities their names.

    Besides the numbers it holds a histogram of each image and channel, of at most 256 bars; of
    fewer where there are many images, so that attributes stay small.

    Parameters
    ----------
    summaries
        Of each (image, channel).
    images, channels
        Names.
    q
        In percent.
    over, each, method
        As for `Statistics`.
    """
    empty = Summary.empty()
    grid = [
        [summaries.get((i, c), empty) for c in range(len(channels))] for i in range(len(images))
    ]
    numbers = [[numbers_of(s) for s in row] for row in grid]
    most = _bars_each(len(images) * len(channels))
    return {
        "over": over,
        "each": each,
        "method": method,
        "images": list(images),
        "channels": list(channels),
        "quantiles": quantiles_of(q),
        **exactness([s for row in grid for s in row], q, method),
        **{name: [[_plain(one[name]) for one in row] for row in numbers] for name in NUMBERS},
        "percentile": [
            [[_plain(v) for v in percentiles(s, q, method).tolist()] for s in row] for row in grid
        ],
        "histogram": [[Bars.of(s, most).to_document() for s in row] for row in grid],
    }


def joined(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several sets of images as those of all; numbers stay as they are.

    Parameters
    ----------
    documents
        From `document`, of other images each, with the same channels and quantiles. What one of
        an older version does not tell is null for its images.
    """
    found = dict(documents[0])
    told = {name for document in documents for name in document}
    for name in ("images", *NUMBERS, "percentile", "histogram"):
        if name in told:
            found[name] = [
                row for document in documents for row in document.get(name) or _untold(document)
            ]
    return {
        **found,
        "exact": all(document["exact"] for document in documents),
        "relative_error": max(map(_error, documents)),
        "mad_exact": all(document.get("mad_exact", document["exact"]) for document in documents),
    }


def from_document(
    found: Mapping[str, Any], version: str = "", images: Sequence[Mapping[str, Any]] = ()
) -> xarray.Dataset:
    """The Dataset of a document, as `Statistics.dataset` gives it by image.

    Variables ``percentile`` (image, channel, quantile) and ``count``, ``nans``, ``nodata``,
    ``mean``, ``std``, ``min``, ``max``, ``median``, ``mad`` (image, channel), in grey levels of the
    source; the coordinate ``quantile`` is q / 100. Where there was no pixel, numbers are NaN.
    What a document of an older version does not tell is not there.

    Parameters
    ----------
    found
        From `document` or `joined`.
    version, images
        Of the store that it stands in, for the attribute ``provenance``.
    """
    shape = (len(found["images"]), len(found["channels"]))

    def column(name: str, *more: int) -> Any:
        values = np.array(found[name], object).reshape(*shape, *more)
        if name in COUNTS:
            return np.array([v or 0 for v in values.ravel()], np.int64).reshape(values.shape)
        numbers = [math.nan if v is None else float(v) for v in values.ravel()]
        return np.array(numbers, np.float64).reshape(values.shape)

    quantiles = found["quantiles"]
    subjects = [Subject(image["id"], image["uri"], image["level"]) for image in images]
    return assembled(
        {"image": found["images"], "channel": found["channels"]},
        {name: column(name) for name in NUMBERS if name in found},
        column("percentile", len(quantiles)),
        quantiles,
        {
            "over": found["over"],
            "each": found.get("each", "once"),
            "method": found.get("method", "linear"),
            "by": "image",
            "unit": "grey level",
            "pooling": "pooled",
            "exact": bool(found["exact"]),
            "relative_error": _error(found),
            "mad_exact": bool(found.get("mad_exact", found["exact"])),
            "provenance": provenance([version] if version else [], subjects),
        },
    )


def bars_of(found: Mapping[str, Any]) -> dict[tuple[int, int], Bars]:
    """The histograms of a document by (image, channel); an older one has none."""
    return {
        (i, c): Bars.from_document(bars)
        for i, row in enumerate(found.get("histogram", ()))
        for c, bars in enumerate(row)
        if bars is not None
    }


def _bars_each(n_cells: int) -> int:
    """Bars of one histogram: fewer where there are many.

    >>> _bars_each(256), _bars_each(257), _bars_each(10**6)
    (256, 128, 16)
    """
    most = MOST
    while most > 16 and most * n_cells > _ALL_BARS:
        most //= 2
    return most


def _untold(document: Mapping[str, Any]) -> list[list[None]]:
    """What an older document says of a number that it does not know."""
    return [[None] * len(document["channels"])] * len(document["images"])


def _error(document: Mapping[str, Any]) -> float:
    told = 0.0 if document["exact"] else RELATIVE_WIDTH
    return float(document.get("relative_error", told))


def _plain(value: float) -> float | int | str | None:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
