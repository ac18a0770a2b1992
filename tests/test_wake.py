"""What bands leave behind: let go when no later stretch needs it, found patch by patch."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom
from patchloom.live.live_reader import LiveReader
from patchloom.live.stretches import Bands, Stretches
from patchloom.live.wake import Stretch, Wake

ROLES = {"image": "images", "labels": "labels"}
Name = tuple[int, str, int]

EVERY = {"name": "grid", "patch_size": [3, 5, 5], "stride": 1}
SOME = {"name": "random", "patch_size": [3, 5, 5], "n_patches": 150}
TILED = {"name": "tiled", "patch_size": [4, 6, 6], "overlaps": [2, 2, 4]}
FLAT = {"name": "sequential", "patch_size": [9, 9], "overlaps": [8, 8]}
CASES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any], Any]] = [
    ((12, 20, 18), (2, 3, 3), (4, 5, 7), EVERY, {"edge": "pad"}),
    ((10, 20, 18), (2, 4, 3), (10, 3, 4), TILED, {}),
    ((24, 30, 33), (4, 4, 4), (6, 10, 8), SOME, {"edge": "pad", "pad_mode": "reflect"}),
    ((40, 44), (5, 4), (7, 6), FLAT, {"edge": "pad", "pad_mode": "reflect"}),
]


def planned(case: int, folder: Path) -> patchloom.Plan:
    shape, chunks, others, config, options = CASES[case]
    for name, some in (("a", chunks), ("l", others)):
        zarr.create_array(folder / f"{name}.zarr", shape=shape, chunks=some, dtype="u1")
    axes = "zyx"[-len(shape) :]
    images = patchloom.open_images(folder / "a.zarr", labels=folder / "l.zarr", axes=axes)
    return patchloom.plan(images, config, **options)


def needed(plan: patchloom.Plan, live: Stretches, k: int) -> set[Name]:
    """Blocks under the patches of a stretch, pixel by pixel on each axis."""
    found: set[Name] = set()
    low, high = live.bounds[k : k + 2].tolist()
    for part in live.patches(plan, low, high):
        for role in ROLES:
            space = plan.images[0].cut_arrays[role].layout.space
            for corner in part.corner.tolist():
                rows = zip(corner, plan.cut.size, space.shape, space.chunks, strict=True)
                on = [_touched(*row, plan.cut.padding) for row in rows]
                found |= {(0, role, int(space.flat(chunk))) for chunk in product(*on)}
    return found


def _touched(corner: int, size: int, extent: int, chunk: int, padding: str) -> set[int]:
    at = np.arange(corner, corner + size)
    if padding == "reflect":
        at = np.pad(np.arange(extent), size, mode="reflect")[at + size]
    return {int(a) // chunk for a in at if 0 <= a < extent}


def banded(
    plan: patchloom.Plan, side: tuple[int, ...], row: int | None
) -> tuple[LiveReader, Stretches]:
    """A reader along bands that are given."""
    with pytest.MonkeyPatch.context() as patch:
        given = [Bands(side, row)], 1, 1.0
        patch.setattr("patchloom.live.stretches._Shapes.course", lambda *_: given)
        live = patchloom.stream(plan)
    return live.reader(by_block=True), live._stretches


def walks(reader: LiveReader) -> list[list[Stretch]]:
    """The stretches of each band."""
    found: dict[int, list[Stretch]] = {}
    for k in range(len(reader._bounds) - 1):
        stretch = reader._stretch(k, reader._places(k))
        found.setdefault(stretch.band, []).append(stretch)
    return [*found.values()]


def bands_of(ndim: int) -> list[tuple[tuple[int, ...], int | None]]:
    if ndim == 2:
        return [((0, 3), None), ((3, 0), 0), ((0, 4), 1)]
    return [((0, 3, 2), None), ((0, 3, 4), 1), ((3, 0, 3), 2), ((2, 5, 0), 0)]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("at_once", [1, 3])
def test_what_is_let_go_is_needed_no_more(
    case: int, way: int, at_once: int, tmp_path: Path
) -> None:
    """Never too early, in either direction; nor too late where all chunks own patches."""
    plan = planned(case, tmp_path)
    is_full = case == 0 and way == -1
    for side, row in bands_of(len(plan.patch_size)):
        reader, stretches = banded(plan, side, row)
        n_gone = 0
        for band in walks(reader):
            if len(band) <= at_once:
                continue
            wake, steps, gone = Wake(plan.images, reader._bands, plan.cut), band[::way], set[Name]()
            touch = [needed(plan, stretches, one.number) for one in steps]
            for k in range(0, len(steps), at_once):
                read, found = wake.enter(steps[k : k + at_once])
                gone |= {*found}
                assert not gone & set[Name]().union(*touch[k:])
                gone |= {*wake.leave(read)}
                last = min(k + at_once, len(steps)) - 1
                behind, ahead = (set[Name]().union(*t) for t in (touch[:last], touch[last:]))
                assert not gone & ahead
                assert not is_full or behind - ahead <= gone
            n_gone += len(gone)
        assert n_gone


@pytest.mark.parametrize("way", [1, -1])
def test_a_band_that_is_over_is_let_go(way: int, tmp_path: Path) -> None:
    """All of it, once two windows more were read; and the next epoch begins anew."""
    plan = planned(0, tmp_path)
    reader, stretches = banded(plan, (0, 3, 4), 1)
    wake = reader._wake
    assert wake is not None
    first, second, *_ = walks(reader)
    touch = set[Name]().union(*(needed(plan, stretches, one.number) for one in first))
    for _ in range(2):
        gone = set[Name]()
        for stretch in [*first[::way], *second[:4]]:
            read, found = wake.enter([stretch])
            gone |= {*found, *wake.leave(read)}
        assert touch <= gone
        way = -way


def test_a_read_that_comes_late_lets_go_what_it_took_up(tmp_path: Path) -> None:
    """While it goes on nothing of it is let go; after it all of that is."""
    plan = planned(0, tmp_path)
    reader, stretches = banded(plan, (0, 3, 4), 1)
    wake = reader._wake
    assert wake is not None
    band, *_ = walks(reader)
    slow, found = wake.enter(band[:1])
    gone = {*found}
    for stretch in band[1:9]:
        read, found = wake.enter([stretch])
        gone |= {*found, *wake.leave(read)}
    assert not gone
    touch = [needed(plan, stretches, one.number) for one in band]
    behind = set[Name]().union(*touch[:8]) - set[Name]().union(*touch[8:])
    assert {*wake.leave(slow)} == behind
    read, found = wake.enter(band[7:8])
    assert not found
    assert {*wake.leave(read)} == touch[7] - set[Name]().union(*touch[8:])


def test_a_worker_that_sees_some_batches_learns_the_way(tmp_path: Path) -> None:
    """From the middle of a band on, by where the next read lies."""
    plan = planned(0, tmp_path)
    reader, stretches = banded(plan, (0, 3, 4), 1)
    band, *_ = walks(reader)
    touch = [needed(plan, stretches, one.number) for one in band]
    for steps in ([7, 9, 12], [9, 7, 4]):
        wake, gone = Wake(plan.images, reader._bands, plan.cut), set[Name]()
        for k in steps:
            read, found = wake.enter([band[k]])
            gone |= {*found, *wake.leave(read)}
        way = 1 if steps[0] < steps[-1] else -1
        later = set[Name]().union(
            *(touch[k] for k in range(len(band)) if way * (k - steps[-1]) >= 0)
        )
        assert touch[steps[0]] - later <= gone
        assert not gone & later
