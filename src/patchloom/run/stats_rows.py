"""Stats rows: the numbers of a Dataset of statistics as rows, for tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from patchloom.charts import level

if TYPE_CHECKING:
    import xarray

__all__ = ["exactness", "over_what", "plain", "rows_of", "told"]

_OVER = {
    "image": "all pixels of each image",
    "mask": "pixels under the mask of each image",
    "patches": "pixels of the patches",
}
_EACH = {"once": "each once", "taken": "as often as patches take them"}
_NAMES = ("z", "label")


def over_what(over: str, each: str) -> str:
    """Which pixels were counted, in words.

    >>> over_what("patches", "taken")
    'pixels of the patches, as often as patches take them'
    """
    return f"{_OVER[over]}, {_EACH[each]}"


def exactness(found: xarray.Dataset) -> str:
    """How exact the numbers of a Dataset are, in words."""
    if found.attrs["exact"]:
        return "exact"
    return f"percentiles within {found.attrs['relative_error']:.2g} of their value"


def rows_of(found: xarray.Dataset) -> list[dict[str, Any]]:
    """One row a cell: what names it, all numbers, and percentiles by names such as ``p99``.

    Parameters
    ----------
    found
        From `Statistics.dataset`.
    """
    names = [str(name) for name in found["count"].dims]
    marks = [f"p{float(f'{100 * q:.12g}'):g}" for q in found["quantile"].values.tolist()]
    columns = {str(k): v.values.ravel().tolist() for k, v in found.data_vars.items()}
    percentile: list[float] = columns.pop("percentile")
    step = len(marks)
    return [
        dict(zip(names, at, strict=True))
        | {name: values[k] for name, values in columns.items()}
        | dict(zip(marks, percentile[k * step : (k + 1) * step], strict=True))
        for k, at in enumerate(product(*(found[name].values.tolist() for name in names)))
    ]


def told(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table; where nothing was left out, it does not say how much.

    >>> told([{"image": "a", "z": 1200, "count": 1200, "nans": 0, "mean": 0.5}])
    (['image', 'z', 'count', 'mean'], [['a', '1200', '1,200', '0.5']])
    """
    idle = {name for name in ("nans", "nodata") if not any(row.get(name) for row in rows)}
    head = [name for name in (rows[0] if rows else ()) if name not in idle]
    return head, [[_text(name, row[name]) for name in head] for row in rows]


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows ready for JSON: NaN becomes null, infinities their names."""
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _text(name: str, value: Any) -> str:
    if isinstance(value, float):
        return level(value)
    return f"{value:,}" if isinstance(value, int) and name not in _NAMES else str(value)


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
