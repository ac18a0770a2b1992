"""Coverage is exact at every ratio of resolutions, with and without physical coordinates."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.coverage import Alignment, coverage, threshold
from patchloom.errors import AxesError, CoverageError, SourceError
from patchloom.run import masks
from tests import oracle


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_coverage_equals_counting_parts(data: st.DataObject) -> None:
    """The summed-area table agrees with counting on a grid that is fine enough for both."""
    ndim = data.draw(st.integers(1, 3))
    shape = [data.draw(st.integers(2, 12)) for _ in range(ndim)]
    extents = [data.draw(st.integers(1, 2 * n)) for n in shape]
    size = [data.draw(st.integers(1, n)) for n in shape]
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(extents) < 0.5
    corners = np.array(
        list(itertools.product(*(range(0, n - p + 1) for n, p in zip(shape, size, strict=True))))
    )
    alignment = Alignment.of_shapes(shape, extents)
    area, pixel = coverage(mask, [0] * ndim, alignment, corners, corners + np.array(size))
    for corner, covered in zip(corners, area, strict=True):
        share = oracle.coverage(mask, shape, tuple(corner), size)
        assert Fraction(int(covered), pixel * math.prod(size)) == share


def test_offset_and_non_integer_scale_by_hand() -> None:
    """A mask pixel of 2.5 image pixels that begins 1.5 pixels inside."""
    alignment = Alignment((Fraction(5, 2),), (Fraction(3, 2),))
    mask = np.array([True, False, True])  # covers [1.5, 4) and [6.5, 9)
    low = np.array([[0], [2], [6]])
    area, pixel = coverage(mask, [0], alignment, low, low + 4)
    assert [Fraction(int(a), 4 * pixel) for a in area] == [
        Fraction(5, 8),  # [1.5, 4) of [0, 4)
        Fraction(1, 2),  # [2, 4) of [2, 6)
        Fraction(5, 8),  # [6.5, 9) of [6, 10)
    ]


def test_huge_ratios_do_not_overflow() -> None:
    """Coprime extents of hundreds of thousands of pixels stay exact."""
    shape, extents = (999_983, 999_979), (31, 37)
    mask = np.ones(extents, bool)
    size = (499_979, 611_953)
    low = np.array([[7, 11]])
    area, pixel = coverage(
        mask, [0, 0], Alignment.of_shapes(shape, extents), low, low + np.array(size)
    )
    assert area[0] == pixel * math.prod(size)


def test_threshold_means_the_decimal() -> None:
    """One tenth is one tenth, not the float that is near it."""
    assert threshold(0.1, 10) == 1
    assert threshold(0.1, 11) == 2
    assert threshold(1.0, 7) == 7
    assert threshold(0.0, 7) == 0


def test_patches_are_looked_at_in_bounded_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small limit cuts the patches into groups without changing a number."""
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.4
    [image] = patchloom.open_images(np.zeros((160, 160), "uint8"), mask=mask)
    corner = rng.integers(0, 150, (300, 2))
    sample = np.zeros(300, np.int64)
    whole = masks.covered_area(image, sample, corner, (10, 7))
    monkeypatch.setattr(masks, "_LIMIT", 50)
    parts = masks.covered_area(image, sample, corner, (10, 7))
    assert whole[1] == parts[1]
    np.testing.assert_array_equal(whole[0], parts[0])


@pytest.mark.parametrize("edge", ["drop", "shift", "pad"])
def test_mask_without_z_holds_for_every_plane(edge: Any) -> None:
    """A flat mask over a stack is the same on every plane; padding is never covered."""
    flat = np.random.default_rng(1).random((5, 5)) < 0.5
    image = np.zeros((7, 20, 20), "uint8")
    config = {"name": "sequential", "patch_size": [3, 4, 4]}
    [one] = patchloom.open_images(image, mask=flat)
    [all_planes] = patchloom.open_images(image, mask=np.repeat(flat[None], 7, 0))
    plans = [
        patchloom.plan(opened, config, min_coverage=0.25, edge=edge) for opened in (one, all_planes)
    ]
    specs = [{plan.get_patch_spec(i)["coords"] for i in range(plan.n_patches)} for plan in plans]
    assert specs[0] == specs[1] != set()


def test_samples_have_masks_of_their_own() -> None:
    """A mask with a sample axis is used sample by sample."""
    mask = np.zeros((2, 8, 8), bool)
    mask[1] = True
    [image] = patchloom.open_images(np.zeros((2, 8, 8), "uint8"), axes="SYX", mask=mask)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [4, 4]}, min_coverage=1.0)
    assert {plan.get_patch_spec(i)["sample_idx"] for i in range(plan.n_patches)} == {1}
    assert plan.n_patches == 4


def test_masks_that_do_not_fit_are_refused() -> None:
    """Another aspect ratio, other axes, several channels: an error with the numbers."""
    image = np.zeros((512, 512), "uint8")
    with pytest.raises(CoverageError, match="256 x 512"):
        patchloom.open_images(image, mask=np.ones((256, 512), bool))
    with pytest.raises(AxesError, match=r"3 dimensions|one channel"):
        patchloom.open_images(image, mask=np.ones((2, 512, 512), bool))
    patchloom.open_images(image, mask=np.ones((37, 37), bool))
    patchloom.open_images(np.zeros((100, 120)), mask=np.ones((37, 41), bool))
    # 4 x coarser: the only row stands for 3 of the 4 that it could show.
    patchloom.open_images(np.zeros((3, 16)), mask=np.ones((1, 4), bool))


def test_physical_coordinates_decide(tmp_path: Any) -> None:
    """OME-Zarr masks lie where their scale and translation put them; too small is refused."""
    import zarr

    def write(name: str, shape: list[int], scale: float, shift: float | None) -> str:
        path = tmp_path / name
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [scale, scale]}]
        if shift is not None:
            transforms.append({"type": "translation", "translation": [shift, shift]})
        group = zarr.create_group(
            path,
            attributes={
                "ome": {
                    "version": "0.5",
                    "multiscales": [
                        {
                            "axes": [
                                {"name": a, "type": "space", "unit": "micrometer"} for a in "yx"
                            ],
                            "datasets": [{"path": "0", "coordinateTransformations": transforms}],
                        }
                    ],
                }
            },
        )
        group.create_array("0", shape=shape, dtype="uint8", chunks=(16, 16))[...] = 1
        return str(path)

    image = write("image.zarr", [64, 64], 0.5, 0.0)
    for shift, offset in ((0.75, 0), (None, 0), (0.25, -1)):
        [opened] = patchloom.open_images(image, mask=write(f"m{shift}.zarr", [16, 16], 2.0, shift))
        assert opened.mask is not None
        assert opened.mask.alignment == Alignment((Fraction(4),) * 2, (Fraction(offset),) * 2)
    nanometres = tmp_path / "nm.zarr"
    write("nm.zarr", [16, 16], 2000.0, 750.0)
    text = (nanometres / "zarr.json").read_text()
    (nanometres / "zarr.json").write_text(text.replace("micrometer", "nanometer"))
    [opened] = patchloom.open_images(image, mask=str(nanometres))
    assert opened.mask is not None
    assert opened.mask.alignment == Alignment((Fraction(4),) * 2, (Fraction(0),) * 2)
    (nanometres / "zarr.json").write_text(text.replace("micrometer", "furlong"))
    with pytest.raises(SourceError, match="furlong"):
        patchloom.open_images(image, mask=str(nanometres))
    with pytest.raises(CoverageError, match="reaches"):
        patchloom.open_images(image, mask=write("short.zarr", [8, 8], 2.0, 0.75))
