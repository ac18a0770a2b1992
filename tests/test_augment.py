"""Augmentation: what is drawn, that all that belongs together moves alike, and by how much."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.stats import chi2

from patchloom.errors import ConfigError, PatchSizeError
from patchloom.load.augment import (
    Augment,
    Chain,
    image_random_transform,
    image_stack_random_transform,
    interpolation,
)
from patchloom.load.augment.hooks import FunctionHook
from patchloom.load.augment.numpy_pixels import resampled
from patchloom.load.augment.sampling import Sampling

Pixels = npt.NDArray[Any]
EVERYTHING = Augment(
    flip="yx",
    turn="yx",
    rotation_range=20,
    shift_range=0.1,
    shear_range=10,
    zoom_range=0.2,
    warp_sigma=2,
    crop=(9, 9),
    intensity_shift_range=0.1,
    intensity_scale_range=0.1,
)
DIHEDRAL = Augment(flip="yx", turn="yx")


def coordinates(n: int, *extents: int, dtype: str = "int64") -> Pixels:
    """Patches in which every pixel has a number of its own, from 1 on."""
    one = np.arange(1, np.prod(extents) + 1).reshape(1, 1, *extents)
    return np.repeat(one, n, 0).astype(dtype)


def symmetries(patch: Pixels) -> list[Pixels]:
    """The eight results of turning and mirroring a plane."""
    turned = [np.rot90(patch, k, (-2, -1)) for k in range(4)]
    return turned + [np.flip(one, -1) for one in turned]


def symmetries_3d(patch: Pixels) -> list[Pixels]:
    """The 48 of a cube."""
    return [
        np.flip(patch.transpose(order), axes)
        for order in itertools.permutations(range(3))
        for k in range(4)
        for axes in itertools.combinations(range(3), k)
    ]


def p_value(counts: list[int]) -> float:
    """Of a chi-square test that all are equally likely."""
    mean = sum(counts) / len(counts)
    return float(chi2.sf(sum((c - mean) ** 2 / mean for c in counts), len(counts) - 1))


# -- chance ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment",
    [
        DIHEDRAL,
        Augment(flip="x", turn="yx"),
        Augment(flip="y", turn="yx"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 42, 12345])
def test_eight_outcomes_equally_often(augment: Augment, seed: int) -> None:
    """Of flips and turns together, whichever flip; over positions as over epochs."""
    patch = coordinates(1, 3, 3)
    known = [one.tobytes() for one in symmetries(patch[0, 0])]
    over_positions = augment({"images": patch.repeat(4000, 0)}, np.arange(4000), seed=seed)
    over_epochs = [
        augment({"images": patch}, [3], seed=seed, epoch=e)["images"][0] for e in range(1000)
    ]
    for found in (over_positions["images"], over_epochs):
        counts = Counter(one[0].tobytes() for one in found)
        assert p_value([counts[one] for one in known]) > 0.001
        assert sum(counts[one] for one in known) == len(found)


def test_flips_and_turns_are_independent() -> None:
    """Each alone is even, and so are all pairs; they do not fire together."""
    n = 4000
    flips = Augment(flip="yx").draw(np.arange(n), (4, 4), seed=42)
    turns = Augment(turn="yx").draw(np.arange(n), (4, 4), seed=42)
    pairs = Counter(zip(flips.orientation.tolist(), turns.orientation.tolist(), strict=True))
    assert len(pairs) == 16
    assert p_value([*pairs.values()]) > 0.001


@pytest.mark.parametrize(("flip", "expected"), [("", 24), ("z", 48), ("zyx", 48)])
def test_all_orientations_of_a_cube(flip: str, expected: int) -> None:
    """24 turns; 48 with a flip, equally often."""
    patch = coordinates(1, 2, 2, 2)
    found = Augment(flip=flip, turn="zyx")({"images": patch.repeat(6000, 0)}, range(6000), seed=7)
    counts = Counter(one[0].tobytes() for one in found["images"])
    assert len(counts) == expected
    assert set(counts) <= {one.tobytes() for one in symmetries_3d(patch[0, 0])}
    assert p_value([*counts.values()]) > 0.001


def test_every_offset_of_a_crop_equally_often() -> None:
    """The first and the last one too, along each axis."""
    patch = coordinates(1, 5, 7)
    found = Augment(crop=(3, 4))({"images": patch.repeat(6000, 0)}, range(6000), seed=0)["images"]
    counts = Counter(found[:, 0, 0, 0].tolist())
    corners = [int(patch[0, 0, y, x]) for y in range(3) for x in range(4)]
    assert sorted(counts) == sorted(corners)
    assert p_value([counts[c] for c in corners]) > 0.001
    for one in found[:50, 0]:
        y, x = np.argwhere(patch[0, 0] == one[0, 0])[0]
        assert np.array_equal(one, patch[0, 0, y : y + 3, x : x + 4])


def test_ranges_are_filled_and_kept() -> None:
    """Uniformly, up to the ends."""
    moves = Augment(shift_range={"x": (0.1, 0.3)}, zoom_range={"y": (0.5, 2)}).draw(
        np.arange(4000), (10, 10), seed=0
    )
    assert moves.shift is not None
    assert moves.matrix is not None
    assert (moves.shift[:, 0] == 0).all()
    zoom = 1 / moves.matrix[:, 0, 0]
    for drawn, low, high in [(moves.shift[:, 1] / 10, 0.1, 0.3), (zoom, 0.5, 2)]:
        part = (drawn - low) / (high - low)
        assert 0 <= part.min() < 0.01
        assert 0.99 < part.max() <= 1
        counts, _ = np.histogram(part, 10, (0, 1))
        assert p_value(counts.tolist()) > 0.001


def test_steps_of_a_chain_are_independent() -> None:
    """Two alike do not undo each other, nor always agree."""
    patch = coordinates(1, 1, 2).repeat(2000, 0)
    once = Chain(Augment(flip="x"))({"images": patch}, range(2000), seed=3)["images"]
    twice = Chain(Augment(flip="x"), Augment(flip="x"))({"images": patch}, range(2000), seed=3)
    pairs = Counter(zip(once[:, 0, 0, 0], twice["images"][:, 0, 0, 0], strict=True))
    assert p_value([*pairs.values()]) > 0.001
    assert len(pairs) == 4


# -- addresses ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 1000),
)
def test_a_draw_is_of_its_patch(positions: list[int], seed: int, epoch: int) -> None:
    """Alone, in a batch, in another order: the same bits; the augmentation may be pickled."""
    rng = np.random.default_rng(0)
    n = len(positions)
    batch = {"images": rng.random((n, 2, 13, 13)), "labels": coordinates(n, 13, 13)}
    whole = EVERYTHING(batch, positions, seed=seed, epoch=epoch)
    again = pickle.loads(pickle.dumps(EVERYTHING))
    assert again == EVERYTHING == replace(EVERYTHING)
    assert hash(again) == hash(EVERYTHING)
    for k in range(n):
        one = again({m: a[k : k + 1] for m, a in batch.items()}, positions[k : k + 1],
                    seed=seed, epoch=epoch)  # fmt: skip
        assert all(np.array_equal(one[m][0], whole[m][k]) for m in batch)
    turned = EVERYTHING({m: a[::-1] for m, a in batch.items()}, positions[::-1], seed=seed,
                        epoch=epoch)  # fmt: skip
    assert all(np.array_equal(turned[m][::-1], whole[m]) for m in batch)


def test_seed_epoch_and_draw_change_it() -> None:
    """Each is part of the address; a draw by row is that of a batch."""
    patch = {"images": np.random.default_rng(0).random((4, 1, 13, 13))}
    seen = {
        EVERYTHING(patch, range(4), seed=seed, epoch=epoch, draw=draw)["images"].tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for draw in (0, 1)
    }
    assert len(seen) == 8
    by_row = EVERYTHING(patch, range(4), seed=0, draw=[0, 1, 0, 1])["images"]
    for draw in (0, 1):
        alike = EVERYTHING(patch, range(4), seed=0, draw=draw)["images"]
        assert np.array_equal(by_row[draw::2], alike[draw::2])


def test_draws_stay_as_they_are() -> None:
    """What a seed gives is part of a training run: no release changes it silently."""
    found = DIHEDRAL({"images": coordinates(8, 2, 2)}, range(8), seed=0)["images"]
    rows = [[2, 1], [3, 4], [4, 3], [1, 3], [4, 3], [2, 1], [3, 1], [3, 1]]
    assert found[:, 0, 0].tolist() == rows
    moves = EVERYTHING.draw([5], (13, 13), seed=1)
    assert moves.control is not None
    assert moves.corner.tolist() == [[2, 0]]
    assert moves.control[0, :, 1, 1].round(6).tolist() == [1.566854, -1.281043]


# -- moving alike -----------------------------------------------------------------------------


@st.composite
def augments(draw: st.DrawFn, ndim: int) -> Augment:
    """Of any parameters that fit square patches."""
    z = ["z"] if ndim == 3 else []

    def some(values: list[Any]) -> st.SearchStrategy[Any]:
        return st.sampled_from(values)

    return Augment(
        flip="".join(draw(st.sets(some([*z, "y", "x"])))),
        turn=draw(some(["", "yx"])),
        rotation_range=draw(some([0, 30, {"zy": 10, "yx": 5} if z else 10])),
        shift_range=draw(some([0, 0.2, {"x": (0.1, 0.1)}])),
        shear_range=draw(some([0, 20])),
        zoom_range=draw(some([0, 0.3, (1.5, 2)])),
        zoom_alike=draw(st.booleans()),
        warp_sigma=draw(some([0, 1.5, {"y": 2.0}])),
        warp_grid_size=draw(some([1, 3])),
        crop=draw(some([None, (6, 6)])),
        fill_mode=draw(some(["nearest", "reflect", "constant"])),
        intensity_shift_range=draw(some([0, 5])),
        order=0,
    )


@settings(deadline=None, max_examples=60)
@given(data=st.data(), ndim=st.sampled_from([2, 3]), seed=st.integers(0, 2**32))
def test_images_and_labels_move_alike(data: st.DataObject, ndim: int, seed: int) -> None:
    """A picture of coordinates goes where the labels of the same pixels go, targets as well."""
    augment = data.draw(augments(ndim))
    where = coordinates(3, *[4, 9, 9][-ndim:])
    batch = {
        "images": where.astype("float64"),
        "labels": where.astype("uint16"),
        "mask": where.astype("uint64") + 2**60,
        "targets_a": where.astype("float32"),
    }
    found = augment(batch, [3, 1, 2], seed=seed)
    moves = augment.draw([3, 1, 2], where.shape[2:], seed=seed)
    labels = found["labels"].astype("int64")
    assert np.array_equal(found["targets_a"], labels)
    far = np.where(labels == 0, 0, labels + 2**60)
    assert np.array_equal(found["mask"].astype("int64"), far)
    bias = 0 if moves.bias is None else moves.bias.reshape(3, *[1] * (ndim + 1))
    assert np.allclose(found["images"], labels + bias, rtol=0, atol=1e-9)
    assert {k: a.dtype for k, a in found.items()} == {k: a.dtype for k, a in batch.items()}
    if moves.is_exact and not moves.is_cropped:
        assert np.array_equal(np.sort(labels.reshape(3, -1)), np.sort(where.reshape(3, -1)))


def test_smooth_images_follow_their_labels() -> None:
    """Interpolated coordinates are those of the pixel that a label comes from, up to half a one."""
    y, x = np.indices((24, 24))
    batch = {
        "images": np.stack([y, x])[None].repeat(20, 0).astype("float32"),
        "labels": (y * 24 + x)[None, None].repeat(20, 0),
    }
    augment = Augment(
        flip="yx", turn="yx", rotation_range=45, zoom_range=0.3, shear_range=20, warp_sigma=2,
        shift_range=0.2, crop=(12, 12),
    )  # fmt: skip
    found = augment(batch, range(20), seed=0)
    from_labels = np.concatenate([found["labels"] // 24, found["labels"] % 24], 1)
    assert np.abs(found["images"] - from_labels).max() <= 0.5 + 1e-4


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), ndim=st.sampled_from([2, 3]))
def test_flips_and_turns_are_exact(seed: int, ndim: int) -> None:
    """Of any type and channels: one of NumPy's results, bit for bit."""
    rng = np.random.default_rng(seed)
    shape = (3, 2, *[3, 6, 6][-ndim:])
    raw = rng.integers(0, 2**63, shape, "uint64")
    raw[:, 0, ..., 0, 0] = np.arange(3)
    batch = {"images": raw.view("float64"), "labels": raw, "weights": (raw % 7).astype("uint8")}
    found = Augment(flip="yx", turn="yx")(batch, rng.integers(0, 99, 3), seed=seed)
    for name, array in batch.items():
        for k in range(3):
            assert any(one.tobytes() == found[name][k].tobytes() for one in symmetries(array[k]))


