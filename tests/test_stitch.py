"""Predictions of tiles put together: exact for the identity, blended as NumPy says, kill-proof."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom import errors
from patchloom.blending import window
from patchloom.location import Location
from patchloom.run import mosaics
from tests.clients import contents
from tests.clusters import local_cluster
from tests.servers.s3 import S3Server

SPACE = {1: "x", 2: "yx", 3: "zyx"}


def same(tiles: Any) -> Any:
    """A model that says what it is shown."""
    return tiles


def both(tiles: Any) -> Any:
    """A model of two channels of floats."""
    return np.concatenate([tiles[:, :1] / 2, tiles[:, :1] * 2], 1).astype(np.float32)


def fresh() -> str:
    return f"memory://{uuid.uuid4().hex}.zarr"


def stored(plan: patchloom.Plan, url: str | None = None) -> patchloom.PatchStore:
    """The plan's store, written on this thread."""
    url = fresh() if url is None else url
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)


def stitched(tiles: Any, predictions: Any, output: Any = None, **how: Any) -> Any:
    """The report, on this thread."""
    with dask.config.set(scheduler=how.pop("scheduler", "synchronous")):
        return patchloom.stitch(
            tiles, predictions, fresh() if output is None else output, progress=False, **how
        )


def pixels_at(url: str) -> Any:
    """What plain zarr reads."""
    return zarr.open_group(url, mode="r")["0"][...]


def tiled(
    pixels: Any, size: Any, overlaps: Any, *, axes: str, edge: str = "pad", **how: Any
) -> patchloom.Plan:
    images = patchloom.open_images(pixels, axes=axes, ids=how.pop("ids", ["a"]))
    config = {"name": "tiled", "patch_size": [*size], "overlaps": [*overlaps]}
    config |= {"context": how.pop("context")} if "context" in how else {}
    return patchloom.plan(images, config, edge=edge, **{"rows_per_shard": 5, **how})


# -- exact for the identity --------------------------------------------------------------


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """An image of samples and channels, tiles of any size and overlap, outputs of any chunks."""
    ndim = draw(st.integers(1, 3))
    size = [draw(st.integers(1, 8)) for _ in range(ndim)]
    most = {1: 40, 2: 20, 3: 9}[ndim]
    chunks = [draw(st.integers(1, 7)) for _ in range(ndim)]
    names = draw(st.permutations(SPACE[ndim] + "".join(draw(st.sets(st.sampled_from("stc"))))))
    extents = {a: draw(st.integers(1, 3)) for a in "stc"}
    extents |= {a: draw(st.integers(1, most)) for a in SPACE[ndim]}
    return {
        "axes": "".join(names),
        "shape": [extents[a] for a in names],
        "source_chunks": [draw(st.integers(1, 7)) for _ in names],
        "size": size,
        "overlaps": [draw(st.integers(0, p - 1)) for p in size],
        "context": [draw(st.integers(0, 2)) for _ in range(ndim)],
        "edge": draw(st.sampled_from(["pad", "shift"])),
        "order": draw(st.sampled_from(["spatial", "shuffled"])),
        "pad_mode": draw(st.sampled_from(["constant", "reflect"])),
        "chunks": chunks,
        "shards": draw(st.one_of(st.none(), st.just([c * draw(st.integers(1, 3)) for c in chunks]))),
        "blend": draw(st.sampled_from([None, None, "hann", "gaussian"])),
        "who": draw(st.sampled_from(["store", "function", "live", "rows"])),
        "dtype": draw(st.sampled_from(["uint8", "uint16", "int32", "float32", "float64", "bool"])),
    }


def canonical(pixels: Any, axes: str) -> Any:
    """An array in the order of OME-Zarr."""
    wanted = [a for a in "tsczyx" if a in axes]
    return pixels.transpose([axes.index(a) for a in wanted])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_the_identity_gives_the_image_back(job: dict[str, Any]) -> None:
    """Any extent, tile, overlap, context, axes, order, chunks, shards, blend and way."""
    spatial = [a for a in "zyx" if a in job["axes"]]
    extents = dict(zip(job["axes"], job["shape"], strict=True))
    if job["edge"] == "shift" and any(
        extents[a] < p for a, p in zip(spatial, job["size"], strict=True)
    ):
        job["edge"] = "pad"
    if job["blend"] is not None and job["dtype"] == "bool":
        job["blend"] = None
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2 if job["dtype"] == "bool" else 255, job["shape"])
    if job["dtype"] in ("int32", "uint16"):
        span = np.iinfo(job["dtype"])
        wide = rng.integers(span.min, span.max, job["shape"], endpoint=True)
    pixels = wide.astype(job["dtype"])
    plan = tiled(
        da.from_array(pixels, chunks=job["source_chunks"]),
        job["size"],
        job["overlaps"],
        axes=job["axes"],
        edge=job["edge"],
        context=job["context"],
        order=job["order"],
        pad_mode=job["pad_mode"],
    )
    how = {name: job[name] for name in ("blend", "chunks", "shards")}
    output = fresh()
    if job["who"] == "live":
        report = stitched(plan, same, output, batch=3, **how)
    else:
        store = stored(plan)
        tiles = plan if job["who"] == "rows" else store
        given = same if job["who"] == "function" else store.images
        report = stitched(tiles, given, output, **how)
    assert report.n_empty == 0
    assert report.n_tiles == plan.n_patches
    found = pixels_at(output)
    want = canonical(pixels, job["axes"])
    assert found.dtype == pixels.dtype
    if job["blend"] is None or pixels.dtype.kind in "iu":
        np.testing.assert_array_equal(found, want)
    else:
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)
    [image] = patchloom.open_images(output)
    np.testing.assert_array_equal(image.data.values, found)


@pytest.mark.parametrize("size", [(7,), (4, 5), (2, 3, 3)])
@pytest.mark.parametrize("edge", ["pad", "shift"])
def test_every_overlap_and_extent(size: tuple[int, ...], edge: str) -> None:
    """All overlaps of one tile, on images of all remainders, by one store each."""
    ndim, rng = len(size), np.random.default_rng(1)
    shapes = [tuple(p + k + j for j, p in enumerate(size)) for k in range(max(size))]
    images = [rng.integers(1, 255, shape, dtype="u1") for shape in shapes]
    ids = [f"i{k}" for k in range(len(images))]
    for overlaps in itertools.product(*map(range, size)):
        plan = tiled(images, size, overlaps, axes=SPACE[ndim], edge=edge, ids=ids)
        store = stored(plan)
        folder = fresh()
        stitched(store, store.images, folder, chunks=4)
        for array, name in zip(images, ids, strict=True):
            np.testing.assert_array_equal(pixels_at(f"{folder}/{name}.zarr"), array)
