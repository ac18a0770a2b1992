"""Coarser levels around the same centre, as many pixels of each: exact against NumPy."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, SourceError
from patchloom.planning.incidence import Cut, touches
from patchloom.planning.lenses import around, bound
from patchloom.planning.runs import _peaks
from patchloom.run.batches import cut_batches

RNG = np.random.default_rng(0)
SHAPE = (90, 77)


def pyramid(path: Path, ratios: list[Fraction], chunks: tuple[int, int]) -> dict[int, Any]:
    """An OME-Zarr image with levels of its own pixels each, by number."""
    group: Any = zarr.create_group(path)
    datasets, levels = [], {}
    for k, ratio in enumerate([Fraction(1), *ratios]):
        shape = [max(1, math.floor(n / ratio)) for n in SHAPE]
        pixels = RNG.integers(1, 2**16, (2, *shape), dtype="uint16")
        array = group.create_array(str(k), shape=pixels.shape, chunks=(1, *chunks), dtype="uint16")
        array[...] = levels[k] = pixels
        moves: list[Any] = [{"type": "scale", "scale": [1.0, *[float(ratio) * 0.5] * 2]}]
        datasets.append({"path": str(k), "coordinateTransformations": moves})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    multiscales = [{"axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return levels


def oracle(
    level: npt.NDArray[Any], scales: Any, corner: tuple[int, int], size: int, mode: str
) -> npt.NDArray[Any]:
    """As many pixels of a level, padded generously, around the centre of a patch."""
    wide: Any = np.pad(level, ((0, 0), (4 * size, 4 * size), (4 * size, 4 * size)), mode)  # type: ignore[call-overload]
    for axis, (first, scale) in enumerate(zip(corner, scales, strict=True), 1):
        centre = (Fraction(first) + Fraction(size, 2)) / scale
        begin = math.floor(centre - Fraction(size, 2) + Fraction(1, 2))
        begin = min(max(begin, 1 - size), level.shape[axis] - 1)
        wide = np.take(wide, np.arange(begin + 4 * size, begin + 5 * size), axis)
    found: npt.NDArray[Any] = wide
    return found


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_context_is_exact_at_any_ratio(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever the ratio, the size, the edge and the padding, in the order of any plan."""
    folder = tmp_path_factory.mktemp("context")
    ratios = sorted(data.draw(st.lists(st.fractions(1, 5, max_denominator=8), min_size=2, max_size=2)))  # noqa: E501  # fmt: skip
    ratios = [max(r, Fraction(9, 8)) for r in ratios]
    size = data.draw(st.integers(5, 24))
    edge: Any = data.draw(st.sampled_from(["drop", "shift", "pad"]))
    mode: Any = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"]))
    chunks = data.draw(st.tuples(st.integers(6, 40), st.integers(6, 40)))
    levels = pyramid(folder / "a.ome.zarr", ratios, chunks)
    images = patchloom.open_images(str(folder / "a.ome.zarr"), context=[2, 1])
    config = {"name": "random", "patch_size": [size, size], "n_patches": 30}
    if edge != "drop":
        config = {"name": "sequential", "patch_size": [size, size]}
    order = data.draw(st.sampled_from(["spatial", "shuffled"]))
    plan = patchloom.plan(
        images, config, edge=edge, pad_mode=mode, order=order, seed=1, rows_per_shard=5
    )
    report = patchloom.materialize(plan, str(folder / "out.zarr"), progress=False)
    store = patchloom.open_patches(str(folder / "out.zarr"))
    assert store.attributes["arrays"] == ["context_1", "context_2", "images"]
    scales = {k: images[0].more[f"context_{k}"].alignment.scale for k in (1, 2)}
    for k in (1, 2):
        # As the metadata say, or as the extents do where these say the same.
        assert all(abs(s / r - 1) < 1e-3 for s in scales[k] for r in ratios[k - 1 : k])
    for row in store.manifest.to_pylist():
        corner = row["start_y"], row["start_x"]
        for k in (1, 2):
            shown = store.read([row["row"]], f"context_{k}")[0]
            expected = oracle(levels[k], scales[k], corner, size, mode)
            np.testing.assert_array_equal(shown, expected)
    assert report.role_reads <= plan.role_reads
    assert report.read_amplification <= 1.0 or plan.n_shards > 1
    assert patchloom.verify(str(folder / "out.zarr"), plan).ok


