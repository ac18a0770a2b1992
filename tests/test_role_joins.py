"""Roles given as several files are joined to their images by id, strictly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom
from patchloom.errors import IdentityError

NAMES = ("a", "b", "c.2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in one folder, and label files of three kinds of names: image k is k + 1."""
    for k, name in enumerate(NAMES):
        for path in (f"raw/{name}.zarr", f"masks/{name}-labels.zarr", f"by/{name}/labels.zarr"):
            array = zarr.create_array(tmp_path / path, shape=(16, 16), chunks=(8, 8), dtype="uint8")
            array[...] = k + 1
    return tmp_path


def values(images: list[patchloom.Image]) -> dict[str, int]:
    """The label of each image, by id."""
    found = {}
    for image in images:
        assert image.labels is not None
        found[image.id] = int(image.labels.image.read((0, 0), (1, 1))[0, 0])
    return found


@pytest.mark.parametrize("pattern", ["masks/*-labels.zarr", "by/*/labels.zarr", "raw/*.zarr"])
def test_files_of_a_glob_go_to_the_image_that_the_star_names(pattern: str, folder: Path) -> None:
    """Whatever the order of the images is."""
    urls = [str(folder / f"raw/{name}.zarr") for name in reversed(NAMES)]
    images = patchloom.open_images(urls, labels=str(folder / pattern))
    assert values(images) == {"c.2": 3, "b": 2, "a": 1}


def test_a_list_of_files_called_like_the_images_goes_by_name(folder: Path) -> None:
    """A list in another order is no trap; one of other names goes by position."""
    urls = [str(folder / f"raw/{name}.zarr") for name in NAMES]
    images = patchloom.open_images(urls, labels=[*reversed(urls)])
    assert values(images) == {"a": 1, "b": 2, "c.2": 3}
    others = [str(folder / f"masks/{name}-labels.zarr") for name in NAMES]
    images = patchloom.open_images(urls, labels=[*reversed(others)])
    assert values(images) == {"a": 3, "b": 2, "c.2": 1}


@pytest.mark.parametrize("role", ["mask", "labels", "target"])
def test_what_is_unmatched_is_listed_on_both_sides(role: str, folder: Path) -> None:
    """Files without an image and images without a file, in one error, for each role."""
    shutil.move(folder / "masks/b-labels.zarr", folder / "masks/d-labels.zarr")
    pattern: Any = str(folder / "masks/*-labels.zarr")
    says = r"files for \['d'\] without an image, images \['b'\] without one"
    with pytest.raises(IdentityError, match=says):
        patchloom.open_images(str(folder / "raw/*.zarr"), **{role: pattern})
    pattern = {"a": np.ones((16, 16), "uint8"), "e": np.ones((16, 16), "uint8")}
    with pytest.raises(IdentityError, match=r"\['e'\] without an image, images \['b', 'c.2'\]"):
        patchloom.open_images(str(folder / "raw/*.zarr"), **{role: pattern})


def test_two_files_for_one_image_are_refused(folder: Path) -> None:
    """Which of them is meant is for the user to say."""
    shutil.copytree(folder / "masks/a-labels.zarr", folder / "masks/a.ome.zarr")
    shutil.copytree(folder / "masks/a-labels.zarr", folder / "masks/a.zarr")
    urls = [str(folder / "raw/a.zarr")]
    with pytest.raises(IdentityError, match=r"several for these: \{'a'"):
        patchloom.open_images(urls, labels=str(folder / "masks/a[.]*"))


def test_globs_of_outlines_and_parts_go_by_id_too(folder: Path) -> None:
    """A mask made of something, and part of an array, take globs alike."""
    for k, name in enumerate(NAMES):
        table = f"y0,x0,y1,x1\n0,0,{k + 1},{k + 1}\n"
        (folder / f"raw/{name}.csv").write_text(table)
    urls = [str(folder / f"raw/{name}.zarr") for name in reversed(NAMES)]
    images = patchloom.open_images(
        urls,
        mask={"boxes": str(folder / "raw/*.csv")},
        labels={"from": str(folder / "by/*/labels.zarr"), "isel": {"y": "0:16"}},
    )
    assert values(images) == {"c.2": 3, "b": 2, "a": 1}
    for image, k in zip(images, (3, 2, 1), strict=True):
        assert image.mask is not None
        assert image.mask.image.read((0, 0), (16, 16)).sum() == k * k
