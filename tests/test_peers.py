"""The comparison with peers: what is wrong is found and not timed; what is late is told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import comparing, records
from benchmarks.asking import Asked, ask
from benchmarks.comparing import Comparison, Program, Side
from benchmarks.records import FLOOR, OURS, Result
from benchmarks.workloads import WORKLOADS

PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from patches import open_array, serve

def cut(job, wanted, take):
    array = open_array(job.arrays[0], None)
    for number, (_, *corner) in zip(wanted.tolist(), job.corners[wanted].tolist()):
        pixels = array[job.box(corner)]
        {mistake}
        take(number, pixels)

serve("wrong", cut, package="zarr")
"""
MISTAKES = {
    "one pixel": "pixels[0, 0, 0] += number == len(job.corners) - 1",
    "a patch is missing": "if number == 0: continue",
    "its neighbour": "number = max(1, number)",
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A small slide, aligned."""
    return ask(WORKLOADS["w1-aligned"].scaled(0.125), tmp_path_factory.mktemp("cache"))


def _compare(
    asked: Asked,
    what: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
    **limits: float,
) -> Result:
    program = folder / "cut_wrong.py"
    program.write_text(PROGRAM.format(folder=str(comparing.PROGRAMS), mistake=mistake))
    monkeypatch.setitem(comparing.SIDES, "wrong", Program(str(program)))
    side = Side("wrong", sys.executable)
    comparison = Comparison(rounds=1, seconds=limits.get("seconds", 60.0), once=6, scratch=folder)
    try:
        [found] = comparison.compare(asked, "w1", what, [side], lambda row: None)
    finally:
        side.close()
    return found


@pytest.mark.parametrize("what", ["cut", "cut+write"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_wrong_patches_are_found_and_not_timed(
    asked: Asked, what: str, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that hands out other pixels has no time."""
    found = _compare(asked, what, tmp_path, monkeypatch, mistake)
    assert found.seconds is None
    assert str(found.equal).startswith("differs")
    assert str(found.reason).startswith("wrong")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("cut", "{some} of {n} patches byte by byte, all {n} by one value in 997"),
        ("cut+write", "{some} of {n} patches read back, byte by byte"),
    ],
)
def test_a_record_says_what_was_compared_and_no_more(
    asked: Asked, what: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written only some patches are looked at, and all of their bytes."""
    wholes = {number: seal for number, seal in asked.wholes.items() if number % 3 == 0}
    some = replace(asked, every=3, wholes=wholes)
    found = _compare(some, what, tmp_path, monkeypatch, "pass")
    assert found.equal == told.format(some=len(wholes), n=asked.n_patches)
    assert _compare(asked, what, tmp_path, monkeypatch, "pass").equal is True


def test_what_has_no_oracle_says_so(asked: Asked) -> None:
    """However few patches there are; and what was not compared claims nothing."""
    bare = replace(asked, parts=None, wholes={})
    assert str(bare.sentence(whole=True, part=True)).startswith("no oracle")
    assert replace(asked, every=3).sentence(whole=False, part=False) is None


def test_a_late_side_is_stopped_and_told_by_its_patches(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not done in time is k of n."""
    slow = "time.sleep(1 if number > 1 else 0)"
    found = _compare(asked, "cut", tmp_path, monkeypatch, slow, seconds=1.0)
    assert (found.done, found.of) == (2, asked.n_patches)
    assert found.is_stopped
    assert found.seconds == 1.0


def test_a_side_that_cannot_says_why(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is the reason, not a time."""
    found = _compare(asked, "cut", tmp_path, monkeypatch, "raise TypeError('no such thing')")
    assert found.reason == "TypeError: no such thing"
    assert found.seconds is None


@pytest.mark.parametrize("workload", ["random", "slide", "scene", "crowd"])
def test_all_sides_cut_and_write_the_same(workload: str, tmp_path: Path) -> None:
    """Ours, the floor, a loop over zarr and plain Dask."""
    output = tmp_path / "peers.json"
    scale = "0.0004" if workload == "crowd" else "0.05"
    command = ["--workload", workload, "--scale", scale, "--rounds", "1", "--output", str(output)]
    peers = ["--peer", "zarr", "--peer", "dask"]
    assert comparing.main([*command, *peers, "--cache", str(tmp_path / "cache")]) == 0
    found = {(r.what, r.side): r for r in records.load(output).results}
    assert {side for _, side in found} == {FLOOR, OURS, "zarr", "dask"}
    for result in found.values():
        assert result.done == result.of > 0, result
        assert result.equal is True or "byte by byte" in str(result.equal)
        assert (result.over_ours is not None) == (result.side != OURS)


def test_every_side_is_a_program_and_every_environment_is_named() -> None:
    """What the README says how to make is what is asked for."""
    readme = (comparing.PROGRAMS.parent / "README.md").read_text()
    for program in comparing.SIDES.values():
        assert (comparing.PROGRAMS / program.file).exists()
        assert program.environment is None or f"peers/{program.environment}/" in readme
