"""Numbers of summaries as people slice them: an xarray.Dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries import Summary, targets

if TYPE_CHECKING:
    import xarray

__all__ = ["COUNTS", "NUMBERS", "assembled", "exactness", "numbers_of"]

COUNTS = ("count", "nans", "nodata")
"""Numbers of pixels."""
NUMBERS = (*COUNTS, "mean", "std", "min", "max", "median", "mad")
"""Everything that a Dataset says of a summary besides percentiles."""

_LONG = {
    "count": "pixels that are numbers",
    "nans": "pixels that are NaN, left out",
    "nodata": "pixels that are the image's nodata value, left out",
    "mean": "arithmetic mean",
    "std": "population standard deviation",
    "min": "smallest value",
    "max": "largest value",
    "median": "median",
    "mad": "median absolute deviation from the median, not scaled",
    "percentile": "percentile",
}


def numbers_of(summary: Summary) -> dict[str, float]:
    """What is said of one summary, by name; NaN where there is no pixel."""
    none = not summary.count
    return {
        "count": summary.count,
        "nans": summary.nans,
        "nodata": summary.nodata,
        "mean": summary.mean,
        "std": summary.std,
        "min": math.nan if none else summary.low,
        "max": math.nan if none else summary.high,
        "median": summary.median,
        "mad": summary.mad,
    }


def exactness(
    summaries: Iterable[Summary], q: Sequence[float], method: str
) -> dict[str, bool | float]:
    """Whether percentiles and medians are exact, what they are off by else, and whether MADs are.

    A median absolute deviation needs all values, not only those of some ranks.
    """
    parts = list(summaries)
    loose = [s.error for s in parts if targets(s, q, method, median=True) is not None]
    return {
        "exact": not loose,
        "relative_error": max(loose, default=0.0),
        "mad_exact": all(s.exact for s in parts),
    }


def assembled(
    coords: Mapping[str, Sequence[Any]],
    columns: Mapping[str, npt.NDArray[Any]],
    percentile: npt.NDArray[np.float64],
    quantiles: Sequence[float],
    attributes: Mapping[str, Any],
) -> xarray.Dataset:
    """A Dataset of arrays.

    Parameters
    ----------
    coords
        Names and coordinates of the dimensions, in their order.
    columns
        Arrays over these dimensions, by name.
    percentile
        Over these dimensions and quantiles.
    quantiles
        As decimals.
    attributes
        Of the Dataset; grey levels are in its ``unit``.
    """
    import xarray

    dims = tuple(coords)
    unit = attributes["unit"]

    def told(name: str) -> dict[str, str]:
        return {"long_name": _LONG[name], "units": "pixel" if name in COUNTS else unit}

    variables = {name: (dims, values, told(name)) for name, values in columns.items()}
    variables["percentile"] = ((*dims, "quantile"), percentile, told("percentile"))
    every = {name: list(values) for name, values in coords.items()}
    return xarray.Dataset(
        variables,
        coords={**every, "quantile": np.asarray(quantiles, np.float64)},
        attrs=dict(attributes),
    )
