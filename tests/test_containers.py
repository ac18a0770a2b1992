"""Containers: groups of several arrays, archives, and xarray Datasets."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray
import zarr

import patchloom
from patchloom.config import load_job
from patchloom.errors import NotAnArrayError, SourceError, SourceMissingError
from patchloom.location import Location
from patchloom.run.jobs import images_of
from tests import ome
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server

RAW = np.arange(24 * 30, dtype="uint16").reshape(24, 30)
NAMES = ["deep/er/a", "image", "raw", "seg"]


def container(path: Path, zarr_format: Any = 3) -> Path:
    """A group with two arrays, one deeper, an OME-Zarr image and something that is no Zarr."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, pixels in (("raw", RAW), ("seg", RAW + 1), ("deep/er/a", RAW + 2)):
        array = group.create_array(name, shape=RAW.shape, dtype=RAW.dtype, chunks=(8, 8))
        array[...] = pixels
    ome.image(path / "image", "0.5" if zarr_format == 3 else "0.4", RAW + 3)
    (path / "notes").mkdir()
    (path / "notes" / "read.me").write_text("no array")
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_path_inside_opens_one_of_several(zarr_format: int, tmp_path: Path) -> None:
    """After ``::``, with ``array=``, in a glob, a list and a job; called like the container."""
    path = container(tmp_path / "a.zarr", zarr_format)
    container(tmp_path / "b.zarr", zarr_format)
    for k, name in enumerate(["raw", "seg", "deep/er/a", "image"]):
        for found in (
            patchloom.open_images(f"{path}::{name}"),
            patchloom.open_images(path, array=name),
        ):
            [image] = found
            assert image.id == "a"
            np.testing.assert_array_equal(image.read([0, 0], RAW.shape), RAW + k)
    images = patchloom.open_images(
        f"{tmp_path}/*.zarr::raw", labels=f"{tmp_path}/{{stem}}.zarr::seg"
    )
    assert [image.id for image in images] == ["a", "b"]
    assert all(i.labels and i.labels.image.uri.endswith(f"{i.id}.zarr/seg") for i in images)
    images = patchloom.open_images([path, tmp_path / "b.zarr"], array="deep/er/a")
    assert [image.id for image in images] == ["a", "b"]
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {path}\narray: seg\noutput: out.zarr\n"
        "patching: {name: sequential, patch_size: [8, 8]}\n"
    )
    [image] = images_of(load_job(job))
    assert image.uri.endswith("a.zarr/seg")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_several_candidates_are_listed(zarr_format: int, tmp_path: Path) -> None:
    """Deep ones too, and what stands there if a path inside names nothing."""
    path = container(tmp_path / "a.zarr", zarr_format)
    with pytest.raises(NotAnArrayError) as caught:
        patchloom.open_images(path)
    assert str(NAMES) in str(caught.value)
    for inside in ("none", "raw/c", "deep/er/b"):
        with pytest.raises(SourceMissingError) as caught_too:
            patchloom.open_images(f"{path}::{inside}")
        assert str(NAMES) in str(caught_too.value)


def test_one_candidate_is_taken(tmp_path: Path) -> None:
    """However deep it lies."""
    path = container(tmp_path / "a.zarr")
    [image] = patchloom.open_images(f"{path}::deep")
    assert image.uri.endswith("deep/er/a")


