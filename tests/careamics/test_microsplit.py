"""Superpositions beside CAREamics': the same sums of the same channels, and levels around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom
from patchloom import MicroSplit
from patchloom.patching import FixedPatching

theirs = pytest.importorskip("careamics.dataset.patch_constructor.microsplit_patch_constructors")
RNG = np.random.default_rng(0)


def extractor(pixels: Any) -> Any:
    """Theirs, over one image [c, y, x]."""
    from careamics.dataset.image_stack import InMemoryImageStack
    from careamics.dataset.patch_extractor import PatchExtractor

    return PatchExtractor([InMemoryImageStack.from_array(pixels, "CYX")])


def store_of(path: Path, source: Any, size: int = 16, **options: Any) -> Any:
    images = patchloom.open_images(source, **options)
    config = {"name": "random", "patch_size": [size, size], "n_patches": 12}
    plan = patchloom.plan(images, config, seed=3, pad_mode="reflect")
    patchloom.materialize(plan, str(path), progress=False)
    return patchloom.open_patches(str(path))


def placed(store: Any, size: int = 16) -> Any:
    """The places of our patches, as a strategy of theirs."""
    rows = zip(*(store.manifest[c].to_pylist() for c in ("start_y", "start_x")), strict=True)
    specs: Any = [
        {"data_idx": 0, "sample_idx": 0, "coords": list(row), "patch_size": [size, size]}
        for row in rows
    ]
    return FixedPatching(specs)


def all_of(split: MicroSplit) -> Any:
    n = split.patches.n_patches
    [batch] = split.patches.batches(n, shuffle=False, transform=split)
    return batch


def test_channels_acquired_together(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 200, (3, 80, 90), dtype="uint8")
    store = store_of(tmp_path / "s.zarr", pixels, axes="cyx")
    ours = all_of(MicroSplit.multiplexed(store))
    other = theirs.MultiChannelTargetMsPatchConstr(
        placed(store), extractor(pixels), 1, "reflect", None, 0.0
    )
    for k in range(store.n_patches):
        shown, target, _ = other.construct_patch(k)
        np.testing.assert_allclose(ours["target"][k], target)
        np.testing.assert_allclose(ours["image"][k], shown, rtol=1e-6)


def test_structures_acquired_apart(tmp_path: Path) -> None:
    """Sums of what specs name; the principal structure is the one with the most patches."""
    pixels = [RNG.integers(0, 200, (1, n, n), dtype="uint8") for n in (60, 80)]
    stores = [
        store_of(tmp_path / f"{k}.zarr", one, axes="cyx", ids=[str(k)])
        for k, one in enumerate(pixels)
    ]
    stores[0] = stores[0].take(np.arange(5))
    split = MicroSplit.separate(stores)
    other = theirs.IndependentTargetsMsPatchConstr(
        [placed(s) for s in stores], [extractor(one) for one in pixels], 1, "reflect", None
    )
    assert split.principal == other.principal_channel == 1
    assert split.patches.n_patches == other.n_patches
    ours = all_of(split)
    for k in range(other.n_patches):
        _, target, spec = other.construct_patch(k)
        assert list(spec["coords"]) == placed(stores[1]).get_patch_spec(k)["coords"]
        np.testing.assert_allclose(ours["target"][k, 1], target[1])
        there = placed(stores[0]).get_patch_spec(int(ours["places"][k, 0]))["coords"]
        y, x = there
        np.testing.assert_array_equal(ours["target"][k, 0], pixels[0][0, y : y + 16, x : x + 16])
        np.testing.assert_allclose(ours["image"][k, 0], ours["target"][k].mean(0), rtol=1e-6)


def test_levels_lie_around_the_same_centre(tmp_path: Path) -> None:
    """Of a slope that no scaling changes: what they resize, we read from the pyramid."""
    y, x = np.mgrid[:256, :256]
    fine = np.stack([3.0 * y + 2.0 * x, 5.0 * x - y]).astype("float32")
    group: Any = zarr.create_group(tmp_path / "p.ome.zarr")
    datasets: list[Any] = []
    for level in range(3):
        ratio = 2**level
        rest = fine.reshape(2, 256 // ratio, ratio, 256 // ratio, ratio).mean((2, 4))
        group.create_array(str(level), data=rest.astype("float32"), chunks=(2, 64, 64))
        moves = [{"type": "scale", "scale": [1.0, 0.5 * ratio, 0.5 * ratio]}]
        datasets.append({"path": str(level), "coordinateTransformations": moves})
    axes: list[Any] = [
        {"name": "c", "type": "channel"},
        *({"name": a, "type": "space"} for a in "yx"),
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    store = store_of(tmp_path / "s.zarr", str(tmp_path / "p.ome.zarr"), context=[1, 2])
    ours = all_of(MicroSplit.multiplexed(store))
    other = theirs.MultiChannelTargetMsPatchConstr(
        placed(store), extractor(fine), 3, "reflect", None, 0.0
    )
    compared = 0
    for k in range(store.n_patches):
        corner = placed(store).get_patch_spec(k)["coords"]
        if min(corner) < 24 or max(corner) > 256 - 40:
            continue  # their padding meets their smoothing there
        shown, _, _ = other.construct_patch(k)
        inside = (slice(None), slice(4, -4), slice(4, -4))
        # Ours begins at the nearest border of a level's pixels: up to half a pixel of it.
        step = 0.5 * np.array([1, 2, 4]) * (2 + 7) / 2
        gap = abs(ours["image"][k][inside] - shown[inside]).max((1, 2))
        assert gap[0] < 1e-3
        assert (gap <= step + 0.5).all(), (gap, step)
        compared += 1
    assert compared >= 3
