"""Levels: the coarser resolutions of an OME-Zarr image, opened when they are asked for."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import patchloom
from patchloom.image import Image


def pyramid(path: Path, pixels: np.ndarray[Any, Any], factors: tuple[int, ...]) -> str:
    """An OME-Zarr 0.4 image (c, y, x) of every f-th pixel for each factor."""
    root = zarr.create_group(path, zarr_format=2)
    datasets: list[Any] = []
    for factor in factors:
        part = pixels[:, ::factor, ::factor]
        root.create_array(f"s{factor}", shape=part.shape, chunks=(1, 32, 32), dtype=part.dtype)[
            ...
        ] = part
        scale = {"type": "scale", "scale": [1, 0.5 * factor, 0.5 * factor]}
        datasets.append({"path": f"s{factor}", "coordinateTransformations": [scale]})
    axes: list[Any] = [
        {"name": n, "type": t} for n, t in (("c", "channel"), ("y", "space"), ("x", "space"))
    ]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return str(path)


def test_levels_lie_on_their_image(tmp_path: Path) -> None:
    """Coarse after fine, aligned, without the opened one; also from a saved image."""
    pixels = np.arange(3 * 128 * 96, dtype="uint16").reshape(3, 128, 96)
    url = pyramid(tmp_path / "a.zarr", pixels, (1, 2, 4))
    [image] = patchloom.open_images(url)
    again = Image.from_document(image.to_document())
    for found in (image, again, pickle.loads(pickle.dumps(image))):
        assert [role.alignment.scale for role in found.levels] == [
            (Fraction(2),) * 2,
            (Fraction(4),) * 2,
        ]
        assert all(not any(role.alignment.offset) and role.axes == "yx" for role in found.levels)
        coarse = found.levels[-1].image
        assert (coarse.id, coarse.level, coarse.shape) == ("a", 2, (3, 32, 24))
        np.testing.assert_array_equal(coarse.read((0, 0, 0), coarse.shape), pixels[:, ::4, ::4])
    [middle] = patchloom.open_images(url, level="s2")
    assert [role.image.level for role in middle.levels] == [2]
    [last] = patchloom.open_images(url, level=2)
    assert last.levels == ()
    [array] = patchloom.open_images(pixels, axes="CYX")
    assert array.levels == ()


def test_levels_cost_nothing_before_they_are_asked(tmp_path: Path) -> None:
    """An image opens, and its plan is the same, whether its other levels are there or not."""
    pixels = np.zeros((1, 64, 64), "uint8")
    url = pyramid(tmp_path / "a.zarr", pixels, (1, 2, 4))
    [image] = patchloom.open_images(url)
    patching = {"name": "sequential", "patch_size": [16, 16]}
    before = patchloom.plan(image, patching).fingerprint
    size = len(pickle.dumps(image))
    assert len(image.levels) == 2
    assert len(pickle.dumps(image)) == size
    for name in ("s2", "s4"):
        (tmp_path / "a.zarr" / name).rename(tmp_path / name)
    [image] = patchloom.open_images(url)
    assert patchloom.plan(image, patching).fingerprint == before
    assert image.levels == ()


def test_planes_as_samples_have_levels_of_planes(tmp_path: Path) -> None:
    """A level has the axes that its image was given; one with other samples is left out."""
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    datasets: list[Any] = []
    for name, (z, y, x) in {"0": (8, 64, 64), "1": (8, 32, 32), "2": (4, 16, 16)}.items():
        root.create_array(name, shape=(z, y, x), chunks=(1, 16, 16), dtype="uint8")
        scale = {"type": "scale", "scale": [8 / z, 64 / y, 64 / x]}
        datasets.append({"path": name, "coordinateTransformations": [scale]})
    axes: list[Any] = [{"name": a, "type": "space"} for a in "zyx"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    [image] = patchloom.open_images(tmp_path / "a.zarr", sample="z")
    assert [(role.image.axes.names, role.axes) for role in image.levels] == [
        (image.axes.names, "yx")
    ]
    [volume] = patchloom.open_images(tmp_path / "a.zarr")
    assert [role.alignment.scale[0] for role in volume.levels] == [1, 2]
