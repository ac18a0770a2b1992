"""Plots as SVG: bars and lines on logarithmic axes, text as text, with title and description."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

INK, PAPER, FAINT = "#1a1a1a", "#ffffff", "#c8c8c8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a4f7d", "#7a6a00", "#3a3a3a")
"""Told apart by the colour-blind, and dark enough for text on white."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4")
"""Told apart without colours."""
WIDTH, ROW = 720, 17
_RIGHT, _TOP = 150, 44
_LETTER = 6.2
"""Width of a letter, on average."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Parameters
    ----------
    name
        Left of it.
    value
        Its length on the axis.
    says
        Right of it.
    colour
        One of `COLOURS` or another.
    is_open
        Whether its end is not known: it is drawn with a dashed outline.
    """

    name: str
    value: float
    says: str
    colour: str
    is_open: bool = False


@dataclass(frozen=True)
class Line:
    """One line through points, in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def bars(
    title: str,
    description: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    unit: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw groups of bars, one below the other, along one logarithmic axis.

    Parameters
    ----------
    title, description
        Read aloud in place of the plot; the title also stands above it.
    groups
        Name and bars of each.
    unit
        Of the values, at the axis.
    marks
        Values at which a line runs through all groups, and what it says.

    Returns
    -------
    str
        The file.
    """
    values = [bar.value for _, group in groups for bar in group] + [at for at, _ in marks]
    ticks = _ticks(min(values), max(values))
    left = 24 + _LETTER * max(len(bar.name) for _, group in groups for bar in group)
    bottom = _TOP + sum(ROW * (len(group) + 1.6) for _, group in groups)
    x = _scale(ticks, left, WIDTH - _RIGHT)
    parts = [*_axis(ticks, x, _TOP, bottom, unit)]
    y = float(_TOP)
    for name, group in groups:
        y += 1.2 * ROW
        parts.append(_text(8, y - 4, name, weight="bold"))
        for bar in group:
            box = f'x="{x(ticks[0]):.1f}" y="{y:.1f}" height="{ROW - 4}"'
            width = max(1.0, x(bar.value) - x(ticks[0]))
            look = f'fill="{bar.colour}"'
            if bar.is_open:
                look += f' fill-opacity="0.25" stroke="{bar.colour}" stroke-dasharray="4 3"'
            parts.append(f'<rect {box} width="{width:.1f}" {look}/>')
            parts.append(_text(left - 8, y + ROW - 7, bar.name, anchor="end"))
            parts.append(_text(x(ticks[0]) + width + 6, y + ROW - 7, bar.says))
            y += ROW
        y += 0.4 * ROW
    for at, says in marks:
        parts.append(
            f'<path d="M{x(at):.1f} {_TOP}V{bottom:.1f}" stroke="{INK}" stroke-dasharray="5 4"/>'
        )
        parts.append(_text(x(at), _TOP - 6, says, anchor="middle"))
    return _file(title, description, bottom + 40, parts)


def lines(title: str, description: str, series: Sequence[Line], x_unit: str, y_unit: str) -> str:
    """Draw lines on two logarithmic axes.

    Parameters
    ----------
    title, description
        Read aloud in place of the plot; the title also stands above it.
    series
        Each is named at its end.
    x_unit, y_unit
        At the axes.

    Returns
    -------
    str
        The file.
    """
    points = [point for line in series for point in line.points]
    across, up = (_ticks(min(v), max(v)) for v in zip(*points, strict=True))
    top, bottom, left = _TOP + 14, 360, 70
    x, y = _scale(across, left, WIDTH - 190), _scale(up, bottom, top)
    parts = [*_axis(across, x, top, bottom, x_unit)]
    for at in up:
        parts.append(f'<path d="M{left} {y(at):.1f}H{WIDTH - 190}" stroke="{FAINT}"/>')
        parts.append(_text(left - 8, y(at) + 4, _number(at), anchor="end"))
    parts.append(_text(8, top - 12, y_unit))
    ends = _apart([y(line.points[-1][1]) for line in series])
    for k, (line, end) in enumerate(zip(series, ends, strict=True)):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.points)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>'
            for a, b in line.points
        ]
        parts.append(_text(x(line.points[-1][0]) + 10, end + 4, line.name, colour=colour))
    return _file(title, description, bottom + 40, parts)


def _apart(places: Sequence[float], least: float = 15) -> list[float]:
    """The places of labels, moved down until no two overlap."""
    found = list(places)
    order = sorted(range(len(places)), key=lambda k: places[k])
    for before, after in itertools.pairwise(order):
        found[after] = max(found[after], found[before] + least)
    return found


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around the values, powers alone when there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    some = (1,) if last - first > 3 else (1, 2, 5)
    found = [m * 10.0**k for k in range(first, last + 1) for m in some]
    begin = max([0, *(i for i, tick in enumerate(found) if tick <= low)])
    end = min(i for i, tick in enumerate(found) if tick >= high * (1 - 1e-9))
    return found[begin : max(end, begin + 1) + 1]


def _scale(ticks: Sequence[float], start: float, stop: float) -> _Scale:
    return _Scale(ticks[0], ticks[-1], start, stop)


@dataclass(frozen=True)
class _Scale:
    """Where a value lies between two ends."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)


def _axis(ticks: Iterable[float], x: _Scale, top: float, bottom: float, unit: str) -> Iterator[str]:
    for at in ticks:
        yield f'<path d="M{x(at):.1f} {top}V{bottom:.1f}" stroke="{FAINT}"/>'
        yield _text(x(at), bottom + 16, _number(at), anchor="middle")
    yield _text((x.start + x.stop) / 2, bottom + 32, unit, anchor="middle")


def _number(value: float) -> str:
    if value >= 1e6:
        return f"1e{math.log10(value):.0f}" if math.log10(value) % 1 < 1e-9 else f"{value:.0e}"
    return f"{value:,.0f}" if value >= 1 else f"{value:.9f}".rstrip("0")


def _text(
    x: float, y: float, says: str, *, anchor: str = "", weight: str = "", colour: str = ""
) -> str:
    named = {"text-anchor": anchor, "font-weight": weight, "fill": colour}
    more = "".join(f' {name}="{value}"' for name, value in named.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(says)}</text>'


def _file(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" aria-label={quoteattr(title)} '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
    )
    return "\n".join(
        (
            head,
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
            _text(8, 18, title, weight="bold"),
            *parts,
            "</svg>\n",
        )
    )
