"""Opening: every kind of array, by every way to name it, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray
import zarr

import patchloom
from patchloom.errors import (
    AxesError,
    IdentityError,
    NotAnArrayError,
    SourceChangedError,
    SourceError,
    SourceMissingError,
)
from patchloom.location import Location, StorageOptions
from patchloom.sources.chunks import DirectReader, reader_for
from patchloom.sources.zarrs import ZarrSource
from tests.servers.gcs import GcsServer
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server

PIXELS = np.random.default_rng(0).integers(0, 2**16, (3, 20, 30), dtype="uint16")


def store(folder: Path, name: str = "image.zarr", **options: Any) -> str:
    """PIXELS as a Zarr array."""
    path = folder / name
    array = zarr.create_array(path, shape=PIXELS.shape, dtype=PIXELS.dtype, **options)
    array[...] = PIXELS
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1, 8, 8), "zarr_format": 2},
        {"chunks": (1, 8, 8), "zarr_format": 3},
        {"chunks": (3, 7, 9), "zarr_format": 2, "order": "F"},
        {"chunks": (1, 5, 5), "shards": (1, 10, 10)},
        {"chunks": (1, 5, 5), "compressors": None},
        {"chunks": (3, 4, 6), "filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))]},
        {"chunks": (1, 8, 8), "serializer": zarr.codecs.BytesCodec(endian="big")},
        {"chunks": (1, 8, 8), "compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
    ],
    ids=str,
)
def test_zarr_layouts(options: dict[str, Any], tmp_path: Path) -> None:
    """Each layout reads back whole, by box and lazily; the fast reader serves it."""
    [image] = patchloom.open_images(store(tmp_path, **options), axes="CYX")
    assert image.grid.chunks == options["chunks"]
    assert image.shards == options.get("shards")
    np.testing.assert_array_equal(image.read([0, 0, 0], PIXELS.shape), PIXELS)
    np.testing.assert_array_equal(image.read([1, 3, 7], [2, 19, 8]), PIXELS[1:2, 3:19, 7:8])
    np.testing.assert_array_equal(image.data, PIXELS)
    np.testing.assert_array_equal(image.data[::2, 3:15:2, -4], PIXELS[::2, 3:15:2, -4])
    np.testing.assert_array_equal(image.data[..., [1, 5, 3]], PIXELS[..., [1, 5, 3]])
    assert isinstance(image.source, ZarrSource)
    assert isinstance(image.source.reader(), DirectReader)


def test_unknown_codecs_fall_back(tmp_path: Path) -> None:
    """A codec that only zarr-python knows is read through it, and counted all the same."""
    import warnings

    from zarr.codecs import numcodecs as extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = store(tmp_path, chunks=(1, 8, 8), filters=[extra.Delta(dtype="uint16")])
        [image] = patchloom.open_images(path, axes="CYX")
        np.testing.assert_array_equal(image.read([0, 0, 0], PIXELS.shape), PIXELS)
        assert isinstance(image.source, ZarrSource)
        reader = reader_for(image.source.location, image.source.metadata)
        reader.read(np.array([[0, 0, 0], [2, 1, 1]]))
    assert not isinstance(reader, DirectReader)
    assert reader.reads.chunks == 2
    assert reader.reads.nbytes > 0


def test_arrays_that_are_described_alike_share_it(tmp_path: Path) -> None:
    """Ten thousand images of one kind are described once; what people wrote beside is no matter."""
    for name, fill in (("a", 0), ("b", 0), ("c", 1)):
        array = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=(8, 8), chunks=(4, 4), dtype="int16", fill_value=fill
        )
        array.attrs["name"] = name
    sources: list[Any] = [i.source for i in patchloom.open_images(str(tmp_path / "*.zarr"))]
    a, b, c = (source.metadata for source in sources)
    assert a is b
    assert a is not c
    assert (a.document["fill_value"], c.document["fill_value"]) == (0, 1)
    assert set(vars(pickle.loads(pickle.dumps(a)))) == {"format", "document"}


def test_missing_chunks_are_fill_value(tmp_path: Path) -> None:
    """An absent chunk is its fill value; it counts as read."""
    path = tmp_path / "image.zarr"
    zarr.create_array(path, shape=(8, 8), chunks=(4, 4), dtype="int16", fill_value=-7)
    [image] = patchloom.open_images(path)
    assert (image.read([0, 0], [8, 8]) == -7).all()
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [4, 4]})
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.chunk_reads == 4
    # Nothing but the metadata, to be sure that the array is still there.
    assert report.bytes_read == report.n_tasks * (path / "zarr.json").stat().st_size


def test_a_vanished_source_is_no_blank_image(tmp_path: Path) -> None:
    """Gone or changed after it was opened, an array is an error, never a store of fill values."""
    path = Path(store(tmp_path, chunks=(1, 8, 8)))
    [image] = patchloom.open_images(path, axes="CYX")
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [8, 8]})
    path.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(SourceChangedError, match="not there any more"):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    zarr.create_array(path, shape=(3, 40, 40), chunks=(1, 8, 8), dtype="uint16")
    with pytest.raises(SourceChangedError, match="other metadata"):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    (tmp_path / "elsewhere.zarr").rename(tmp_path / "back.zarr")
    assert not patchloom.open_patches(tmp_path / "out.zarr").complete


def test_relative_paths_mean_the_same_on_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is made absolute when it is given, wherever a worker stands."""
    store(tmp_path, chunks=(1, 8, 8))
    monkeypatch.chdir(tmp_path)
    [image] = patchloom.open_images("image.zarr", axes="CYX")
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [8, 8]})
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(image.read([0, 0, 0], PIXELS.shape), PIXELS)
    patchloom.materialize(plan, "out.zarr", progress=False)
    assert patchloom.open_patches(tmp_path / "other" / "out.zarr").complete


