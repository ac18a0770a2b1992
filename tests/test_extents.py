"""Sizes per axis, and the grid of strides, against brute force.

Laws: however numbers are written, the same is the same plan; an axis that is unknown, named twice
or forgotten is named; coverage and edges are the patch's, whatever the stride.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import AxesError, ConfigError, PatchloomError, PatchSizeError
from patchloom.patching import SequentialPatching, StridedPatching, create_patching
from patchloom.patching.extents import per_axis
from tests import oracle

VOLUME = (9, 14, 17)


def volume() -> patchloom.Image:
    """A small volume in chunks."""
    [image] = patchloom.open_images(da.zeros(VOLUME, chunks=(4, 5, 6), dtype="u1"))
    return image


@given(
    axes=st.sampled_from(["x", "yx", "zyx"]),
    numbers=st.lists(st.integers(0, 99), min_size=3, max_size=3),
    data=st.data(),
)
def test_three_ways_of_writing_numbers(axes: str, numbers: list[int], data: Any) -> None:
    """A list, a mapping in any order and case, and the axes that are spoken of."""
    row = numbers[: len(axes)]
    by_name = dict(zip(axes, row, strict=True))
    order = data.draw(st.permutations(axes))
    named = {(a.upper() if k % 2 else a): by_name[a] for k, a in enumerate(order)}
    assert per_axis(row, axes, name="n") == row
    assert per_axis(tuple(row), axes, name="n") == row
    assert per_axis(named, axes, name="n") == row
    assert per_axis(row[0], axes, name="n") == [row[0]] * len(axes)
    some = "".join(order[: data.draw(st.integers(1, len(axes)))])
    wanted = [by_name[a] if a in some else 7 for a in axes]
    for among in (some, some.upper()):
        listed = [by_name[a] for a in some]
        assert per_axis(listed, axes, name="n", among=among, rest=7) == wanted
        told = {a: by_name[a] for a in some}
        assert per_axis(told, axes, name="n", among=among, rest=7) == wanted
        one = [row[0] if a in some else 7 for a in axes]
        assert per_axis(row[0], axes, name="n", among=among, rest=7) == one


@pytest.mark.parametrize("name", ["sequential", "grid", "tiled", "chunk_aligned", "pixels"])
def test_the_same_is_the_same_plan(name: str) -> None:
    """One number, a list, a tuple, names, and named lists: one fingerprint."""
    image = volume()
    more: dict[str, list[Any]] = {
        "sequential": [{"overlaps": 1}, {"overlaps": [1, 1, 1]}],
        "grid": [{"stride": 2}, {"stride": {"x": 2, "z": 2, "y": 2}}],
        "tiled": [{"overlaps": (1, 1, 1)}, {"overlaps": {"Z": 1, "Y": 1, "X": 1}}],
        "chunk_aligned": [{"shift": 0}, {}],
        "pixels": [{}, {"context": 0}],
    }
    sizes: list[Any] = [3, [3, 3, 3], (3, 3, 3), {"z": 3, "y": 3, "x": 3}, {"X": 3, "Y": 3, "z": 3}]
    plans = [
        patchloom.plan(image, {"name": name, "patch_size": size, **rest}, edge="pad")
        for size, rest in itertools.product(sizes, more[name])
    ]
    for axes in ("zyx", "XZY"):
        said = {"name": name, "patch_size": [3] * 3, "spatial_axes": axes, **more[name][0]}
        plans.append(patchloom.plan(image, said, edge="pad"))
    assert len({plan.fingerprint for plan in plans}) == 1
    assert plans[0].n_patches
    other = {"name": name, "patch_size": {"z": 2, "y": 3, "x": 3}, **more[name][0]}
    assert patchloom.plan(image, other, edge="pad").fingerprint != plans[0].fingerprint


def test_lists_follow_spatial_axes() -> None:
    """And along the axes left out patches are 1 pixel thick, close together, without context."""
    image = volume()
    plan = patchloom.plan(
        image,
        {
            "name": "grid",
            "patch_size": [8, 4],
            "spatial_axes": "XY",
            "stride": {"y": 2, "x": 9},
            "context": [1, 3],
        },
    )
    assert plan.cut.proper == (1, 4, 8)
    assert plan.patch_size == (1, 10, 10)
    found = {plan.get_patch_spec(k)["coords"] for k in range(plan.n_patches)}
    wanted = itertools.product(range(9), range(0, 11, 2), range(0, 10, 9))
    assert found == {(z, y - 3, x - 1) for z, y, x in wanted}
    said = {"name": "grid", "patch_size": [1, 4, 8], "stride": [1, 2, 9], "context": [0, 3, 1]}
    assert patchloom.plan(image, said).fingerprint == plan.fingerprint
    for name in ("sequential", "tiled"):
        config = {"name": name, "patch_size": 4, "spatial_axes": "yx", "overlaps": 2}
        strategy = create_patching([(1, 1, *VOLUME)], config)
        assert (strategy.patch_size, strategy.overlaps) == ((1, 4, 4), (0, 2, 2))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"patch_size": {"y": 3, "x": 3}}, AxesError, "each of the axes 'zyx'"),
        ({"patch_size": {"z": 3, "y": 3, "x": 3, "c": 1}}, AxesError, "'c': 1"),
        ({"patch_size": {"z": 3, "y": 3, "x": 3, "X": 4}}, AxesError, "'X': 4"),
        ({"patch_size": [3, 3]}, PatchSizeError, r"patch_size .* got \[3, 3\] for the axes 'zyx'"),
        ({"patch_size": 3, "stride": [2, 2]}, PatchSizeError, r"stride .* \[2, 2\]"),
        ({"patch_size": 3, "stride": {"y": 2}}, AxesError, "stride .*'zyx'"),
        ({"patch_size": 3, "context": [2]}, PatchSizeError, r"context .* \[2\]"),
        ({"patch_size": 3, "context": {"w": 2}}, AxesError, "context .*'w'"),
        ({"patch_size": 3, "spatial_axes": "yw"}, AxesError, "'yw' for 'zyx'"),
        ({"patch_size": 3, "spatial_axes": "yy"}, AxesError, "'yy'"),
        ({"patch_size": [3, 3, 3], "spatial_axes": "yx"}, PatchSizeError, "for the axes 'yx'"),
        ({"patch_size": {"z": 3}, "spatial_axes": "yx"}, AxesError, "each of the axes 'yx'"),
        ({"patch_size": [3, 3, 3, 3]}, ConfigError, "patch_size"),
        ({"patch_size": []}, ConfigError, "patch_size"),
        ({"patch_size": {"y": 0, "x": 3, "z": 1}}, ConfigError, "patch_size"),
        ({"patch_size": 3, "stride": 0}, ConfigError, "stride"),
        ({"patch_size": 3, "stride": [1, 0, 1]}, ConfigError, "stride"),
        ({"patch_size": 3, "context": -1}, ConfigError, "context"),
        ({"patch_size": "3"}, ConfigError, "patch_size"),
        ({"patch_size": 2.5}, ConfigError, "patch_size"),
        ({"patch_size": True}, ConfigError, "patch_size"),
        ({}, ConfigError, "patch_size"),
    ],
)
def test_wrong_numbers_are_named(wrong: Any, error: type[PatchloomError], words: str) -> None:
    """With what was given, and for which axes."""
    with pytest.raises(error, match=words):
        patchloom.plan(volume(), {"name": "grid", **wrong})


def test_wrong_numbers_of_the_class() -> None:
    """Which takes the same three ways."""
    shapes = [(1, 1, 20, 30)]
    with pytest.raises(AxesError, match="each of the axes 'yx'"):
        StridedPatching(shapes, {"y": 4})
    with pytest.raises(PatchSizeError, match="stride is at least 1"):
        StridedPatching(shapes, 4, {"y": 0, "x": 1})
    with pytest.raises(PatchSizeError, match="axes 'yx'"):
        StridedPatching(shapes, 4, [1])
    assert StridedPatching(shapes, 4, [6, 4]).n_patches == 3 * 7


# --- The grid of strides --------------------------------------------------------------------


def along(extent: int, size: int, stride: int, edge: str) -> list[int]:
    """First pixels along one axis: every multiple of the stride, until the image is covered."""
    fits = [at for at in range(0, extent, stride) if at + size <= extent]
    if edge == "drop":
        return fits
    if edge == "shift":
        if extent < size:
            return []
        end = fits[-1] + size
        return fits if end == extent else [*fits, extent - size]
    # The first that reaches the end is the last.
    out = [at for at in range(0, extent, stride) if at + size > extent]
    done = bool(fits) and fits[-1] + size == extent
    return fits if done else fits + out[:1]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 8), st.integers(1, 11), st.integers(1, 20)),
        min_size=1,
        max_size=3,
    ),
    edge=st.sampled_from(["drop", "shift", "pad", "shrink"]),
    samples=st.integers(1, 2),
)
def test_strides_equal_brute_force(rows: Any, edge: Any, samples: int) -> None:
    """Below, at and above the patch size, with any chunks and at any border."""
    shape, size, stride, chunks = zip(*rows, strict=True)
    strategy = StridedPatching([(samples, 1, *shape)], size, stride, edge=edge, chunks=[chunks])
    columns = [along(n, p, s, edge) for n, p, s, _ in rows]
    corners = list(itertools.product(*columns))
    if edge == "shift" and any(n < p for n, p, _, _ in rows):
        corners = []
    wanted = []
    for sample, corner in itertools.product(range(samples), corners):
        extent = size
        if edge == "shrink":
            extent = tuple(min(c + p, n) - c for c, p, n in zip(corner, size, shape, strict=True))
        wanted.append((sample, corner, extent))
    specs = [strategy.get_patch_spec(k) for k in range(min(strategy.n_patches, 400))]
    found = {(s["sample_idx"], s["coords"], s["patch_size"]) for s in specs}
    assert strategy.n_patches == len(wanted)
    assert found <= {*wanted}
    assert len(found) == min(len(wanted), 400)


def test_the_stride_of_a_patch_is_the_grid_without_overlap() -> None:
    """By default, and the grid with overlaps is that of their difference."""
    shapes, chunks = [(1, 1, 40, 33)], [(16, 11)]
    for overlaps in ((0, 0), (2, 3)):
        grid = StridedPatching(
            shapes, (8, 7), [8 - overlaps[0], 7 - overlaps[1]], edge="shift", chunks=chunks
        )
        same = SequentialPatching(shapes, (8, 7), overlaps, edge="shift", chunks=chunks)
        assert grid.n_patches == same.n_patches
        assert all(grid.get_patch_spec(k) == same.get_patch_spec(k) for k in range(grid.n_patches))


def coords_of(plan: patchloom.Plan) -> set[tuple[int, ...]]:
    return {plan.get_patch_spec(k)["coords"] for k in range(plan.n_patches)}


def test_a_short_stride_stays_inside_the_image() -> None:
    """Of a stride below the patch size zarrdataset takes patches past the edge: 11 of 36."""
    [image] = patchloom.open_images(da.zeros((100, 100), chunks=64, dtype="u1"))
    config = {"name": "grid", "patch_size": 32, "stride": 16}
    for edge in ("drop", "shift"):
        found = coords_of(patchloom.plan(image, config, edge=edge))
        assert max(max(corner) for corner in found) <= 68
        assert len(found) == {"drop": 25, "shift": 36}[edge]
    padded = patchloom.plan(image, config, edge="pad")
    assert sum(max(corner) + 32 > 100 for corner in coords_of(padded)) == 11


def test_coverage_is_that_of_the_patch() -> None:
    """Not of the cell of the stride: a whole mask covers every patch, half of one covers half."""
    shape = (96, 96)
    config = {"name": "grid", "patch_size": 32, "stride": 16}
    half = np.zeros((6, 6), bool)
    half[:, :3] = True
    for mask in (np.ones((6, 6), bool), half):
        [image] = patchloom.open_images(da.zeros(shape, chunks=50, dtype="u1"), mask=mask)
        for least in (0.25, 0.5, 0.75, 1.0):
            plan = patchloom.plan(image, config, min_coverage=least)
            wanted = {
                corner
                for corner in itertools.product(range(0, 65, 16), repeat=2)
                if oracle.coverage(mask, shape, corner, (32, 32)) >= Fraction(str(least))
            }
            assert coords_of(plan) == wanted
            assert plan.rejected.get("outside the mask", 0) == 25 - len(wanted)


@pytest.mark.parametrize("stride", [3, 8, 11])
def test_wholly_covered_is_not_one_pixel(stride: int) -> None:
    """zarrdataset's min_area=1.0 is one pixel; here 1.0 is all of it, and pixels are counted."""
    rng = np.random.default_rng(0)
    mask = rng.random((40, 44)) < 0.97
    mask[:, 30:] = False
    mask[10, 35] = True
    [image] = patchloom.open_images(np.zeros((40, 44), "u1"), mask=mask)
    config = {"name": "grid", "patch_size": 8, "stride": stride}
    covered = {
        corner: oracle.coverage(mask, mask.shape, corner, (8, 8))
        for corner in itertools.product(*(along(n, 8, stride, "drop") for n in mask.shape))
    }
    for asked, law in (
        ({"min_coverage": 1.0}, lambda share: share == 1),
        ({"min_pixels": 1}, lambda share: share * 64 >= 1),
        ({"min_pixels": 63}, lambda share: share * 64 >= 63),
        ({"min_coverage": 0.1, "min_pixels": 10}, lambda s: s * 10 >= 1 and s * 64 >= 10),
        ({"min_coverage": 0}, lambda _: True),
    ):
        found = coords_of(patchloom.plan(image, config, **asked))
        assert found == {corner for corner, share in covered.items() if law(share)}
    assert any(0 < share < 1 for share in covered.values())


