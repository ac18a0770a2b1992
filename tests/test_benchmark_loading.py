"""The benchmark of loading: every side hands out the same patches, and is compared before timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import live, loading, records
from benchmarks.epochs import FILES, ORDERS, Epochs, Side, compare, draw, sides
from benchmarks.peers.batches import Asked, mixed, seals, threaded
from benchmarks.records import FLOOR, OURS


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> Epochs:
    """Some 40 patches that overlap, of an image of six chunks."""
    cache = tmp_path_factory.mktemp("drawn")
    return draw(cache, "few", 5, 8, 192, 160, batch=16, latency=0.001)


def test_all_sides_hand_out_the_same_patches(epochs: Epochs, tmp_path: Path) -> None:
    """Of every order: the floor, ours and loose files, byte by byte."""
    with sides(tmp_path, None) as among:
        for order in ORDERS:
            found = compare(epochs, order, among, rounds=1, seconds=60)
            named = {result.side: result for result in found}
            assert OURS in named
            for result in found:
                assert result.reason is None, result
                assert (result.done, result.of, result.equal) == (40, 40, True)
            if FLOOR in named:
                assert named[OURS].over_floor is not None
            if order == "live":
                assert 1 <= named[OURS].counts["decodes_per_chunk"] <= 1.1


def test_other_patches_end_the_benchmark(epochs: Epochs, tmp_path: Path) -> None:
    """A patch that was not asked is an error, whoever hands it out."""
    wrong = replace(epochs, wholes=dict.fromkeys(list(epochs.wholes)[1:], 1))
    with sides(tmp_path, None) as among, pytest.raises(ValueError, match="1 of 40 patches"):
        compare(wrong, "shuffled", {FILES: among[FILES]}, rounds=1, seconds=60)


def test_peers_that_are_absent_or_cannot_say_why(epochs: Epochs, tmp_path: Path) -> None:
    """A row with the reason, not an error."""
    with sides(tmp_path, tmp_path, ["xbatcher", "insitubatch"]) as among:
        found = {r.side: r for r in compare(epochs, "live", among, rounds=1, seconds=60)}
    assert found["xbatcher"].reason == "not installed here"
    assert "one axis" in str(found["insitubatch"].reason)
    assert found["xbatcher"].seconds is None


def test_a_side_that_does_not_start_says_why(epochs: Epochs, tmp_path: Path) -> None:
    """By the last line that it wrote."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2\n")
    broken.chmod(0o755)
    side = Side("xbatcher", str(broken), tmp_path)
    assert side.ask(epochs, "shuffled", 1) == {"cannot": "did not start: no such library"}
    side.stop()


def test_seals_tell_patches_apart() -> None:
    """Of all bytes, in the type that was asked."""
    asked = Asked("", "", "", "", "", n=2, side=4, stride=4, dtype="uint16", batch=2)
    patches = np.arange(32).reshape(2, 1, 4, 4)
    found = seals(patches.astype("float32"), asked, whole=True)
    assert found.tolist() == seals(patches.astype("uint16"), asked, whole=True).tolist()
    assert len({*found.tolist()}) == 2
    with pytest.raises(ValueError, match="16 pixels, got 8"):
        seals(np.zeros((2, 8)), asked, whole=True)


def test_threads_keep_the_order() -> None:
    """And errors reach whoever takes."""
    assert list(threaded(lambda k: k * k, range(20), 3)) == [k * k for k in range(20)]
    assert sorted(k for part in mixed(10, 4) for k in part) == list(range(10))
    with pytest.raises(ZeroDivisionError):
        list(threaded(lambda k: 1 // k, [1, 0], 2))


def test_commands_save_results(tmp_path: Path) -> None:
    """Results of one shape, beside those that the file has already."""
    out, cache = tmp_path / "results.json", tmp_path / "cache"
    common = ["--cache", str(cache), "--output", str(out)]
    small = ["--patches", "64", "--rounds", "1", "--times", "2", "--latency", "1"]
    assert loading.main([*small, "--order", "window", "--order", "distant", *common]) == 0
    first = records.load(out).results
    assert {r.workload for r in first} == {
        "patches, window",
        "patches x2, window",
        "patches, distant, 1 ms",
    }
    scaled = ["--scale", "0.0625", "--pairs", "1", "--order", "none", "--memory", "64 MiB"]
    names = ["--workload", "grid", "--workload", "w2"]
    assert live.main([*scaled, *names, *common]) == 0
    both = records.load(out).results
    assert {r.what for r in both} == {"load", "live"}
    assert len(both) > len(first)
    assert all(r.equal and r.seconds for r in both)