def test_all_kinds_of_orientation_by_hand() -> None:
    """What the record of a draw says is what NumPy does."""
    patch = coordinates(64, 3, 5, 5)
    augment = Augment(flip="zyx", turn="yx")
    moves = augment.draw(range(64), (3, 5, 5), seed=0)
    found = augment({"images": patch}, range(64), seed=0)["images"]
    assert len(moves.kinds) == 16
    for k in range(64):
        kind = moves.kinds[moves.orientation[k]]
        expected = np.flip(patch[k, 0].transpose(kind.order), kind.backward)
        assert np.array_equal(found[k, 0], expected)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(rotation_range=0, zoom_range=(1, 1), warp_sigma={"y": 0}, intensity_scale_range=0),
        Augment(crop=(8, 9)),
    ],
)
def test_nothing_asked_for_is_nothing_done(augment: Augment) -> None:
    """The same bits, NaN and negative zero included."""
    pixels = np.random.default_rng(0).random((2, 3, 8, 9))
    pixels[0, 0, 0, :3] = [np.nan, -0.0, np.inf]
    batch = {"images": pixels, "labels": np.ones((2, 1, 8, 9), bool), "row": np.arange(2)}
    found = augment(batch, [0, 1], seed=0)
    assert all(found[name].tobytes() == array.tobytes() for name, array in batch.items())
    assert list(found) == list(batch)


