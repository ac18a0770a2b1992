"""All results beside one another: ours, the floor's and every peer's, by workload, and targets."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.growth import steep
from benchmarks.records import Record, Result
from benchmarks.tables import Document, plain, table

DECODE = "decode"
"""What floors and readers do beside cutting: no job that anybody asks for."""
ORDER = ("job", "cut", "cut+write", "load", "live", DECODE)
"""In which things done are shown; others follow."""
NAMES = {"job": "whole job", "cut+write": "cut and write"}
"""What the page calls them."""
CLUSTER = ", two processes"
"""End of the names of workloads that ran on a cluster."""
COUNTS = ("decodes", "needed", "requests", "bytes_read", "bytes_written", "tasks", "shards")
"""In which order the page shows counts; others follow."""


@dataclass(frozen=True)
class Work:
    """One thing done on one workload, by whom.

    Parameters
    ----------
    record
        Name of the file without its ending.
    what, workload
        Of the results.
    results
        One a side.
    """

    record: str
    what: str
    workload: str
    results: tuple[Result, ...]

    @property
    def is_local(self) -> bool:
        """Whether it ran in one process."""
        return not self.workload.endswith(CLUSTER)

    @property
    def ours(self) -> Result | None:
        """Our result; the fastest, if there are several ways."""
        return _fastest(r for r in self.results if r.is_ours)

    @property
    def floor(self) -> Result | None:
        """The fastest floor."""
        return _fastest(r for r in self.results if r.is_floor)

    @property
    def over_floor(self) -> float | None:
        """Ours over the floor."""
        return None if self.ours is None else self.ours.over_floor

    @property
    def peers(self) -> tuple[Result, ...]:
        """Peers that did it or were stopped, the fastest first."""
        some = [r for r in self.results if r.is_peer and r.over_ours is not None]
        return tuple(sorted(some, key=lambda r: r.over_ours or 0.0))

    @property
    def median_peer(self) -> float | None:
        """Median peer over ours; of those stopped the least that they would need."""
        found = [r.over_ours for r in self.peers if r.over_ours is not None]
        return statistics.median(found) if found else None


def _fastest(results: Iterator[Result]) -> Result | None:
    timed = [r for r in results if r.seconds is not None and not r.is_stopped]
    return min(timed, key=lambda r: r.seconds or 0.0, default=None)


@dataclass(frozen=True)
class Board:
    """What a folder of records holds.

    Parameters
    ----------
    documents
        Every file by its name without ending.
    works
        Of the files that hold results, in the order in which the page shows them.
    """

    documents: Mapping[str, Document]
    works: tuple[Work, ...]

    @classmethod
    def read(cls, folder: Path) -> Board:
        """Read every record in a folder.

        Parameters
        ----------
        folder
            Of JSON files.

        Returns
        -------
        Board
            Empty if there are none.
        """
        documents, found = {}, list[Work]()
        for path in sorted(folder.glob("*.json")):
            documents[path.stem] = json.loads(path.read_text())
            if isinstance(documents[path.stem], dict) and "results" in documents[path.stem]:
                found += _works(path.stem, records.load(path))
        found.sort(key=lambda work: (_place(work.what), work.what, not work.is_local))
        return cls(documents, tuple(found))

    def of(self, *whats: str) -> list[Work]:
        """The works of some kinds."""
        return [work for work in self.works if work.what in whats]

    @property
    def whats(self) -> list[str]:
        """Everything that was done, in order."""
        return list(dict.fromkeys(work.what for work in self.works))


def _place(what: str) -> int:
    return ORDER.index(what) if what in ORDER else len(ORDER)


def _works(name: str, record: Record) -> Iterator[Work]:
    keys = dict.fromkeys((r.what, r.workload) for r in record.results)
    for what, workload in keys:
        some = tuple(r for r in record.results if (r.what, r.workload) == (what, workload))
        yield Work(name, what, workload, some)


def named(what: str) -> str:
    """What the page calls a thing done."""
    return NAMES.get(what, what)


def goal(work: Work) -> float | None:
    """Ours over the floor, at most, as it is asked."""
    if work.what == "job":
        return 1.15 if work.is_local else 1.25
    return {"cut": 1.2, "load": 1.15}.get(work.what)


def summary(board: Board) -> str:
    """Ours beside the floor and the best peer, for each workload."""
    rows = []
    for work in board.works:
        if work.ours is None or work.what == DECODE:
            continue
        best = next(iter(work.peers), None)
        n_peers = f" of {len(work.peers)}" if work.peers else ""
        spread = f" ({_spread(work.ours)})" if work.ours.spread else ""
        rows.append(
            [
                named(work.what),
                f"{work.workload}: {work.ours.of:,}",
                plain(work.ours.seconds),
                _judged(work.over_floor, goal(work), at_most=True) + spread,
                "" if best is None else best.side + n_peers,
                "" if best is None else _judged(best.over_ours, 1.0, _least(best)),
                plain(work.median_peer),
            ]
        )
    head = ("what", "workload: patches", "s", "ours / floor (spread)")
    more = ("best peer", "best / ours", "median / ours")
    return table([*head, *more], rows, n_words=2) if rows else "Nothing is measured yet."


def _spread(result: Result) -> str:
    return "" if result.spread is None else f"{result.spread[0]:.2f}-{result.spread[1]:.2f}"


def _least(result: Result) -> str:
    """What stands before a ratio that is only known to be larger."""
    return "at least " if result.is_stopped else ""


def _judged(
    value: float | None, target: float | None, before: str = "", *, at_most: bool = False
) -> str:
    """A ratio, and whether it misses its target, at the digits that are shown."""
    if value is None:
        return ""
    shown = before + (f"{value:.2f}" if value < 10 else plain(value))
    if target is None:
        return shown
    missed = round(value, 2) > target if at_most else round(value, 2) < target
    return f"{shown}, **missed**" if missed else shown


def targets(board: Board) -> str:
    """What the project asks of itself, and what was measured."""
    jobs = board.of("job")
    rows = [
        _ratios("whole job / floor, two threads", 1.15, [w for w in jobs if w.is_local]),
        _ratios("whole job / floor, two processes", 1.25, [w for w in jobs if not w.is_local]),
        _ratios("cut alone / floor", 1.2, board.of("cut")),
        _ratios("an epoch of a store / floor", 1.15, board.of("load")),
        _ahead(board),
        _medians("median peer / ours, cut", 5, board.of("cut")),
        _medians("median peer / ours, cut and write", 3, board.of("cut+write")),
        _billion(board),
        _statistics(board),
        _growth(board),
    ]
    return table(["figure", "target", "measured"], rows, n_words=3)


def _ratios(name: str, most: float, works: Sequence[Work]) -> list[str]:
    said = [
        f"{w.workload} {_judged(w.over_floor, most, at_most=True)}" for w in works if w.over_floor
    ]
    return [name, f"{most:.2f} at most", "; ".join(said) or "not measured"]


def _ahead(board: Board) -> list[str]:
    some = [work for work in board.works if work.peers and work.what != DECODE]
    behind = [
        f"{named(work.what)} of {work.workload}: {peer.side} takes {peer.over_ours:.2f} of ours"
        for work in some
        for peer in work.peers
        if peer.over_ours is not None and round(peer.over_ours, 2) < 1
    ]
    said = f"ahead of {sum(len(w.peers) for w in some)} results of peers on {len(some)} workloads"
    if behind:
        said = f"**missed**: {'; '.join(behind)}"
    return ["best peer / ours, each workload", "above 1", said if some else "not measured"]


def _medians(name: str, least: float, works: Sequence[Work]) -> list[str]:
    said = [
        f"{w.workload} {_judged(w.median_peer, least)} ({len(w.peers)} peers)"
        for w in works
        if w.median_peer is not None
    ]
    return [name, f"{least} at least", "; ".join(said) or "not measured"]


def _billion(board: Board) -> list[str]:
    said = []
    for name in ("strategies", "strategies-quiet"):
        for r in board.documents.get(name, {}).get("records", ()):
            ours = r["ours"]
            if r["task"] == "build" and ours.get("n_patches", 0) >= 10**9:
                said.append((ours["seconds"], ours["mib"]))
    measured = "not measured"
    if said:
        seconds, mib = zip(*said, strict=True)
        missed = sum(s > 1 or m > 200 for s, m in said)
        measured = (
            f"{min(seconds):.2f} to {max(seconds):.2f} s, {min(mib):.0f} to {max(mib):.0f} MiB "
            f"in {len(said)} plans"
        )
        measured += f", {missed} of them **missed**" if missed else ""
    return ["a plan of 1e9 patches", "1 s, 200 MiB", f"{measured} ([plans](#building-a-plan))"]


def _statistics(board: Board) -> list[str]:
    said = []
    for r in board.documents.get("statistics", {}).get("alone", ()):
        if r["case"] == "exact" and r["image"] in ("uint8", "uint16") and "fast" in r["ratios"]:
            ratio = _judged(r["ratios"]["fast"]["seconds"], 1.3, at_most=True)
            said.append(f"{r['image']}, {r['codec']} {ratio}")
    name = "exact statistics of an image / decoding each chunk once"
    return [name, "1.30 at most", "; ".join(said) or "not measured"]


def _growth(board: Board) -> list[str]:
    series = board.documents.get("growth", {}).get("series", ())
    said = [f"{s['name']}: {name} {slope:.2f}" for s in series for name, slope in steep(s)]
    name = "slope of plans, graphs, runs and reads (1 is proportional)"
    measured = f"{'; '.join(said) or 'none above'} ([growth](#growth))"
    return [name, "1.10; counts 1.05", measured if series else "not measured"]


def sides(board: Board, what: str) -> str:
    """Every side of every workload, for one thing done."""
    rows = [
        [
            work.workload,
            r.side,
            r.version or "",
            f"{r.done:,}" if r.done == r.of else f"{r.done:,} of {r.of:,}",
            plain(r.seconds),
            "" if r.over_floor is None else _least(r) + plain(r.over_floor),
            "" if r.over_ours is None else _least(r) + plain(r.over_ours),
            _spread(r),
            _compared(r.equal),
            _counts(r.counts),
            r.reason or "",
        ]
        for work in board.of(what)
        for r in sorted(work.results, key=_rank)
    ]
    if not rows:
        return "Not measured."
    words = ("workload", "side", "version")
    numbers = ("patches", "s", "/ floor", "/ ours", "spread")
    head = (*words, *numbers, "patches compared", "counts", "why not")
    filled = [k for k in range(len(head)) if k < 2 or any(row[k] for row in rows)]
    cells = [[row[k] for k in filled] for row in rows]
    n_words, n_last = (sum(k in some for k in filled) for some in (range(3), range(8, 11)))
    return table([head[k] for k in filled], cells, n_words, n_last)


def _compared(equal: bool | str | None) -> str:
    if isinstance(equal, str):
        return equal
    return {True: "equal", False: "**differs**", None: ""}[equal]


def _rank(result: Result) -> tuple[int, float]:
    side = 0 if result.is_ours else 1 if result.is_floor else 2
    if result.is_peer and result.seconds is None:
        side = 3
    return side, result.over_ours or result.seconds or 0.0


def _counts(counts: Mapping[str, float]) -> str:
    names = sorted(counts, key=lambda name: COUNTS.index(name) if name in COUNTS else len(COUNTS))
    said = []
    for name in names:
        if name.startswith("bytes"):
            said.append(f"{plain(counts[name] / 2**20)} MiB {name.removeprefix('bytes_')}")
        elif name.endswith("_mib"):
            said.append(f"{name.removesuffix('_mib')} {plain(counts[name])} MiB")
        elif name in ("cpu", "cpu_s"):
            said.append(f"{plain(counts[name])} CPU s")
        elif name.endswith("_per_s"):
            said.append(f"{_number(counts[name])} {name.removesuffix('_per_s')} a second")
        elif name.endswith("_s"):
            said.append(f"{name.removesuffix('_s').replace('_', ' ')} {plain(counts[name])} s")
        else:
            said.append(f"{_number(counts[name])} {name.replace('_', ' ')}")
    return ", ".join(said)


def _number(value: float) -> str:
    """A count as it is, anything else as one reads it."""
    return f"{value:,.0f}" if float(value).is_integer() else plain(value)


COLUMNS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "n_patches": ("patches", lambda p: p["n_patches"]),
    "open_s": ("open s", lambda p: p["open_s"]),
    "plan_s": ("plan s", lambda p: p["plan_s"]),
    "plan_mib": ("plan MiB", lambda p: p["plan_mib"]),
    "n_tasks": ("tasks", lambda p: p["n_tasks"]),
    "shared_bytes": ("graph kB", lambda p: (p["shared_bytes"] + p["task_bytes"]) / 1e3),
    "wall_s": ("wall s", lambda p: p["wall_s"]),
    "cpu_s": ("CPU s", lambda p: p["cpu_s"]),
    "thread_s": ("wall s x workers", lambda p: p["thread_s"]),
    "decodes": ("decodes", lambda p: p["decodes"]),
    "decodes_a_chunk": ("decodes a chunk", lambda p: p["decodes_a_chunk"]),
    "requests": ("requests", lambda p: p["requests"]),
    "bytes_read": ("read MiB", lambda p: p["bytes_read"] / 2**20),
    "task_mib": ("a task MiB", lambda p: p["task_mib"]),
    "kept_mib": ("shared blocks MiB", lambda p: p["kept_mib"]),
    "run_mib": ("process MiB", lambda p: p["run_mib"]),
}
"""Of a point, by the quantity whose slope stands below: its name on the page, and its value."""


def growth(board: Board, factor: str) -> str:
    """One thing that grows: a row a size, and the slopes."""
    series = series_of(board, factor)
    if series is None or not series["points"]:
        return "Not measured."
    points, slopes = series["points"], series["slopes"]
    names = [name for name in COLUMNS if name in points[0]]
    rows = [[f"{p['size']:,}", *(_number(COLUMNS[name][1](p)) for name in names)] for p in points]
    for key, said in (("all", "*slope*"), ("end", "*slope, larger half*")):
        cells = (slopes[name][key] for name in names)
        rows.append([said, *("" if slope is None else f"{slope:.2f}" for slope in cells)])
    return table([series["unit"], *(COLUMNS[name][0] for name in names)], rows)


def series_of(board: Board, factor: str) -> Mapping[str, Any] | None:
    """One thing that grows, as `growth` saved it."""
    for series in board.documents.get("growth", {}).get("series", ()):
        if series["factor"] == factor:
            found: Mapping[str, Any] = series
            return found
    return None


def suite(board: Board) -> str:
    """What became of each benchmark when all were run, and on what."""
    runs = board.documents.get("all", {}).get("runs", ())
    rows = [[run["name"], run["outcome"], f"{run['seconds'] / 60:.1f}"] for run in runs]
    if not rows:
        return "Not all were run in one go yet: each record says what it was measured with."
    missing = ", ".join(board.documents["all"]["missing"]) or "none"
    total = sum(run["seconds"] for run in runs) / 3600
    after = f"{total:.1f} hours in all; environments that were missing: {missing}."
    return f"{table(['record', 'outcome', 'minutes'], rows, n_words=2)}\n\n{after}"


def source(board: Board, name: str) -> str:
    """Where a record lies, on what it was measured, and the commands that do it again."""
    path = f"`benchmarks/results/{name}.json`"
    document = board.documents.get(name)
    if document is None:
        return f"Not measured yet: `python -m benchmarks all` writes {path}."
    found, versions = document.get("machine"), document.get("versions", {})
    there = "on any machine the same"
    if found:
        there = f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB"
    named = ("python", "numpy", "zarr", "numcodecs", "dask")
    kept = ", ".join(f"{n} {versions[n]}" for n in named if n in versions)
    of = _commands(document)
    unknown = of.pop(None, [])
    known = {command: names for command, names in of.items() if command is not None}
    if not known:
        known, unknown = {document["command"]: []}, []
    lines = list[str]()
    for command, names in known.items():
        if len(known) > 1 or unknown:
            lines.append(f"# {'; '.join(names)}")
        lines.append(f"$ {_wrapped(command)}")
    text = f"{path}: {there}; {kept}.\n\n```console\n{chr(10).join(lines)}\n```"
    if unknown:
        text += f"\n\nThe file does not tell the command that measured {'; '.join(unknown)}."
    return text


def _commands(document: Document) -> dict[str | None, list[str]]:
    """What each command measured that made a part of a record; None of what does not tell."""
    rows = [(row.get("command"), row["workload"]) for row in document.get("results", ())]
    rows += [(one.get("command"), one["name"]) for one in document.get("series", ())]
    found: dict[str | None, list[str]] = {}
    for command, name in dict.fromkeys(rows):
        found.setdefault(command, []).append(name)
    return found


def _wrapped(command: str) -> str:
    """A command of several lines, broken between its words."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) > 108:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)