def test_a_broken_neighbour_hides_no_candidate(tmp_path: Path) -> None:
    """What cannot be read is not listed; the others are."""
    path = container(tmp_path / "a.zarr")
    (path / "raw" / "zarr.json").write_text("{")
    with pytest.raises(NotAnArrayError, match=r"\['deep/er/a', 'image', 'seg'\]"):
        patchloom.open_images(path)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_list_what_a_server_does_not(
    zarr_format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what really stands there counts: what is gone or has changed is not believed."""
    path = container(tmp_path / "a.zarr", zarr_format)
    shutil.rmtree(path / "notes")
    zarr.consolidate_metadata(path, zarr_format=zarr_format)
    shutil.rmtree(path / "raw")
    shutil.rmtree(path / "deep")
    again = zarr.create_array(
        path / "seg", shape=(5, 6), dtype="uint8", zarr_format=zarr_format, overwrite=True
    )
    again[...] = 9

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError

    fs = fsspec.filesystem("file")
    monkeypatch.setattr(type(fs), "ls", refuse)
    with pytest.raises(NotAnArrayError, match=r"\['image/0', 'seg'\]"):
        patchloom.open_images(path)
    [image] = patchloom.open_images(path, array="seg")
    assert (image.shape, image.dtype) == ((5, 6), np.dtype("uint8"))
    shutil.rmtree(path / "image")
    [image] = patchloom.open_images(path)
    assert int(image.read([0, 0], [1, 1]).item()) == 9


def test_array_is_said_once(tmp_path: Path) -> None:
    """And only of what is a container."""
    path = container(tmp_path / "a.zarr")
    for item in (f"{path}::raw", RAW):
        with pytest.raises(SourceError, match="array= names what is opened inside"):
            patchloom.open_images(item, array="seg")


# --- Archives -------------------------------------------------------------------------------


def pack(folder: Path, archive: Path, below: str = "") -> Path:
    """A zip file of a folder, at its root or below a name."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{below}{path.relative_to(folder)}")
    return archive


@pytest.mark.parametrize("below", ["", "a.zarr/"])
def test_zarr_in_a_zip_file_opens_by_its_path(below: str, tmp_path: Path) -> None:
    """At the root of the archive, or in its one folder; groups and levels as anywhere."""
    path = pack(container(tmp_path / "a.zarr"), tmp_path / "packed.zip", below)
    for name, k in (("raw", 0), ("seg", 1), ("image", 3)):
        [image] = patchloom.open_images(f"{path}::{name}", labels=f"{path}::seg")
        np.testing.assert_array_equal(image.data, RAW + k)
        assert image.labels is not None
        assert (image.labels.image.read([0, 0], RAW.shape) == RAW + 1).all()
    assert image.spacing == {"y": 0.5, "x": 0.5}
    with pytest.raises(NotAnArrayError, match="deep/er/a"):
        patchloom.open_images(path)
    if below:
        [image] = patchloom.open_images(f"zip://a.zarr/raw::{path}")
        assert image.id == "raw"
        np.testing.assert_array_equal(image.read([0, 0], RAW.shape), RAW)
        [image] = patchloom.open_images(f"zip://a.zarr::{path}::raw")
        assert image.id == "a"


def test_a_plate_in_a_zip_file_becomes_patches(tmp_path: Path) -> None:
    """The whole walk, from an archive."""
    fields = ome.plate(tmp_path / "plate.ome.zarr", "0.4", {"A/1": 2})
    path = pack(tmp_path / "plate.ome.zarr", tmp_path / "plate.zip")
    images = patchloom.open_images(path)
    assert [image.id for image in images] == [*fields]
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 12]})
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert len(store.manifest) == 8


def test_zarr_in_a_zip_file_on_s3(s3_server: S3Server, tmp_path: Path) -> None:
    """With the options of the bucket, plain as for a folder there."""
    path = pack(container(tmp_path / "a.zarr"), tmp_path / "packed.zip")
    url = f"{s3_server.fresh_bucket()}/packed.zip"
    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    fs.put_file(str(path), url.removeprefix("s3://"))
    [image] = patchloom.open_images(f"{url}::raw", storage_options=s3_server.storage_options)
    np.testing.assert_array_equal(image.read([0, 0], RAW.shape), RAW)


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"PK\x05\x06" + 18 * b"\0"])
def test_what_is_no_archive_of_zarr_is_refused(content: bytes, tmp_path: Path) -> None:
    """Nothing, noise, and an archive of nothing: one error of ours each."""
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="an archive"):
        patchloom.open_images(path)
    with pytest.raises(SourceMissingError, match=r"none\.zip"):
        patchloom.open_images(tmp_path / "none.zip")


