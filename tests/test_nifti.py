"""NIfTI: voxels as nibabel reads them, axes turned round, scaled where the header says so."""

from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import patchloom
from patchloom.errors import ChunkError, NotAnArrayError

TYPES = ["u1", "i1", "<u2", ">u2", "<i2", ">i4", "<f4", ">f8", "<u4", "<i8"]


def saved(
    path: Path,
    array: np.ndarray[Any, Any],
    affine: Any = None,
    second: bool = False,
    **scale: float,
) -> Path:
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    header = kind.header_class(endianness=">" if array.dtype.byteorder == ">" else "<")
    image = kind(array, np.eye(4) if affine is None else affine, header, dtype=array.dtype)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_are_as_nibabel_reads_them(
    tmp_path: Path, dtype: str, suffix: str, second: bool
) -> None:
    """Both versions, byte orders, zipped or not; 1 to 5 dimensions."""
    for ndim, axes in enumerate(("X", "YX", "ZYX", "TZYX", "CTZYX"), 1):
        shape = (7, 5, 4, 3, 2)[:ndim]
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        path = saved(tmp_path / f"{ndim}.{suffix}", array, second=second)
        [image] = patchloom.open_images(path)
        assert (str(image.axes), image.id) == (axes, f"{ndim}")
        assert image.dtype == array.dtype.newbyteorder("=")
        expected = np.asarray(nibabel.load(path).dataobj).T
        np.testing.assert_array_equal(expected, array.T)
        np.testing.assert_array_equal(image.read((0,) * ndim, image.shape), expected)


@pytest.mark.parametrize("stored", ["<i2", "u1", ">f4", "<f8"])
def test_scaled_voxels_are_floats(tmp_path: Path, stored: str) -> None:
    """Slope and intercept are applied in double precision; no scaling leaves numbers alone."""
    array = np.arange(60).reshape(5, 4, 3).astype(stored)
    path = saved(tmp_path / "a.nii", array)
    data = bytearray(path.read_bytes())
    order = ">" if stored[0] == ">" else "<"
    for slope, inter in ((0.1, -1024.0), (2.0, 0.0), (1.0, 0.5)):
        data[112:120] = struct.pack(order + "2f", slope, inter)
        path.write_bytes(data)
        [image] = patchloom.open_images(path)
        assert image.dtype == (np.float64 if stored == "<f8" else np.float32)
        expected = np.asarray(nibabel.load(path).dataobj).T
        found = image.read((0, 0, 0), image.shape)
        np.testing.assert_array_equal(found, expected.astype(image.dtype))
    for slope, inter in ((0.0, 7.0), (np.nan, np.nan), (1.0, 0.0)):
        data[112:120] = struct.pack(order + "2f", slope, inter)
        path.write_bytes(data)
        [image] = patchloom.open_images(path)
        assert image.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(image.read((0, 0, 0), image.shape), array.T)
    data[112:120] = struct.pack(order + "2f", np.inf, 0)
    path.write_bytes(data)
    with pytest.raises(NotAnArrayError, match="two finite numbers"):
        patchloom.open_images(path)


@pytest.mark.parametrize("second", [False, True])
def test_the_affine_tells_the_size_of_voxels(tmp_path: Path, second: bool) -> None:
    """Lengths of its columns, rotated or not; else pixdim; in the unit of the header."""
    turned = np.eye(4)
    rotation = Rotation.from_euler("xyz", [0.3, 0.2, 0.1]).as_matrix()
    turned[:3, :3] = rotation @ np.diag([0.5, 0.75, 2.0])
    turned[:3, 3] = 9
    array = np.zeros((5, 4, 3), np.uint8)
    path = saved(tmp_path / "a.nii", array, turned, second)
    image = nibabel.load(path)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "b.nii")
    [image] = patchloom.open_images(tmp_path / "b.nii")
    assert {a: round(v, 5) for a, v in image.spacing.items()} == {"z": 2, "y": 0.75, "x": 0.5}
    assert image.unit == dict.fromkeys("zyx", "millimeter")
    image = nibabel.load(path)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "c.nii")
    [image] = patchloom.open_images(tmp_path / "c.nii")
    assert {a: round(v, 5) for a, v in image.spacing.items()} == {"z": 2, "y": 0.75, "x": 0.5}