def test_levels_with_a_shift_and_in_batches(tmp_path: Path) -> None:
    """Where a translation moves a level by half a pixel, its patches move along."""
    levels = pyramid(tmp_path / "a.ome.zarr", [Fraction(2)], (16, 16))
    group: Any = zarr.open_group(tmp_path / "a.ome.zarr")
    ome = group.attrs["ome"]
    moves = ome["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    moves.append({"type": "translation", "translation": [0.0, 0.25, 0.25]})
    group.attrs["ome"] = ome
    [image] = patchloom.open_images(str(tmp_path / "a.ome.zarr"), context=[1])
    # The centre of the level's first pixel is a quarter from the image's: borders are the same.
    assert [float(o) for o in image.more["context_1"].alignment.offset] == [0, 0]
    corner = np.array([[0, 4], [32, 40]])
    place, cut = around(image, "context_1", corner, Cut((16, 16), (2, 2), "edge"))
    assert place.tolist() == [[-4, -2], [12, 16]]
    assert (cut.size, cut.context, cut.padding) == ((16, 16), (0, 0), "edge")
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [16, 16]})
    for rows, pixels in cut_batches(plan, range(plan.n_shards)):
        for row, patch in zip(rows.tolist(), pixels["context_1"], strict=True):
            [part] = plan.patches(row, row + 1)
            expected = oracle(levels[1], (2, 2), tuple(part.corner[0].tolist()), 16, "constant")
            np.testing.assert_array_equal(patch, expected)


