"""Charts: histograms as SVG that carries its own colours, for pages and notebooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from patchloom.histogram import Floats, Histogram

__all__ = ["Mark", "grey_chart", "level"]

_WIDE, _HIGH = 340, 96
"""The drawn part, in units of about a pixel: text keeps its size on a telephone."""
_EDGE, _FOOT, _ROW = 10, 20, 14
_GLYPH = 6.4
"""Width of a character of 11 units, at most."""
_BARS, _MARK, _BAND = "#24938c", "#e4572e", "#8f9aa3"


@dataclass(frozen=True)
class Mark:
    """A grey level with its name."""

    name: str
    value: float
    about: bool = False
    """Whether it is only known within an error."""

    def __str__(self) -> str:
        return f"{self.name}{' ≈' * self.about} {level(self.value)}"


def grey_chart(
    found: Histogram,
    what: str,
    marks: Sequence[Mark] = (),
    *,
    band: tuple[float, float] | None = None,
    told: bool = False,
) -> str:
    """A histogram: bars by count, and by the logarithm of it behind them.

    Parameters
    ----------
    found
        What to draw.
    what
        What it shows, for those who listen.
    marks
        Grey levels that get a line and a label, such as percentiles.
    band
        Grey levels between which the ground is shaded, for comparison.
    told
        Whether each bin says its numbers where the pointer rests.
    """
    shown = [m for m in marks if math.isfinite(m.value)]
    low, high = float(found.edges[0]), float(found.edges[-1])
    inside = _together([m for m in shown if low <= m.value <= high])
    rows = _rows([(_x(found, m.value), str(m)) for m in inside])
    top = 4 + _ROW * (1 + max([row for row, *_ in rows], default=0))
    foot = top + _HIGH
    parts = [
        _band(found, band, top),
        _bars(found, np.log1p(found.counts), foot, f'fill="{_BARS}" fill-opacity=".3"'),
        _bars(found, found.counts, foot, f'fill="{_BARS}"'),
        _hover(found, top) if told else "",
        f'<path class="axis" stroke="currentColor" stroke-opacity=".6" fill="none" '
        f'd="M{_EDGE} {foot}h{_WIDE}"/>',
        _ticks(found, foot),
        # Lines below all labels: one that passes beside a label stays behind it.
        *(_line(_x(found, m.value), top, row) for m, (row, *_) in zip(inside, rows, strict=True)),
        *(_name(m, top, *place) for m, place in zip(inside, rows, strict=True)),
    ]
    said = "".join(f", {m}" for m in shown)
    width = _WIDE + 2 * _EDGE
    return (
        f'<svg class="chart grey" viewBox="0 0 {width} {foot + _FOOT}" role="img" '
        f'font-size="11" aria-label="{escape(what + said)}">{"".join(parts)}</svg>'
    )


def level(value: float) -> str:
    """A grey level, short.

    >>> level(123456.0), level(0.123456789), level(6.5e9 + 0.5), level(float("nan"))
    ('123,456', '0.12346', '6.5e+09', '-')
    """
    if math.isnan(value):
        return "-"
    if abs(value) < 1e9 and value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.5g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.5g}"


def _x(found: Histogram, value: float) -> float:
    low, high = float(found.edges[0]), float(found.edges[-1])
    return _EDGE + _WIDE * (value / (high - low) - low / (high - low))


def _together(marks: Sequence[Mark]) -> list[Mark]:
    """Marks, those at one grey level as one.

    >>> _together([Mark("p1", 0.0), Mark("p50", 0.0), Mark("p99", 7.0)])
    [Mark(name='p1, p50', value=0.0, about=False), Mark(name='p99', value=7.0, about=False)]
    """
    found: dict[float, list[Mark]] = {}
    for mark in marks:
        found.setdefault(mark.value, []).append(mark)
    return [
        Mark(", ".join(mark.name for mark in some), value, any(mark.about for mark in some))
        for value, some in found.items()
    ]


def _rows(labels: Sequence[tuple[float, str]]) -> list[tuple[int, float, float]]:
    """Row, left end and width of each label: the lowest row where it covers no other."""
    taken: list[list[tuple[float, float]]] = []
    placed = []
    for x, text in labels:
        wide = _GLYPH * len(text)
        left = min(max(x - wide / 2, 0), _WIDE + 2 * _EDGE - wide)
        row = 0
        while row < len(taken) and any(left < b + 4 and a < left + wide + 4 for a, b in taken[row]):
            row += 1
        if row == len(taken):
            taken.append([])
        taken[row].append((left, left + wide))
        placed.append((row, left, wide))
    return placed


def _band(found: Histogram, band: tuple[float, float] | None, top: int) -> str:
    if band is None or not all(map(math.isfinite, band)):
        return ""
    ends = [min(max(_x(found, v), _EDGE), _EDGE + _WIDE) for v in band]
    return (
        f'<rect class="band" x="{ends[0]:.1f}" y="{top}" width="{max(ends[1] - ends[0], 1):.1f}" '
        f'height="{_HIGH}" fill="{_BAND}" fill-opacity=".16"/>'
    )


def _bars(found: Histogram, heights: Floats, foot: int, style: str) -> str:
    """All bars as one outline: neighbours of one height become one step."""
    tallest = float(heights.max(initial=0))
    if not tallest:
        return ""
    # What is there is seen: a bar is at least half a unit high.
    tall = np.where(heights > 0, np.maximum(heights / tallest * _HIGH, 0.5), 0)
    edges = np.linspace(_EDGE, _EDGE + _WIDE, len(tall) + 1)
    steps = "".join(
        f"V{foot - y:.1f}H{x:.1f}" for y, x in zip(tall.tolist(), edges[1:].tolist(), strict=True)
    )
    return f'<path {style} d="M{_EDGE} {foot}{steps}V{foot}z"/>'


def _hover(found: Histogram, top: int) -> str:
    """What a bin holds, where the pointer rests."""
    wide = _WIDE / len(found.counts)
    parts = []
    for k, n in enumerate(found.counts.tolist()):
        if n:
            span = f"{level(float(found.edges[k]))} to {level(float(found.edges[k + 1]))}"
            parts.append(
                f'<rect x="{_EDGE + k * wide:.1f}" y="{top}" width="{wide:.1f}" height="{_HIGH}">'
                f"<title>{span}: {n:,.0f} pixels</title></rect>"
            )
    return f'<g fill="transparent">{"".join(parts)}</g>'


def _ticks(found: Histogram, foot: int) -> str:
    low, high = float(found.edges[0]), float(found.edges[-1])
    parts = []
    for value, text in _round_levels(low, high, 1.0 if found.whole else 0.0):
        x = _x(found, value)
        half = _GLYPH * len(text) / 2
        at = min(max(x, half), _WIDE + 2 * _EDGE - half)
        parts.append(
            f'<path stroke="currentColor" stroke-opacity=".6" d="M{x:.1f} {foot}v4"/>'
            f'<text x="{at:.1f}" y="{foot + 15}" text-anchor="middle" fill="currentColor">{text}'
            "</text>"
        )
    return "".join(parts)


def _round_levels(low: float, high: float, least: float = 0.0) -> list[tuple[float, str]]:
    """Round numbers between two, as told: three to seven, or fewer that lie `least` apart.

    >>> [text for _, text in _round_levels(-0.5, 4095.5)]
    ['0', '1,000', '2,000', '3,000', '4,000']
    >>> [text for _, text in _round_levels(0.02, 0.19)]
    ['0.05', '0.10', '0.15']
    >>> [text for _, text in _round_levels(-0.5, 1.5, 1)]
    ['0', '1']
    """
    wide = high - low
    unit = 10.0 ** math.floor(math.log10(wide / 3))
    step = max(least, next(m * unit for m in (10, 5, 2, 1) if wide / (m * unit) >= 3))
    first, last = math.ceil(low / step), math.floor(high / step)
    decimals = max(0, -math.floor(math.log10(step)))
    plain = decimals < 7 and max(abs(low), abs(high)) < 1e7
    found = []
    for k in range(first, last + 1):
        value = k * step
        found.append((value, f"{value:,.{decimals}f}" if plain else f"{value:.4g}"))
    # Numbers that are told alike say nothing: the ends do, in full.
    if len({text for _, text in found}) == len(found) and len(found) < 10:
        return found
    return [(low, f"{low:.12g}"), (high, f"{high:.12g}")]


def _line(x: float, top: int, row: int) -> str:
    return (
        f'<path stroke="{_MARK}" stroke-width="1.5" stroke-dasharray="4 3" '
        f'd="M{x:.1f} {top - 2 - _ROW * row}V{top + _HIGH}"/>'
    )


def _name(mark: Mark, top: int, row: int, left: float, wide: float) -> str:
    return (
        f'<text x="{left + wide / 2:.1f}" y="{top - 4 - _ROW * row}" text-anchor="middle" '
        f'fill="currentColor">{escape(str(mark))}</text>'
    )