def test_colours_are_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    colours = array.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    [image] = patchloom.open_images(tmp_path / "a.nii")
    assert str(image.axes) == "ZYXC"
    expected = array.transpose(2, 1, 0, 3)
    np.testing.assert_array_equal(image.read((0, 0, 0, 0), image.shape), expected)


def test_runs_of_rows_are_ranges_and_a_zipped_file_is_one_chunk(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9, (256, 256, 64), np.uint16)
    [image] = patchloom.open_images(saved(tmp_path / "a.nii", array))
    assert image.grid.chunks == (8, 256, 256)
    reader = image.source.reader()
    reader.read(np.array([[3, 0, 0]]))
    assert (reader.reads.requests, reader.reads.nbytes) == (1, 2**20)
    [image] = patchloom.open_images(saved(tmp_path / "a.nii.gz", array))
    assert image.grid.n_chunks == 1
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [32, 64, 64]})
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert (report.chunk_reads, report.chunks_needed) == (1, 1)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    np.testing.assert_array_equal(store[0][0], array.T[:32, :64, :64])


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    """As bgzip writes them."""
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    plain = saved(tmp_path / "a.nii", array).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(
        b"".join(gzip.compress(plain[k : k + 100]) for k in range(0, len(plain), 100))
    )
    [image] = patchloom.open_images(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.read((0, 0, 0), image.shape), array.T)


def header(plain: bytes, at: int, form: str, *values: float) -> bytes:
    data = bytearray(plain)
    struct.pack_into(form, data, at, *values)
    return bytes(data)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_no_such_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    plain = saved(tmp_path / "good.nii", np.ones((5, 4, 3), np.int16)).read_bytes()
    for content, what in [
        (b"", "header of NIfTI"),
        (plain[:340], "header of NIfTI"),
        (header(plain, 344, "4s", b"ni1\0"), "header of NIfTI"),  # type: ignore[arg-type]
        (header(plain, 40, "<8h", 0, 5, 4, 3, 1, 1, 1, 1), "1 to 5 dimensions"),
        (header(plain, 40, "<8h", 3, 5, -4, 3, 1, 1, 1, 1), "1 to 5 dimensions"),
        (header(plain, 40, "<8h", 7, 2, 2, 2, 2, 2, 2, 2), "1 to 5 dimensions"),
        (header(plain, 40, "<8h", 3, *[32767] * 3, 1, 1, 1, 1), "all of its array"),
        (header(plain, 70, "<h", 1792), "data type 1792"),
        (header(plain, 108, "<f", -1.0), "all of its array"),
        (header(plain, 108, "<f", np.nan), "all of its array"),
        (header(plain, 108, "<f", 1e30), "all of its array"),
    ]:
        path = tmp_path / ("bad.nii.gz" if zipped else "bad.nii")
        path.write_bytes(gzip.compress(content) if zipped else content)
        with pytest.raises(NotAnArrayError, match=what):
            patchloom.open_images(path)
    (tmp_path / "bad.nii.gz").write_bytes(plain)
    with pytest.raises(NotAnArrayError, match="is a gzip stream"):
        patchloom.open_images(tmp_path / "bad.nii.gz")


def test_a_zipped_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 99, (50, 40, 3), np.int16)
    path = saved(tmp_path / "a.nii.gz", array)
    [image] = patchloom.open_images(path)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    for content in (whole[:-2000], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(ChunkError, match="does not inflate to it"):
            image.read((0, 0, 0), image.shape)


def test_nothing_warns(tmp_path: Path) -> None:
    """Scaling in double precision overflows no pixel type."""
    path = saved(tmp_path / "a.nii", np.full((3, 3, 3), 32767, np.int16))
    path.write_bytes(header(path.read_bytes(), 112, "<2f", 3e33, 0.0))
    [image] = patchloom.open_images(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(image.read((0, 0, 0), (3, 3, 3))).all()