def test_sharded_reads_fetch_an_index_once_and_ranges(tmp_path: Path) -> None:
    """One inner chunk costs its own bytes and the shard's index, once."""
    path = store(tmp_path, chunks=(1, 5, 5), shards=(3, 20, 30), compressors=None)
    [image] = patchloom.open_images(path, axes="CYX")
    reader = image.source.reader()
    reader.read(np.array([[0, 0, 0]]))
    index = 16 * 3 * 4 * 6 + 4
    assert reader.reads.nbytes == 5 * 5 * 2 + index
    reader.read(np.array([[2, 3, 5]]))
    assert reader.reads.nbytes == 2 * 5 * 5 * 2 + index
    assert reader.reads.requests == 3


def test_numpy_dask_and_xarray(tmp_path: Path) -> None:
    """Arrays in memory give images whose data are Dask."""
    named = xarray.DataArray(PIXELS, dims=("channel", "y", "x"), name="well")
    sources = [PIXELS, da.from_array(PIXELS, chunks=(1, 8, 9)), named, named.chunk(x=10)]
    for source in sources:
        named_axes = None if hasattr(source, "dims") else "cyx"
        [image] = patchloom.open_images(source, axes=named_axes)
        assert str(image.axes) == "CYX"
        assert isinstance(image.data.data, da.Array)
        np.testing.assert_array_equal(image.data, PIXELS)
        np.testing.assert_array_equal(image.read([0, 1, 2], [3, 4, 9]), PIXELS[:, 1:4, 2:9])
    assert patchloom.open_images(named)[0].id == "well"


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("cyx", (300, 128, 128)), ("yxc", (128, 128, 300)), ("cyxs", (300, 64, 64, 4))],
)
def test_arrays_in_memory_of_many_channels(axes: str, shape: tuple[int, ...]) -> None:
    """A chunk holds all channels, however large that makes it: it is read as the grid says."""
    pixels = np.random.default_rng(0).integers(0, 2**32, shape, dtype="uint32")
    [image] = patchloom.open_images(pixels, axes=axes)
    assert image.grid.chunks[axes.index("c")] == 300
    np.testing.assert_array_equal(image.read([0] * len(shape), shape), pixels)
    [some] = patchloom.open_images(pixels, axes=axes, isel={"x": slice(0, 60)})
    where = tuple(slice(60) if a == "x" else slice(None) for a in axes)
    np.testing.assert_array_equal(some.read([0] * len(shape), some.shape), pixels[where])


def test_images_are_small_and_hold_nothing_open(tmp_path: Path) -> None:
    """An Image of any size pickles to a few kB, and works in another process as it is."""
    path = tmp_path / "huge.zarr"
    zarr.create_array(path, shape=(3, 10**6, 10**6), chunks=(1, 512, 512), dtype="uint16")
    [image] = patchloom.open_images(path, axes="CYX")
    data = pickle.dumps(image)
    assert len(data) < 4096
    back = pickle.loads(data)
    assert back.read([0, 5, 5], [3, 6, 6]).shape == (3, 1, 1)
    descriptors = len(os.listdir("/proc/self/fd"))
    image.read([0, 0, 0], [1, 2000, 2000])
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_by_path_glob_list_and_url(tmp_path: Path) -> None:
    """Ids are stems; equal stems need names of their own."""
    for name in ("b.ome.zarr", "a.zarr"):
        store(tmp_path, name, chunks=(1, 8, 8))
    assert [i.id for i in patchloom.open_images(f"{tmp_path}/*.zarr", axes="CYX")] == ["a", "b"]
    listed = patchloom.open_images(
        [tmp_path / "b.ome.zarr", f"file://{tmp_path}/a.zarr"], axes="cyx"
    )
    assert [i.id for i in listed] == ["b", "a"]
    (tmp_path / "more").mkdir()
    store(tmp_path / "more", "a.zarr", chunks=(1, 8, 8))
    with pytest.raises(IdentityError, match=r"ids="):
        patchloom.open_images([tmp_path / "a.zarr", tmp_path / "more" / "a.zarr"], axes="CYX")
    named = patchloom.open_images(
        [tmp_path / "a.zarr", tmp_path / "more" / "a.zarr"], axes="CYX", ids=["one", "two"]
    )
    assert [i.id for i in named] == ["one", "two"]


