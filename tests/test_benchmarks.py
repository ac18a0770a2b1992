"""The benchmarks: what is counted stays as it was, and the page shows what the records say."""

from __future__ import annotations

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks import board, environment, growth, guard, page, plots, records, suite, tables
from benchmarks.__main__ import MODULES
from benchmarks.board import Board
from benchmarks.growth import FACTORS, slopes, steep
from benchmarks.records import FLOOR, OURS, Result

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / page.RESULTS).glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"


def test_counts_are_as_they_were() -> None:
    """Decodes, requests, bytes, tasks, shards and graphs of small jobs, planned, run and loaded.

    `python -m benchmarks guard --write` takes over what was meant to change.
    """
    kept = json.loads(guard.PATH.read_text())
    assert list(guard.differences(guard.counts(), kept["counts"])) == []
    assert [*kept["ratios"]] == [*guard.RATIOS]


def test_the_page_is_what_the_records_give() -> None:
    """`python -m benchmarks page` has nothing to write, and leaves no plot that nobody shows."""
    files = page.rendered(ROOT / page.RESULTS)
    assert files == page.rendered(ROOT / page.RESULTS)
    for path, text in files.items():
        found = (ROOT / path).read_text(encoding="utf-8")
        assert found == text, f"{path}: run `python -m benchmarks page`"
    plotted = {p.relative_to(ROOT) for p in (ROOT / page.IMAGES).glob("*.svg")}
    assert plotted == {path for path in files if path.suffix == ".svg"}


def test_each_record_says_how_it_was_made() -> None:
    for path in RECORDS:
        document = json.loads(path.read_text())
        assert document["command"].startswith("python -m benchmarks"), path.name
        assert document["versions"]["patchloom"], path.name
        for command in [document["command"], *_commands(document)]:
            assert not re.search(r"(?<![\w.~-])/(?:home|root|tmp|work)/", command), path.name
        if "results" in document:
            assert records.load(path).results or document.keys() & {"series", "runs", "reason"}


def _commands(document: dict[str, Any]) -> list[str]:
    """Of every result, run and series that tells one."""
    parts = [part for name in ("results", "series", "runs") for part in document.get(name, ())]
    return [part["command"] for part in parts if part.get("command")]


def test_all_runs_what_the_page_shows() -> None:
    """Each record that the page asks for comes from one benchmark of the list, and in time."""
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    made = {figure.name for figure in suite.FIGURES}
    assert len(made) == len(suite.FIGURES)
    assert {record for record, _ in tables.TABLES.values()} <= made | {"strategies-quiet"}
    assert set(re.findall(r"<!-- table: source: ([\w-]+) -->", text)) <= made
    assert set(re.findall(r"<!-- table: growth: ([^\n]+?) -->", text)) == FACTORS.keys()
    assert {figure.benchmark for figure in suite.FIGURES} <= MODULES.keys()
    assert sum(figure.minutes for figure in suite.FIGURES) <= 185


@pytest.mark.parametrize("module", [environment, growth, guard, records, tables])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module) == (0, doctest.testmod(module).attempted)


def test_results_survive_saving(tmp_path: Path) -> None:
    some = [
        _result(OURS, 0.5, over_floor=1.02, spread=(0.9, 1.1), counts={"decodes": 8}),
        _result(FLOOR, 0.49),
        _result("torchio", 120.0, done=3, over_ours=240.0, reason="stopped at 120 s"),
        Result(workload="w2", what="cut", side="monai", of=9, reason="cannot | read Zarr"),
    ]
    records.save(tmp_path / "new" / "peers.json", "peers", ["--cache", "/a/b/cache"], some, more=1)
    found = records.load(tmp_path / "new" / "peers.json")
    told = "python -m benchmarks peers --cache cache"
    assert found.results == tuple(replace(result, command=told) for result in some)
    assert (found.benchmark, found.figures) == ("peers", {"more": 1})
    assert found.command == told


def test_each_result_keeps_the_command_that_made_it(tmp_path: Path) -> None:
    """When others are added to its file; of a file from before that the last command is known."""
    path = tmp_path / "peers.json"
    records.save(path, "peers", ["--workload", "w1"], [_result("zarr", 4.0), _result(FLOOR, 3.0)])
    document = json.loads(path.read_text())
    for row in document["results"]:
        del row["command"]
    path.write_text(json.dumps(document))
    once = board.source(Board.read(tmp_path), "peers")
    assert "$ python -m benchmarks peers --workload w1\n" in once
    assert "#" not in once

    records.add(path, "peers", ["--cache", "/a/b"], [_result("zarr", 5.0)])
    other = replace(_result(OURS, 1.0), workload="w3")
    records.add(path, "peers", ["--workload", "w3"], [other])
    found = {r.side: (r.seconds, r.command) for r in records.load(path).results}
    assert found == {
        "zarr": (5.0, "python -m benchmarks peers --cache b"),
        FLOOR: (3.0, None),
        OURS: (1.0, "python -m benchmarks peers --workload w3"),
    }
    text = board.source(Board.read(tmp_path), "peers")
    assert "# w2\n$ python -m benchmarks peers --cache b\n" in text
    assert "# w3\n$ python -m benchmarks peers --workload w3\n" in text
    assert text.endswith("The file does not tell the command that measured w2.")