def test_each_level_is_read_once_and_within_the_memory(tmp_path: Path) -> None:
    """One task reads each chunk of a level that patches show once, and holds what was projected."""
    levels = pyramid(tmp_path / "a.ome.zarr", [Fraction(2), Fraction(4)], (16, 16))
    images = patchloom.open_images(str(tmp_path / "a.ome.zarr"), context=[1, 2])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    report = patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    every = [2 * math.prod(-(-n // 16) for n in levels[k].shape[1:]) for k in (1, 2)]
    assert plan.n_tasks == 1
    assert report.role_reads == plan.role_reads == sum(every)
    assert report.peak_memory <= report.projected_memory
    small = patchloom.plan(
        patchloom.open_images(str(tmp_path / "a.ome.zarr")),
        {"name": "sequential", "patch_size": [16, 16]},
    )
    assert plan.peak_memory() > small.peak_memory()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_a_walk_holds_is_bounded(data: st.DataObject, tmp_path_factory: Any) -> None:
    """No walk over cells has more blocks of a level alive than are projected."""
    folder = tmp_path_factory.mktemp("bound")
    ratio = data.draw(st.fractions(Fraction(9, 8), 5, max_denominator=8))
    chunks = data.draw(st.tuples(st.integers(4, 20), st.integers(4, 20)))
    pyramid(folder / "a.ome.zarr", [ratio], chunks)
    [image] = patchloom.open_images(str(folder / "a.ome.zarr"), context=[1])
    size = data.draw(st.integers(4, 20))
    mode: Any = data.draw(st.sampled_from(["constant", "reflect"]))
    plan = patchloom.plan(
        image, {"name": "sequential", "patch_size": [size, size]}, edge="pad", pad_mode=mode
    )
    level = image.more["context_1"].image
    needs: list[set[int]] = []
    for k in range(len(plan.cells.cell)):
        found: set[int] = set()
        for part in plan.owned_by(np.array([k])):
            place, cut = around(image, "context_1", part.corner, plan.cut)
            found |= {*touches(level.layout, part.sample, place, cut)[1].tolist()}
        needs.append(found)
    alive = [
        sum(any(b in n for n in needs[: k + 1]) and any(b in n for n in needs[k:]) for b in every)
        for every in [set().union(*needs)]
        for k in range(len(needs))
    ]
    layout, cut = bound(image, "context_1", level.layout, plan.cut)
    lows, highs = np.array([0]), np.array([len(needs)])
    peak, n = _peaks(image.layout, plan.cells, cut, layout, lows, highs)
    assert max(alive) <= peak[0]
    assert len(set().union(*needs)) <= n[0]


def test_context_of_selected_channels_and_crops(tmp_path: Path) -> None:
    """Levels are those of the selection: its channels, and no pixel beyond it."""
    levels = pyramid(tmp_path / "a.ome.zarr", [Fraction(2)], (16, 16))
    [image] = patchloom.open_images(
        str(tmp_path / "a.ome.zarr"), context=[1], channels=[1], isel={"y": slice(32, 80)}
    )
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [16, 16]})
    patchloom.materialize(plan, "memory://context.zarr", progress=False)
    store = patchloom.open_patches("memory://context.zarr")
    whole = levels[1][1:, 16:40]
    for row in store.manifest.to_pylist():
        expected = oracle(whole, (2, 2), (row["start_y"], row["start_x"]), 16, "constant")
        np.testing.assert_array_equal(store.read([row["row"]], "context_1")[0], expected)


def test_levels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """With those that are, and where they would be found."""
    pyramid(tmp_path / "a.ome.zarr", [Fraction(2)], (16, 16))
    url = str(tmp_path / "a.ome.zarr")
    with pytest.raises(SourceError, match=r"here \[1\], got 3"):
        patchloom.open_images(url, context=[3])
    with pytest.raises(SourceError, match=r"here \[\], got 1"):
        patchloom.open_images(url, context=[1], level=1)
    for wrong in ([0], [1, 1], ["1"], 1):
        with pytest.raises(ConfigError, match="numbers of levels"):
            patchloom.open_images(url, context=wrong)  # type: ignore[arg-type]


def seen_pixels(
    scale: Fraction, start: int, size: int, extent: int, level: int, mode: str
) -> set[int]:
    """The pixels of one axis of an image that a stretch of a level shows, by painting."""
    shown = Cut((size,), (0,), mode).source(start, start + size, level)  # type: ignore[arg-type]
    inside = (shown == np.arange(start, start + size)) | (mode != "constant")
    found: set[int] = set()
    for pixel in shown[inside].tolist():
        begin, end = math.floor(pixel * scale), math.ceil((pixel + 1) * scale)
        found |= set(range(max(0, begin), min(extent, end)))
    return found


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_context_shows_no_pixel_of_another_split(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    """Blocks keep splits apart by all that patches show: no pixel is in two, at any level."""
    folder = tmp_path_factory.mktemp("leak")
    ratio = max(data.draw(st.fractions(1, 4, max_denominator=4)), Fraction(9, 8))
    pyramid(folder / "a.ome.zarr", [ratio], (16, 16))
    images = patchloom.open_images(str(folder / "a.ome.zarr"), context=[1])
    size = data.draw(st.integers(3, 8))
    mode: Any = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"]))
    split = {"by": "blocks", "block_size": 40, "shares": {"train": 0.5, "val": 0.5}}
    guard = data.draw(st.integers(0, 3))
    config = {"name": "random", "patch_size": [size, size], "n_patches": 60}
    seed = data.draw(st.integers(0, 3))
    plan = patchloom.plan(images, config, pad_mode=mode, seed=seed, split={**split, "guard": guard})
    role = images[0].more["context_1"]
    shown: dict[str, set[tuple[int, int]]] = {"train": set(), "val": set()}
    for part in plan.walk():
        level, _ = around(images[0], "context_1", part.corner, plan.cut)
        for corner, first, which in zip(
            part.corner.tolist(), level.tolist(), plan.split_of(part).tolist(), strict=True
        ):
            name = plan.split_names[which]
            boxes = []
            for axis in (0, 1):
                extent, other = SHAPE[axis], role.image.layout.space.shape[axis]
                own = set(range(corner[axis], corner[axis] + size))
                assert role.alignment.offset[axis] == 0
                around_it = seen_pixels(
                    role.alignment.scale[axis], first[axis], size, extent, other, mode
                )
                boxes.append((own, around_it))
            for ys, xs in zip(*boxes, strict=True):
                shown[name] |= {(y, x) for y in ys for x in xs}
    assert not shown["train"] & shown["val"]


def test_blocks_that_hold_no_context_are_refused(tmp_path: Path) -> None:
    """A block that is smaller than what the coarsest level shows can hold no patch."""
    pyramid(tmp_path / "a.ome.zarr", [Fraction(4)], (16, 16))
    images = patchloom.open_images(str(tmp_path / "a.ome.zarr"), context=[1])
    config = {"name": "sequential", "patch_size": [8, 8]}
    with pytest.raises(ConfigError, match="take larger blocks"):
        patchloom.plan(images, config, split={"by": "blocks", "block_size": 31})
    patchloom.plan(images, config, split={"by": "blocks", "block_size": 32})