def test_resampling_by_the_identity_keeps_the_pixels() -> None:
    """Ranges around nothing: all modes, odd and even extents, and warp with points that stay."""
    pixels = np.random.default_rng(0).random((2, 2, 7, 8))
    for mode in ("nearest", "reflect", "constant"):
        augment = Augment(rotation_range=(0, 1e-300), warp_sigma=1e-300, fill_mode=mode, cval=9)
        assert not augment.draw([0], (7, 8), seed=0).is_exact
        found = augment({"images": pixels}, [0, 1], seed=0)["images"]
        assert np.allclose(found, pixels, rtol=0, atol=1e-15)


def test_input_is_left_alone() -> None:
    """Read-only arrays do, and nothing is changed in place."""
    pixels = np.random.default_rng(0).random((3, 1, 13, 13))
    before = pixels.copy()
    pixels.flags.writeable = False
    EVERYTHING({"images": pixels}, range(3), seed=0)
    assert np.array_equal(pixels, before)


# -- by how much ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    order=st.sampled_from([0, 1, 3]),
    mode=st.sampled_from(["nearest", "reflect", "constant"]),
    shape=st.sampled_from([(17, 24), (5, 12, 9)]),
)
def test_affine_parts_are_scipys(seed: int, order: int, mode: str, shape: tuple[int, ...]) -> None:
    """Rotation, shear, zoom and shift, one matrix each about the centre, against SciPy's own."""
    augment = Augment(
        rotation_range=40, shear_range=20, zoom_range=0.3, shift_range=0.2, order=order,
        fill_mode=mode, cval=-3,
    )  # fmt: skip
    pixels = np.random.default_rng(seed).random((1, 1, *shape))
    found = augment({"images": pixels}, [4], seed=seed)["images"][0, 0]

    def alone(**asked: Any) -> Any:
        return Augment(**asked).draw([4], shape, seed=seed)

    angle = np.arccos(alone(rotation_range=40).matrix[0, -1, -1])
    angle *= np.sign(alone(rotation_range=40).matrix[0, -2, -1])
    slide = -alone(shear_range=20).matrix[0, -1, -2]
    zooms = [alone(zoom_range=0.3).matrix[0, k, k] for k in (-2, -1)]
    shift = alone(shift_range=0.2).shift[0]
    plane = (
        np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        @ np.array([[1, 0], [-slide, 1]])
        @ np.diag(zooms)
    )
    assert abs(angle) <= np.deg2rad(40)
    assert abs(slide) <= np.tan(np.deg2rad(20))
    matrix = np.eye(len(shape))
    matrix[-2:, -2:] = plane
    centre = (np.array(shape) - 1) / 2
    expected = scipy.ndimage.affine_transform(
        pixels[0, 0],
        matrix,
        centre - matrix @ (centre + shift),
        order=order,
        mode="grid-constant" if mode == "constant" else mode,
        cval=-3,
    )
    wrong = ~np.isclose(found, expected, rtol=0, atol=1e-9)
    # Halfway between two pixels, either is the nearest.
    assert wrong.sum() <= (2 if order == 0 else 0)