def test_a_forgotten_axis_is_no_slice() -> None:
    """zarrdataset takes it as 1 pixel thick; here it must be said, with spatial_axes."""
    image = volume()
    with pytest.raises(AxesError):
        patchloom.plan(image, {"name": "grid", "patch_size": {"y": 3, "x": 3}})
    config = {"name": "grid", "patch_size": {"y": 3, "x": 3}, "spatial_axes": "yx"}
    plan = patchloom.plan(image, config)
    assert plan.patch_size == (1, 3, 3)
    assert plan.n_patches == 9 * math.prod(n // 3 for n in VOLUME[1:])


def test_plans_do_not_depend_on_the_images_before() -> None:
    """zarrdataset's chunks depended on which image came first."""
    arrays = [da.zeros((64, 64), chunks=c, dtype="u1") for c in (8, 64)]
    config = {"name": "grid", "patch_size": 16, "stride": 12}
    found = []
    for order in ([0, 1], [1, 0], [0], [1]):
        images = patchloom.open_images([arrays[k] for k in order], ids=["ab"[k] for k in order])
        plan = patchloom.plan(images, config)
        for place, k in enumerate(order):
            specs = [plan.get_patch_spec(row) for row in plan.get_patch_indices(place)]
            found.append((k, sorted(spec["coords"] for spec in specs)))
    assert len({(k, *corners) for k, corners in found}) == 2


@pytest.mark.parametrize(
    ("size", "want"),
    [(4, (4, 4)), ([4, 5, 6], (4, 5, 6)), ({"x": 4}, (4,)), ({"Y": 3, "z": 2, "x": 4}, (2, 3, 4))],
)
def test_without_images_the_size_says_the_axes(size: Any, want: tuple[int, ...]) -> None:
    """No image is no mistake: there are no patches of that size."""
    for name in ("sequential", "grid", "random", "blue_noise", "stratified"):
        strategy = create_patching([], {"name": name, "patch_size": size})
        assert (strategy.patch_size, strategy.n_patches) == (want, 0)
    assert StridedPatching([], size).patch_size == want


def test_numbers_of_numpy_are_numbers() -> None:
    """One integer of NumPy is one number, and shapes may be an array."""
    size: Any = np.int32(4)
    shapes: Any = np.array([(1, 1, 9, 9), (1, 1, 8, 9)])
    assert per_axis(size, "zyx", name="patch_size") == [4, 4, 4]
    assert StridedPatching(shapes, size, stride=size).n_patches == 8
    assert create_patching(shapes, {"name": "grid", "patch_size": 4}).n_patches == 8
    for many in (
        StridedPatching,
        lambda s, p: create_patching(s, {"name": "grid", "patch_size": p}),
    ):
        with pytest.raises(PatchSizeError, match="at most 3 spatial axes"):
            many([(1, 1, 9, 9, 9, 9)], 4)
