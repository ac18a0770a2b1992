"""Predictions of tiles put together: exact for the identity, blended as NumPy says, kill-proof."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import shutil
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom import errors
from patchloom.blending import window
from patchloom.location import Location
from patchloom.patching import TiledPatching
from patchloom.run import mosaics
from patchloom.run.appending import image_documents
from patchloom.run.outputs import Wanted
from patchloom.run.predicting import Answers, LiveInputs
from patchloom.store.schema import Codec
from tests.clients import contents
from tests.clusters import local_cluster
from tests.servers.s3 import S3Server
from tests.test_places import Foreign

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
    array = zarr.open_group(url, mode="r")["0"]
    assert isinstance(array, zarr.Array)
    return array[...]


def tiled(
    pixels: Any, size: Any, overlaps: Any, *, axes: str, edge: Any = "pad", **how: Any
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
        "shards": draw(
            st.one_of(st.none(), st.just([c * draw(st.integers(1, 3)) for c in chunks]))
        ),
        "blend": draw(st.sampled_from([None, None, "hann", "gaussian"])),
        "who": draw(st.sampled_from(["store", "function", "live", "rows"])),
        "dtype": draw(st.sampled_from(["uint8", "uint16", "int32", "float32", "float64", "bool"])),
    }


def canonical(pixels: Any, axes: str) -> Any:
    """An array in the order of OME-Zarr."""
    wanted = [a for a in "tsczyx" if a in axes]
    return pixels.transpose([axes.index(a) for a in wanted])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_the_identity_gives_the_image_back(job: dict[str, Any]) -> None:
    """Any extent, tile, overlap, context, axes, order, chunks, shards, blend and way."""
    spatial = [a for a in "zyx" if a in job["axes"]]
    extents = dict(zip(job["axes"], job["shape"], strict=True))
    if job["edge"] == "shift" and any(
        extents[a] < p for a, p in zip(spatial, job["size"], strict=True)
    ):
        job["edge"] = "pad"
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
    if job["blend"] is None or pixels.dtype.kind in "biu":
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


# -- blended, by brute force -------------------------------------------------------------


def brute(plan: patchloom.Plan, said: Any, blend: str | None, shape: Any) -> Any:
    """[sample, channel, *space] in float64, pixel by pixel of each tile."""
    size, context = plan.cut.proper, plan.cut.context
    total: Any = np.zeros(shape)
    times: Any = np.zeros((shape[0], 1, *shape[2:]))
    for row in range(plan.n_patches):
        [part] = plan.patches(row, row + 1)
        corner, sample = part.corner[0] + np.array(context), int(part.sample[0])
        tile: Any = said[row]
        if tile.shape[1:] == plan.cut.size:
            tile = tile[
                (slice(None), *(slice(c, c + n) for c, n in zip(context, size, strict=True)))
            ]
        for at in np.ndindex(*size):
            pixel = tuple(int(c + i) for c, i in zip(corner, at, strict=True))
            if not all(0 <= p < n for p, n in zip(pixel, shape[2:], strict=True)):
                continue
            weight = 1.0
            for i, n in zip(at, size, strict=True):
                if blend == "hann":
                    weight *= (1 - math.cos(2 * math.pi * (i + 0.5) / n)) / 2
                else:
                    weight *= math.exp(-0.5 * ((i - (n - 1) / 2) / (n / 8)) ** 2)
            total[(sample, slice(None), *pixel)] += weight * tile[(slice(None), *at)].astype(float)
            times[(sample, slice(None), *pixel)] += weight
    return np.divide(total, times, out=np.zeros_like(total), where=times > 0)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_blending_is_what_numpy_says(data: st.DataObject) -> None:
    """Predictions that differ where tiles overlap; any strategy, masks, contexts."""
    draw = data.draw
    ndim = draw(st.integers(1, 3))
    size = [draw(st.integers(2, 6)) for _ in range(ndim)]
    context = [draw(st.integers(0, 2)) for _ in range(ndim)]
    shape = (2, 1, *(draw(st.integers(2, {1: 30, 2: 15, 3: 8}[ndim])) for _ in range(ndim)))
    name = draw(st.sampled_from(["tiled", "sequential", "random"]))
    config: dict[str, Any] = {"name": name, "patch_size": size, "context": context}
    if name != "random":
        config["overlaps"] = [draw(st.integers(0, p - 1)) for p in size]
    masked = draw(st.booleans()) and name != "random"
    mask = np.random.default_rng(2).random(shape[2:]) < 0.7
    images = patchloom.open_images(
        np.zeros(shape, "u1"), axes="sc" + SPACE[ndim], mask=[mask] if masked else None
    )
    plan = patchloom.plan(
        images, config, edge="pad", rows_per_shard=4, min_coverage=0.5 if masked else 0.0
    )
    if not plan.n_patches:
        return
    extent = plan.cut.proper if draw(st.booleans()) else plan.cut.size
    rng = np.random.default_rng(3)
    said = rng.normal(0, 100, (plan.n_patches, 2, *extent)).astype("f4")
    blend = draw(st.sampled_from(["hann", "gaussian"]))
    output = fresh()
    report = stitched(plan, said, output, blend=blend, chunks=4)
    want = brute(plan, said, blend, (2, 2, *shape[2:]))
    # Where every tile over a pixel weighs next to nothing, digits are lost, but not many.
    np.testing.assert_allclose(pixels_at(output), want, rtol=1e-3, atol=2e-2)
    assert report.n_empty == int((want == 0).all(1).sum())


def test_weights_add_up_to_one() -> None:
    """Ones are ones wherever a tile lies, and 0 where none does."""
    plan = tiled(np.zeros((70, 50), "u1"), (16, 16), (8, 5), axes="YX", edge="drop")
    for blend in ("hann", "gaussian"):
        output = fresh()
        report = stitched(plan, lambda t: np.ones(t.shape, "f8"), output, blend=blend)
        found = pixels_at(output)
        assert {*np.unique(found.round(12)).tolist()} == {0.0, 1.0}
        assert report.n_empty == int((found == 0).sum()) > 0
    assert (window((5, 4), "gaussian") > 0).all()


# -- what stands at the output -------------------------------------------------------------


def ome(path: Path, pixels: Any) -> str:
    """A stored image of two channels (c, z, y, x) whose metadata say everything."""
    source = zarr.create_group(path)
    source.create_array("0", data=pixels, chunks=(1, 1, 8, 16))
    axes = [
        {"name": "c", "type": "channel"},
        *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"),
    ]
    how = [
        {"type": "scale", "scale": [1.0, 2.0, 0.5, 0.25]},
        {"type": "translation", "translation": [0.0, 10.0, 20.0, 30.0]},
    ]
    level = {"path": "0", "coordinateTransformations": how}
    omero = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    multiscales: Any = [{"axes": axes, "datasets": [level]}]
    source.attrs["ome"] = {"version": "0.5", "multiscales": multiscales, "omero": omero}
    return str(path)


def test_metadata_are_those_of_the_source(tmp_path: Path) -> None:
    """Scale, origin, units, axes and names, by a plan and by a store alone; plain zarr opens it."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 20, 30), dtype="u1")
    [image] = patchloom.open_images(ome(tmp_path / "a.zarr", pixels))
    config = {"name": "tiled", "patch_size": [3, 8, 8], "overlaps": [1, 4, 4]}
    plan = patchloom.plan(image, config, edge="pad")
    store = stored(plan)
    for tiles in (plan, store):
        output = fresh()
        stitched(tiles, same, output)
        [found] = patchloom.open_images(output)
        for name in ("spacing", "origin", "unit", "channels", "axes", "shape", "dtype"):
            assert getattr(found, name) == getattr(image, name), name
        np.testing.assert_array_equal(pixels_at(output), pixels)
        # Another number of channels has names of its own.
        output = fresh()
        stitched(tiles, lambda t: t[:, :1], output)
        [found] = patchloom.open_images(output)
        assert found.channels == ()
        assert found.shape == (1, 3, 20, 30)
    output = fresh()
    stitched(store, both, output, channels=["cell", "rest"], blend="hann")
    assert patchloom.open_images(output)[0].channels == ("cell", "rest")
    # A large chunk of the source is a chunk of the output.
    wide = patchloom.open_images(da.zeros((600, 700), chunks=(300, 400), dtype="u1"))
    planned = patchloom.plan(wide, {"name": "tiled", "patch_size": 64, "overlaps": 16}, edge="pad")
    stitched(planned, same, output := fresh())
    array = zarr.open_group(output, mode="r")["0"]
    assert isinstance(array, zarr.Array)
    assert array.chunks == (300, 400)