def test_which_way_things_go() -> None:
    """A zoom above 1 enlarges, a positive shift moves on, rotation keeps distances."""
    spot = np.zeros((1, 1, 41, 41))
    spot[0, 0, 20, 30] = 1

    def seen(**asked: Any) -> Any:
        found = Augment(**asked)({"images": spot}, [0], seed=0)["images"][0, 0]
        return np.array(scipy.ndimage.center_of_mass(found)) - 20

    assert seen(zoom_range=(2, 2)) == pytest.approx([0, 20], abs=0.6)
    assert seen(shift_range={"y": (0.1, 0.1)}) == pytest.approx([4.1, 10], abs=0.6)
    assert np.hypot(*seen(rotation_range=(30, 30))) == pytest.approx(10, abs=0.6)
    spot[:] = 0
    spot[0, 0, 30, 20] = 1
    assert seen(shear_range=(45, 45)) == pytest.approx([10, 10], abs=0.6)


def test_spacing_makes_true_angles() -> None:
    """With z four times as thick, a rotation in zx moves by physical distance."""
    spot = np.zeros((1, 1, 21, 3, 81))
    spot[0, 0, 10, 1, 60] = 1
    augment = Augment(rotation_range={"zx": (90, 90)}, spacing=(4, 1, 1))
    found = augment({"images": spot}, [0], seed=0)["images"][0, 0]
    z, y, x = np.array(scipy.ndimage.center_of_mass(found)) - [10, 1, 40]
    assert (abs(z), y, x) == pytest.approx((5, 0, 0), abs=0.01)


@pytest.mark.parametrize("grid_size", [1, 3, 5])
def test_warp_is_a_spline(grid_size: int) -> None:
    """Against SciPy's B-splines: the field, and pixels taken along it."""
    shape, g = (17, 12), grid_size
    augment = Augment(warp_sigma=2, warp_grid_size=g)
    moves = augment.draw([9], shape, seed=3)
    assert moves.control is not None
    control = moves.control[0]
    assert control.shape == (2, g + 3, g + 3)
    assert (control[:, [0, -1]] == 0).all()
    assert (control[:, :, [0, -1]] == 0).all()
    knots = np.arange(-3, g + 4)
    rows = BSpline(knots, control.transpose(1, 0, 2), 3)(np.linspace(0, g, shape[0]))
    shifts = BSpline(knots, rows.transpose(2, 0, 1), 3)(np.linspace(0, g, shape[1]))
    at = np.indices(shape) + shifts.transpose(2, 1, 0)
    pixels = np.random.default_rng(0).random(shape)
    found = augment({"images": pixels[None, None]}, [9], seed=3)["images"][0, 0]
    expected = scipy.ndimage.map_coordinates(pixels, at, order=1, mode="nearest")
    assert np.allclose(found, expected, rtol=0, atol=1e-9)


def test_size_of_a_warp() -> None:
    """Control points are normal, of the standard deviation that was asked for."""
    moves = Augment(warp_sigma={"y": 3.0, "x": 0.5}).draw(np.arange(2000), (8, 8), seed=0)
    assert moves.control is not None
    inner = moves.control[:, :, 1:-1, 1:-1]
    assert inner.std((0, 2, 3)) == pytest.approx([3, 0.5], rel=0.02)
    assert inner.mean((0, 2, 3)) == pytest.approx([0, 0], abs=0.05)
    corr = np.corrcoef(inner[:, 0].ravel(), inner[:, 1].ravel())[0, 1]
    assert abs(corr) < 0.02


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_crop_is_a_part_of_the_whole(seed: int) -> None:
    """Of what rotation and warp make, whatever is interpolated beside it."""
    asked: dict[str, Any] = {"rotation_range": 30, "warp_sigma": 2, "shift_range": 0.2}
    pixels = np.random.default_rng(0).random((3, 2, 20, 15))
    whole = Augment(**asked)({"images": pixels}, range(3), seed=seed)["images"]
    crop = Augment(**asked, crop=(8, 7))
    corner = crop.draw(range(3), (20, 15), seed=seed).corner
    found = crop({"images": pixels}, range(3), seed=seed)["images"]
    for k, (y, x) in enumerate(corner.tolist()):
        assert np.allclose(found[k], whole[k, :, y : y + 8, x : x + 7], rtol=0, atol=1e-9)


