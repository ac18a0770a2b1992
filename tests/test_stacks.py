"""Stacks and folders: planes in files are one image if that is asked for, and none is missing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import (
    AxesError,
    IdentityError,
    NotAnArrayError,
    SourceError,
    SourceMissingError,
)
from patchloom.image import Image
from patchloom.sources.folders import in_order
from patchloom.sources.stacks import StackSource

VOLUME = np.random.default_rng(0).integers(0, 256, (12, 20, 30), np.uint8)


def planes(folder: Path, volume: np.ndarray[Any, Any] = VOLUME, name: str = "z{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(volume):
        PIL.Image.fromarray(plane).save(folder / name.format(k))
    return folder


@given(st.lists(st.text("a1290é.", max_size=6)))
def test_names_are_ordered_as_people_count(names: list[str]) -> None:
    """Digits by their number, all else by character; the order is one for any input."""
    assert in_order(in_order(names)[::-1]) == in_order(names)
    assert in_order(["p10", "p9", "p009", "p", "q1", "p1a"]) == [
        "p",
        "p1a",
        "p009",
        "p9",
        "p10",
        "q1",
    ]
    assert in_order(["9" * 5000, "1" + "0" * 5000])[0] == "9" * 5000


def test_a_folder_is_its_images_and_one_stack_if_asked_for(tmp_path: Path) -> None:
    folder = planes(tmp_path / "well")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    images = patchloom.open_images(folder)
    assert [image.id for image in images] == [f"z{k}" for k in range(12)]
    assert [i.id for i in patchloom.open_images(str(folder / "z1*.png"))] == ["z1", "z10", "z11"]
    for urls in (folder, str(folder / "z*.png"), [folder / f"z{k}.png" for k in range(12)]):
        [image] = patchloom.open_images(urls, stack="z")
        assert (str(image.axes), image.shape, image.id) == ("ZYX", VOLUME.shape, "well")
        assert image.grid.chunks == (1, 20, 30)
        np.testing.assert_array_equal(image.read((3, 2, 1), (11, 20, 9)), VOLUME[3:11, 2:20, 1:9])
    [image] = patchloom.open_images([folder / "z7.png", folder / "z2.png"], stack="sample")
    assert str(image.axes) == "SYX"
    np.testing.assert_array_equal(image.read((0, 0, 0), image.shape), VOLUME[[7, 2]])


def test_each_of_several_folders_is_an_image(tmp_path: Path) -> None:
    for k in range(3):
        planes(tmp_path / f"w{k}", VOLUME + k)
    for urls in ([tmp_path / f"w{k}" for k in range(3)], str(tmp_path / "w*")):
        images = patchloom.open_images(urls, stack="z")
        assert [image.id for image in images] == ["w0", "w1", "w2"]
        np.testing.assert_array_equal(images[2].read((0, 0, 0), VOLUME.shape), VOLUME + 2)
    with pytest.raises(SourceError, match="beside folders there are"):
        patchloom.open_images([tmp_path / "w0", tmp_path / "w1" / "z0.png"], stack="z")
    with pytest.raises(IdentityError, match="several are called"):
        patchloom.open_images(str(tmp_path / "w*"))


def test_a_pattern_stacks_along_several_axes(tmp_path: Path) -> None:
    """Fields count as numbers, channels may have names, and other files are left alone."""
    for c, channel in enumerate(("DAPI", "GFP")):
        planes(tmp_path, VOLUME + 100 * c, f"img_z{{:03d}}_{channel}.png")
    (tmp_path / "overview.png").write_bytes(b"")
    [image] = patchloom.open_images(tmp_path, stack="img_z{z}_{channel}.png")
    assert (str(image.axes), image.shape) == ("CZYX", (2, 12, 20, 30))
    assert image.channels == ("DAPI", "GFP")
    expected = np.stack([VOLUME, VOLUME + 100])
    np.testing.assert_array_equal(
        image.read((0, 9, 3, 3), (2, 12, 9, 9)), expected[:, 9:, 3:9, 3:9]
    )


def test_missing_planes_are_listed(tmp_path: Path) -> None:
    for c in range(2):
        planes(tmp_path, VOLUME, f"z{{}}_c{c}.png")
    (tmp_path / "z3_c1.png").unlink()
    with pytest.raises(SourceMissingError, match=r"1 planes are missing: \['c=1, z=3'\]"):
        patchloom.open_images(tmp_path, stack="z{z}_c{c}.png")
    (tmp_path / "z3_c0.png").unlink()
    with pytest.raises(SourceMissingError, match=r"2 planes are missing: \['c=0, z=3', 'c=1"):
        patchloom.open_images(tmp_path, stack="z{z}_c{c}.png")
    (tmp_path / "z04_c0.png").write_bytes((tmp_path / "z4_c0.png").read_bytes())
    with pytest.raises(SourceError, match=r"'z04_c0.png' and 'z4_c0.png' have the same"):
        patchloom.open_images(tmp_path, stack="z{z}_c{c}.png")
    with pytest.raises(SourceMissingError, match=r"nothing in .* called like"):
        patchloom.open_images(tmp_path, stack="x{z}.png")
    with pytest.raises(SourceError, match="is called like its pattern"):
        patchloom.open_images(str(tmp_path / "*.png"), stack="z{z}.tif")


@pytest.mark.parametrize("stack", ["y", "zc", "", "a{y}.png", "{z}{z}.png", "{z}/{c}.png", "{}"])
def test_a_stack_is_along_known_axes(tmp_path: Path, stack: str) -> None:
    with pytest.raises(SourceError, match=r"stack= is one of|fields \{z\}"):
        patchloom.open_images(planes(tmp_path / "w"), stack=stack)
    with pytest.raises(SourceError, match="an array has none"):
        patchloom.open_images([VOLUME], stack="z")


def test_planes_are_alike(tmp_path: Path) -> None:
    folder = planes(tmp_path / "w")
    PIL.Image.fromarray(VOLUME[0, :9]).save(folder / "z5.png")
    with pytest.raises(NotAnArrayError, match=r"1 of 'w' differ .*z5.png \(YX \(9, 30\)"):
        patchloom.open_images(folder, stack="z")
    np.save(tmp_path / "a.npy", VOLUME)
    with pytest.raises(AxesError, match="stacked along axes that they lack"):
        patchloom.open_images([tmp_path / "a.npy"], stack="z")


def test_planes_of_any_format_with_chunks_of_their_own(tmp_path: Path) -> None:
    """Zarr arrays and .npy files: the grid is the planes', with one more axis."""
    for k, plane in enumerate(VOLUME):
        array = zarr.create_array(
            tmp_path / "zarr" / f"{k}.zarr",
            shape=plane.shape,
            dtype=plane.dtype,
            chunks=(8, 8),
            shards=(16, 16),
        )
        array[...] = plane
    np.save(tmp_path / "t0.npy", VOLUME)
    np.save(tmp_path / "t1.npy", VOLUME + 1)
    [image] = patchloom.open_images(tmp_path / "zarr", stack="z")
    assert (image.grid.chunks, image.shards) == ((1, 8, 8), (1, 16, 16))
    np.testing.assert_array_equal(image.read((0, 0, 0), image.shape), VOLUME)
    [image] = patchloom.open_images(str(tmp_path / "*.npy"), stack="t")
    assert str(image.axes) == "TZYX"
    np.testing.assert_array_equal(image.read((1, 0, 0, 0), image.shape), VOLUME[None] + 1)