def test_planes_that_were_samples_are_planes_again(tmp_path: Path) -> None:
    """An image of a stack that was tiled plane by plane."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 20, 30), dtype="u1")
    [image] = patchloom.open_images(ome(tmp_path / "a.zarr", pixels), sample="z")
    assert str(image.axes) == "CSYX"
    plan = patchloom.plan(image, {"name": "tiled", "patch_size": 8, "overlaps": 4}, edge="pad")
    stitched(plan, same, output := fresh())
    [found] = patchloom.open_images(output)
    assert str(found.axes) == "CZYX"
    assert (found.spacing["z"], found.origin["z"]) == (2.0, 10.0)
    np.testing.assert_array_equal(found.data.values, pixels)


@pytest.mark.parametrize("dtype", ["u1", "f4", "i4"])
@pytest.mark.parametrize("shards", [None, (4, 16, 16)])
def test_coarser_levels_are_means(dtype: str, shards: Any, tmp_path: Path) -> None:
    """Of odd extents too; z waits until its pixels are no longer those that are long."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 5, 27, 38)).astype(dtype)
    source = ome(tmp_path / "a.zarr", pixels)
    [image] = patchloom.open_images(source)
    config = {"name": "tiled", "patch_size": [3, 8, 8], "overlaps": [1, 4, 4]}
    plan = patchloom.plan(image, config, edge="pad")
    report = stitched(plan, same, output := fresh(), levels=4, chunks=(2, 8, 16), shards=shards)
    group: Any = zarr.open_group(output, mode="r")
    want = pixels
    scale = {"z": 2.0, "y": 0.5, "x": 0.25}
    spacing, origin = dict(scale), {"z": 10.0, "y": 20.0, "x": 30.0}
    for level, axes in enumerate(["", "x", "yx", "yx"]):
        for a in axes:
            k = "czyx".index(a)
            pairs = [(0, want.shape[j] % 2 if j == k else 0) for j in range(4)]
            padded = np.pad(want.astype("f8"), pairs, mode="edge")
            even = padded.take(range(0, padded.shape[k], 2), k)
            want = (even + padded.take(range(1, padded.shape[k], 2), k)) / 2
            origin[a] += spacing[a] / 2
            spacing[a] *= 2
        if dtype != "f4":
            want = np.rint(want)
        found = group[str(level)][...]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=0)
        assert found.dtype == pixels.dtype
        [opened] = patchloom.open_images(output, level=level)
        assert (opened.spacing, opened.origin) == (spacing, origin)
        want = found.astype("f8")
    assert len(patchloom.open_images(output)[0].levels) == 3
    assert report.n_written == report.n_parts
    flat = tiled(np.zeros((5, 3), "u1"), (4, 3), (1, 1), axes="YX")
    assert stitched(flat, same, levels=4).n_parts == 4
    for wrong in (5, 0, 1.5):
        with pytest.raises(errors.ConfigError, match="levels="):
            stitched(flat, same, levels=wrong)


def test_types_are_rounded_and_clipped() -> None:
    plan = tiled(np.zeros((8, 8), "u1"), (4, 4), (2, 2), axes="YX")
    values = np.array([-3.0, 0.5, 1.5, 254.6, 900.0, np.nan, 2.0**40, 1e300])
    for dtype in ("u1", "i1", "u2", "i4", "u4", "u8", "i8"):
        info = np.iinfo(dtype)
        stitched(
            plan, lambda t: np.broadcast_to(values[:4], t.shape).copy(), out := fresh(), dtype=dtype
        )
        whole = np.rint(values).clip(info.min, float(info.max))
        seen = mosaics.as_type(values, np.dtype(dtype))
        for got, want in zip(seen.tolist(), whole.tolist(), strict=True):
            assert got == 0 if math.isnan(want) else abs(got - int(want)) <= 2048
            assert info.min <= got <= info.max
        assert pixels_at(out).dtype == dtype
    assert mosaics.as_type(np.array([300, 2]), np.dtype("u1")).tolist() == [255, 2]
    assert mosaics.as_type(np.array([200], "u1"), np.dtype("i1")).tolist() == [127]
    assert mosaics.as_type(np.array([0.4, 0.6], "f2"), np.dtype(bool)).tolist() == [False, True]
    assert mosaics.as_type(np.array([6e4, 0.6], "f2"), np.dtype("i4"))[1] == 1


