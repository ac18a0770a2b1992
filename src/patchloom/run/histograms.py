"""Histograms of a page: each channel of all images together, then image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from patchloom.charts import grey_chart, level
from patchloom.counted import Channel, Counted, channels_of
from patchloom.histogram import Histogram
from patchloom.run.markup import many
from patchloom.summaries.table import Statistics

__all__ = ["MOST_IMAGES", "drawn_channels", "histograms_section"]

MOST_IMAGES = 24
"""Images of a channel that are drawn; of more than these a choice is, spread evenly."""


def drawn_channels(
    statistics: Statistics, q: Sequence[float] = (1, 99), method: str = "linear"
) -> list[Channel]:
    """The channels of statistics with their percentiles; images far from the rest are flagged."""
    worst: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in statistics.outliers(q, method=method).to_pylist():
        at = (row["image"], row["channel"])
        if at not in worst or abs(row["z"]) > abs(worst[at]["z"]):
            worst[at] = row
    flags = {
        at: f"{row['number']} is {level(row['value'])}, typical {level(row['typical'])}"
        for at, row in worst.items()
    }
    names = [subject.id for subject in statistics.images]
    return channels_of(statistics.summaries, names, statistics.channels, q, method, flags)


def histograms_section(channels: Sequence[Channel], over: str) -> str:
    """A section with all histograms.

    Parameters
    ----------
    channels
        What to draw.
    over
        Which pixels were counted, in words.
    """
    pooled = "".join(
        _figure(
            one.whole, f"channel {one.name}", f"Channel {one.name}", one.whole.span(), told=True
        )
        for one in channels
    )
    n = max((len(one.images) for one in channels), default=0)
    several = n > 1
    together = f"All {many(n, 'image')} together" if several else "The image"
    marked = " Dashed lines: percentiles." if any(one.whole.marks for one in channels) else ""
    return (
        f'<section class="histograms"><h2>Histograms</h2><p>{escape(over)}. Solid bars: how many '
        "pixels have a grey level. Pale ones: the logarithm of it, to see the few beside the many."
        f"{marked}</p><h3>{together}</h3>"
        f'<div class="plates small">{pooled}</div>'
        f"{''.join(_by_image(one) for one in channels) if several else ''}</section>"
    )


def _by_image(channel: Channel) -> str:
    """One channel image by image: those that stand out first, the others on one axis."""
    whole, images = channel.whole, channel.images
    flagged = [image for image in images if image.flag]
    usual = [image for image in images if not image.flag]
    axis = _common(usual) if usual else whole.span()
    ends = [mark.value for mark in whole.marks]
    band = (min(ends), max(ends)) if len(ends) > 1 else None
    shown = [*_spread(flagged, MOST_IMAGES // 2), *_spread(usual, MOST_IMAGES)][:MOST_IMAGES]
    figures = "".join(
        _figure(
            image,
            f"{image.name}, channel {channel.name}",
            image.name,
            image.span() if image.flag else axis,
            band=band,
        )
        for image in shown
    )
    hidden = len(images) - len(shown)
    told = f"{many(len(flagged), 'outlier')}" if flagged else "no outliers"
    choice = f"; {len(shown)} of {len(images):,} are drawn" if hidden else ""
    apart = ", outliers on their own" if flagged else ""
    shaded = (
        "<p>Shaded: between the outermost percentiles of all images together. All are drawn on "
        f"one axis{apart}.</p>"
        if band is not None
        else ""
    )
    opened = " open" if len(shown) <= 8 or flagged else ""
    return (
        f"<details{opened}><summary>Channel {escape(channel.name)} by image: "
        f"{told}{choice}</summary>"
        f'{shaded}<div class="plates small">{figures}</div></details>'
    )


def _common(images: Sequence[Counted]) -> tuple[float, float]:
    """One axis for several images."""
    spans = [image.span() for image in images if len(image.values)] or [(0.0, 1.0)]
    return min(low for low, _ in spans), max(high for _, high in spans)


def _spread(images: Sequence[Counted], most: int) -> list[Counted]:
    """At most so many, spread evenly."""
    n = len(images)
    return [images[k * n // min(n, most)] for k in range(min(n, most))]


def _figure(
    image: Counted,
    what: str,
    heading: str,
    span: tuple[float, float],
    *,
    band: tuple[float, float] | None = None,
    told: bool = False,
) -> str:
    total = int(image.counts.sum())
    if not total:
        drawn, facts = "", ["no pixels"]
    else:
        found = Histogram.of(image.values, image.counts, span, far=image.far)
        said = f"Histogram of {what}, {many(total, 'pixel')}"
        drawn = grey_chart(found, said, image.marks, band=band, told=told)
        facts = [many(total, "pixel"), f"{level(image.lowest)} to {level(image.highest)}"]
        beyond = (found.below + found.above) / total
        if beyond:
            facts.append(f"{_share(beyond)} lie beyond the axis")
    facts += [image.missing] if image.missing else []
    flag = f'<span class="flag">Outlier: {escape(image.flag)}.</span>' if image.flag else ""
    return (
        f"<figure{' class=flagged' if image.flag else ''}>{drawn}<figcaption>"
        f"<b>{escape(heading)}</b> {escape('; '.join(facts))}.{flag}</figcaption></figure>"
    )


def _share(part: float) -> str:
    return f"{part:.2%}" if part >= 0.0001 else "less than 0.01%"
