"""Counted: the grey levels of images, as they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from patchloom.charts import Mark, grey_chart
from patchloom.histogram import Floats, Histogram, Ints, span_of
from patchloom.summaries import Summary, percentiles, pooled, targets
from patchloom.summaries.keys import ends, values_of
from patchloom.summaries.subjects import Cell
from patchloom.table import html_table

__all__ = ["Channel", "Counted", "channels_of", "glance"]

_CHANNELS = 6
"""Channels that a notebook shows."""


@dataclass(frozen=True, eq=False)
class Counted:
    """The grey levels of one image, or of several together, in one channel."""

    name: str
    values: Floats
    """Grey levels, or one end of each bucket of them; ascending: float64[k]."""
    counts: Ints
    """Pixels of each: int64[k]."""
    far: Floats
    """Other end of each bucket, the value itself where it is exact: float64[k]."""
    lowest: float
    highest: float
    marks: tuple[Mark, ...] = ()
    """Percentiles to show."""
    flag: str = ""
    """Why it is far from the others, if it is."""
    missing: str = ""
    """What was left out of it, in words."""

    def span(self) -> tuple[float, float]:
        """The axis on which it is seen best."""
        known = np.concatenate([self.values, self.far])
        known = known[np.isfinite(known)]
        ends = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        return span_of(*ends, [mark.value for mark in self.marks])


@dataclass(frozen=True, eq=False)
class Channel:
    """The grey levels of one channel."""

    name: str
    whole: Counted
    """Of all images together."""
    images: tuple[Counted, ...]
    """Of each."""


def channels_of(
    summaries: Mapping[Cell, Summary],
    images: Sequence[str],
    channels: Sequence[str],
    q: Sequence[float],
    method: str = "linear",
    flags: Mapping[tuple[str, str], str] | None = None,
) -> list[Channel]:
    """What to draw of summaries: planes and labels are pooled.

    Parameters
    ----------
    summaries, images, channels
        Of a `Statistics`.
    q
        Percentiles to mark, in percent.
    method
        How they lie between pixels.
    flags
        Why an image stands out in a channel, by their names.
    """
    parts: dict[tuple[int, int], list[Summary]] = {}
    for cell, summary in summaries.items():
        parts.setdefault((cell.channel, cell.image), []).append(summary)

    def counted(name: str, summary: Summary, flag: str = "") -> Counted:
        marks = percentiles(summary, q, method=method).tolist()
        about = targets(summary, q, method) is not None
        return Counted(
            name,
            summary.values,
            summary.counts,
            _far(summary),
            summary.low,
            summary.high,
            tuple(Mark(f"p{v:.12g}", at, about) for v, at in zip(q, marks, strict=True)),
            flag,
            _missing(summary.nans, summary.nodata),
        )

    found = []
    for c, channel in enumerate(channels):
        each = [pooled(parts.get((c, i), []), q, method) for i in range(len(images))]
        drawn = [
            counted(name, summary, (flags or {}).get((name, channel), ""))
            for name, summary in zip(images, each, strict=True)
        ]
        whole = pooled(each, q, method)
        found.append(Channel(channel, counted(channel, whole), tuple(drawn)))
    return found


def _far(summary: Summary) -> Floats:
    """Of each bucket the end that does not name it."""
    first, last = ends(summary.values, summary.bits)
    other = np.where(summary.values < 0, values_of(first), values_of(last))
    return summary.values if summary.exact else other


def _missing(nans: int, nodata: int) -> str:
    counts = ((nans, "NaN"), (nodata, "nodata"))
    told = " and ".join(f"{n:,} {word}" for n, word in counts if n)
    return f"{told} left out" if told else ""


def glance(rows: Mapping[str, object], channels: Sequence[Channel]) -> str:
    """What a notebook shows of statistics: key figures, and a histogram of each channel.

    Parameters
    ----------
    rows
        Figures by name.
    channels
        Of `channels_of`; of many the first ones are drawn.
    """
    figures = "".join(
        f'<figure style="margin:0;width:320px;max-width:100%">{_drawn(one)}<figcaption>'
        f"{escape(one.name)}</figcaption></figure>"
        for one in channels[:_CHANNELS]
        if len(one.whole.counts)
    )
    n = len(channels)
    more = (
        f"<p>{_CHANNELS} of {n:,} channels; all of them: to_html(path)</p>" if n > _CHANNELS else ""
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">'
        f"{html_table('Statistics', rows)}{figures}</div>{more}"
    )


def _drawn(channel: Channel) -> str:
    whole = channel.whole
    found = Histogram.of(whole.values, whole.counts, whole.span(), far=whole.far)
    return grey_chart(found, f"Histogram of channel {channel.name}", whole.marks)