# -- where predictions come from ------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A plan, its store on a disk and what a model of two channels says of the whole image."""
    folder = tmp_path_factory.mktemp("made")
    pixels = np.random.default_rng(0).integers(0, 2**16, (2, 130, 170), dtype="u2")
    array = zarr.create_array(folder / "a.zarr", data=pixels, chunks=(1, 32, 48))
    assert array.shape == pixels.shape
    images = patchloom.open_images(str(folder / "a.zarr"), axes="CYX")
    config = {"name": "tiled", "patch_size": [24, 24], "overlaps": [8, 8]}
    plan = patchloom.plan(images, config, edge="pad", rows_per_shard=16)
    store = stored(plan, str(folder / "tiles.zarr"))
    return plan, store, both(pixels[None])[0]


def test_any_array_will_do(made: Any, tmp_path: Path) -> None:
    """Zarr, HDF5, memory maps, Dask, views, lists of files by URL: rows are rows."""
    h5py = pytest.importorskip("h5py")
    plan, store, want = made
    said = both(store.images[...])
    rows = zarr.create_array(tmp_path / "p.zarr", data=said, chunks=(7, 1, 24, 24))
    sharded = zarr.create_array(
        tmp_path / "s.zarr", data=said, chunks=(2, 2, 24, 24), shards=(8, 2, 24, 24)
    )
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file.create_dataset("inside/said", data=said, chunks=(3, 2, 24, 24))
    np.save(tmp_path / "p.npy", said)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert len(pickle.dumps(plan)) < said.nbytes
    with h5py.File(tmp_path / "p.h5", "r") as file:
        given: dict[str, Any] = {
            "numpy": said,
            "zarr": rows,
            "sharded": sharded,
            "url": str(tmp_path / "p.zarr"),
            "path": tmp_path / "s.zarr",
            "hdf5": file["inside/said"],
            "hdf5 url": f"{tmp_path / 'p.h5'}::inside/said",
            "npy": str(tmp_path / "p.npy"),
            "memmap": mapped,
            "part of a memmap": np.load(tmp_path / "p.npy", mmap_mode="r")[0:],
            "dask": da.from_array(said, chunks=(5, 1, 24, 12)),
            "view": patchloom.ArrayView(rows),
            "function": both,
        }
        for name, predictions in given.items():
            for tiles in (plan, store):
                stitched(tiles, predictions, output := fresh(), chunks=40, scheduler="threads")
                np.testing.assert_array_equal(pixels_at(output), want, err_msg=name)


def test_arrays_that_are_in_memory_are_not_read_from_a_file(made: Any, tmp_path: Path) -> None:
    """A private copy of a memory map, HDF5 in memory: in their files stands something else."""
    h5py = pytest.importorskip("h5py")
    _, store, want = made
    said = both(store.images[...])
    np.save(tmp_path / "p.npy", np.zeros_like(said))
    mapped = np.load(tmp_path / "p.npy", mmap_mode="c")
    mapped[:] = said
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["said"] = np.zeros_like(said)
    with h5py.File(tmp_path / "p.h5", "w", driver="core", backing_store=False) as file:
        file["said"] = said
        for predictions in (mapped, file["said"]):
            stitched(store, predictions, output := fresh())
            np.testing.assert_array_equal(pixels_at(output), want)


def test_tiles_of_another_library(tmp_path: Path) -> None:
    """A strategy of CAREamics' protocol, asked tile by tile, and what it says is kept."""
    pixels = np.random.default_rng(0).integers(1, 255, (2, 1, 21, 30), dtype="u1")
    images = patchloom.open_images(pixels, axes="SCYX", ids=["a"])
    strategy = TiledPatching([(2, 1, 21, 30)], (8, 8), (2, 2))
    foreign: Any = Foreign([strategy.get_patch_spec(k) for k in range(strategy.n_patches)])
    plan = patchloom.plan(images, foreign, edge="pad")
    for tiles in (plan, stored(plan)):
        for blend in (None, "hann"):
            stitched(tiles, same, output := fresh(), chunks=8, blend=blend)
            np.testing.assert_array_equal(pixels_at(output), pixels)


def test_a_store_that_was_appended_to(tmp_path: Path) -> None:
    """Rows between additions hold no tile; each image is its own."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(1, 255, (21 + k, 30), dtype="u1") for k in range(3)]
    config = {"name": "tiled", "patch_size": [8, 8], "overlaps": [2, 2]}
    for n in (1, 3):
        images = patchloom.open_images(arrays[:n], ids=["a", "b", "c"][:n])
        plan = patchloom.plan(images, config, edge="pad", rows_per_shard=16)
        store = stored(plan, str(tmp_path / "tiles.zarr"))
    assert len(store) > store.manifest.num_rows
    said = patchloom.Predictions(tmp_path / "said.zarr", store, dtype="u1")
    for rows in said.missing():
        said.put(rows, store.images[rows.start : rows.stop])
    for k, predictions in enumerate((said, same)):
        report = stitched(store, predictions, tmp_path / f"{k}")
        assert report.n_tiles == plan.n_patches
        assert len(report.urls) == 3
        assert "and 2 more" in str(report)
        for array, name in zip(arrays, "abc", strict=True):
            np.testing.assert_array_equal(pixels_at(str(tmp_path / f"{k}/{name}.zarr")), array)
    # One of them alone.
    output = fresh()
    stitched(store, said, {"b": output})
    np.testing.assert_array_equal(pixels_at(output), arrays[1])


def test_one_channel_needs_no_axis(made: Any) -> None:
    _, store, want = made
    stitched(store, both(store.images[...])[:, 1], output := fresh())
    # The image has the axis, so its predictions have.
    np.testing.assert_array_equal(pixels_at(output), want[1:])
    flat = tiled(np.arange(300).reshape(15, 20), (8, 8), (4, 4), axes="YX")
    tiles: Any = stored(flat).images[...]
    stitched(flat, tiles[:, 0], output := fresh())
    np.testing.assert_array_equal(pixels_at(output), np.arange(300).reshape(15, 20))


def test_chunks_of_the_source_are_decoded_about_once(made: Any) -> None:
    plan, _, want = made
    report = stitched(plan, both, output := fresh(), chunks=64)
    assert report.n_tasks == 1
    assert report.chunk_reads == plan.chunks_needed
    assert report.tile_reads == plan.n_patches
    np.testing.assert_array_equal(pixels_at(output), want)


def test_the_model_is_loaded_once(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a process, on however many threads, and asked of one batch at a time."""
    plan, _, want = made
    monkeypatch.setattr(mosaics, "_SMALL", 2**12)
    monkeypatch.setattr("patchloom.run.mosaic_graph._TOGETHER", 1)
    loaded, inside, together, sizes = [], threading.Lock(), [], []

    def load() -> str:
        loaded.append(1)
        return "model"

    def predict(tiles: Any, model: str) -> Any:
        assert model == "model"
        together.append(inside.acquire(blocking=False))
        sizes.append(len(tiles))
        found = both(tiles)
        inside.release()
        return found

    report = stitched(
        plan, predict, output := fresh(), load=load, batch=3, chunks=16, scheduler="threads"
    )
    assert len(loaded) == 1
    assert all(together)
    assert max(sizes) == 3
    assert report.n_tasks > 4
    assert report.reads_a_tile > 1
    np.testing.assert_array_equal(pixels_at(output), want)