def test_one_matrix_interpolates_once() -> None:
    """Turns and flips after an affine step change places only, no values."""
    pixels = np.random.default_rng(0).random((30, 1, 16, 16))
    asked: dict[str, Any] = {"rotation_range": 30, "zoom_range": 0.2}
    plain = Augment(**asked)({"images": pixels}, range(30), seed=0)["images"]
    both = Augment(**asked, flip="yx", turn="yx")({"images": pixels}, range(30), seed=0)["images"]
    for one, turned in zip(plain, both, strict=True):
        assert turned.tobytes() in {s.tobytes() for s in symmetries(one)}


# -- roles and types ----------------------------------------------------------------------------


def test_beyond_the_patch() -> None:
    """Images and labels have constants of their own; what is invented weighs nothing."""
    ones = np.ones((1, 1, 8, 8))
    batch = {"images": ones, "labels": ones.astype(int), "weights": ones, "targets": ones}
    shift = {"x": (0.5, 0.5)}
    found = Augment(shift_range=shift, fill_mode="constant", cval=7, cval_target=9)(
        batch, [0], seed=0
    )
    for name, fill in {"images": 7, "labels": 9, "weights": 0, "targets": 9}.items():
        assert found[name][0, 0, 0].tolist() == [fill] * 4 + [1] * 4
    found = Augment(shift_range=shift)(batch, [0], seed=0)
    assert found["images"].min() == found["labels"].min() == 1
    assert found["weights"][0, 0, 0].tolist() == [0] * 4 + [1] * 4


def test_fill_must_fit_the_type() -> None:
    """A constant that labels cannot hold is an error, not another number."""
    batch = {"images": np.zeros((1, 1, 4, 4)), "labels": np.zeros((1, 1, 4, 4), "uint8")}
    augment = Augment(shift_range=0.5, fill_mode="constant", cval_target=-1)
    with pytest.raises(ConfigError, match="uint8 does not hold -1"):
        augment(batch, [0], seed=0)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float16", "float32"])
def test_types_are_kept(dtype: str) -> None:
    """Whole numbers are rounded to the nearest and stay within their type."""
    pixels = np.random.default_rng(0).integers(0, 100, (2, 1, 13, 13)).astype(dtype)
    found = EVERYTHING({"images": pixels}, [0, 1], seed=0)["images"]
    exact = EVERYTHING({"images": pixels.astype("float64")}, [0, 1], seed=0)["images"]
    assert found.dtype == dtype
    if np.dtype(dtype).kind in "iu":
        # Resampling and grey levels each round.
        assert np.abs(found - exact).max() <= 1.06
    else:
        assert np.allclose(found, exact, rtol=2e-3 if dtype == "float16" else 1e-5)


def test_whole_numbers_do_not_wrap() -> None:
    """Beyond the end of a type is the end."""
    pixels = np.array([0, 100, 255], "uint8").reshape(1, 1, 1, 3)
    for shift, expected in [(50.4, [50, 150, 255]), (-120, [0, 0, 135])]:
        augment = Augment(intensity_shift_range=(shift, shift))
        assert augment({"images": pixels}, [0], seed=0)["images"].ravel().tolist() == expected
    top = np.array([2**63 - 1, -(2**63)]).reshape(1, 1, 1, 2)
    far = Augment(intensity_scale_range=(4, 4))({"images": top}, [0], seed=0)["images"].ravel()
    assert far[0] > 2**62
    assert far[1] < -(2**62)


def test_grey_levels_of_images_only() -> None:
    """Drawn by channel; scaled first, then moved; kept within their range where asked for."""
    pixels = np.random.default_rng(0).random((5, 2, 4, 4), "float32")
    asked: dict[str, Any] = {"intensity_shift_range": 0.5, "intensity_scale_range": (0.5, 2)}
    batch = {"images": pixels, "targets": pixels, "labels": pixels > 0.5, "weights": pixels}
    found = Augment(**asked)(batch, range(5), seed=0)
    assert all(
        np.array_equal(found[name], batch[name]) for name in ("targets", "labels", "weights")
    )
    moves = Augment(**asked).draw(range(5), (4, 4), 2, seed=0)
    assert moves.gain is not None
    assert moves.bias is not None
    expected = pixels * moves.gain[:, :, None, None] + moves.bias[:, :, None, None]
    assert np.allclose(found["images"], expected, atol=1e-6)
    assert len(np.unique(moves.gain)) == len(np.unique(moves.bias)) == 10
    clipped = Augment(**asked, intensity_clip=True)(batch, range(5), seed=0)["images"]
    axes = (1, 2, 3)
    assert (clipped.min(axes) >= pixels.min(axes)).all()
    assert (clipped.max(axes) <= pixels.max(axes)).all()


def test_pixels_that_are_no_number_stay_alone() -> None:
    """They have no grey level, and say nothing of the range of the others."""
    pixels = np.random.default_rng(0).random((3, 1, 4, 4), "float32")
    pixels[0, 0, 1, 1] = np.nan
    augment = Augment(intensity_scale_range=(0.5, 2), intensity_clip=True)
    found = augment({"images": pixels}, range(3), seed=0)["images"]
    assert np.array_equal(np.isnan(found), np.isnan(pixels))
    assert np.nanmax(found[0]) <= np.nanmax(pixels[0])


