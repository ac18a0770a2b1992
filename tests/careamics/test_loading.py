"""CAREamics' own two ways of loading custom data, given to `open_images` as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom

pytest.importorskip("careamics")

from careamics.dataset.factory import ImageStackLoading, ReadFuncLoading
from careamics.dataset.image_stack_loader import load_zarrs

pytestmark = pytest.mark.filterwarnings("default")
PIXELS = np.arange(3 * 40 * 48, dtype="uint16").reshape(3, 40, 48)
GRID = {"name": "sequential", "patch_size": [16, 16]}


def read_plus(path: Path, *args: Any, plus: int = 0, **_: Any) -> Any:
    """A reader as CAREamics calls one: with a path first."""
    return np.load(path) + np.uint16(plus)


def test_a_read_function_with_arguments_and_a_filter(tmp_path: Path) -> None:
    """Whole files become patches of a store; what the filter leaves out is not read."""
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", PIXELS + k)
    (tmp_path / "notes.txt").write_text("no image")
    loading = ReadFuncLoading(read_plus, read_kwargs={"plus": 5}, extension_filter="*.npy")
    images = patchloom.open_images(tmp_path, read=loading, axes="CYX")
    assert [image.shape for image in images] == [PIXELS.shape] * 2
    plan = patchloom.plan(images, GRID)
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    for row in (0, len(store) - 1):
        [told] = store.manifest.slice(row, 1).to_pylist()
        y, x, k = told["start_y"], told["start_x"], int(told["image_id"])
        np.testing.assert_array_equal(store[row], (PIXELS + k + 5)[:, y : y + 16, x : x + 16])


def test_a_loader_of_stacks(tmp_path: Path) -> None:
    """Its stacks are cut by themselves, plane by plane of their samples."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=PIXELS, chunks=(1, 16, 16))
    paths = [str(tmp_path / "a.zarr")]
    [image] = patchloom.open_images(paths, read=ImageStackLoading(load_zarrs), axes="SYX")
    assert image.axes.names == "scyx"
    np.testing.assert_array_equal(image.read((0,) * 4, image.shape)[:, 0], PIXELS)
