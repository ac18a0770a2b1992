"""Statistics as people slice them: an xarray.Dataset over (image, channel, quantile)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from patchloom.errors import ConfigError
from patchloom.summaries import RELATIVE_WIDTH, Summary, percentiles

if TYPE_CHECKING:
    import xarray

__all__ = ["check_percentiles", "dataset", "document", "from_document", "joined"]

_NUMBERS = ("count", "nans", "mean", "std", "min", "max")


def check_percentiles(q: Sequence[float]) -> tuple[float, ...]:
    """Percentiles in percent, as floats.

    Raises
    ------
    ConfigError
        If one is not in [0, 100].
    """
    try:
        found = tuple(float(v) for v in q)
    except (TypeError, ValueError):
        found = (math.nan,)
    if any(not 0 <= v <= 100 for v in found) or len(set(found)) != len(found):
        raise ConfigError(
            f"percentiles are different numbers in percent, from 0 to 100, got {q!r}; "
            "give a list such as (1, 99)"
        )
    return found


def document(
    summaries: Mapping[tuple[int, int], Summary],
    images: Sequence[str],
    channels: Sequence[str],
    q: Sequence[float],
    over: str,
) -> dict[str, Any]:
    """Statistics as JSON: NaN becomes null, infinities their names."""
    empty = Summary.empty()
    grid = [
        [summaries.get((i, c), empty) for c in range(len(channels))] for i in range(len(images))
    ]

    def numbers(read: Any) -> list[list[Any]]:
        return [[_plain(read(s)) for s in row] for row in grid]

    return {
        "over": over,
        "images": list(images),
        "channels": list(channels),
        # As decimals: 99.9 becomes 0.999, not the float that 99.9 / 100 gives.
        "quantiles": [float(Fraction(str(v)) / 100) for v in q],
        "exact": all(s.exact for row in grid for s in row),
        "count": numbers(lambda s: s.count),
        "nans": numbers(lambda s: s.nans),
        "mean": numbers(lambda s: s.mean),
        "std": numbers(lambda s: s.std),
        "min": numbers(lambda s: s.low if s.count else math.nan),
        "max": numbers(lambda s: s.high if s.count else math.nan),
        "percentile": [
            [[_plain(v) for v in percentiles(s, q).tolist()] for s in row] for row in grid
        ],
    }


def joined(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several sets of images as those of all; numbers stay as they are.

    Parameters
    ----------
    documents
        From `document`, of other images each, with the same channels and quantiles.
    """
    found = dict(documents[0])
    for name in ("images", *_NUMBERS, "percentile"):
        found[name] = [row for document in documents for row in document[name]]
    return {**found, "exact": all(document["exact"] for document in documents)}


def from_document(found: Mapping[str, Any]) -> xarray.Dataset:
    """The Dataset of a document.

    Variables ``percentile`` (image, channel, quantile) and ``count``, ``nans``, ``mean``,
    ``std``, ``min``, ``max`` (image, channel), in grey levels of the source; the coordinate
    ``quantile`` is q / 100. Where there was no pixel, numbers are NaN.
    """
    import xarray

    shape = (len(found["images"]), len(found["channels"]))

    def column(name: str, *more: int) -> Any:
        values = np.array(found[name], object).reshape(*shape, *more)
        if name in ("count", "nans"):
            return values.astype(np.int64)
        numbers = [math.nan if v is None else float(v) for v in values.ravel()]
        return np.array(numbers, np.float64).reshape(values.shape)

    variables = {name: (("image", "channel"), column(name)) for name in _NUMBERS}
    quantiles = found["quantiles"]
    return xarray.Dataset(
        {
            **variables,
            "percentile": (
                ("image", "channel", "quantile"),
                column("percentile", len(quantiles)),
            ),
        },
        coords={
            "image": list(found["images"]),
            "channel": list(found["channels"]),
            "quantile": np.asarray(quantiles, np.float64),
        },
        attrs={
            "over": found["over"],
            "exact": bool(found["exact"]),
            "relative_error": 0.0 if found["exact"] else RELATIVE_WIDTH,
        },
    )


def dataset(
    summaries: Mapping[tuple[int, int], Summary],
    images: Sequence[str],
    channels: Sequence[str],
    q: Sequence[float],
    over: str,
) -> xarray.Dataset:
    """The Dataset of some summaries."""
    return from_document(document(summaries, images, channels, q, over))


def _plain(value: float) -> float | int | str | None:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