def test_an_archive_of_several_stores_lists_them(tmp_path: Path) -> None:
    """And a chain of fsspec's says which."""
    for name in ("a", "b"):
        ome.image(tmp_path / "all" / f"{name}.zarr", "0.5", RAW)
    path = pack(tmp_path / "all", tmp_path / "all.zip")
    with pytest.raises(NotAnArrayError, match=r"\['a.zarr', 'b.zarr'\].*zip://a.zarr::"):
        patchloom.open_images(path)
    [image] = patchloom.open_images(f"zip://b.zarr::{path}")
    assert image.id == "b"


@pytest.mark.parametrize(
    ("url", "below", "parent", "stem"),
    [
        ("/data/a.zarr", "/data/a.zarr/0", "/data", "a"),
        ("/a.zarr", "/a.zarr/0", "/", "a"),
        ("s3://b/a.ome.zarr", "s3://b/a.ome.zarr/0", "s3://b", "a"),
        ("s3://b", "s3://b/0", "s3://b", "b"),
        ("s3://key:ge::heim@b/a.zarr", "s3://key:ge::heim@b/a.zarr/0", None, "a"),
        ("zip://a.zarr::s3://b/c.zip", "zip://a.zarr/0::s3://b/c.zip", "zip://::s3://b/c.zip", "a"),
        ("zip://x/a.zarr::/c.zip", "zip://x/a.zarr/0::/c.zip", "zip://x::/c.zip", "a"),
        ("zip://::s3://b/c.zip", "zip://0::s3://b/c.zip", "zip://::s3://b/c.zip", "c"),
        ("zip::/c.zip", "zip://0::/c.zip", "zip://::/c.zip", "c"),
        ("simplecache::s3://b/a.zarr", "simplecache::s3://b/a.zarr/0", "simplecache::s3://b", "a"),
        (
            "simplecache::zip://a.zarr::s3://b/c.zip",
            "simplecache::zip://a.zarr/0::s3://b/c.zip",
            "simplecache::zip://::s3://b/c.zip",
            "a",
        ),
    ],
)
def test_names_below_a_chain_go_into_its_first_link(
    url: str, below: str, parent: str | None, stem: str
) -> None:
    """Where the path in the archive stands."""
    location = Location(url)
    assert (location / "0").url == below
    assert location.stem == stem
    if parent is not None:
        assert location.parent.url == parent


# --- Datasets -------------------------------------------------------------------------------


def dataset(**coords: Any) -> xarray.Dataset:
    """Two variables over the same grid, and one over another."""
    return xarray.Dataset(
        {
            "raw": (("band", "y", "x"), np.stack([RAW, RAW + 1])),
            "cloud": (("y", "x"), RAW > 9),
        },
        coords={"band": ["red", "nir"], **coords},
    )


def test_a_dataset_opens_by_its_variable(tmp_path: Path) -> None:
    """The only one, or that of ``array=``; coordinates in equal steps are places."""
    y, x = 5 + 0.5 * np.arange(24), np.arange(30, dtype="float32") * np.float32(0.1)
    found = dataset(y=("y", y, {"units": "micrometer"}), x=x)
    [image] = patchloom.open_images(found, array="raw")
    assert (image.id, str(image.axes), image.channels) == ("raw", "CYX", ("red", "nir"))
    assert image.spacing == {"y": 0.5, "x": pytest.approx(0.1)}
    assert image.origin == {"y": 5.0, "x": 0.0}
    assert image.unit == {"y": "micrometer"}
    np.testing.assert_array_equal(image.data, found["raw"])
    with pytest.raises(NotAnArrayError, match=r"\['raw', 'cloud'\]"):
        patchloom.open_images(found)
    with pytest.raises(SourceError, match="'raw', 'cloud'"):
        patchloom.open_images(found, array="sun")
    with pytest.raises(NotAnArrayError, match="no data variable"):
        patchloom.open_images(xarray.Dataset())
    [image] = patchloom.open_images(found[["cloud"]])
    assert image.dtype == bool

    path = tmp_path / "cube.zarr"
    found.chunk({"y": 8, "x": 8}).to_zarr(path, zarr_format=2, consolidated=False)
    lazy = xarray.open_zarr(path, consolidated=False)
    [image] = patchloom.open_images(lazy, array="raw")
    assert image.spacing["y"] == 0.5
    np.testing.assert_array_equal(image.data, found["raw"])
    with pytest.raises(NotAnArrayError, match=r"'cloud', 'raw'"):
        patchloom.open_images(path)


