"""Histograms of a page: each channel of all images together, then image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from patchloom.charts import Mark, grey_chart, level
from patchloom.histogram import Floats, Histogram, Ints, span_of
from patchloom.run.markup import many

__all__ = ["MOST_IMAGES", "Counted", "histograms_section"]

MOST_IMAGES = 24
"""Images of a channel that are drawn; of more than these a choice is, spread evenly."""


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
        known = self.values[np.isfinite(self.values)]
        low, high = (float(known[0]), float(known[-1])) if len(known) else (0.0, 0.0)
        # An end of a bucket says less than the pixels' own extremes, where these are numbers.
        low = self.lowest if math.isfinite(self.lowest) else low
        high = self.highest if math.isfinite(self.highest) else high
        return span_of(low, high, [mark.value for mark in self.marks])


def histograms_section(
    channels: Sequence[tuple[str, Counted, Sequence[Counted]]], over: str
) -> str:
    """A section with all histograms.

    Parameters
    ----------
    channels
        Name of each channel, its pixels in all images together, and in each image.
    over
        Which pixels were counted, in words.
    """
    pooled = "".join(
        _figure(whole, f"channel {name}", f"Channel {name}", whole.span(), told=True)
        for name, whole, _ in channels
    )
    n = max((len(each) for *_, each in channels), default=0)
    several = n > 1
    together = f"All {many(n, 'image')} together" if several else "The image"
    return (
        f'<section class="histograms"><h2>Histograms</h2><p>{escape(over)}. Solid bars: how many '
        "pixels have a grey level. Pale ones: the logarithm of it, to see the few beside the many. "
        f"Dashed lines: percentiles.</p><h3>{together}</h3>"
        f'<div class="plates small">{pooled}</div>'
        f"{''.join(_by_image(*channel) for channel in channels) if several else ''}</section>"
    )


def _by_image(channel: str, whole: Counted, images: Sequence[Counted]) -> str:
    """One channel image by image: those that stand out first, the others on one axis."""
    flagged = [image for image in images if image.flag]
    usual = [image for image in images if not image.flag]
    axis = _common(usual) if usual else whole.span()
    ends = [mark.value for mark in whole.marks]
    band = (min(ends), max(ends)) if len(ends) > 1 else None
    shown = [*_spread(flagged, MOST_IMAGES // 2), *_spread(usual, MOST_IMAGES)][:MOST_IMAGES]
    figures = "".join(
        _figure(
            image,
            f"{image.name}, channel {channel}",
            image.name,
            image.span() if image.flag else axis,
            band=band,
        )
        for image in shown
    )
    hidden = len(images) - len(shown)
    told = f"{many(len(flagged), 'outlier')}" if flagged else "no outliers"
    choice = f"; {len(shown)} of {len(images):,} are drawn" if hidden else ""
    shaded = (
        "<p>Shaded: between the outermost percentiles of all images together. All are drawn on "
        "one axis, outliers on their own.</p>"
        if band is not None
        else ""
    )
    opened = " open" if len(shown) <= 8 or flagged else ""
    return (
        f"<details{opened}><summary>Channel {escape(channel)} by image: {told}{choice}</summary>"
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