def test_one_draw_a_plane() -> None:
    """A volume moves as one, or each of its planes by a draw of its own."""
    volume = coordinates(40, 1, 4, 4).repeat(5, 2)
    batch = {"images": volume, "labels": volume[:, :, :, ::-1]}
    whole = DIHEDRAL(batch, range(40), seed=0)
    assert (whole["images"] == whole["images"][:, :, :1]).all()
    apart = Augment(flip="yx", turn="yx", each_plane=True)(batch, range(40), seed=0)
    kinds = {one.tobytes() for one in symmetries(volume[0, 0, 0])}
    seen = {
        plane.tobytes() for plane in np.ascontiguousarray(apart["images"][:, 0]).reshape(-1, 4, 4)
    }
    assert seen == kinds
    assert (apart["images"][:, 0, 0] != apart["images"][:, 0, 1]).any()
    lookup = {
        v: int(volume[0, 0, 0, ::-1].ravel()[k]) for k, v in enumerate(volume[0, 0, 0].ravel())
    }
    assert np.array_equal(np.vectorize(lookup.get)(apart["images"]), apart["labels"])
    alone = Augment(flip="yx", turn="yx", each_plane=True)({"images": volume[:1]}, [0], seed=0)[
        "images"
    ]
    assert np.array_equal(alone[0], apart["images"][0])
    assert alone.shape == (1, 1, 5, 4, 4)
    cut = Augment(crop=(2, 3), each_plane=True)({"images": volume}, range(40), seed=0)["images"]
    assert cut.shape == (40, 1, 5, 2, 3)


def test_context_turns_with_its_patch() -> None:
    """About the common centre; what would need its scale is refused."""
    batch = {"images": coordinates(8, 6, 6), "context_1": coordinates(8, 6, 6) * 10}
    found = Augment(flip="yx", turn="yx", rotation_range=20, order=0)(batch, range(8), seed=0)
    assert np.array_equal(found["images"] * 10, found["context_1"])
    for asked in ({"shift_range": 0.1}, {"warp_sigma": 1}, {"crop": (3, 3)}):
        with pytest.raises(ConfigError, match="context_1"):
            Augment(**asked)(batch, range(8), seed=0)


def test_roles_are_told_or_refused() -> None:
    """An array that may be a picture is never left behind silently."""
    batch = {"images": coordinates(2, 4, 4), "truth": coordinates(2, 4, 4), "row": np.arange(2)}
    with pytest.raises(ConfigError, match=r"roles=\{'truth'"):
        DIHEDRAL(batch, [0, 1], seed=0)
    told = Augment(flip="yx", turn="yx", roles={"truth": "label"})(batch, [0, 1], seed=0)
    assert np.array_equal(told["truth"], told["images"])
    assert told["row"] is batch["row"]
    still = Augment(flip="yx", roles={"truth": "still"})(batch, [0, 1], seed=0)
    assert still["truth"] is batch["truth"]


@pytest.mark.parametrize(
    ("asked", "extents", "says"),
    [
        ({"turn": "yx"}, (8, 9), "same extent"),
        ({"turn": "zyx", "spacing": (2, 1, 1)}, (8, 8, 8), "same spacing"),
        ({"flip": "z"}, (8, 8), "spatial axes 'yx'"),
        ({"crop": (9, 8)}, (8, 8), "lies within its patch"),
        ({"crop": (2, 2, 2)}, (8, 8), "at most one extent"),
        ({"spacing": (1, 1), "flip": "x"}, (8, 8, 8), "spacing="),
    ],
)
def test_patches_that_do_not_fit(
    asked: dict[str, Any], extents: tuple[int, ...], says: str
) -> None:
    """What a patch does not allow is refused with its way out."""
    with pytest.raises(PatchSizeError, match=says):
        Augment(**asked)({"images": coordinates(1, *extents)}, [0], seed=0)


def test_a_square_crop_may_be_turned() -> None:
    """It is the crop that is turned, and its place in the patch stays fair."""
    patch = coordinates(1, 4, 6)
    found = Augment(crop=(4, 4), flip="x", turn="yx")(
        {"images": patch.repeat(3000, 0)}, range(3000), seed=0
    )["images"]
    counts = Counter(one.tobytes() for one in found)
    assert len(counts) == 24
    assert p_value([*counts.values()]) > 0.001


@pytest.mark.parametrize(
    "asked",
    [
        {"flip": "ab"},
        {"flip": "xx"},
        {"turn": "x"},
        {"rotation_range": -1},
        {"rotation_range": {"xy": 1}},
        {"shift_range": {"w": 1}},
        {"shift_range": float("nan")},
        {"shift_range": "1"},
        {"zoom_range": 1},
        {"zoom_range": (0, 2)},
        {"zoom_range": (2, 1)},
        {"shear_range": 90},
        {"warp_sigma": -1},
        {"warp_sigma": {"w": 1}},
        {"warp_grid_size": 0},
        {"crop": (0, 4)},
        {"crop": ()},
        {"order": 2},
        {"fill_mode": "wrap"},
        {"spacing": (0, 1)},
        {"roles": {"a": "picture"}},
        {"each_plane": True, "flip": "z"},
        {"each_plane": True, "rotation_range": {"zx": 3}},
    ],
)
def test_wrong_parameters_are_refused_at_once(asked: dict[str, Any]) -> None:
    """Before there is a batch."""
    with pytest.raises(ConfigError):
        Augment(**asked)


