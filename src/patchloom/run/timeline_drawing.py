"""A timeline as HTML and SVG: lanes of tasks, and what was moved, over one axis of time.

Names stand in HTML, bars in SVG that stretches: a telephone shows both in full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from patchloom.run.markup import many
from patchloom.run.timeline import Timeline

__all__ = ["duration", "lanes_glance", "phase_legend", "timeline_drawing"]

_WIDE, _HIGH = 1000, 20
_LANES = 48
"""Threads that are drawn; the others are counted."""
_GLANCED = 12
"""Threads that a notebook draws."""
_BARS = "#24938c"
_PHASES = {"writing": "p1", "finishing": "p2"}


def timeline_drawing(found: Timeline, phases: Sequence[Mapping[str, Any]]) -> str:
    """Phases, one lane a thread, threads at work, patches and bytes a second."""
    rows = [_phases(found, phases)]
    shown = found.lanes[:_LANES] if found.tasks else ()
    rows += [_lane(found, k) for k in range(len(shown))]
    rows += [
        _strip(found, "threads at work", found.busy, lambda v: f"{v:.3g}"),
        _strip(found, "patches a second", found.rates["patches"], lambda v: f"{v:,.3g}"),
        _strip(found, "MB read a second", found.rates["bytes_read"], _megabytes),
        _strip(found, "MB written a second", found.rates["bytes_written"], _megabytes),
        _axis(found.seconds),
    ]
    return f'<div class="timeline">{"".join(rows)}</div>'


def lanes_glance(found: Timeline) -> str:
    """The lanes as one small drawing that carries its own colours, for a notebook."""
    lanes = min(len(found.lanes), _GLANCED) if found.tasks else 0
    scale = 320 / max(found.seconds, 1e-9)
    columns = found.tasks
    bars = (
        "".join(
            f"M{start * scale:.1f} {12 * lane + 1:.0f}h{max(took * scale - 0.5, 0.5):.1f}v10"
            f"h-{max(took * scale - 0.5, 0.5):.1f}z"
            for lane, start, took in zip(
                *(columns[name] for name in ("lane", "start", "seconds")), strict=True
            )
            if lane < lanes
        )
        if lanes
        else ""
    )
    if not bars:
        return ""
    hidden = found.n_lanes - lanes
    more = f", {hidden:,} more threads" if hidden else ""
    said = f"{many(found.n_tasks, 'task')} in {many(found.n_lanes, 'thread')}"
    return (
        f'<figure style="margin:0;width:320px;max-width:100%"><svg viewBox="0 0 320 {12 * lanes}" '
        f'role="img" aria-label="{said} over {duration(found.seconds)}">'
        f'<path fill="{_BARS}" d="{bars}"/></svg><figcaption>{said} over '
        f"{duration(found.seconds)}{more}; all of it: report.to_html(path)</figcaption></figure>"
    )


def phase_legend(phases: Sequence[Mapping[str, Any]]) -> str:
    """The phases with their colours and times."""
    items = "".join(
        f'<span><i class="{_PHASES.get(name, "p0")}"></i>{escape(name)} {duration(took)}</span>'
        for name, took in ((str(phase["name"]), phase["seconds"]) for phase in phases)
    )
    return f'<p class="phase-names">{items}</p>'


def duration(seconds: float) -> str:
    """Seconds, as a person reads them.

    >>> duration(0.0042), duration(7.04), duration(75), duration(100_000)
    ('4.2 ms', '7.04 s', '1 min 15 s', '27 h 46 min')
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left} min" if hours else f"{minutes} min {rest} s"


def _row(name: str, more: str, drawn: str, what: str, kind: str = "") -> str:
    return (
        f'<div class="lane{kind}"><span>{escape(name)}<small>{escape(more)}</small></span>'
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(what)}">{drawn}</svg></div>'
    )


def _phases(found: Timeline, phases: Sequence[Mapping[str, Any]]) -> str:
    scale = _WIDE / max(found.seconds, 1e-9)
    told = [f"{phase['name']} {duration(phase['seconds'])}" for phase in phases]
    drawn = "".join(
        f'<rect class="{_PHASES.get(str(phase["name"]), "p0")}" x="{phase["start"] * scale:.2f}" '
        f'y="0" width="{phase["seconds"] * scale:.2f}" height="{_HIGH}"><title>{escape(text)}'
        "</title></rect>"
        for phase, text in zip(phases, told, strict=True)
    )
    return _row("phases", "", drawn, f"Phases: {', '.join(told)}", " phases")


def _lane(found: Timeline, lane: int) -> str:
    scale = _WIDE / max(found.seconds, 1e-9)
    columns = found.tasks
    parts = []
    for k, own in enumerate(columns["lane"]):
        if own != lane:
            continue
        start, took = columns["start"][k], columns["seconds"][k]
        patches, again = int(columns["patches"][k]), int(columns["retried"][k])
        more = f", {many(again, 'request')} tried again" if again else ""
        parts.append(
            f'<rect{" class=again" if again else ""} x="{start * scale:.2f}" y="1" '
            f'width="{max(took * scale, 0.8):.2f}" height="{_HIGH - 2}"><title>{duration(took)} '
            f"from {duration(start)} on: {patches:,} patches{more}</title></rect>"
        )
    busy = found.lane_seconds[lane] / max(found.seconds, 1e-9)
    told = f"{many(found.lane_tasks[lane], 'task')}, busy {busy:.0%}"
    return _row(found.lanes[lane], told, "".join(parts), f"{found.lanes[lane]}: {told}")


def _strip(found: Timeline, name: str, values: Sequence[float], text: Any) -> str:
    most = max(values, default=0.0)
    mean = sum(values) / max(1, len(values))
    told = f"at most {text(most)}, mean {text(mean)}"
    wide = _WIDE / max(1, len(values))
    steps = "".join(
        f"V{_HIGH * (1 - (v / most if most else 0)):.2f}H{(k + 1) * wide:.1f}"
        for k, v in enumerate(values)
    )
    drawn = f'<path d="M0 {_HIGH}{steps}V{_HIGH}z"/>'
    return _row(name, told, drawn, f"{name} in the course of the run: {told}", " tall")


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.3g}"


def _axis(seconds: float) -> str:
    marks = "".join(
        f'<i style="left:{100 * at / max(seconds, 1e-9):.2f}%">{text}</i>'
        for at, text in _ticks(seconds)
    )
    return f'<div class="lane time" aria-hidden="true"><span></span><div>{marks}</div></div>'


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Round moments from 0 on, at most five, as told.

    >>> [text for _, text in _ticks(7.2)], [text for _, text in _ticks(5000)]
    (['0', '2 s', '4 s', '6 s'], ['0', '20 min', '40 min', '60 min', '80 min'])
    """
    unit, name = (1.0, "s") if seconds < 300 else (60.0, "min") if seconds < 18_000 else (3600, "h")
    if seconds < 1:
        unit, name = 0.001, "ms"
    whole = max(seconds / unit, 1e-9)
    power = 10.0 ** math.floor(math.log10(whole / 4))
    step = next(m * power for m in (1, 2, 5, 10, 20) if whole / (m * power) <= 4.5)
    count = int(whole / step)
    return [(k * step * unit, f"{k * step:g} {name}" if k else "0") for k in range(count + 1)]