def test_predictions_are_put_by_any_process(made: Any, tmp_path: Path) -> None:
    """Whole chunks, found again by a listing, shared out among processes; the last one is short."""
    _, store, want = made
    url = tmp_path / "said.zarr"
    first = patchloom.Predictions(url, store, n_channels=2, rows=16)
    assert len(store) % 16
    assert [len(rows) for rows in first.missing()][-1] == len(store) % 16
    shares = [first.missing(rank, 3) for rank in range(3)]
    assert sorted((r for s in shares for r in s), key=lambda r: r.start) == first.missing()
    for rows in shares[1]:
        first.put(rows, both(store.images[rows.start : rows.stop]))
    # Another process, which knows only where they are.
    again = pickle.loads(pickle.dumps(patchloom.Predictions.open(url)))
    assert again.missing() == sorted(shares[0] + shares[2], key=lambda r: r.start)
    with pytest.raises(errors.StoreError, match="are missing"):
        stitched(store, again, tmp_path / "out.zarr")
    with pytest.raises(errors.StoreError, match="are missing"):
        stitched(store, str(url), tmp_path / "out.zarr")
    report = stitched(store, again, part := fresh(), partial=True)
    found = pixels_at(part)
    assert report.n_empty == int((found != want).any(0).sum()) > 0
    same_again = patchloom.Predictions(url, store, 2, "float32", rows=16)
    for rows in same_again.missing():
        same_again.put(rows, both(store.images[rows.start : rows.stop]))
    assert again.missing() == []
    stitched(store, str(url), output := fresh())
    np.testing.assert_array_equal(pixels_at(output), want)
    assert zarr.open_array(url, mode="r").shape == (len(store), 2, 24, 24)


def test_predictions_at_any_url_are_found_incomplete(made: Any, tmp_path: Path) -> None:
    """A chain of protocols, a path inside a container: missing rows are no zeros."""
    _, store, want = made
    zarr.create_group(tmp_path / "group.zarr")
    said = patchloom.Predictions(tmp_path / "group.zarr/said", store, n_channels=2, rows=16)
    urls = [
        f"simplecache::file://{tmp_path}/group.zarr/said",
        f"{tmp_path}/group.zarr::said",
        f"simplecache::file://{tmp_path}/group.zarr::said",
    ]
    for url in urls:
        with pytest.raises(errors.StoreError, match="are missing"):
            stitched(store, url)
    for rows in said.missing():
        said.put(rows, both(store.images[rows.start : rows.stop]))
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "group.zarr")
    for url in [*urls, f"zip://said::{tmp_path}/all.zip", f"{tmp_path}/all.zip::said"]:
        stitched(store, url, output := fresh())
        np.testing.assert_array_equal(pixels_at(output), want, err_msg=url)


def test_errors_about_predictions_show_no_secrets(made: Any, tmp_path: Path) -> None:
    plan, _, _ = made
    zarr.create_array(tmp_path / "line.zarr", shape=(3,), dtype="u1")
    group = zarr.create_group(tmp_path / "two.zarr")
    for name in "ab":
        group.create_array(name, shape=(plan.n_patches, 24, 24), dtype="u1")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), f"/key:s3cr3t@{tmp_path.name}", recursive=True)
    for name, what in (("line.zarr", "other dimensions"), ("two.zarr", "holds")):
        with pytest.raises(errors.PatchloomError, match=what) as caught:
            stitched(plan, f"memory://key:s3cr3t@{tmp_path.name}/{name}")
        assert "s3cr3t" not in str(caught.value)
        assert name in str(caught.value)


def test_predictions_that_are_wrong(made: Any, tmp_path: Path) -> None:
    plan, store, _ = made
    url = tmp_path / "said.zarr"
    said = patchloom.Predictions(url, plan, 2, rows=16)
    assert "2 x 24 x 24 float32" in repr(said)
    with pytest.raises(errors.FingerprintError, match="chunk_grid"):
        patchloom.Predictions(url, store, 2, rows=8)
    other = tiled(np.zeros((30, 30), "u1"), (24, 24), (8, 8), axes="YX")
    with pytest.raises(errors.FingerprintError, match="other tiles"):
        patchloom.Predictions(url, other)
    with pytest.raises(errors.FingerprintError, match="another store or plan"):
        stitched(other, said)
    for wrong, what in (
        ((range(1, 17), np.zeros((16, 2, 24, 24), "f4")), "written whole"),
        ((range(8), np.zeros((8, 2, 24, 24), "f4")), "written whole"),
        ((range(16), np.zeros((16, 1, 24, 24), "f4")), "are of shape"),
        ((range(16), np.zeros((16, 2, 24, 24), "c8")), "are float32"),
    ):
        with pytest.raises(errors.ConfigError, match=what):
            said.put(*wrong)
    with pytest.raises(errors.ConfigError, match="rank="):
        said.missing(2, 2)
    for how in (
        {"n_channels": 0},
        {"rows": 0},
        {"size": (30, 24)},
        {"size": (10, 10)},
        {"size": 24},
        {"size": "yx"},
        {"dtype": "S3"},
        {"dtype": "banana"},
        {"codec": "zip"},
    ):
        with pytest.raises(errors.ConfigError):
            patchloom.Predictions(tmp_path / "new.zarr", store, **how)
    with pytest.raises(errors.ConfigError, match="PatchStore or a Plan"):
        patchloom.Predictions(tmp_path / "new.zarr", "tiles.zarr")
    with pytest.raises(errors.SourceMissingError):
        patchloom.Predictions.open(tmp_path / "new.zarr")
    with pytest.raises(errors.StoreError, match="is not"):
        patchloom.Predictions.open(store.url)