@pytest.mark.parametrize(
    ("images", "positions"),
    [((3, 1, 4, 4), [0, 1]), ((1, 1, 4, 4), [-1]), ((1, 1, 4, 4), [0.5]), ((1, 1, 4, 4), [[0]])],
)
def test_wrong_positions_are_refused(images: tuple[int, ...], positions: Any) -> None:
    """One whole number a patch."""
    with pytest.raises(ConfigError):
        DIHEDRAL({"images": np.zeros(images)}, positions, seed=0)


def test_arrays_of_unequal_shape_are_refused() -> None:
    """They cannot move alike."""
    with pytest.raises(ConfigError, match="same n and space"):
        DIHEDRAL({"images": np.zeros((1, 1, 4, 4)), "labels": np.zeros((1, 1, 8, 8))}, [0], seed=0)


def test_empty_batches() -> None:
    """Of no patches there is nothing to move."""
    batch = {"images": np.zeros((0, 1, 13, 13), "float32"), "labels": np.zeros((0, 1, 13, 13), int)}
    found = EVERYTHING(batch, np.zeros(0, int), seed=0)
    assert {name: a.shape for name, a in found.items()} == {
        "images": (0, 1, 9, 9),
        "labels": (0, 1, 9, 9),
    }


def test_one_dimension() -> None:
    """Signals have the axis x alone."""
    batch = {"images": coordinates(20, 9)}
    found = Augment(flip="x", shift_range={"x": 0.3}, crop=(5,))(batch, range(20), seed=0)
    assert found["images"].shape == (20, 1, 5)


# -- data_tools' functions ----------------------------------------------------------------------


def test_data_tools_functions() -> None:
    """Channel axes anywhere, joint, reproducible; y is y and x is x."""
    x = coordinates(1, 16, 16)[0].astype("float32")
    asked: dict[str, Any] = {
        "rotation_range": 20, "width_shift_range": 0.1, "height_shift_range": 0.1,
        "shear_range": 5, "zoom_range": 0.1, "horizontal_flip": True, "vertical_flip": True,
        "spline_warp": True, "warp_sigma": 1.0, "crop_size": (8, 20), "order": 0,
    }  # fmt: skip
    moved, labels = image_random_transform(x, x.astype("uint16"), **asked, rng=1)
    assert moved.shape == labels.shape == (1, 8, 16)
    assert np.array_equal(moved, labels)
    last = np.moveaxis(x, 0, -1)
    other = image_random_transform(last, last * 2, **asked, rng=1, channel_axis=-1)
    assert np.array_equal(other[0][..., 0], moved[0])
    assert np.array_equal(other[1][..., 0], moved[0] * 2)
    stack = np.stack([x, x, x])[None]
    x_out, y_out = image_stack_random_transform(stack, y=stack + 1, channel_axis=2, **asked, rng=1)
    assert np.array_equal(x_out + 1, y_out)
    assert np.array_equal(x_out[0, 0], moved)
    assert not np.array_equal(x_out[0, 0], x_out[0, 1])
    alike = image_stack_random_transform(stack, channel_axis=2, one_draw=True, **asked, rng=1)
    assert (alike == alike[:, :1]).all()
    front = image_stack_random_transform(
        np.moveaxis(stack, 2, 0), y=np.moveaxis(stack, 2, 0) + 1, channel_axis=0, **asked, rng=1
    )
    assert np.array_equal(front[0], np.moveaxis(x_out, 2, 0))
    assert np.array_equal(front[1], np.moveaxis(y_out, 2, 0))


def test_data_tools_generators() -> None:
    """A generator gives another draw each time; none at all is an error that says what to do."""
    x = coordinates(1, 16, 16)[0]
    for make in (np.random.default_rng, np.random.RandomState):
        one, other = make(0), make(0)
        first = [image_random_transform(x, horizontal_flip=True, vertical_flip=True, rng=one)
                 for _ in range(20)]  # fmt: skip
        again = [image_random_transform(x, horizontal_flip=True, vertical_flip=True, rng=other)
                 for _ in range(20)]  # fmt: skip
        assert np.array_equal(first, again)
        assert len({a.tobytes() for a in first}) == 4
    with pytest.raises(ConfigError, match="rng="):
        image_random_transform(x, horizontal_flip=True)
    assert np.array_equal(image_random_transform(x), x)


def test_data_tools_grey_levels_and_mistakes() -> None:
    """Within the range of the image; shapes that differ, and too few axes, are refused."""
    x = np.random.default_rng(0).random((2, 8, 8), "float32")
    moved = image_random_transform(x, intensity_shift_range=0.5, rng=0)
    assert x.min() <= moved.min() < moved.max() <= x.max()
    with pytest.raises(ConfigError, match="same shape"):
        image_random_transform(x, x[:, :4], horizontal_flip=True, rng=0)
    with pytest.raises(ConfigError, match="image_stack_random_transform"):
        image_random_transform(x[None], horizontal_flip=True, rng=0)


# -- a function of one's own ----------------------------------------------------------------------


