"""Every format from every place in every type that it can hold: the same pixels.

A format is one row of `ROWS`; docs/formats/index.md shows the same table.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import fsspec
import h5py
import nibabel
import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

import patchloom
from tests import ome
from tests.servers.gcs import GcsServer
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server

Pixels = np.ndarray[Any, Any]
SHAPE = (37, 53)
TYPES = {"u8": "u1", "u16": "u2", "i16": "i2", "f32": "f4", "bool": "?"}
ALL = tuple(TYPES)
PLACES = ("local", "memory", "http", "s3", "gcs")


def write_npy(path: Path, pixels: Pixels) -> None:
    np.save(path, pixels)


def write_npz(path: Path, pixels: Pixels) -> None:
    np.savez(path, raw=pixels)


def write_npz_deflated(path: Path, pixels: Pixels) -> None:
    np.savez_compressed(path, raw=pixels)


def write_hdf5(path: Path, pixels: Pixels, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("deep/raw", data=pixels, **options)


def write_hdf5_gzip(path: Path, pixels: Pixels) -> None:
    write_hdf5(path, pixels, chunks=(16, 16), compression="gzip", shuffle=True, fletcher32=True)


def write_hdf5_lzf(path: Path, pixels: Pixels) -> None:
    write_hdf5(path, pixels, chunks=(16, 16), compression="lzf")


def write_picture(path: Path, pixels: Pixels) -> None:
    PIL.Image.fromarray(pixels).save(path)


def write_jpeg(path: Path, pixels: Pixels) -> None:
    PIL.Image.fromarray(pixels).save(path, quality=100)


def write_tiff(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path, pixels, rowsperstrip=8)


def write_tiff_tiles(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib")


def write_imagej(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path, pixels, imagej=True)


def write_slide(path: Path, pixels: Pixels) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level in (pixels, pixels[::2, ::2], pixels[::4, ::4]):
            tif.write(level, tile=(16, 16), compression="zlib", subfiletype=level is not pixels)


def write_geotiff(path: Path, pixels: Pixels) -> None:
    scale, tie = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 500000.0, 5000000.0, 0.0)
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [(33550, "d", 3, scale, True), (33922, "d", 6, tie, True), (34735, "H", 12, keys, True)]
    tifffile.imwrite(path, pixels, tile=(16, 16), compression="lzw", extratags=tags)


def write_nifti(path: Path, pixels: Pixels) -> None:
    nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), path)


def write_zarr(path: Path, pixels: Pixels, **options: Any) -> None:
    array = zarr.create_array(path, shape=SHAPE, dtype=pixels.dtype, chunks=(8, 8), **options)
    array[...] = pixels


def write_zarr_v2(path: Path, pixels: Pixels) -> None:
    write_zarr(path, pixels, zarr_format=2)


def write_zarr_shards(path: Path, pixels: Pixels) -> None:
    write_zarr(path, pixels, shards=(16, 32))


def write_ome_zarr_04(path: Path, pixels: Pixels) -> None:
    ome.image(path, "0.4", pixels)


def write_ome_zarr_05(path: Path, pixels: Pixels) -> None:
    ome.image(path, "0.5", pixels)


@dataclass(frozen=True)
class Row:
    """A format."""

    name: str
    suffix: str
    write: Callable[[Path, Pixels], None]
    holds: tuple[str, ...] = ALL
    error: float = 0
    """Grey levels by which pixels of a lossy format may differ from those that were written."""


ROWS = (
    Row("NumPy `.npy`", "npy", write_npy),
    Row("NumPy `.npz`, stored", "stored.npz", write_npz),
    Row("NumPy `.npz`, deflated", "deflated.npz", write_npz_deflated),
    Row("HDF5, contiguous", "contiguous.h5", write_hdf5),
    Row("HDF5, gzip", "gzip.h5", write_hdf5_gzip),
    Row("HDF5, LZF", "lzf.h5", write_hdf5_lzf),
    Row("PNG", "png", write_picture, ("u8", "u16", "bool")),
    Row("BMP", "bmp", write_picture, ("u8", "bool")),
    # Quality 100 rounds the 64 coefficients of a block by a half each, so no pixel by more than 4,
    # and decoders round the pixels.
    Row("JPEG of quality 100", "jpg", write_jpeg, ("u8",), error=5),
    Row("TIFF, stripped", "strips.tif", write_tiff),
    Row("TIFF, tiled, deflate", "tiles.tif", write_tiff_tiles),
    Row("TIFF by ImageJ", "imagej.tif", write_imagej, ("u8", "u16", "f32")),
    Row("OME-TIFF", "ome.tif", write_tiff_tiles),
    Row("TIFF, slide pyramid", "slide.tif", write_slide),
    Row("GeoTIFF, tiled, LZW", "geo.tif", write_geotiff),
    Row("NIfTI `.nii`", "nii", write_nifti, ("u8", "u16", "i16", "f32")),
    Row("NIfTI `.nii.gz`", "nii.gz", write_nifti, ("u8", "u16", "i16", "f32")),
    Row("Zarr v2", "v2.zarr", write_zarr_v2),
    Row("Zarr v3", "v3.zarr", write_zarr),
    Row("Zarr v3, sharded", "shards.zarr", write_zarr_shards),
    Row("OME-Zarr 0.4", "v04.ome.zarr", write_ome_zarr_04),
    Row("OME-Zarr 0.5", "v05.ome.zarr", write_ome_zarr_05),
)
CELLS = [(row, kind) for row in ROWS for kind in row.holds]


def pixels_of(kind: str) -> Pixels:
    """The extremes of a type, and all between."""
    dtype = np.dtype(TYPES[kind])
    random = np.random.default_rng(0)
    if dtype.kind == "f":
        return random.normal(0, 1e6, SHAPE).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, SHAPE).astype(bool)
    limits = np.iinfo(dtype)
    pixels = random.integers(limits.min, limits.max, SHAPE, dtype, endpoint=True)
    pixels[0, :2] = limits.min, limits.max
    return pixels


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every cell of the table."""
    folder = tmp_path_factory.mktemp("formats")
    for row, kind in CELLS:
        row.write(folder / f"{kind}.{row.suffix}", pixels_of(kind))
    return folder


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest, written: Path) -> tuple[str, dict[str, Any]]:
    """The same folder somewhere: its URL, and the options to reach it."""
    if request.param == "local":
        return str(written), {}
    if request.param == "http":
        serve: Callable[[Path], HttpServer] = request.getfixturevalue("http_server")
        return serve(written).url().rstrip("/"), {}
    if request.param == "memory":
        url, options = f"memory://{uuid.uuid4().hex}", {}
    else:
        server: S3Server | GcsServer = request.getfixturevalue(f"{request.param}_server")
        url, options = server.fresh_bucket(), server.storage_options
    fs, root = fsspec.url_to_fs(url, **options)
    for path in written.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(written).as_posix()}", path.read_bytes())
    return url, options