@pytest.mark.parametrize(
    ("held", "given", "fits"),
    [
        ("uint8", "uint16", False),
        ("uint16", "int8", False),
        ("int32", "int64", False),
        ("float32", "int64", False),
        ("uint8", "float32", False),
        ("uint16", "uint8", True),
        ("uint8", "bool", True),
        ("float32", "uint16", True),
        ("float32", "float64", True),
        ("float32", "float16", True),
    ],
)
def test_predictions_never_wrap(held: str, given: str, fits: bool) -> None:
    plan = tiled(np.zeros((4, 4), "u1"), (4, 4), (0, 0), axes="YX")
    said = patchloom.Predictions(fresh(), plan, dtype=held)
    pixels = np.full((1, 1, 4, 4), 1).astype(given)
    if fits:
        said.put(range(1), pixels)
        assert said.array[0, 0, 0, 0] == 1
    else:
        with pytest.raises(errors.ConfigError, match=f"predictions are {held}"):
            said.put(range(1), pixels)


def test_missing_predictions_do_not_show_as_nothing() -> None:
    """They are refused, counted, and 0 only for who asks for what is there."""
    plan = tiled(np.zeros((8, 8), "u1"), (4, 4), (0, 0), axes="YX")
    said = patchloom.Predictions(fresh(), plan, dtype="uint8", rows=1)
    said.put(range(1, 2), np.full((1, 1, 4, 4), 7, "u1"))
    assert said.n_missing == 3
    with pytest.raises(errors.StoreError, match=r"3 of 4 are missing .*row 0 on.*partial=True"):
        _ = said.array
    with pytest.raises(errors.StoreError, match="3 of 4 are missing"):
        patchloom.stitch(plan, said, fresh(), progress=False)
    there = np.asarray(said.to_zarr(partial=True)[:, 0, 0, 0])
    assert there.tolist() == [0, 7, 0, 0]
    for rows in said.missing():
        said.put(rows, np.full((1, 1, 4, 4), 3, "u1"))
    assert said.n_missing == 0
    assert np.asarray(said.array[:, 0, 0, 0]).tolist() == [3, 7, 3, 3]


def test_predictions_go_to_a_place_of_their_own(made: Any, tmp_path: Path) -> None:
    plan, _, _ = made
    zarr.create_array(tmp_path / "v2", shape=(3, 4), dtype="f4", zarr_format=2)[...] = 5
    (tmp_path / "folder/c").mkdir(parents=True)
    (tmp_path / "folder/c/notes.txt").write_text("mine")
    for name in ("v2", "folder"):
        before = contents(tmp_path / name)
        with pytest.raises(errors.ExistsError, match="nothing was touched"):
            patchloom.Predictions(tmp_path / name, plan)
        assert contents(tmp_path / name) == before
    zarr.create_array(tmp_path / "v3", shape=(3, 4), dtype="f4")
    with pytest.raises(errors.FingerprintError, match="stands something else"):
        patchloom.Predictions(tmp_path / "v3", plan)
    (tmp_path / "left").mkdir()
    (tmp_path / "left/zarr.json.0123456789abcdef0123456789abcdef.part").write_bytes(b"{")
    patchloom.Predictions(tmp_path / "left", plan)


# -- laws: whole objects, killed, any scheduler, bounded memory ---------------------------


@pytest.mark.parametrize("shards", [None, 32])
def test_no_two_tasks_write_one_object(
    made: Any, monkeypatch: pytest.MonkeyPatch, shards: int | None, tmp_path: Path
) -> None:
    plan, store, want = made
    monkeypatch.setattr(mosaics, "_SMALL", 2**14)
    monkeypatch.setattr("patchloom.run.mosaic_graph._TOGETHER", 1)
    by, write, making = Counter[tuple[str, int]](), Location.write, mosaics.put_together
    task = threading.local()
    tasks = itertools.count()

    def putting(*given: Any) -> Any:
        task.number = next(tasks)
        return making(*given)

    def writing(self: Location, name: str, *parts: Any) -> None:
        if "/c/" in name:
            by[name, task.number] += 1
        write(self, name, *parts)

    monkeypatch.setattr(Location, "write", writing)
    monkeypatch.setattr("patchloom.run.mosaic_graph.put_together", putting)
    for tiles in (plan, store):
        by.clear()
        out = tmp_path / f"{type(tiles).__name__}.zarr"
        report = stitched(
            tiles, both(store.images[...]), out, chunks=16, shards=shards, scheduler="threads"
        )
        assert report.n_tasks > 3
        assert {*by.values()} == {1}
        assert len({name for name, _ in by}) == len(by)
        assert len(by) == report.n_parts * (1 if shards else 2)
        np.testing.assert_array_equal(pixels_at(str(out)), want)