def fsspec_put(source: str, url: str, options: dict[str, Any]) -> None:
    import fsspec

    fs, path = fsspec.core.url_to_fs(url, **options)
    for file in Path(source).rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{path}/{file.relative_to(source).as_posix()}", file.read_bytes())


def whole_walk(url: str, options: dict[str, Any], out: str) -> None:
    """Open, plan, materialise and read back through URLs alone."""
    [image] = patchloom.open_images(url, axes="CYX", storage_options=options)
    assert image.data.shape == PIXELS.shape
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [6, 7]})
    out_options = options if "://" in out and not url.startswith("http") else None
    report = patchloom.materialize(plan, out, storage_options=out_options, progress=False)
    assert report.complete
    assert report.requests > 0
    again = patchloom.open_patches(out, storage_options=out_options)
    for row in again.manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        np.testing.assert_array_equal(again[row["row"]], PIXELS[:, y : y + 6, x : x + 7])
    shown = json.dumps(again.attributes) + json.dumps(report.to_dict())
    for secret in ("key", "secret", "token"):
        assert str(options.get(secret) or "no secret here") not in shown


@pytest.mark.parametrize("shards", [None, (3, 16, 16)])
def test_memory_urls(shards: Any, tmp_path: Path) -> None:
    """memory:// in and out."""
    fsspec_put(store(tmp_path, chunks=(1, 8, 8), shards=shards), f"memory://in-{shards}.zarr", {})
    whole_walk(f"memory://in-{shards}.zarr", {}, f"memory://out-{shards}.zarr")


@pytest.mark.parametrize("shards", [None, (3, 16, 16)])
def test_s3_urls(shards: Any, tmp_path: Path, s3_server: S3Server) -> None:
    """s3:// in and out, over HTTP."""
    bucket = s3_server.fresh_bucket()
    options = s3_server.storage_options
    fsspec_put(store(tmp_path, chunks=(1, 8, 8), shards=shards), f"{bucket}/in.zarr", options)
    whole_walk(f"{bucket}/in.zarr", options, f"{bucket}/out.zarr")
    assert [
        i.id
        for i in patchloom.open_images(f"{bucket}/*n.zarr", axes="CYX", storage_options=options)
    ] == ["in"]


@pytest.mark.parametrize("shards", [None, (3, 16, 16)])
def test_gcs_urls(shards: Any, tmp_path: Path, gcs_server: GcsServer) -> None:
    """gs:// in and out, over HTTP."""
    bucket = gcs_server.fresh_bucket()
    options = gcs_server.storage_options
    fsspec_put(store(tmp_path, chunks=(1, 8, 8), shards=shards), f"{bucket}/in.zarr", options)
    whole_walk(f"{bucket}/in.zarr", options, f"{bucket}/out.zarr")


@pytest.mark.parametrize("shards", [None, (3, 16, 16)])
def test_http_urls(shards: Any, tmp_path: Path, http_server: Callable[[Path], HttpServer]) -> None:
    """http:// in, disk out."""
    pytest.importorskip("aiohttp")
    store(tmp_path, chunks=(1, 8, 8), shards=shards)
    server = http_server(tmp_path)
    whole_walk(server.url("image.zarr"), server.storage_options, str(tmp_path / "out.zarr"))


def test_wrong_credentials_are_our_error(s3_server: S3Server) -> None:
    """A refused key is an error with the way out and without the key."""
    if s3_server.kind != "ceph":
        pytest.skip("moto accepts every credential")
    bucket = s3_server.fresh_bucket()
    options = {**s3_server.storage_options, "key": "wrong", "secret": "hunter2-hunter2"}
    with pytest.raises(SourceMissingError, match="credentials") as caught:
        patchloom.open_images(f"{bucket}/image.zarr", storage_options=options)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Location.of(bucket, options))