@pytest.mark.parametrize(("row", "kind"), CELLS, ids=lambda v: getattr(v, "suffix", v))
def test_pixels_are_the_same_from_everywhere(
    place: tuple[str, dict[str, Any]], row: Row, kind: str
) -> None:
    """By box and lazily, on threads; the type is the one that was written."""
    url, options = place
    [image] = patchloom.open_images(f"{url}/{kind}.{row.suffix}", storage_options=options)
    expected = pixels_of(kind)
    assert (image.shape, image.dtype) == (SHAPE, expected.dtype)
    found = image.read((0, 0), SHAPE)
    apart = np.abs(found.astype("f8") - expected.astype("f8")).max()
    assert apart <= row.error
    expected = found if row.error else expected
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(image.read((3, 5), (20, 18)), expected[3:20, 5:18])
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(np.asarray(image.data), expected)


def test_the_page_shows_this_table() -> None:
    """What a format cannot hold is listed on the page as it is left out here."""
    page = Path(__file__).parents[1] / "docs" / "formats" / "index.md"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| .*\| (yes|no) ", line)
    ]
    expected = [
        [row.name, *("yes" if kind in row.holds else "no" for kind in TYPES)] for row in ROWS
    ]
    assert [line[: 1 + len(TYPES)] for line in lines] == expected
