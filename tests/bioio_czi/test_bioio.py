"""CZI files, written by the library of their maker and read by bioio: the same pixels.

There is no writer of ND2 or LIF here: of ND2 only the refusal of other files is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pytest
import tifffile

import patchloom
from patchloom.errors import NotAnArrayError, SourceError
from patchloom.location import Location
from patchloom.sources.files import Wanted, open_file

pytest.importorskip("bioio_czi")
czi = pytest.importorskip("pylibCZIrw.czi")

# Of bioio, its plugins and theirs; none is ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

Pixels = np.ndarray[Any, Any]
PIXELS = np.random.default_rng(0).integers(0, 60000, (2, 3, 40, 50), dtype="uint16")


def written(path: Path, pixels: Pixels = PIXELS) -> Path:
    """A CZI file of CZYX."""
    with czi.create_czi(str(path)) as file:
        for c, z in np.ndindex(pixels.shape[:2]):
            file.write(data=pixels[c, z][..., None], plane={"C": c, "Z": z, "T": 0}, scene=0)
        names = {0: "DAPI", 1: "GFP"}
        file.write_metadata("a", channel_names=names, scale_x=1e-7, scale_y=1e-7, scale_z=1e-6)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pixels_axes_and_sizes_are_what_was_written(dtype: str, tmp_path: Path) -> None:
    pixels = PIXELS.astype(dtype)
    [image] = patchloom.open_images(written(tmp_path / "a.czi", pixels))
    assert (str(image.axes), image.shape) == ("CZYX", pixels.shape)
    assert image.dtype == pixels.dtype
    assert (image.channels, image.unit["x"]) == (("DAPI", "GFP"), "micrometer")
    assert dict(image.spacing) == pytest.approx({"z": 1.0, "y": 0.1, "x": 0.1})
    np.testing.assert_array_equal(image.read((0, 0, 0, 0), image.shape), pixels)
    np.testing.assert_array_equal(
        image.read((1, 1, 3, 5), (2, 3, 20, 30)), pixels[1:2, 1:3, 3:20, 5:30]
    )


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_store_of_patches_is_made_and_checked(scheduler: str, tmp_path: Path) -> None:
    images = patchloom.open_images(written(tmp_path / "a.czi"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [3, 20, 25]})
    plan.save(str(tmp_path / "plan"))
    again = patchloom.Plan.load(str(tmp_path / "plan"))
    with dask.config.set(scheduler=scheduler, num_workers=2):
        patchloom.materialize(again, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    for row in store.manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        np.testing.assert_array_equal(store[row["row"]], PIXELS[..., y : y + 20, x : x + 25])
    report = patchloom.verify(tmp_path / "out.zarr", progress=False)
    assert (report.ok, report.n_compared) == (True, plan.n_patches)


def test_one_of_several_scenes_is_named(tmp_path: Path) -> None:
    """In OME-TIFF by bioio's plugin: no writer of CZI names scenes as bioio wants them."""
    pytest.importorskip("bioio_ome_tiff")
    path, scenes = tmp_path / "a.ome.tif", [PIXELS, PIXELS[..., ::-1, :20]]
    with tifffile.TiffWriter(path, ome=True) as tif:
        for pixels in scenes:
            tif.write(pixels, metadata={"axes": "CZYX"}, photometric="minisblack")
    location = Location.of(path)
    with pytest.raises(NotAnArrayError, match=r"a\.ome\.tif::0"):
        open_file("bioio", location, Wanted("image"))
    with pytest.raises(SourceError, match="named by its number"):
        open_file("bioio", location, Wanted("image", inside="7"))
    for k, pixels in enumerate(scenes):
        image = open_file("bioio", location, Wanted("image", inside=str(k)))
        assert (str(image.axes), image.shape) == ("CZYX", pixels.shape)
        np.testing.assert_array_equal(image.read((0, 0, 0, 0), image.shape), pixels)


@pytest.mark.parametrize("suffix", ["czi", "nd2"])
@pytest.mark.parametrize("data", [b"", b"no file of a microscope", b"ZISRAWFILE" + bytes(600)])
def test_other_files_are_refused(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    with pytest.raises(NotAnArrayError, match=r"install the plugin|copy it again"):
        patchloom.open_images(path)


def test_what_has_no_levels_and_no_disk_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi")
    with pytest.raises(SourceError, match=r"level= is a number from 0 \(finest\) to 0"):
        patchloom.open_images(path, level=3)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bioio/a.czi", path.read_bytes())
    with pytest.raises(SourceError, match="files on a disk"):
        patchloom.open_images("memory://bioio/a.czi")