def test_a_killed_run_ends_as_if_nothing_had_happened(made: Any, tmp_path: Path) -> None:
    """A process that is killed at a write, then another one: byte for byte."""
    _, store, _ = made
    whole = tmp_path / "whole.zarr"
    how: Any = {"blend": "hann", "chunks": 32, "levels": 3}
    stitched(store, store.images, whole, **how)
    want = contents(whole)
    assert len(want) > 20
    at = [0, 1, 2, 5, 11, len(want) - 2, len(want) - 1]
    given = {"store": store.url, "folder": str(tmp_path), "at": at, "how": how}
    subprocess.run([sys.executable, "-m", "tests.stitch_killer", json.dumps(given)], check=True)
    for n in at:
        half = tmp_path / str(n)
        there = contents(half)
        done = {name for name in there if "/c/" in name and not name.endswith(".part")}
        assert len(done) < len(want) - 2 or n >= len(want) - 2
        report = stitched(store, store.images, half, **how)
        parts = Counter((name[0], name.split("/", 3)[3]) for name in done)
        assert report.already_done == sum(times == 2 for times in parts.values())
        assert contents(half) == want
    report = stitched(store, store.images, whole, **how)
    assert (report.n_written, report.n_tasks, report.bytes_written) == (0, 0, 0)
    # What is gone is made again, and nothing else.
    (whole / "0/c/1/2/3").unlink()
    assert stitched(store, store.images, whole, **how).n_written == 1
    assert contents(whole) == want


@pytest.mark.parametrize("blend", [None, "hann"])
def test_a_resume_counts_the_pixels_that_it_makes(blend: str | None, tmp_path: Path) -> None:
    """Over which no tile lies: not those of parts that are there."""
    mask = np.zeros((40, 40), "u1")
    mask[:10, :10] = 1
    pixels = np.random.default_rng(0).integers(1, 2**16, (40, 40), "u2")
    images = patchloom.open_images(pixels, mask=mask, ids=["a"])
    how = {"name": "tiled", "patch_size": [8, 8], "overlaps": [0, 0]}
    plan = patchloom.plan(images, how, edge="pad", min_coverage=0.1)
    out = tmp_path / "out.zarr"
    report = stitched(plan, same, out, chunks=10, blend=blend)
    before, found = contents(out), pixels_at(str(out))
    assert report.n_empty == (found == 0).sum()
    lost = ["0/0", "1/0", "3/3"]
    for name in lost:
        (out / "0/c" / name).unlink()
    again = stitched(plan, same, out, chunks=10, blend=blend)
    boxes = [tuple(slice(10 * int(k), 10 * int(k) + 10) for k in name.split("/")) for name in lost]
    assert again.n_empty == sum(int((found[box] == 0).sum()) for box in boxes)
    assert contents(out) == before


def test_every_scheduler_makes_the_same(made: Any, tmp_path: Path) -> None:
    """Threads, processes and real workers; from rows, live, and a function that travels."""
    plan, store, _ = made
    said = patchloom.Predictions(tmp_path / "said.zarr", store, 2)
    for rows in said.missing():
        said.put(rows, both(store.images[rows.start : rows.stop]))
    lazy = da.from_array(both(store.images[...]), chunks=(9, 2, 24, 24))
    ways: dict[str, Callable[[Path], Any]] = {
        "rows": lambda out: patchloom.stitch(
            store, said, out, blend="hann", chunks=32, progress=False
        ),
        "live": lambda out: patchloom.stitch(
            plan, both, out, blend="hann", chunks=32, progress=False
        ),
        "lazy": lambda out: patchloom.stitch(
            plan, lazy, out, blend="hann", chunks=32, progress=False
        ),
    }
    found: dict[str, dict[str, bytes]] = {}
    for name, way in ways.items():
        for scheduler in ("synchronous", "threads", "processes"):
            with dask.config.set(scheduler=scheduler):
                way(tmp_path / name / scheduler)
            found[f"{name} {scheduler}"] = pixels_of(tmp_path / name / scheduler)
    with local_cluster(n_workers=2, threads_per_worker=1) as cluster, cluster.get_client():
        for name, way in ways.items():
            way(tmp_path / name / "cluster")
            found[f"{name} cluster"] = pixels_of(tmp_path / name / "cluster")
    first = found.popitem()[1]
    assert all(one == first for one in found.values())


def pixels_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if "/c/" in name}


def test_on_s3(made: Any, s3_server: S3Server) -> None:
    """Tiles, predictions and image in buckets, on real workers that are lent the credentials."""
    plan, _, want = made
    url, options = s3_server.fresh_bucket(), s3_server.storage_options
    patchloom.materialize(plan, f"{url}/tiles.zarr", storage_options=options, progress=False)
    there = patchloom.open_patches(f"{url}/tiles.zarr", storage_options=options)
    said = patchloom.Predictions(f"{url}/said.zarr", there, 2, storage_options=options)
    for rows in said.missing():
        said.put(rows, both(there.images[rows.start : rows.stop]))
    with local_cluster(n_workers=2, threads_per_worker=1) as cluster, cluster.get_client():
        for k, given in enumerate((said, f"{url}/said.zarr", both)):
            report = patchloom.stitch(
                there,
                given,
                f"{url}/{k}.zarr",
                chunks=32,
                storage_options=options,
                progress=False,
            )
            assert report.n_written == report.n_parts
    for k in range(3):
        [image] = patchloom.open_images(f"{url}/{k}.zarr", storage_options=options)
        np.testing.assert_array_equal(image.data.values, want)


_MEASURE = """
import json, sys, tracemalloc
import dask, numpy as np, patchloom
store, out, said = sys.argv[1:]
dask.config.set(scheduler="synchronous")
store = patchloom.open_patches(store)
def predict(tiles):
    return tiles
patchloom.stitch(store, predict, f"{out}/first.zarr", progress=False, chunks=256)
found = {}
ways = {
    "rows": (store, said, {}),
    "hann": (store, said, {"blend": "hann"}),
    "shards": (store, said, {"blend": "gaussian", "shards": 512, "levels": 4}),
    "function": (store, predict, {"batch": 4}),
}
[image] = patchloom.open_images(f"{out}/first.zarr")
how = {"name": "tiled", "patch_size": [128, 128], "overlaps": [32, 32]}
ways["live"] = (patchloom.plan(image, how, edge="pad"), predict, {"batch": 4, "blend": "hann"})
for name, (tiles, given, more) in ways.items():
    tracemalloc.start()
    how = {"progress": False, "chunks": 256, **more}
    report = patchloom.stitch(tiles, given, f"{out}/{name}.zarr", **how)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found[name] = [taken, report.peak_memory, report.projected_memory]
print(json.dumps(found))
"""