def test_a_function_of_ones_own() -> None:
    """It is called patch by patch, labels keep their type, and its chance has our address."""

    def mirror(patch: dict[str, Pixels], rng: np.random.Generator) -> dict[str, Pixels]:
        backward = rng.random() < 0.5
        return {k: a[..., ::-1] if backward else a for k, a in patch.items()}

    hook = FunctionHook(mirror)
    batch = {"images": coordinates(50, 1, 3) / 3, "labels": coordinates(50, 1, 3) + 2**60}
    found = hook(batch, range(50), seed=0)
    assert np.array_equal(found["labels"] - 2**60, np.rint(found["images"] * 3))
    assert found["labels"].dtype == np.int64
    assert 10 < (found["images"][:, 0, 0, 0] > 0.5).sum() < 40
    back = hook({k: a[::-1] for k, a in batch.items()}, range(49, -1, -1), seed=0)
    assert all(np.array_equal(back[k][::-1], found[k]) for k in found)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float32", "float64"])
@pytest.mark.parametrize("held", ["uint8", "int8", "int32", "uint32"])
def test_what_a_function_gives_does_not_wrap(held: str, kind: str) -> None:
    """Beyond the type of the images it is its end, of whole numbers too."""
    info = np.iinfo(held)
    for value in (2**40, 5 if kind == "uint64" else -(2**40)):
        given = np.full((1, 1, 2), value, kind)
        hook = FunctionHook(lambda patch, rng, given=given: {"images": given})
        found = hook({"images": np.ones((1, 1, 1, 2), held)}, [0], seed=0)["images"]
        assert found.dtype == held
        assert (found == np.clip(value, info.min, info.max)).all()


def test_a_function_is_not_called_for_no_patches() -> None:
    batch = {"images": np.zeros((0, 1, 2, 2), "u1")}
    found = FunctionHook(lambda patch, rng: 1 / 0)(batch, [], seed=0)
    assert found["images"].shape == (0, 1, 2, 2)


def test_a_function_that_mixes_labels_is_refused() -> None:
    """Values between labels are nobody's labels; nor are patches of different shapes a batch."""
    batch = {"images": coordinates(2, 2, 2), "labels": coordinates(2, 2, 2)}
    with pytest.raises(ConfigError, match="between labels"):
        FunctionHook(lambda patch, rng: {k: a / 2 for k, a in patch.items()})(batch, [0, 1], seed=0)
    sizes = iter([1, 2])

    def cut(patch: dict[str, Pixels], rng: Any) -> dict[str, Pixels]:
        size = next(sizes)
        return {k: a[..., :size] for k, a in patch.items()}

    with pytest.raises(ConfigError, match="one shape"):
        FunctionHook(cut)(batch, [0, 1], seed=0)


@pytest.mark.skipif(find_spec("numba") is None, reason="the extra fast is not installed")
@settings(deadline=None, max_examples=60)
@given(data=st.data(), ndim=st.sampled_from([2, 3]), seed=st.integers(0, 2**32))
def test_compiled_is_the_same_to_the_last_bit(data: st.DataObject, ndim: int, seed: int) -> None:
    """What numba interpolates, NumPy does too."""
    augment = replace(data.draw(augments(ndim)), order=1, cval=0.3, zoom_range=(0.3, 2))
    rng = np.random.default_rng(seed)
    shape = (3, 2, *[4, 9, 9][-ndim:])
    batch = {
        "images": rng.random(shape, "float32"),
        "targets": rng.random(shape),
        "targets_whole": rng.integers(0, 2**16, shape, "uint16"),
        "labels": rng.integers(0, 2**63, shape),
        "weights": rng.random(shape).astype("float16"),
    }
    compiled = import_module("patchloom.load.augment.compiled")
    found = []
    for module in (None, compiled):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interpolation.kernels, "after", lambda n, module=module: module)
            found.append(augment(batch, [3, 1, 2], seed=seed))
    for name in batch:
        assert found[0][name].tobytes() == found[1][name].tobytes(), name


def test_numba_is_not_imported_before_it_pays() -> None:
    """A process that moves few patches does not pay for it."""
    program = (
        "import sys, numpy as np\n"
        "from patchloom.load.augment import Augment, interpolation\n"
        "augment = Augment(rotation_range=5)\n"
        "augment({'images': np.zeros((2, 1, 64, 64))}, [0, 1], seed=0)\n"
        "early = 'numba' in sys.modules\n"
        "interpolation.kernels.patience = 0\n"
        "augment({'images': np.zeros((2, 1, 64, 64))}, [0, 1], seed=0)\n"
        "print(early, 'numba' in sys.modules, 'torch' in sys.modules, 'dask' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", str(find_spec("numba") is not None), "False", "False"]


def test_sampling_far_beyond_the_patch() -> None:
    """The nearest pixel is SciPy's, in every mode, however far out."""
    augment = Augment(zoom_range=(0.05, 0.05), rotation_range=(0.1, 0.1), order=0, cval=7)
    pixels = coordinates(1, 6, 5)
    moves = augment.draw([0], (6, 5), seed=0)
    matrix, offset = moves.linear
    for mode in ("nearest", "reflect", "constant"):
        (found,) = resampled([(pixels, Sampling(0, mode, 7))], moves)
        expected = scipy.ndimage.affine_transform(
            pixels[0, 0], matrix[0], offset[0], order=0, cval=7,
            mode="grid-constant" if mode == "constant" else mode,
        )  # fmt: skip
        assert np.array_equal(found[0, 0], expected)
