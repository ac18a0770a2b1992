"""Fill the tables and plots of ``docs/benchmarks.md`` from the records in a folder.

``python -m benchmarks page`` writes the page and its plots again.  A table stands between
``<!-- table: NAME -->`` and ``<!-- end -->``, or ``NAME: ARGUMENT``; all other text stays as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import board, plots
from benchmarks.board import Board, Work, named
from benchmarks.plots import COLOURS, Bar, Line
from benchmarks.records import Result
from benchmarks.tables import TABLES, plain

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = Path("benchmarks/results"), Path("docs/benchmarks.md")
IMAGES = Path("docs/images/benchmarks")
"""Folders and files below the root of the repository."""
MARKED = re.compile(r"(?P<begin><!-- table: (?P<name>[^\n]+?) -->\n).*?(?P<end><!-- end -->)", re.S)
GROWING = {
    "area": ("n_tasks", "decodes", "wall_s", "task_mib", "run_mib", "shared_bytes"),
    "volume": ("n_tasks", "decodes", "wall_s", "task_mib", "run_mib", "shared_bytes"),
    "patches": ("plan_s", "n_tasks", "decodes", "wall_s", "task_mib"),
    "images": ("open_s", "plan_s", "n_tasks", "decodes", "wall_s", "shared_bytes"),
    "budget": ("decodes_a_chunk", "task_mib", "kept_mib"),
}
"""What the plots of growth show, by factor."""


def main(argv: Sequence[str]) -> int:
    """Write the page and its plots.

    Parameters
    ----------
    argv
        Arguments after ``page``.

    Returns
    -------
    int
        Exit status; 1 if ``--check`` finds something out of date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("--records", type=Path, help="folder; default benchmarks/results")
    parser.add_argument(
        "--to", type=Path, help="root of the files written; default this repository"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; say what is old")
    options = parser.parse_args(argv)
    to = options.to or ROOT
    files = rendered(options.records or ROOT / RESULTS)
    old = [path for path, text in files.items() if _text(to / path) != text]
    stray = sorted(p for p in (to / IMAGES).glob("*.svg") if p.relative_to(to) not in files)
    for path in (*old, *(p.relative_to(to) for p in stray)):
        print(f"{path} {'is' if options.check else 'was'} not what the records give")
    if options.check:
        return 1 if old or stray else 0
    for path in old:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_text(files[path], encoding="utf-8")
    for path in stray:
        path.unlink()
    return 0


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def rendered(folder: Path) -> dict[Path, str]:
    """The page and its plots, as the records give them.

    Parameters
    ----------
    folder
        Of records.

    Returns
    -------
    dict
        Text by path below the root; the hand-written text of the page is that of the repository.

    Raises
    ------
    ValueError
        If the page asks for a table that there is not.
    """
    found = Board.read(folder)
    files = {IMAGES / f"{name}.svg": text for name, text in _plots(found)}

    def fill(match: re.Match[str]) -> str:
        text = _table(found, match["name"], files)
        return f"{match['begin']}{text}\n{match['end']}"

    page = (ROOT / PAGE).read_text(encoding="utf-8")
    return {PAGE: MARKED.sub(fill, page), **files}


def _table(found: Board, name: str, files: Mapping[Path, str]) -> str:
    kind, _, argument = name.partition(": ")
    wide: dict[str, Callable[[Board], str]] = {
        "targets": board.targets,
        "summary": board.summary,
        "suite": board.suite,
    }
    deep: dict[str, Callable[[Board, str], str]] = {
        "sides": board.sides,
        "growth": board.growth,
        "source": board.source,
    }
    if kind == "plot":
        path = IMAGES / f"{argument}.svg"
        at = path.relative_to(PAGE.parent).as_posix()
        return f"![{_title(files[path])}]({at})" if path in files else "Not measured."
    if kind in wide:
        return wide[kind](found)
    if kind in deep:
        return deep[kind](found, argument)
    if kind not in TABLES:
        raise ValueError(f"{PAGE} asks for the table {name!r}, which is none of {[*TABLES]}")
    record, show = TABLES[kind]
    document = found.documents.get(record, {"reason": "no record"})
    return f"Not measured: {document['reason']}." if "reason" in document else show(document)


def _title(svg: str) -> str:
    return svg.partition("<title>")[2].partition("</title>")[0]


def _plots(found: Board) -> Iterator[tuple[str, str]]:
    ratios = [work for work in found.works if work.over_floor is not None]
    if ratios:
        yield "floor", _over_floor(ratios)
    for what in found.whats:
        works = [work for work in found.of(what) if work.peers]
        if works:
            yield what.replace("+", "-"), _seconds(what, works)
    for factor in GROWING:
        text = _grown(found, factor)
        if text is not None:
            yield f"growth-{factor}", text


def _over_floor(works: Sequence[Work]) -> str:
    groups = []
    for what in dict.fromkeys(work.what for work in works):
        some = [work for work in works if work.what == what]
        bars = [Bar(w.workload, w.over_floor or 0, plain(w.over_floor), COLOURS[0]) for w in some]
        groups.append((named(what), bars))
    said = "; ".join(f"{named(w.what)} of {w.workload} {plain(w.over_floor)}" for w in works)
    return plots.bars(
        "Ours over the floor", said, groups, "seconds of ours / of the floor", [(1.0, "the floor")]
    )


def _seconds(what: str, works: Sequence[Work]) -> str:
    groups, said = [], []
    for work in works:
        some = sorted((r for r in work.results if r.seconds), key=lambda r: r.seconds or 0.0)
        groups.append((work.workload, [_bar(r) for r in some]))
        best = work.peers[0]
        said.append(f"{work.workload}: {best.side} takes {plain(best.over_ours)} times ours")
    title = f"Seconds of each side: {named(what)}"
    text = f"The best peer by workload. {'; '.join(said)}. Dashed bars were stopped before the end."
    return plots.bars(title, text, groups, "seconds, on a logarithmic axis")


def _bar(result: Result) -> Bar:
    colour = COLOURS[0] if result.is_ours else COLOURS[5] if result.is_floor else COLOURS[1]
    seconds = result.seconds or 0.0
    says = f"{plain(seconds)} s"
    if result.is_stopped:
        says = f"> {plain(seconds)} s: {result.done:,} of {result.of:,}"
    return Bar(result.side, seconds, says, colour, result.is_stopped)


def _grown(found: Board, factor: str) -> str | None:
    series = board.series_of(found, factor)
    if series is None or len(series["points"]) < 2:
        return None
    lines, said = [], []
    for name in GROWING[factor]:
        points = [(p["size"], board.COLUMNS[name][1](p)) for p in series["points"]]
        points = [(x, y / points[0][1]) for x, y in points if y > 0 and points[0][1] > 0]
        if len(points) > 1:
            label = board.COLUMNS[name][0]
            lines.append(Line(label, points))
            said.append(f"{label} grows {plain(points[-1][1])} times")
    if not lines:
        return None
    span = series["points"][-1]["size"] / series["points"][0]["size"]
    title = f"Growth: {series['name']}"
    text = f"While the size grows {plain(span)} times: {'; '.join(said)}."
    return plots.lines(title, text, lines, series["unit"], "times that of the first size")
