"""Tiles put together again from a store, by its manifest alone, are the image.

Whatever gave the tiles: a configuration, our strategy as an object, or one of somebody else.
"""

from __future__ import annotations

import itertools
import math
import uuid
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.patching import TiledPatching
from tests import oracle
from tests.test_places import Foreign


def together(
    store: patchloom.PatchStore, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each image [sample, channel, *space] of a store's kept parts, and how often each is there."""
    axes = [a for a in store.attributes["axes"] if a != "c"]
    images = {name: np.zeros(shape, store.images.dtype) for name, shape in shapes.items()}
    times = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    for row in store.manifest.to_pylist():
        of, into = [], []
        for a in axes:
            first, extent = row[f"crop_start_{a}"], row[f"crop_size_{a}"]
            # It lies in the tile, and where the tile lies says the same.
            assert 0 <= first <= first + extent <= store.images.shape[-len(axes) :][axes.index(a)]
            assert row[f"start_{a}"] + first == row[f"stitch_{a}"]
            of.append(slice(first, first + extent))
            into.append(slice(row[f"stitch_{a}"], row[f"stitch_{a}"] + extent))
        place = (row["sample"], slice(None), *into)
        images[row["image_id"]][place] = store[row["row"]][(slice(None), *of)]
        times[row["image_id"]][place] += 1
    return images, times


def stored(plan: patchloom.Plan) -> patchloom.PatchStore:
    """The plan's store, written on this thread."""
    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Two images of samples and channels, tiles of any size, and who gives them."""
    ndim = draw(st.integers(1, 3))
    size = [draw(st.integers(2, 8)) for _ in range(ndim)]
    low = max(size)
    who = draw(st.sampled_from(["config", "ours", "foreign"]))
    return {
        "shapes": [
            (
                draw(st.integers(1, 2)),
                2,
                *(draw(st.integers(low, low + (9 if ndim < 3 else 3))) for _ in range(ndim)),
            )
            for _ in range(2)
        ],
        "chunks": draw(st.integers(2, 7)),
        "size": size,
        "overlaps": [draw(st.integers(0, p - 1)) for p in size],
        # Only a configuration has context.
        "context": draw(st.integers(0, 3)) if who == "config" else 0,
        "pad_mode": draw(st.sampled_from(["constant", "reflect"])),
        "edge": draw(st.sampled_from(["shift", "pad"])),
        "masked": draw(st.booleans()),
        "who": who,
    }


@settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_tiles_put_the_image_together(job: dict[str, Any]) -> None:
    """Each pixel exactly once; with a mask, those of the tiles that were kept."""
    rng = np.random.default_rng(0)
    size, context = job["size"], job["context"]
    arrays = [rng.integers(1, 2**16, shape, dtype=np.uint16) for shape in job["shapes"]]
    masks = [rng.random(shape[2:]) < 0.7 for shape in job["shapes"]]
    axes = "zyx"[3 - len(size) :]
    images = patchloom.open_images(
        [da.from_array(a, chunks=(1, 1, *[job["chunks"]] * len(size))) for a in arrays],
        axes="sc" + axes,
        ids=["a", "b"],
        mask=masks if job["masked"] else None,
    )
    strategy = TiledPatching(
        [image.layout.data_shape for image in images], size, job["overlaps"], edge=job["edge"]
    )
    patching: Any = {"name": "tiled", "patch_size": size, "overlaps": job["overlaps"]}
    patching["context"] = context
    if job["who"] != "config":
        patching = strategy
    if job["who"] == "foreign":
        specs = [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]
        patching = Foreign(specs)
    plan = patchloom.plan(
        images,
        patching,
        edge=job["edge"],
        pad_mode=job["pad_mode"],
        min_coverage=0.7,
        rows_per_shard=5,
    )
    url = f"memory://{uuid.uuid4().hex}"
    plan.save(url)
    store = stored(patchloom.Plan.load(url, images=images))
    shapes = {"a": arrays[0].shape, "b": arrays[1].shape}
    found, times = together(store, shapes)
    column = store.manifest
    for array, mask, name in zip(arrays, masks, "ab", strict=True):
        want = np.ones(array.shape, int)
        if job["masked"]:
            want = kept(mask, array.shape, size, job)
        np.testing.assert_array_equal(times[name], want)
        np.testing.assert_array_equal(found[name], array * want)
        n = column["image_id"].to_pylist().count(name)
        of = [r["total_tiles"] for r in column.to_pylist() if r["image_id"] == name]
        assert of == [n] * n


def kept(mask: Any, shape: tuple[int, ...], size: Any, job: dict[str, Any]) -> Any:
    """Which pixels [sample, channel, *space] lie in the kept part of a tile under the mask."""
    want = np.zeros(shape, int)
    rows = zip(shape[2:], size, job["overlaps"], strict=True)
    borders = [list(stretches(n, p, o, job["edge"])) for n, p, o in rows]
    for tile in itertools.product(*borders):
        corner = [first for first, _, _ in tile]
        if oracle.coverage(mask, shape[2:], corner, size) * 10 >= 7:
            want[(slice(None), slice(None), *(slice(a, b) for _, a, b in tile))] = 1
    return want


def stretches(extent: int, size: int, overlap: int, edge: str) -> Any:
    """Along one axis: first pixel of each tile, and what is kept of the axis."""
    first = oracle.positions(extent, size, overlap, edge)
    begin = 0
    for k, at in enumerate(first):
        stop = extent if k == len(first) - 1 else k * (size - overlap) + size - overlap
        stop = stop if stop == extent else stop + overlap // 2
        yield at, begin, stop
        begin = stop


@pytest.mark.parametrize("who", ["ours", "foreign"])
def test_tiles_that_are_moved_inward_keep_what_they_keep(who: str) -> None:
    """Tiles that would stick out, in a plan that shifts them, or drops them."""
    pixels = np.random.default_rng(0).integers(1, 255, (1, 1, 21, 30), dtype="u1")
    [image] = patchloom.open_images(pixels[0, 0], ids=["a"])
    strategy = TiledPatching([(1, 1, 21, 30)], (8, 8), (2, 2), edge="pad")
    specs = [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]
    given: Any = strategy if who == "ours" else Foreign(specs)
    store = stored(patchloom.plan(image, given, edge="shift"))
    found, times = together(store, {"a": pixels.shape})
    assert (times["a"] == 1).all()
    np.testing.assert_array_equal(found["a"], pixels)
    dropped = patchloom.plan(image, given, edge="drop")
    assert dropped.rejected == {"not inside its image": 9 - 1}
    part, times = together(stored(dropped), {"a": pixels.shape})
    assert set(stored(dropped).manifest["total_tiles"].to_pylist()) == {dropped.n_patches}
    np.testing.assert_array_equal(part["a"], pixels * times["a"])


def test_tiles_of_careamics_are_put_together() -> None:
    """An image smaller than a tile on an axis has one tile that sticks out; all of it is kept."""
    pixels = np.random.default_rng(0).integers(1, 255, (2, 1, 5, 30), dtype="u1")
    [image] = patchloom.open_images(pixels[:, 0], axes="SYX", ids=["a"])
    strategy = TiledPatching([image.layout.data_shape], (8, 8), (2, 2))
    plan = patchloom.plan(image, strategy, edge="pad")
    found, times = together(stored(plan), {"a": pixels.shape})
    assert (times["a"] == 1).all()
    np.testing.assert_array_equal(found["a"], pixels)
    assert plan.n_patches == 2 * math.ceil((30 - 2) / 6)


def test_what_is_no_tile_has_no_tile_columns() -> None:
    """A grid, and a list of which only some are tiles."""
    [image] = patchloom.open_images(np.zeros((20, 20), "u1"))
    strategy = TiledPatching([(1, 1, 20, 20)], (8, 8), (2, 2))
    specs: list[Any] = [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]
    for key in ("total_tiles", "crop_size"):
        specs[3] = {k: v for k, v in specs[3].items() if k != key}
        names = stored(patchloom.plan(image, Foreign(specs))).manifest.column_names
        assert not {"total_tiles", "crop_start_y", "stitch_x"} & {*names}
    grid = {"name": "sequential", "patch_size": 8}
    assert "total_tiles" not in stored(patchloom.plan(image, grid)).manifest.column_names