def test_roles_by_every_name(tmp_path: Path) -> None:
    """A role is an array, a URL, a pattern, a list or a mapping."""
    for name in ("a", "b"):
        store(tmp_path, f"{name}.zarr", chunks=(1, 8, 8))
        mask = zarr.create_array(
            tmp_path / f"{name}-mask.zarr", shape=(10, 15), chunks=(5, 5), dtype="bool"
        )
        mask[...] = name == "b"
    urls = [str(tmp_path / f"{n}.zarr") for n in "ab"]
    pattern = str(tmp_path / "{stem}-mask.zarr")
    listed = [str(tmp_path / f"{n}-mask.zarr") for n in "ab"]
    for given in (pattern, listed, {"b": listed[1], "a": np.zeros((10, 15), bool)}):
        images = patchloom.open_images(urls, axes="CYX", mask=given)
        config = {"name": "sequential", "patch_size": [10, 10]}
        plan = patchloom.plan(images, config, min_coverage=1)
        assert {plan.get_patch_spec(i)["data_idx"] for i in range(plan.n_patches)} == {1}
    with pytest.raises(IdentityError, match="one for all"):
        patchloom.open_images(urls, axes="CYX", mask=listed[:1])
    with pytest.raises(IdentityError, match="one side only"):
        patchloom.open_images(urls, axes="CYX", mask={"a": listed[0], "c": listed[1]})


def test_planes_as_samples() -> None:
    """sample='z' patches a stack plane by plane."""
    stack = np.arange(2 * 3 * 8 * 8, dtype="uint16").reshape(2, 3, 8, 8)
    [image] = patchloom.open_images(stack, axes="CZYX", sample="Z")
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [4, 4]})
    assert plan.n_patches == 3 * 4
    assert image.layout.n_samples == 3
    with pytest.raises(AxesError, match="sample="):
        patchloom.open_images(stack, axes="CZYX", sample="t")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: p / "nothing.zarr", SourceMissingError, "nothing was found"),
        (lambda p: p / "nothing*.zarr", SourceMissingError, "nothing matches"),
        (lambda p: [], SourceMissingError, "at least one"),
        (lambda p: p, NotAnArrayError, "neither zarr.json"),
        (lambda p: "nosuch://x/y", SourceMissingError, "protocol"),
        (lambda p: np.array(["a", "b"]), NotAnArrayError, "integers, floats or bools"),
        (lambda p: np.zeros((4, 4), complex), NotAnArrayError, "integers, floats or bools"),
        (lambda p: np.zeros((4, 0)), SourceError, "at least one pixel"),
        (lambda p: np.zeros(()), AxesError, "1 to 5 dimensions"),
        (lambda p: np.zeros((1,) * 6), AxesError, "name them"),
    ],
)
def test_what_is_no_image_is_refused(
    make: Callable[[Path], Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    """Each is an error of ours that says what is wrong and what to do."""
    with pytest.raises(error, match=words):
        patchloom.open_images(make(tmp_path))


@pytest.mark.parametrize("axes", ["YX", "CYXX", "QYX", "CZC", ""])
def test_wrong_axes_are_refused(axes: str) -> None:
    """Unknown, repeated, missing or too many letters."""
    with pytest.raises(AxesError, match=r"axes|axis"):
        patchloom.open_images(PIXELS, axes=axes)


def test_groups_and_levels(tmp_path: Path) -> None:
    """A bare group lists its arrays; a level that is not there is an error, never all levels."""
    group = zarr.create_group(tmp_path / "group.zarr")
    for name in ("first", "second"):
        group.create_array(name, shape=(4, 4), chunks=(2, 2), dtype="uint8")
    with pytest.raises(NotAnArrayError, match=r"first.*second"):
        patchloom.open_images(tmp_path / "group.zarr")
    assert patchloom.open_images(tmp_path / "group.zarr" / "second")[0].id == "second"
    with pytest.raises(SourceError, match="has levels"):
        patchloom.open_images(tmp_path / "group.zarr" / "second", level=1)


def test_broken_metadata_are_refused(tmp_path: Path) -> None:
    """Metadata that are no JSON, or lie, are an error of ours."""
    path = Path(store(tmp_path, chunks=(1, 8, 8)))
    document = json.loads((path / "zarr.json").read_text())
    for wrong in (
        "not json",
        "[]",
        json.dumps({**document, "data_type": "no such type"}),
        json.dumps({**document, "codecs": [{"name": "no such codec"}]}),
        json.dumps({k: v for k, v in document.items() if k != "shape"}),
    ):
        (path / "zarr.json").write_text(wrong)
        with pytest.raises(NotAnArrayError, match=r"image\.zarr"):
            patchloom.open_images(path, axes="CYX")


def test_locations_never_show_secrets() -> None:
    """Neither URL passwords, nor query tokens, nor option values."""
    location = Location.of("s3://me:pass@bucket/a.zarr?sig=abc", {"secret": "hunter2"})
    assert location.shown == "s3://bucket/a.zarr"
    for text in (repr(location.options), str(location.options), repr({"o": location.options})):
        assert "hunter2" not in text
    assert dict(pickle.loads(pickle.dumps(StorageOptions({"key": "k"})))) == {"key": "k"}
