"""Identity: what is called alike, and is of one shape, but is not the same array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

import patchloom
from patchloom.errors import FingerprintError, SourceError
from patchloom.image import Image
from patchloom.planning.image_identity import identity_of
from tests import ome

X = np.arange(2 * 40 * 48, dtype="u2").reshape(2, 40, 48)
Y = X[::-1, ::-1].copy()
GRID = {"name": "sequential", "patch_size": [16, 16]}
Pixels = npt.NDArray[Any]


def _read_x(path: Path, flip: bool = False) -> Pixels:
    return Y if flip else X


def _read_y(path: Path) -> Pixels:
    return Y


def _one(url: Path | str, **how: Any) -> Image:
    [image] = patchloom.open_images(str(url), **how)
    return image


def _container(folder: Path, kind: str) -> Path:
    path = folder / f"both.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            for name, pixels in {"x": X, "y": Y}.items():
                file.create_dataset(name, data=pixels, chunks=(1, 16, 16), compression="gzip")
    elif kind == "npz":
        np.savez_compressed(path, x=X, y=Y)
    else:
        group = zarr.open_group(str(path), mode="w")
        for name, pixels in {"x": X, "y": Y}.items():
            group.create_array(name, data=pixels, chunks=(1, 16, 16))
    return path


def _inside(kind: str) -> Callable[[Path], tuple[Image, Image]]:
    def pair(folder: Path) -> tuple[Image, Image]:
        path = _container(folder, kind)
        return _one(f"{path}::x", axes="CYX"), _one(f"{path}::y", axes="CYX")

    return pair


def _of_tiff(folder: Path, **how: Any) -> tuple[Image, Image]:
    with tifffile.TiffWriter(folder / "two.tif") as tif:
        for pixels in (X, Y):
            tif.write(pixels, photometric="minisblack", **how)
    return _one(f"{folder}/two.tif::0", axes="CYX"), _one(f"{folder}/two.tif::1", axes="CYX")


def _tiles(folder: Path) -> tuple[Image, Image]:
    return _of_tiff(folder, tile=(16, 16))


def _rows(folder: Path) -> tuple[Image, Image]:
    return _of_tiff(folder)


def _stacks(folder: Path) -> tuple[Image, Image]:
    for name, pixels in {"x": X, "y": Y}.items():
        for c, plane in enumerate(pixels):
            np.save(folder / f"{name}_{c}.npy", plane)
    return _one(folder, stack="x_{c}.npy"), _one(folder, stack="y_{c}.npy")


def _stacks_inside(folder: Path) -> tuple[Image, Image]:
    for c in range(2):
        np.savez(folder / f"{c}.npz", x=X[c], y=Y[c])
    first, second = ([f"{folder}/{c}.npz::{name}" for c in range(2)] for name in "xy")
    [x] = patchloom.open_images(first, stack="c")
    [y] = patchloom.open_images(second, stack="c")
    return x, y


def _functions(folder: Path) -> tuple[Image, Image]:
    np.save(folder / "a.npy", X)
    x, y = (_one(folder / "a.npy", read=read, axes="CYX") for read in (_read_x, _read_y))
    return x, y


def _arguments(folder: Path) -> tuple[Image, Image]:
    np.save(folder / "a.npy", X)
    how: dict[str, Any] = {"read": _read_x, "axes": "CYX"}
    return (
        _one(folder / "a.npy", read_kwargs={"flip": False}, **how),
        _one(folder / "a.npy", read_kwargs={"flip": True}, **how),
    )


def _selections(folder: Path) -> tuple[Image, Image]:
    path = _container(folder, "h5")
    x, y = (_one(f"{path}::{n}", axes="CYX", isel={"y": slice(3, 40)}) for n in "xy")
    return x, y


def _windows(folder: Path) -> tuple[Image, Image]:
    path = _container(folder, "h5")
    x, y = (_one(f"{path}::{n}", axes="TYX", time={"window": 2}) for n in "xy")
    return x, y


PAIRS = {
    "hdf5": _inside("h5"),
    "npz": _inside("npz"),
    "zarr": _inside("zarr"),
    "tiff in tiles": _tiles,
    "tiff in rows": _rows,
    "stacks": _stacks,
    "stacks of arrays inside": _stacks_inside,
    "functions": _functions,
    "arguments": _arguments,
    "selections": _selections,
    "windows": _windows,
}
"""Two images of different pixels that are called alike, of each kind."""


@pytest.mark.parametrize("kind", PAIRS)
def test_a_run_of_one_array_is_not_resumed_by_another(tmp_path: Path, kind: str) -> None:
    """Each has a fingerprint of its own, the same each time and after it was saved."""
    pair = PAIRS[kind](tmp_path)
    assert pair[0].id == pair[1].id
    assert pair[0].shape == pair[1].shape
    first, second = (patchloom.plan(image, GRID) for image in pair)
    assert first.fingerprint != second.fingerprint
    assert [patchloom.plan(i, GRID).fingerprint for i in PAIRS[kind](tmp_path)] == [
        first.fingerprint,
        second.fingerprint,
    ]
    for plan, image in zip((first, second), pair, strict=True):
        plan.save(str(tmp_path / "plan"))
        loaded = patchloom.Plan.load(str(tmp_path / "plan"), images=[image])
        assert loaded.fingerprint == plan.fingerprint
    patchloom.materialize(first, tmp_path / "out.zarr", progress=False)
    with pytest.raises(FingerprintError):
        patchloom.materialize(second, tmp_path / "out.zarr", progress=False)


@pytest.mark.parametrize("kind", PAIRS)
def test_arrays_that_are_called_alike_are_computed_together(tmp_path: Path, kind: str) -> None:
    """Dask takes what has one name for one array."""
    pair = PAIRS[kind](tmp_path)
    found = dask.compute(*(image.data.data for image in pair), scheduler="synchronous")
    for image, pixels in zip(pair, found, strict=True):
        assert np.array_equal(pixels, image.read((0,) * image.ndim, image.shape))
    assert not np.array_equal(*found)


@pytest.mark.parametrize("kind", ["h5", "npz", "zarr"])
@pytest.mark.parametrize("rule", [None, [1]])
def test_roles_out_of_one_container_are_told_apart(
    tmp_path: Path, kind: str, rule: list[int] | None
) -> None:
    """Labels as they are, and the mask that is made of them."""
    path = _container(tmp_path, kind)
    image = _one(f"{path}::x", axes="ZYX")

    def over(name: str) -> Image:
        given = f"{path}::{name}"
        if rule is None:
            return _one(f"{path}::x", axes="ZYX", labels=given)
        return _one(f"{path}::x", axes="ZYX", mask={"labels": given, "classes": rule})

    assert identity_of(over("x")) != identity_of(over("y"))
    assert identity_of(over("x"))["made"] == identity_of(image)["made"]


@pytest.mark.parametrize("role", ["labels", "mask"])
def test_label_groups_of_one_image_are_told_apart(tmp_path: Path, role: str) -> None:
    """They are named, not opened by URLs, and often of one shape."""
    path = ome.image(tmp_path / "a.zarr", "0.5", X[0])
    ome.group(path / "labels", "0.5", {"labels": ["cells", "nuclei"]})
    for name, pixels in {"cells": X[0], "nuclei": Y[0]}.items():
        ome.image(path / "labels" / name, "0.5", pixels)
    first, second = (
        patchloom.plan(_one(path, **{role: name}), GRID) for name in ("cells", "nuclei")
    )
    assert first.fingerprint != second.fingerprint
    patchloom.materialize(first, tmp_path / "out.zarr", progress=False)
    with pytest.raises(FingerprintError):
        patchloom.materialize(second, tmp_path / "out.zarr", progress=False)
    assert patchloom.verify(tmp_path / "out.zarr", progress=False).ok


@pytest.mark.parametrize("kind", ["functions", "stacks", "tiff in tiles", "npz", "selections"])
def test_what_a_url_alone_does_not_open_is_not_called_damaged(tmp_path: Path, kind: str) -> None:
    """Without its plan, a store is compared with what its URLs stand for, or with nothing."""
    image = PAIRS[kind](tmp_path)[1]
    plan = patchloom.plan(image, GRID)
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    with_plan = patchloom.verify(tmp_path / "out.zarr", plan, progress=False)
    alone = patchloom.verify(tmp_path / "out.zarr", progress=False)
    assert with_plan.ok
    assert alone.ok
    assert with_plan.n_compared == plan.n_patches
    why = {"functions": "given as read=", "stacks": "a stack of files"}.get(kind)
    assert alone.n_compared == (0 if why else plan.n_patches)
    assert not why or why in str([*alone.not_compared])


def test_planes_of_a_stack_are_one_array_of_each_file(tmp_path: Path) -> None:
    """By paths after ``::``, of files, globs and folders, or by ``array=``."""
    x, y = _stacks_inside(tmp_path)
    assert np.array_equal(x.data, X)
    assert np.array_equal(y.data, Y)
    for url in (tmp_path, f"{tmp_path}/*.npz", [f"{tmp_path}/{c}.npz" for c in range(2)]):
        [image] = patchloom.open_images(url, stack="{c}.npz", array="y")
        assert np.array_equal(image.data, Y)
        assert image.uri == str(tmp_path)
    [image] = patchloom.open_images(f"{tmp_path}::y", stack="c")
    assert np.array_equal(image.data, Y)
    with pytest.raises(SourceError, match="same array of each file"):
        patchloom.open_images([f"{tmp_path}/0.npz::x", f"{tmp_path}/1.npz::y"], stack="c")


def test_a_zarr_array_that_is_named_by_its_url_is_known_by_what_it_was(tmp_path: Path) -> None:
    """Plans of earlier versions keep their fingerprints."""
    path = _container(tmp_path, "zarr")
    assert "made" not in identity_of(_one(path / "x", axes="CYX"))