@pytest.mark.parametrize(
    "y",
    [
        np.arange(24)[::-1],
        np.arange(24) ** 1.5,
        np.zeros(24),
        np.full(24, np.nan),
        np.array([f"{k}" for k in range(24)]),
        np.datetime64("2020-01-01") + np.arange(24),
    ],
    ids=["falling", "uneven", "equal", "nan", "text", "dates"],
)
def test_other_coordinates_tell_no_places(y: Any) -> None:
    """Then no axis has a spacing: half a scale would be none."""
    [image] = patchloom.open_images(dataset(y=y, x=np.arange(30.0)), array="cloud")
    assert (image.spacing, image.origin) == ({}, {})


def test_a_dataset_of_a_mask_lies_where_its_coordinates_say() -> None:
    """A coarser mask is found by places, not by its shape."""
    fine = dataset(y=np.arange(24.0), x=np.arange(30.0))
    coarse = xarray.DataArray(
        np.ones((12, 15), bool),
        dims=("y", "x"),
        coords={"y": 0.5 + 2 * np.arange(12), "x": 0.5 + 2 * np.arange(15)},
    )
    [image] = patchloom.open_images(fine, array="raw", mask=coarse)
    assert image.mask is not None
    assert [*image.mask.alignment.scale] == [2, 2]
    assert [*image.mask.alignment.offset] == [0, 0]


def test_candidates_are_found_on_s3_and_over_http(
    s3_server: S3Server, http_server: Callable[[Path], HttpServer], tmp_path: Path
) -> None:
    """Where folders are prefixes, or pages of links."""
    path = container(tmp_path / "a.zarr")
    url = f"{s3_server.fresh_bucket()}/a.zarr"
    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    inside = [p for p in path.rglob("*") if p.is_file()]
    fs.put([str(p) for p in inside], [f"{url}/{p.relative_to(path).as_posix()}" for p in inside])
    web = http_server(tmp_path).url("a.zarr")
    for where, options in ((url, s3_server.storage_options), (web, {})):
        with pytest.raises(NotAnArrayError) as caught:
            patchloom.open_images(where, storage_options=options)
        assert str(NAMES) in str(caught.value)
        [image] = patchloom.open_images(where, array="seg", storage_options=options)
        np.testing.assert_array_equal(image.read([0, 0], RAW.shape), RAW + 1)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """Folders that hold themselves are looked at for a while, and what is found is listed."""
    path = container(tmp_path / "a.zarr")
    for k in range(5):
        (path / f"loop{k}").symlink_to(path, target_is_directory=True)
    with pytest.raises(NotAnArrayError, match="deep/er/a"):
        patchloom.open_images(path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("zip://a@b.zarr::/data/c@d.zip", "zip://a@b.zarr::/data/c@d.zip"),
        ("zip://a.zarr::s3://key:geheim@b/c.zip?t=geheim", "zip://a.zarr::s3://b/c.zip"),
        ("zip://::s3://key:ge::heim@b/c.zip", "zip://::s3://b/c.zip"),
        ("s3://key:ge::heim@b/c.zarr", "s3://b/c.zarr"),
    ],
)
def test_chains_show_no_secret_and_whole_paths(url: str, shown: str) -> None:
    """A saved plan finds its archive again, and tells nobody how."""
    assert Location(url).shown == shown