def test_a_task_takes_what_was_projected(tmp_path: Path) -> None:
    """By tracemalloc, in a process of its own, of an image of 64 MiB."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (4096, 8192), dtype="u2")
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(256, 256))
    images = patchloom.open_images(str(tmp_path / "a.zarr"), axes="YX")
    how = {"name": "tiled", "patch_size": [128, 128], "overlaps": [32, 32]}
    store = stored(patchloom.plan(images, how, edge="pad"), str(tmp_path / "tiles.zarr"))
    said = patchloom.Predictions(tmp_path / "said.zarr", store, dtype="u2")
    for rows in said.missing():
        said.put(rows, store.images[rows.start : rows.stop])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, store.url, str(tmp_path), str(tmp_path / "said.zarr")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, (taken, counted, projected) in json.loads(done.stdout).items():
        assert counted <= taken <= projected, name
        assert projected < pixels.nbytes * 2, name


def test_graphs_grow_with_boxes_and_not_with_tiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a plan a task is a few numbers, however many tiles it puts together."""
    # No chunk is written: nothing is read.
    zarr.create_array(tmp_path / "a.zarr", shape=(40_000, 40_000), chunks=(1000, 1000), dtype="u2")
    images = patchloom.open_images(str(tmp_path / "a.zarr"), axes="YX")
    seen = []

    class Enough(Exception):
        pass

    def execute(graph: Any, **how: Any) -> Any:
        tasks = graph.part(graph.keys)
        seen.append((len(tasks), max(len(pickle.dumps(task)) for task in tasks.values())))
        raise Enough

    monkeypatch.setattr("patchloom.run.stitching.execute", execute)
    for side in (512, 64):
        how = {"name": "tiled", "patch_size": [side, side], "overlaps": [side // 4, side // 4]}
        plan = patchloom.plan(images, how, edge="pad")
        shape = (plan.n_patches, 1, side, side)
        rows = zarr.create_array(
            tmp_path / f"{side}", shape=shape, chunks=(16, *shape[1:]), dtype="u2"
        )
        with pytest.raises(Enough):
            stitched(plan, rows, blend="hann", memory="64 GiB")
    (few, small), (many, large) = seen
    assert few == many < 200
    assert large <= small < 2000


def test_an_error_of_the_model_reaches_the_caller(made: Any) -> None:
    plan, _, _ = made

    def fails(tiles: Any) -> Any:
        if len(tiles) > 1:
            raise ZeroDivisionError("of the model")
        return tiles

    for scheduler in ("synchronous", "threads"):
        with pytest.raises(ZeroDivisionError, match="of the model"):
            stitched(plan, fails, scheduler=scheduler)


def test_memory_does_not_grow_with_the_image() -> None:
    def projected(side: int) -> int:
        images = patchloom.open_images(da.zeros((side, side), chunks=512, dtype="u2"))
        how = {"name": "tiled", "patch_size": [256, 256], "overlaps": [64, 64]}
        plan = patchloom.plan(images, how, edge="pad")
        answers = Answers(LiveInputs(plan, 4), plan.patch_shape, plan.dtype)
        where, told = Location.of(fresh()), image_documents(plan.images)[0]
        wanted = Wanted(1, answers.dtype, (), None, None, Codec(), 1)
        target = wanted.target(told, where)
        return mosaics.box_of(target, answers, plan.cut, "hann", 2**30)[1]

    small, large = projected(40_000), projected(400_000)
    assert large <= small * 1.1


def test_a_task_that_is_too_large_is_refused(made: Any) -> None:
    _, store, _ = made
    with pytest.raises(errors.BudgetError, match="smaller chunks="):
        stitched(store, store.images, memory=2**20)
    report = stitched(store, store.images, memory="60 MiB", chunks=32)
    assert report.peak_memory <= report.projected_memory <= 60 * 2**20
    for wrong in (0, -1, "lots", True):
        with pytest.raises(errors.ConfigError, match="memory="):
            stitched(store, store.images, memory=wrong)


# -- mistakes ---------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_is_written(made: Any, tmp_path: Path) -> None:
    plan, store, _ = made
    n = len(store)
    out = tmp_path / "out.zarr"
    good = np.zeros((n, 1, 24, 24), "u1")
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (errors.ConfigError, "a row for each", {"predictions": good[:-1]}),
        (errors.ConfigError, "extent of its tile", {"predictions": good[..., :12]}),
        (errors.ConfigError, "tile, ", {"predictions": good[0, 0]}),
        (errors.ConfigError, "blend=", {"blend": "cosine"}),
        (errors.ConfigError, "batch=", {"batch": 0}),
        (errors.ConfigError, "load= belongs", {"load": dict}),
        (errors.ConfigError, "channels= names", {"channels": ["a", "b"]}),
        (errors.ConfigError, "chunks=", {"chunks": [8, 8, 8]}),
        (errors.ConfigError, "chunks=", {"chunks": 0}),
        (errors.ConfigError, "chunks=", {"chunks": 5.0}),
        (errors.ConfigError, "chunks=", {"chunks": "8"}),
        (errors.ConfigError, "levels=", {"levels": 2.0}),
        (errors.ConfigError, "model=", {"model": float("nan")}),
        (errors.ConfigError, "whole chunks", {"chunks": 16, "shards": 24}),
        (errors.ConfigError, "codec=", {"codec": "zip"}),
        (errors.ConfigError, "64 bits", {"predictions": good.astype("i8"), "blend": "hann"}),
        (errors.ConfigError, "numbers or flags", {"dtype": "c8"}),
        (errors.ConfigError, "numbers or flags", {"dtype": "zebra"}),
        (errors.ConfigError, "tiles are those", {"tiles": 3}),
        (errors.ConfigError, "ids of images", {"output": {"nobody": "x"}}),
        (errors.ConfigError, "output=", {"output": ""}),
        (errors.ConfigError, "beside the store", {"tiles": store, "output": store.url}),
        (errors.ConfigError, "one prediction a tile", {"predictions": lambda t: t[0, 0, 0]}),
        (errors.ConfigError, "extent of its tile", {"predictions": lambda t: t[:, :, :8]}),
    ]
    for kind, match, how in wrong:
        given = {"tiles": plan, "predictions": good, "output": out, **how}
        with pytest.raises(kind, match=match):
            stitched(**given)
        assert not out.exists(), how
    changing = itertools.count()
    with pytest.raises(errors.ConfigError, match="the same for every batch"):
        stitched(plan, lambda t: t[:, :1] if next(changing) else t, tmp_path / "changing.zarr")


def test_outputs_that_would_share_objects(made: Any, tmp_path: Path) -> None:
    """One inside another, or twice the same place in other words: refused, without secrets."""
    _, store, _ = made
    pixels = np.zeros((8, 8), "u1")
    plan = tiled([pixels] * 3, (4, 4), (0, 0), axes="YX", ids=["a", "b", "c"])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one = str(tmp_path / "real/q")
    pairs = (
        (one, f"{one}/0"),
        (f"{one}/x/y", one),
        (one, f"file://{one}"),
        (one, str(tmp_path / "link/q")),
        ("memory://q/x.zarr", "memory://q//x.zarr"),
        ("memory://key:s3cr3t@q/x.zarr",) * 2,
    )
    for a, b in pairs:
        with pytest.raises(errors.ConfigError, match="none inside another") as caught:
            stitched(plan, same, {"a": a, "b": b, "c": f"{one}.b"})
        assert "s3cr3t" not in str(caught.value)
    for inside in (f"file://{store.url}", f"{store.url}/x", f"{store.url}/images/c"):
        with pytest.raises(errors.ConfigError, match="beside the store"):
            stitched(store, store.images, inside)
    assert not [*(tmp_path / "real").iterdir()]
    stitched(plan, same, {"a": one, "b": f"{one}.b", "c": f"{one}0"})


def test_numbers_of_numpy_are_numbers(made: Any) -> None:
    plan, _, _ = made
    how = {"levels": np.int64(2), "chunks": np.array([40, 40]), "batch": np.int64(3)}
    report = stitched(plan, same, output := fresh(), **how)
    assert stitched(plan, same, output, levels=2, chunks=40).n_tasks == 0 < report.n_tasks
    context = tiled(np.zeros((30, 30), "u1"), (8, 8), (4, 4), axes="YX", context=[2, 2])
    for tiles in (context, stored(context)):
        sizes: tuple[tuple[Any, int], ...] = (([12, 12], 12), (np.array([8, 8]), 8), (None, 12))
        for size, extent in sizes:
            said = patchloom.Predictions(fresh(), tiles, size=size)
            assert said.shape[2:] == (extent, extent)


def test_patches_that_are_no_tiles_are_blended_or_refused() -> None:
    images = patchloom.open_images(np.arange(400, dtype="f4").reshape(20, 20))
    how = {"name": "sequential", "patch_size": [8, 8], "overlaps": [4, 4]}
    plan = patchloom.plan(images, how)
    with pytest.raises(errors.PlanError, match="'tiled', or give blend="):
        stitched(plan, same)
    store = stored(plan)
    with pytest.raises(errors.StoreError, match="or give blend="):
        stitched(store, same)
    stitched(store, same, output := fresh(), blend="hann")
    np.testing.assert_allclose(pixels_at(output), np.arange(400).reshape(20, 20), rtol=1e-5)
    shrunk = patchloom.plan(images, {**how, "name": "tiled"}, edge="shrink")
    with pytest.raises(errors.PlanError, match="one size"):
        stitched(shrunk, same)


def test_an_output_that_is_somebody_elses(made: Any, tmp_path: Path) -> None:
    plan, store, _ = made
    zarr.create_array(tmp_path / "theirs.zarr", shape=(3,), dtype="u1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name in ("theirs.zarr", "folder"):
        before = contents(tmp_path / name)
        with pytest.raises(errors.ExistsError, match="nothing was touched"):
            stitched(store, store.images, tmp_path / name)
        assert contents(tmp_path / name) == before
    out = tmp_path / "out.zarr"
    stitched(store, store.images, out, model="net-1")
    before = contents(out)
    other = tiled(np.zeros((2, 30, 30), "u2"), (24, 24), (8, 8), axes="CYX")
    for tiles, how in (
        (store, {"model": "net-2"}),
        (store, {"model": "net-1", "blend": "hann"}),
        (store, {"model": "net-1", "chunks": 20}),
        (other, {"model": "net-1"}),
    ):
        with pytest.raises(errors.FingerprintError, match="nothing was touched"):
            stitched(tiles, same if tiles is other else store.images, out, **how)
    assert contents(out) == before
    # By the plan it is the same image.
    assert stitched(plan, store.images, out, model="net-1").n_tasks == 0


def test_a_store_that_lacks_tiles(made: Any, tmp_path: Path) -> None:
    """Refused, or stitched without them."""
    _, store, want = made
    shutil.copytree(store.url, tmp_path / "half.zarr")
    document = json.loads((tmp_path / "half.zarr/zarr.json").read_bytes())
    document["attributes"]["patchloom"]["complete"] = False
    (tmp_path / "half.zarr/zarr.json").write_text(json.dumps(document))
    (tmp_path / "half.zarr/manifest/00000001.parquet").unlink()
    half = patchloom.open_patches(tmp_path / "half.zarr")
    with pytest.raises(errors.StoreError, match="partial=True"):
        stitched(half, both)
    report = stitched(half, both, output := fresh(), partial=True)
    found = pixels_at(output)
    assert report.n_tiles == len(store) - 16
    assert report.n_empty == int((found != want).any(0).sum()) > 0
    assert "pixels without a tile" in str(report)
    assert report.to_dict()["already_done"] == 0


def test_the_command(made: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from patchloom.cli import main

    _, store, want = made
    zarr.create_array(tmp_path / "p.zarr", data=both(store.images[...]), chunks=(8, 2, 24, 24))
    call = ["stitch", store.url, str(tmp_path / "p.zarr"), "--output", str(tmp_path / "o.zarr")]
    call += [
        "--chunks",
        "16,32",
        "--shards",
        "32,64",
        "--channels",
        "half,twice",
        "--blend",
        "hann",
        "--levels",
        "2",
    ]
    done = CliRunner().invoke(main, [*call, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_empty"] == 0
    [image] = patchloom.open_images(str(tmp_path / "o.zarr"))
    assert image.channels == ("half", "twice")
    assert (image.grid.chunks, image.shards) == ((1, 16, 32), (2, 32, 64))
    np.testing.assert_allclose(image.data.values, want, rtol=1e-5)
    again = CliRunner().invoke(main, call)
    assert "0 of " in again.stdout
    wrong = CliRunner().invoke(main, [*call[:-4], "--chunks", "many"])
    assert wrong.exit_code == 2