def _result(side: str, seconds: float, **more: Any) -> Result:
    told: dict[str, Any] = {"done": 9, "of": 9, "equal": True, **more}
    return Result(workload="w2", what="cut", side=side, seconds=seconds, **told)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"done": 3, "of": 2}, "a part of what was asked"), ({}, "says why")]
)
def test_results_refuse_what_means_nothing(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Result(workload="w2", what="cut", side="dask", **wrong)  # type: ignore[arg-type]


def test_the_board_takes_the_fastest_floor_and_the_median_peer(tmp_path: Path) -> None:
    """Stopped peers count with the least that they would take; those that cannot do not count."""
    some = [
        _result(OURS, 1.0, over_floor=1.5),
        _result("floor, raw codecs", 0.7),
        _result("floor, tensorstore", 0.6),
        _result("dask", 4.0, over_ours=4.0),
        _result("zarr", 0.8, over_ours=0.8),
        _result("torchio", 120.0, done=3, over_ours=120.0, reason="stopped at 120 s"),
        Result(workload="w2", what="cut", side="monai", of=9, reason="cannot | read Zarr"),
    ]
    records.save(tmp_path / "peers.json", "peers", [], some)
    found = Board.read(tmp_path)
    [work] = found.works
    assert work.floor is not None
    assert work.floor.side == "floor, tensorstore"
    assert [peer.side for peer in work.peers] == ["zarr", "dask", "torchio"]
    assert work.median_peer == 4.0
    said = board.targets(found)
    assert "| cut alone / floor | 1.20 at most | w2 1.50, **missed** |" in said
    assert "**missed**: cut of w2: zarr takes 0.80 of ours" in said
    assert "| median peer / ours, cut | 5 at least | w2 4.00, **missed** (3 peers) |" in said
    shown = board.sides(found, "cut")
    assert "| torchio | 3 of 9 | 120 | | at least 120 |" in shown
    assert "cannot \\| read Zarr |" in shown


def test_slopes_call_steep_what_grows_faster_than_its_size() -> None:
    """Short times tell nothing, memory gets the room of a measurement, counts next to none."""
    sizes = (1, 10, 100, 1000)
    points = [
        {"size": n, "n_tasks": n**1.2, "plan_s": 1e-5 * n**1.5, "wall_s": n**1.05, "run_mib": 50.0}
        for n in sizes
    ]
    found = slopes(points)
    assert found["n_tasks"]["end"] == pytest.approx(1.2)
    assert found["plan_s"] == {"all": None, "end": None}
    assert [name for name, _ in steep({"factor": "area", "slopes": found})] == ["n_tasks"]
    assert not [*steep({"factor": "budget", "slopes": found})]


@pytest.mark.parametrize("seconds", [(0.013, 120.0), (1.0, 1.0), (0.5, 900.0)])
def test_plots_can_be_read_without_seeing_them(seconds: tuple[float, float]) -> None:
    """A title, a description, all names as text, every shape inside, and no colour alone."""
    bars = [plots.Bar(f"side <{k}>", s, f"{s} s", plots.COLOURS[k]) for k, s in enumerate(seconds)]
    lines = [plots.Line(f"line <{k}>", [(1, s), (10, 2 * s)]) for k, s in enumerate(seconds)]
    drawn = plots.bars("A & B", "which", [("w2", bars)], "s", [(1.0, "floor")])
    for text in (drawn, plots.lines("A & B", "which", lines, "images", "times")):
        root = ElementTree.fromstring(text)
        assert (root[0].tag, root[0].text) == (f"{SVG}title", "A & B")
        assert (root[1].tag, root[1].text) == (f"{SVG}desc", "which")
        words = {element.text for element in root.iter(f"{SVG}text")}
        assert {"side <0>", "side <1>"} <= words or {"line <0>", "line <1>"} <= words
        for rect in root.iter(f"{SVG}rect"):
            if "x" in rect.attrib:
                assert 0 < float(rect.attrib["width"]) <= plots.WIDTH - float(rect.attrib["x"])
    assert len({*plots.COLOURS}) == len({*plots.DASHES}) == len(plots.COLOURS)


def test_what_fails_or_has_no_time_says_so(tmp_path: Path, capsys: Any) -> None:
    """Nothing is begun without time, and its record says why."""
    status = suite.main(["--hours", "0", "--only", "mixing", "--quick", "--records", str(tmp_path)])
    assert status == 0
    document = json.loads((tmp_path / "mixing.json").read_text())
    assert document["reason"] == "not begun: no time was left"
    told = json.loads((tmp_path / "all.json").read_text())
    assert [run["name"] for run in told["runs"]] == ["mixing"]
    assert "no environment careamics" in capsys.readouterr().out
