"""Statistics page: one self-contained HTML file with histograms, percentiles and outliers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from patchloom.charts import level
from patchloom.location import Location
from patchloom.run.histograms import drawn_channels, histograms_section
from patchloom.run.markup import document, many, table, tiles
from patchloom.run.stats_rows import exactness, over_what, rows_of, told
from patchloom.summaries.outlying import RULE
from patchloom.summaries.subjects import readable

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray

    from patchloom.summaries.table import Statistics

__all__ = ["stats_page", "write_stats_page"]

_ROWS = 10_000
"""Rows of a table."""


def write_stats_page(
    statistics: Statistics,
    path: str | os.PathLike[str],
    percentiles: Sequence[float] = (1, 99),
    *,
    method: str = "linear",
    by: str | None = "image",
    title: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write `stats_page` to a path or any fsspec URL; what stood there is replaced.

    Raises
    ------
    ConfigError
        If `percentiles`, `method` or `by` is none that statistics take.
    WriteError
        If the target refuses.
    """
    made = stats_page(statistics, percentiles, method=method, by=by, title=title)
    Location.of(path, storage_options).write("", readable(made).encode())


def stats_page(
    statistics: Statistics,
    percentiles: Sequence[float] = (1, 99),
    *,
    method: str = "linear",
    by: str | None = "image",
    title: str | None = None,
) -> str:
    """A page with a histogram of each channel, of all images and of each, and all numbers.

    Parameters
    ----------
    statistics
        What was counted.
    percentiles
        In percent: those to mark, to list, and to look for outliers by.
    method, by
        As for `Statistics.dataset`: the table has one row an image or group.
    title
        Its heading.

    Returns
    -------
    str
        HTML without scripts that refers to nothing outside itself.
    """
    found = statistics.dataset(percentiles, method=method, by=by)
    flagged = statistics.outliers(percentiles, method=method)
    heading = title or "Statistics of grey levels"
    over = f"Over {over_what(statistics.over, statistics.each)}"
    parts = [
        _head(heading, statistics, over),
        _tiles(statistics, found, flagged),
        histograms_section(drawn_channels(statistics, percentiles, method), over),
        _outliers(flagged),
        _numbers(found, f"{over}; {exactness(found)}"),
        "</main><footer>This page refers to nothing outside itself.</footer>",
    ]
    return document(heading, parts)


def _head(title: str, statistics: Statistics, over: str) -> str:
    from patchloom import __version__

    return (
        f'<header><p class="brand">patchloom {escape(__version__)}</p><h1>{escape(title)}</h1>'
        f"<p>{many(len(statistics.images), 'image')}, "
        f"{many(len(statistics.channels), 'channel')}. {escape(over)}.</p></header><main>"
    )


def _tiles(statistics: Statistics, found: xarray.Dataset, flagged: pa.Table) -> str:
    n, odd = len(statistics.images), len(set(flagged["image"].to_pylist()))
    counted = ((int(found["nans"].sum()), "NaN"), (int(found["nodata"].sum()), "nodata"))
    out = " and ".join(f"{k:,} {word}" for k, word in counted if k)
    how = ("exact", "percentiles", "as of the pixels themselves")
    if not found.attrs["exact"]:
        error = float(found.attrs["relative_error"])
        how = (f"{error:.2%}", "error of a percentile", "at most, of its value")
    return tiles(
        [
            (f"{n:,}", "image" if n == 1 else "images", many(len(statistics.channels), "channel")),
            (_short(statistics.count), "pixels of all channels", f"{out or 'none'} left out"),
            how,
            (f"{odd:,}", "outlier" if odd == 1 else "outliers", "images far from the rest"),
        ]
    )


def _short(n: float) -> str:
    """A number of pixels, at most four digits of it.

    >>> _short(8191), _short(378_608_256), _short(10**13)
    ('8,191', '378.6 M', '10 T')
    """
    if n < 10_000:
        return f"{n:,}"
    for unit in ("", " k", " M", " G"):
        if n < 1000:
            return f"{n:.4g}{unit}"
        n /= 1000
    return f"{n:,.4g} T"


def _outliers(flagged: pa.Table) -> str:
    rows = [
        [
            escape(row["image"]),
            row["channel"],
            row["number"],
            level(row["value"]),
            level(row["typical"]),
            f"{row['z']:+.3g}",
        ]
        for row in flagged.slice(0, _ROWS).to_pylist()
    ]
    head = ["image", "channel", "number", "value", "typical", "robust z"]
    shown = table("Numbers that are far from those of the other images", rows, head)
    return (
        f"<section><h2>Outliers</h2>{shown if rows else '<p>None.</p>'}"
        f"<p>The rule: {escape(RULE)}.</p></section>"
    )


def _numbers(found: xarray.Dataset, caption: str) -> str:
    rows = rows_of(found)
    head, shown = told(rows[:_ROWS])
    more = f"; the first {_ROWS:,} of {len(rows):,} rows" if len(rows) > _ROWS else ""
    cells = [[escape(first), *rest] for first, *rest in shown]
    return f"<section><h2>Numbers</h2>{table(caption + more, cells, head)}</section>"