def test_the_whole_job_on_a_stack(tmp_path: Path) -> None:
    """Each plane is decoded once; pickles and documents carry a stack; late writes are seen."""
    folder = planes(tmp_path / "w")
    [image] = patchloom.open_images(folder, stack="z")
    assert isinstance(image.source, StackSource)
    again = Image.from_document(image.to_document())
    for one in (again, pickle.loads(pickle.dumps(image))):
        np.testing.assert_array_equal(one.read((5, 0, 0), (7, 20, 30)), VOLUME[5:7])
    np.testing.assert_array_equal(np.asarray(image.data), VOLUME)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [4, 10, 10]})
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert (report.chunk_reads, report.chunks_needed) == (12, 12)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    for row in store.manifest.to_pylist():
        z, y, x = (row[f"start_{a}"] for a in "zyx")
        np.testing.assert_array_equal(
            store[row["row"]][0], VOLUME[z : z + 4, y : y + 10, x : x + 10]
        )


def test_a_job_file_names_a_stack(tmp_path: Path) -> None:
    from patchloom.config import Job
    from patchloom.run.jobs import images_of

    job = Job.model_validate(
        {
            "images": str(planes(tmp_path / "w")),
            "stack": "z{z}.png",
            "patching": {"name": "sequential", "patch_size": [4, 10, 10]},
            "output": str(tmp_path / "out.zarr"),
        }
    )
    [image] = images_of(job)
    assert image.shape == VOLUME.shape


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for stack in (None, "z"):
        with pytest.raises(
            SourceError, match=r"none of .* is of a known|nothing in .* is an image"
        ):
            patchloom.open_images(tmp_path, stack=stack)
